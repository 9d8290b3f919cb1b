//! Starts the backends and the contenders, each with a configuration that is fair to it.
//!
//! All listen on Unix sockets and serve with one thread. What is tuned is said beside the setting; settings
//! that make no measurable difference here are left at their defaults.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use prost::Message as _;
use testkit::cri;

use crate::client::{Client, Target, framed};
use crate::process::Process;

/// How long a contender may take until it serves.
const START: Duration = Duration::from_secs(20);

/// Where everything is.
#[derive(Debug)]
pub(crate) struct World {
    /// For sockets, configurations, state and logs.
    pub(crate) dir: PathBuf,
    /// The crimux to measure.
    pub(crate) crimux: PathBuf,
    testkit: PathBuf,
    /// Other versions of it, which are measured too.
    pub(crate) versions: Vec<Version>,
    /// What goes before the command line of crimux.
    pub(crate) wrap: RefCell<Vec<String>>,
    started: RefCell<usize>,
}

/// Another version of crimux.
#[derive(Debug, Clone)]
pub(crate) struct Version {
    /// Its name in tables.
    pub(crate) name: String,
    /// Its program.
    pub(crate) program: PathBuf,
}

/// Reads `NAME=FILE`.
pub(crate) fn parse_version(argument: &str) -> Result<Version> {
    let (name, program) = argument.split_once('=').context("it is not NAME=FILE")?;
    Ok(Version { name: name.to_owned(), program: program.into() })
}

/// A backend, or a proxy in front of some.
#[derive(Debug)]
pub(crate) struct Contender {
    /// Its name in tables.
    pub(crate) name: String,
    /// Where it listens.
    pub(crate) socket: PathBuf,
    /// Its process.
    pub(crate) process: Process,
}

/// What a simulated runtime has at the start.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Stock {
    /// Sandboxes.
    pub(crate) sandboxes: usize,
    /// Containers, spread over them.
    pub(crate) containers: usize,
    /// Whether it streams events.
    pub(crate) events: bool,
    /// Whether each list begins with another item.
    pub(crate) rotates: bool,
}

impl Stock {
    /// Returns a stock of a runtime without events, whose lists have one order.
    pub(crate) const fn of(sandboxes: usize, containers: usize) -> Self {
        Self { sandboxes, containers, events: false, rotates: false }
    }
}

