//! Who a backend is: an instance with an identifier of its own, wherever it is and whatever it is called.
//!
//! Everything that is remembered belongs to an instance. The name in the configuration is a label, which an
//! edit of the file may change; the endpoint says where the runtime answers, and may change too. So both are
//! saved with the instance, and `plan.rs` decides which instance a name in a new file means. `life.rs` says
//! where an instance stands in its life.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use prost::Message;

use super::life::Life;
use crate::config::{BackendConfig, Endpoint, ImageHandler, RelayMode, Streaming, Timeouts, Tls};

/// The identifier of an instance: unique within one `state_dir`, never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceId(pub u64);

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Who a backend is.
#[derive(Debug, Clone, PartialEq)]
pub struct Instance {
    /// Its identifier.
    pub id: InstanceId,
    /// Its label: the name in the configuration, or, of a removed one whose name was given away, `NAME@ID`.
    pub name: String,
    /// Its endpoint in canonical form (see [`Endpoint::canonical`]); empty if no version of crimux saved it.
    pub endpoint: String,
    /// Where it stands in its life.
    pub life: Life,
    /// The instance whose name this one took with another endpoint, until their lists tell whether they are
    /// one.
    pub maybe_moved_from: Option<InstanceId>,
    /// How it was last reached; a removed one is no longer in the file.
    pub config: Option<BackendConfig>,
}

impl Instance {
    /// Makes a configured instance of which only the name is known.
    pub(super) fn with_name(id: u64, name: &str) -> Self {
        Self {
            id: InstanceId(id),
            name: name.to_owned(),
            endpoint: String::new(),
            life: Life::Member,
            maybe_moved_from: None,
            config: None,
        }
    }

    pub(super) fn save(&self) -> SavedInstance {
        SavedInstance {
            id: self.id.0,
            name: self.name.clone(),
            endpoint: self.endpoint.clone(),
            life: match self.life {
                Life::Member => 0,
                Life::Joining => 1,
                Life::Removed => 2,
            },
            maybe_moved_from: self.maybe_moved_from.map_or(0, |id| id.0),
            config: self.config.as_ref().map(SavedConfig::new),
        }
    }

    pub(super) fn load(saved: SavedInstance) -> Self {
        Self {
            id: InstanceId(saved.id),
            name: saved.name,
            endpoint: saved.endpoint,
            life: match saved.life {
                1 => Life::Joining,
                2 => Life::Removed,
                _ => Life::Member,
            },
            maybe_moved_from: Some(saved.maybe_moved_from).filter(|id| *id != 0).map(InstanceId),
            config: saved.config.map(SavedConfig::config),
        }
    }
}

/// An instance as it is saved.
#[derive(Clone, PartialEq, Message)]
pub(super) struct SavedInstance {
    #[prost(uint64, tag = "1")]
    pub(super) id: u64,
    #[prost(string, tag = "2")]
    pub(super) name: String,
    #[prost(string, tag = "3")]
    pub(super) endpoint: String,
    /// 0 member, 1 joining, 2 removed.
    #[prost(uint32, tag = "4")]
    pub(super) life: u32,
    /// Zero for none.
    #[prost(uint64, tag = "5")]
    pub(super) maybe_moved_from: u64,
    #[prost(message, optional, tag = "6")]
    pub(super) config: Option<SavedConfig>,
}

/// What is needed to reach a backend that the file no longer names.
#[derive(Clone, PartialEq, Message)]
#[allow(clippy::struct_excessive_bools, reason = "as the configuration has them")]
pub(super) struct SavedConfig {
    #[prost(string, optional, tag = "1")]
    unix: Option<String>,
    #[prost(string, optional, tag = "2")]
    host: Option<String>,
    #[prost(uint32, tag = "3")]
    port: u32,
    #[prost(bool, tag = "4")]
    https: bool,
    #[prost(uint32, tag = "5")]
    cid: u32,
    #[prost(bool, tag = "6")]
    local: bool,
    /// Connect, list, read, stats, `runtime_config` and `remove_image`, in milliseconds.
    #[prost(uint64, repeated, tag = "7")]
    timeouts: Vec<u64>,
    #[prost(string, optional, tag = "8")]
    ca: Option<String>,
    #[prost(string, optional, tag = "9")]
    cert: Option<String>,
    #[prost(string, optional, tag = "10")]
    key: Option<String>,
    #[prost(string, optional, tag = "11")]
    server_name: Option<String>,
    /// 0 auto, 1 always, 2 never.
    #[prost(uint32, tag = "12")]
    relay: u32,
    #[prost(string, optional, tag = "13")]
    streaming_host: Option<String>,
    #[prost(uint32, tag = "14")]
    streaming_port: u32,
    #[prost(bool, tag = "15")]
    streaming_tls: bool,
    #[prost(uint64, tag = "16")]
    max_in_flight: u64,
    #[prost(bool, tag = "17")]
    image_handler_never: bool,
    /// In bytes.
    #[prost(uint64, tag = "18")]
    max_list: u64,
}

