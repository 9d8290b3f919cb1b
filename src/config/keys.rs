//! Every key of the configuration file: its type, default and meaning, as data.
//!
//! One table feeds the reader (known keys, defaults, limits), the reference in `docs/configuration.md`, the
//! JSON schema for editors and the test of `config.example.yaml`, so that none of them can drift from the
//! others. It holds no logic about what a value means; that is `values.rs`.

use ValueKind::{
    Address, Backend, Boolean, Directory, Duration, Endpoint, File, Filter, HostPort, Integer, List, Mode,
    Named, OneOf, Owner, Ratio, Section, Socket, Text, Url,
};
pub use table::KEYS;

mod table;

/// One row of the table.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Key {
    /// The key from the top. `*` stands for a name that the operator chooses, `[]` for an item of a list.
    pub path: &'static str,
    /// What its value looks like.
    pub kind: ValueKind,
    /// What holds without it.
    pub default: DefaultValue,
    /// What it means, its unit, and when to change it.
    pub about: &'static str,
}

/// The type of a value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ValueKind {
    /// A mapping of the keys below it.
    Section,
    /// A mapping from names that the operator chooses to sections.
    Named,
    /// A list of sections.
    List,
    /// Any text.
    Text,
    /// A name under `backends`.
    Backend,
    /// `true` or `false`.
    Boolean,
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// A whole number.
    Integer {
        /// The smallest that is accepted.
        min: u32,
        /// The largest that is accepted.
        max: u32,
    },
    /// A number from 0 to 1.
    Ratio,
    /// Such as `1m30s`, above zero.
    Duration {
        /// The longest that is accepted.
        max: &'static str,
        /// Why no longer one is; empty if that needs no saying.
        why: &'static str,
    },
    /// Permission bits in octal.
    Mode,
    /// `user:group`, or `self`.
    Owner,
    /// A Unix socket that crimux listens on.
    Socket,
    /// A backend's address.
    Endpoint,
    /// An absolute path of a directory.
    Directory,
    /// A path of a file, relative to the directory of the configuration file.
    File,
    /// `IP:PORT`, or `off`.
    Address,
    /// `HOST:PORT`.
    HostPort,
    /// `http://HOST:PORT` or `https://HOST:PORT`, or `off`.
    Url,
    /// Log levels, also per target.
    Filter,
}

/// What holds where a key is not given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DefaultValue {
    /// Nothing: the key must be given wherever its section is.
    Required,
    /// This value, as it would be written in the file.
    Is(&'static str),
    /// Something that no single value can say; the text tells what.
    Derived(&'static str),
}

impl ValueKind {
    /// What a value must look like, in words that complete "expected …".
    pub fn shape(self) -> String {
        match self {
            Section => "a mapping of keys".into(),
            Named => "a mapping of names".into(),
            List => "a list".into(),
            Text => "text".into(),
            Backend => "a name under backends".into(),
            Boolean => "true or false".into(),
            OneOf(words) => words.join(" or "),
            Integer { min, max } => format!("a whole number from {min} to {max}"),
            Ratio => "a number from 0 to 1".into(),
            Duration { max, .. } => format!("a duration such as 500ms, 1s or 1m30s, at most {max}"),
            Mode => "permission bits in octal, such as \"0660\"".into(),
            Owner => "USER:GROUP by name or number, or self".into(),
            Socket => "unix:///PATH or an absolute path".into(),
            Endpoint => "unix:///PATH, https://HOST:PORT, http://HOST:PORT or vsock://CID:PORT".into(),
            Directory => "an absolute path".into(),
            File => "a path of a file".into(),
            Address => "IP:PORT, or off".into(),
            HostPort => "HOST:PORT".into(),
            Url => "http://HOST:PORT or https://HOST:PORT, or off".into(),
            Filter => {
                "a level (error, warn, info, debug, trace, off), or TARGET=LEVEL, separated by commas".into()
            }
        }
    }
}

impl Key {
    /// The path of the section that holds this key; empty for a key at the top.
    pub fn parent(&self) -> &'static str {
        match self.path.strip_suffix("[]") {
            Some(list) => list,
            None => self.path.rsplit_once('.').map_or("", |(parent, _)| parent),
        }
    }

    /// The key's own name, without the sections around it.
    pub fn name(&self) -> &'static str {
        self.path.rsplit_once('.').map_or(self.path, |(_, name)| name)
    }
}

/// The row of the key at `path`.
pub fn find(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.path == path)
}

/// The rows right below the section at `path`, in the order of the table.
pub fn below(path: &str) -> impl Iterator<Item = &'static Key> {
    KEYS.iter().filter(move |key| key.parent() == path)
}

/// The path of `name` below `path`. A name that could be misread in a path is quoted.
pub fn child_path(path: &str, name: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '*');
    let name = match name.chars().count() {
        1..=63 if name.chars().all(plain) => name.to_owned(),
        0..=63 => format!("{name:?}"),
        _ => format!("{:?}…", name.chars().take(60).collect::<String>()),
    };
    if path.is_empty() { name } else { format!("{path}.{name}") }
}
