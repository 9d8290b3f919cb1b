//! One spelling for each endpoint, so that two spellings of one runtime are seen to be one.

use std::fs;
use std::path::{Path, PathBuf};

use super::Endpoint;

/// How many links of a chain are followed, as the kernel does (`path_resolution(7)`).
const MAX_LINKS: usize = 40;

impl Endpoint {
    /// Returns the canonical form: a path without symlinks, the host in lower case, the port given.
    ///
    /// It looks at the file system. A socket need not be there, as while its runtime is down: the directories
    /// above it are resolved as far as they exist, and a link that leads to what is missing is followed.
    /// `/var/run` is taken for `/run` wherever nothing else is known.
    pub fn canonical(&self) -> String {
        match self {
            Self::Unix(path) => format!("unix://{}", canonical_path(path).display()),
            Self::Tcp { host, port, .. } => format!("tcp://{}:{port}", host.to_ascii_lowercase()),
            Self::Vsock { cid, port } => format!("vsock://{cid}:{port}"),
        }
    }
}

fn canonical_path(path: &Path) -> PathBuf {
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        if let Ok(real) = fs::canonicalize(&path) {
            return real;
        }
        let Ok(target) = fs::read_link(&path) else { break };
        path = path.parent().unwrap_or(Path::new("/")).join(target);
    }
    // What exists of the directories is resolved, the rest is taken as it is written.
    let missing = path.ancestors().find_map(|above| {
        let real = fs::canonicalize(above).ok()?;
        Some(real.join(path.strip_prefix(above).ok()?))
    });
    let path: PathBuf = missing.unwrap_or(path).components().collect();
    path.strip_prefix("/var/run").map(|rest| Path::new("/run").join(rest)).unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unix(path: &Path) -> String {
        Endpoint::Unix(path.to_owned()).canonical()
    }

    #[test]
    fn two_spellings_of_a_socket_are_one_whether_or_not_it_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let real = fs::canonicalize(dir.path()).unwrap();
        std::os::unix::fs::symlink(&real, dir.path().join("linked")).unwrap();
        std::os::unix::fs::symlink("a.sock", dir.path().join("link.sock")).unwrap();
        let expected = format!("unix://{}/a.sock", real.display());
        for there in [false, true] {
            if there {
                fs::write(real.join("a.sock"), []).unwrap();
            }
            for spelling in ["a.sock", "./a.sock", "linked/a.sock", "link.sock", "linked/link.sock"] {
                assert_eq!(unix(&dir.path().join(spelling)), expected, "{spelling}, there: {there}");
            }
        }
        assert_ne!(unix(&dir.path().join("b.sock")), expected);
    }

    #[test]
    fn the_old_name_of_run_is_run() {
        assert_eq!(unix(Path::new("/var/run/nowhere/x.sock")), unix(Path::new("/run/nowhere/x.sock")));
    }

    #[test]
    fn hosts_are_told_apart_without_their_case() {
        let tcp = |host: &str, tls| Endpoint::Tcp { host: host.into(), port: 10010, tls }.canonical();
        assert_eq!(tcp("Node-7.Example", true), tcp("node-7.example", false));
        assert_eq!(tcp("Node-7.Example", true), "tcp://node-7.example:10010");
    }
}