impl World {
    pub(crate) fn new(dir: &Path, crimux: &Path, testkit: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            crimux: crimux.to_owned(),
            testkit: testkit.to_owned(),
            versions: Vec::new(),
            wrap: RefCell::default(),
            started: RefCell::default(),
        }
    }

    /// Starts a simulated runtime; it is the contender `direct`.
    pub(crate) async fn backend(&self, stock: Stock) -> Result<Contender> {
        let number = self.number();
        let socket = self.dir.join(format!("b{number}.sock"));
        let mut command = Command::new(&self.testkit);
        command.args(["runtime", "--no-record", "--listen", &format!("unix://{}", socket.display())]);
        command.args(["--sandboxes", &stock.sandboxes.to_string()]);
        command.args(["--containers", &stock.containers.to_string()]);
        command.args(stock.events.then_some("--events"));
        command.args(stock.rotates.then_some("--rotate-lists"));
        let process = Process::start(&self.dir, &format!("backend-{number}"), &mut command)?;
        let mut backend = Contender { name: "direct".to_owned(), socket, process };
        backend.wait(stock.containers).await.context("a simulated runtime does not serve")?;
        Ok(backend)
    }

    /// Starts backends that have `stock` in all.
    pub(crate) async fn backends(&self, count: usize, stock: Stock) -> Result<Vec<Contender>> {
        let share = |total: usize, place: usize| total / count + usize::from(place < total % count);
        let mut backends = Vec::with_capacity(count);
        for place in 0..count {
            let sandboxes = share(stock.sandboxes, place);
            let containers = share(stock.containers, place);
            backends.push(self.backend(Stock { sandboxes, containers, ..stock }).await?);
        }
        Ok(backends)
    }

    /// Starts crimux in front of `backends`, which have so many containers in all.
    pub(crate) async fn crimux(&self, backends: &[Contender], containers: usize) -> Result<Contender> {
        let own = Version { name: "crimux".to_owned(), program: self.crimux.clone() };
        self.version(&own, backends, containers).await
    }

    async fn version(
        &self,
        version: &Version,
        backends: &[Contender],
        containers: usize,
    ) -> Result<Contender> {
        let (dir, socket) = self.crimux_directory(backends)?;
        let process = self.start(&version.program, &dir)?;
        let mut crimux = Contender { name: version.name.clone(), socket, process };
        crimux.wait(containers).await.context("crimux does not serve")?;
        Ok(crimux)
    }

    /// Makes a directory with a configuration for crimux, and names its socket.
    pub(crate) fn crimux_directory(&self, backends: &[Contender]) -> Result<(PathBuf, PathBuf)> {
        let dir = self.dir.join(format!("x{}", self.number()));
        std::fs::create_dir(&dir)?;
        let socket = dir.join("crimux.sock");
        std::fs::write(dir.join("crimux.yaml"), crimux_yaml(&dir, &socket, backends)?)?;
        Ok((dir, socket))
    }

    /// Starts crimux on such a directory; does not wait.
    pub(crate) fn start_crimux(&self, dir: &Path) -> Result<Process> {
        self.start(&self.crimux, dir)
    }

    fn start(&self, program: &Path, dir: &Path) -> Result<Process> {
        let wrap = self.wrap.borrow();
        let mut words = wrap.iter().map(std::ffi::OsString::from).collect::<Vec<_>>();
        words.extend([program.into(), "serve".into(), "--config".into()]);
        words.push(dir.join("crimux.yaml").into());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        Process::start(&self.dir, "crimux", &mut command)
    }

    /// Starts the other versions, and the general proxies that are installed, in front of one backend; says
    /// loudly which are missing.
    pub(crate) async fn peers(&self, backend: &Contender, containers: usize) -> Vec<Contender> {
        let mut peers = Vec::new();
        for version in &self.versions {
            match self.version(version, std::slice::from_ref(backend), containers).await {
                Ok(peer) => peers.push(peer),
                Err(error) => eprintln!("bench: {} IS LEFT OUT: {error:#}", version.name),
            }
        }
        for (name, start) in [("nginx", Self::nginx as PeerStart), ("haproxy", Self::haproxy)] {
            let started = match start(self, backend) {
                Ok(mut peer) => peer.wait(containers).await.map(|()| peer),
                Err(error) => Err(error),
            };
            match started {
                Ok(peer) => peers.push(peer),
                Err(error) => eprintln!("bench: {name} IS LEFT OUT: {error:#}"),
            }
        }
        peers
    }

    fn nginx(&self, backend: &Contender) -> Result<Contender> {
        let program = find("nginx").context("it is not installed (apt-get install nginx)")?;
        let dir = self.dir.join(format!("n{}", self.number()));
        std::fs::create_dir(&dir)?;
        let socket = dir.join("nginx.sock");
        let text = include_str!("nginx.conf")
            .replace("@DIR@", &dir.display().to_string())
            .replace("@SOCKET@", &socket.display().to_string())
            .replace("@BACKEND@", &backend.socket.display().to_string());
        std::fs::write(dir.join("nginx.conf"), text)?;
        let mut command = Command::new(program);
        command.args(["-e", "stderr", "-p"]).arg(&dir).arg("-c").arg(dir.join("nginx.conf"));
        let process = Process::start(&self.dir, "nginx", &mut command)?;
        Ok(Contender { name: "nginx".to_owned(), socket, process })
    }

    fn haproxy(&self, backend: &Contender) -> Result<Contender> {
        let program = find("haproxy").context("it is not installed (apt-get install haproxy)")?;
        let number = self.number();
        let socket = self.dir.join(format!("h{number}.sock"));
        let text = include_str!("haproxy.cfg")
            .replace("@SOCKET@", &socket.display().to_string())
            .replace("@BACKEND@", &backend.socket.display().to_string());
        let file = self.dir.join(format!("h{number}.cfg"));
        std::fs::write(&file, text)?;
        let process =
            Process::start(&self.dir, "haproxy", Command::new(program).arg("-db").arg("-f").arg(file))?;
        Ok(Contender { name: "haproxy".to_owned(), socket, process })
    }

    fn number(&self) -> usize {
        let mut started = self.started.borrow_mut();
        *started += 1;
        *started
    }
}

type PeerStart = fn(&World, &Contender) -> Result<Contender>;

impl Contender {
    /// Connects to it once it lists so many containers.
    pub(crate) async fn connect_listing(&mut self, containers: usize) -> Result<Client> {
        self.wait(containers).await?;
        Client::connect(&self.socket).await
    }

    /// Waits until it lists so many containers.
    async fn wait(&mut self, containers: usize) -> Result<()> {
        let started = Instant::now();
        loop {
            self.process.check()?;
            match list(&self.socket).await {
                Ok(listed) if listed == containers => return Ok(()),
                other if started.elapsed() > START => {
                    let listed = other?;
                    ensure!(listed == containers, "it lists {listed} containers of {containers}");
                }
                _ => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    }
}

async fn list(socket: &Path) -> Result<usize> {
    let client = Client::connect(socket).await?;
    let request = framed(&cri::ListContainersRequest::default());
    let reply = client.fetch(&Target::runtime("ListContainers"), request).await?;
    Ok(cri::ListContainersResponse::decode(reply)?.containers.len())
}

fn crimux_yaml(dir: &Path, socket: &Path, backends: &[Contender]) -> Result<String> {
    let (at, socket) = (dir.display(), socket.display());
    let mut yaml = format!("listen: unix://{socket}\nlisten_owner: self\nstate_dir: {at}/state\n");
    writeln!(yaml, "admin: {{ socket: {at}/admin.sock, http: off }}\ndefault_backend: b0\nbackends:")?;
    for (place, backend) in backends.iter().enumerate() {
        writeln!(yaml, "  b{place}: {{ endpoint: \"unix://{}\" }}", backend.socket.display())?;
    }
    yaml.push_str("handlers:\n  runc: { backend: b0, handler: runc }\n");
    Ok(yaml)
}

/// Finds a program as a shell of root would: Debian keeps daemons in /usr/sbin.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(usual).map(|dir| dir.join(program)).find(|file| file.is_file())
}