impl SavedConfig {
    fn new(config: &BackendConfig) -> Self {
        let text = |path: &PathBuf| path.to_string_lossy().into_owned();
        let mut saved = Self {
            local: config.local,
            max_in_flight: config.max_in_flight as u64,
            max_list: config.max_list as u64,
            image_handler_never: config.image_handler == ImageHandler::Never,
            relay: match config.streaming.relay {
                RelayMode::Auto => 0,
                RelayMode::Always => 1,
                RelayMode::Never => 2,
            },
            streaming_tls: config.streaming.tls,
            ..Self::default()
        };
        match &config.endpoint {
            Endpoint::Unix(path) => saved.unix = Some(text(path)),
            Endpoint::Tcp { host, port, tls } => {
                (saved.host, saved.port, saved.https) = (Some(host.clone()), u32::from(*port), *tls);
            }
            Endpoint::Vsock { cid, port } => (saved.cid, saved.port) = (*cid, *port),
        }
        let Timeouts { connect, list, read, stats, runtime_config, remove_image } = config.timeouts;
        let millis = |wait: Duration| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        saved.timeouts = [connect, list, read, stats, runtime_config, remove_image].map(millis).to_vec();
        if let Some(tls) = &config.tls {
            saved.ca = Some(text(&tls.ca));
            saved.cert = tls.cert.as_ref().map(text);
            saved.key = tls.key.as_ref().map(text);
            saved.server_name.clone_from(&tls.server_name);
        }
        if let Some((host, port)) = &config.streaming.address {
            (saved.streaming_host, saved.streaming_port) = (Some(host.clone()), u32::from(*port));
        }
        saved
    }

    fn config(self) -> BackendConfig {
        let port = |port: u32| u16::try_from(port).unwrap_or(0);
        let endpoint = match (self.unix, self.host) {
            (Some(path), _) => Endpoint::Unix(path.into()),
            (None, Some(host)) => Endpoint::Tcp { host, port: port(self.port), tls: self.https },
            (None, None) => Endpoint::Vsock { cid: self.cid, port: self.port },
        };
        let default = Timeouts::default();
        let wait =
            |at: usize, default| self.timeouts.get(at).map_or(default, |ms| Duration::from_millis(*ms));
        BackendConfig {
            endpoint,
            socket: None,
            required: false,
            optional: false,
            local: self.local,
            timeouts: Timeouts {
                connect: wait(0, default.connect),
                list: wait(1, default.list),
                read: wait(2, default.read),
                stats: wait(3, default.stats),
                runtime_config: wait(4, default.runtime_config),
                remove_image: wait(5, default.remove_image),
            },
            tls: self.ca.map(|ca| Tls {
                ca: ca.into(),
                cert: self.cert.map(PathBuf::from),
                key: self.key.map(PathBuf::from),
                server_name: self.server_name,
            }),
            streaming: Streaming {
                relay: match self.relay {
                    1 => RelayMode::Always,
                    2 => RelayMode::Never,
                    _ => RelayMode::Auto,
                },
                address: self.streaming_host.map(|host| (host, port(self.streaming_port))),
                tls: self.streaming_tls,
            },
            max_in_flight: usize::try_from(self.max_in_flight).unwrap_or(usize::MAX).max(1),
            max_list: usize::try_from(self.max_list).unwrap_or(usize::MAX),
            image_handler: if self.image_handler_never { ImageHandler::Never } else { ImageHandler::Auto },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_needed_to_reach_a_removed_backend_comes_back_as_it_was_saved() {
        let config = BackendConfig {
            endpoint: Endpoint::Tcp { host: "node-7".into(), port: 10010, tls: true },
            socket: None,
            required: false,
            optional: false,
            local: false,
            timeouts: Timeouts { read: Duration::from_millis(1500), ..Timeouts::default() },
            tls: Some(Tls {
                ca: "/ca".into(),
                cert: Some("/cert".into()),
                key: Some("/key".into()),
                server_name: Some("other".into()),
            }),
            streaming: Streaming {
                relay: RelayMode::Never,
                address: Some(("node-7".into(), 10011)),
                tls: true,
            },
            max_in_flight: 7,
            max_list: 1 << 20,
            image_handler: ImageHandler::Never,
        };
        let instance = Instance {
            life: Life::Removed,
            maybe_moved_from: Some(InstanceId(3)),
            endpoint: "tcp://node-7:10010".into(),
            config: Some(config),
            ..Instance::with_name(9, "edge@9")
        };
        let saved = SavedInstance::decode(&instance.save().encode_to_vec()[..]).unwrap();
        assert_eq!(Instance::load(saved), instance);
    }
}
