//! The table of keys, in the order of the documentation.

use super::DefaultValue::{self, Derived, Is, Required};
use super::Key;
use super::ValueKind::{
    self, Address, Backend, Boolean, Directory, Duration, Endpoint, File, Filter, HostPort, Integer, List,
    Mode, Named, OneOf, Owner, Ratio, Section, Socket, Text, Url,
};

const fn key(path: &'static str, kind: ValueKind, default: DefaultValue, about: &'static str) -> Key {
    Key { path, kind, default, about }
}

/// The weight of a share, in `default_split` and in the `split` of a handler.
const fn weight(path: &'static str) -> Key {
    key(
        path,
        Integer { min: 0, max: 10_000 },
        Is("1"),
        "Its share of new sandboxes, relative to the sum of the weights. 0 takes none but pods that `crimux route --next` \
         aims there; not all may be 0.",
    )
}

const NOTHING: DefaultValue = Derived("nothing");

/// The table. Sections come before their keys.
pub const KEYS: &[Key] = &[
    key(
        "listen",
        Socket,
        Is("unix:///run/crimux/crimux.sock"),
        "The socket crimux serves the CRI on: kubelet's `containerRuntimeEndpoint`. Its directory is made. A path that ends \
         in `run/crio/crio.sock` makes kubelet treat the node as CRI-O and take its stats from cAdvisor.",
    ),
    key(
        "listen_mode",
        Mode,
        Is("0660"),
        "Permission bits of `listen` and of every `backends.*.socket`. A process that may write to them is root on the node.",
    ),
    key(
        "listen_owner",
        Owner,
        Is("root:root"),
        "Owner and group of those sockets, by name or number. `self` leaves them to the user crimux runs as; change it \
         where crimux does not run as root, or to let a group use crictl.",
    ),
    key(
        "state_dir",
        Directory,
        Is(crate::config::DEFAULT_STATE_DIR),
        "Directory of what must survive a restart: who owns which sandbox, and the last lists. Keep it on a disk of the \
         node; crimux makes it, readable by its owner alone.",
    ),
    key("admin", Section, Derived("its keys' defaults"), "Where operators and Prometheus reach crimux."),
    key(
        "admin.socket",
        Socket,
        Is("/run/crimux/admin.sock"),
        "The socket of `crimux status`, `ps`, `route` and `backend`.",
    ),
    key(
        "admin.http",
        Address,
        Is("127.0.0.1:19440"),
        "Address of `/metrics`, `/healthz`, `/readyz` and the status page. It has no authentication: open it beyond \
         loopback only on a trusted network. `off` opens none.",
    ),
    key(
        "identity",
        OneOf(&["default-backend", "crimux"]),
        Is("default-backend"),
        "Whose name and version `Version` reports. The name prefixes every container ID of the node, so `default-backend` \
         lets crimux move in front of a running node unnoticed; change it only on an empty node.",
    ),
    key(
        "default_backend",
        Backend,
        Required,
        "The backend of pods without a RuntimeClass, and of calls that name neither a handler nor a known ID. One of the \
         names under `backends`.",
    ),
    key(
        "default_split",
        List,
        Derived("all go to `default_backend`"),
        "Several backends that share the new sandboxes of pods without a RuntimeClass by weight. `default_backend` takes a \
         share only if it is listed; it still answers all calls that name nothing.",
    ),
    key("default_split[]", Section, Required, "One share."),
    key("default_split[].backend", Backend, Required, "The backend of this share."),
    key(
        "default_split[].handler",
        Text,
        Derived("the backend's own default handler"),
        "The handler that its sandboxes ask that backend for.",
    ),
    weight("default_split[].weight"),
    key(
        "backends",
        Named,
        Required,
        "The container runtimes behind crimux, by name. A name is made of a-z, 0-9 and `-`, 63 characters at most, and is \
         not `all` or `none`: it is a metric label, and remembered in `state_dir`.",
    ),
    key("backends.*", Section, Required, "One container runtime."),
    key(
        "backends.*.endpoint",
        Endpoint,
        Required,
        "Its address: `unix:///PATH`, `https://HOST:PORT` (with `tls`), `http://HOST:PORT` or `vsock://CID:PORT`. IPv6 \
         addresses stand in brackets.",
    ),
    key(
        "backends.*.insecure",
        Boolean,
        Is("false"),
        "Allows `http://` to a host other than loopback, where anyone on the way can read and change everything, image \
         pull credentials included.",
    ),
    key(
        "backends.*.socket",
        Socket,
        NOTHING,
        "A socket on which crimux shows this backend alone, for `crictl` and debugging.",
    ),
    key(
        "backends.*.required",
        Boolean,
        Is("false"),
        "Whether an outage of this backend makes the node NotReady. The default backend's always does.",
    ),
    key(
        "backends.*.optional",
        Boolean,
        Is("false"),
        "Whether the node's lists do without this backend until it was listed for the first time. Otherwise a start that \
         knows nothing of it makes them wait: what it holds must not seem gone. Neither the default backend nor a required \
         one can be optional.",
    ),
    key(
        "backends.*.local",
        Boolean,
        Derived("true for `unix://`, else false"),
        "Whether its files, logs and image store are on this node. Set it to false for a `unix://` socket that leads \
         elsewhere, such as into a VM.",
    ),
    key(
        "backends.*.max_in_flight",
        Integer { min: 1, max: 1_000_000 },
        Is("1000"),
        "How many calls may be under way to it at once, of each kind: reads (lists, statuses, stats), writes (whatever \
         lasts as long as its caller waits, such as a pull or a stop) and streams. Lower it for a runtime that suffers \
         under load.",
    ),
    key(
        "backends.*.image_handler",
        OneOf(&["auto", "never"]),
        Is("auto"),
        "Whether `PullImage` gets the runtime handler of the pod: `auto` if the backend announces the handler in its \
         status, `never` for a backend that would refuse it.",
    ),
    key(
        "backends.*.timeouts",
        Section,
        Derived("its keys' defaults"),
        "When this backend counts as late. Raise them for a slow or distant one; kubelet waits for lists meanwhile.",
    ),
    key("backends.*.timeouts.connect", Duration { max: "1h", why: "" }, Is("1s"), "To be connected."),
    key(
        "backends.*.timeouts.list",
        Duration { max: "1h", why: "" },
        Is("1s"),
        "For ListPodSandbox, ListContainers and ListImages, until the last known list is answered instead.",
    ),
    key(
        "backends.*.timeouts.read",
        Duration { max: "1h", why: "" },
        Is("2s"),
        "For PodSandboxStatus, ContainerStatus, ImageStatus and the stats of one object.",
    ),
    key(
        "backends.*.timeouts.stats",
        Duration { max: "1h", why: "" },
        Is("5s"),
        "For the stats lists and ImageFsInfo.",
    ),
    key(
        "backends.*.timeouts.runtime_config",
        Duration { max: "1h", why: "" },
        Is("5s"),
        "For UpdateRuntimeConfig, which goes to every backend: one that hangs fails the call, and kubelet comes again.",
    ),
    key(
        "backends.*.timeouts.remove_image",
        Duration { max: "1h", why: "" },
        Is("1m"),
        "For RemoveImage, which goes to every backend that has the image.",
    ),
    key("backends.*.tls", Section, NOTHING, "TLS towards an `https://` endpoint, and only there."),
    key(
        "backends.*.tls.ca",
        File,
        Required,
        "PEM file of the authorities that may have signed the backend's certificate. All TLS files are read again when \
         they change; relative paths start at the directory of the configuration file.",
    ),
    key(
        "backends.*.tls.cert",
        File,
        NOTHING,
        "PEM file of crimux's own certificate chain, for mutual TLS; with `key`.",
    ),
    key("backends.*.tls.key", File, NOTHING, "PEM file of the private key of `cert`."),
    key(
        "backends.*.tls.server_name",
        Text,
        Derived("the endpoint's host"),
        "The name that the backend's certificate must hold. Set it where the endpoint is an address or another name.",
    ),
    key(
        "backends.*.streaming",
        Section,
        Derived("its keys' defaults"),
        "How exec, attach and port-forward reach the backend's streaming server.",
    ),
    key(
        "backends.*.streaming.relay",
        OneOf(&["auto", "always", "never"]),
        Is("auto"),
        "When crimux relays these streams: `auto` where kubelet on this node could not dial the backend's own URL.",
    ),
    key(
        "backends.*.streaming.address",
        HostPort,
        Derived("the endpoint's host and the port of the backend's URL"),
        "Where the backend's streaming server is reached, if its URLs name something that cannot be dialled from here.",
    ),
    key(
        "backends.*.streaming.tls",
        Boolean,
        Is("false"),
        "Whether that server speaks TLS; it is then verified with the backend's `tls`.",
    ),
    key(
        "handlers",
        Named,
        Derived("none: only pods without a RuntimeClass run"),
        "RuntimeClass `handler` → backend. A handler that is not listed is refused, never sent to the default backend. An \
         entry has either `backend` or `split`.",
    ),
    key("handlers.*", Section, Required, "One handler."),
    key("handlers.*.backend", Backend, NOTHING, "The backend its sandboxes go to."),
    key(
        "handlers.*.handler",
        Text,
        Derived("the backend's own default handler"),
        "The name by which that backend knows the handler.",
    ),
    key(
        "handlers.*.split",
        List,
        NOTHING,
        "Several backends that share the handler's new sandboxes by weight, for moving a node from one runtime to another. No \
         two shares have the same backend and handler.",
    ),
    key("handlers.*.split[]", Section, Required, "One share."),
    key("handlers.*.split[].backend", Backend, Required, "The backend of this share."),
    key(
        "handlers.*.split[].handler",
        Text,
        Derived("the backend's own default handler"),
        "The name by which that backend knows the handler.",
    ),
    weight("handlers.*.split[].weight"),
    key(
        "drain_timeout",
        Duration { max: "20s", why: "the systemd unit ends crimux 25 s after the signal" },
        Is("5s"),
        "How long running calls may still take after SIGTERM. kubelet has no runtime meanwhile, hence at most 20 s.",
    ),
    key(
        "handover_timeout",
        Duration { max: "24h", why: "" },
        Is("1h"),
        "How long calls and relayed streams may still take in a process that `crimux upgrade` has replaced. New ones go to \
         the new process meanwhile.",
    ),
    key(
        "pod_sandbox_stats",
        OneOf(&["unimplemented", "union"]),
        Is("unimplemented"),
        "The answer to `PodSandboxStats` and `ListPodSandboxStats` if only some backends implement them: `unimplemented` \
         makes kubelet use cAdvisor for all pods, `union` answers the pods of those that do. What a kubelet was told at \
         its start stands until it starts again.",
    ),
    key(
        "cgroup_driver",
        OneOf(&["systemd", "cgroupfs"]),
        NOTHING,
        "The answer to `RuntimeConfig` if the default backend has none (containerd before 2.0, CRI-O before 1.28). kubelet \
         needs one from 1.38 on. It must be the driver that all local backends use.",
    ),
    key("events", Section, Derived("its keys' defaults"), "The stream of container events to kubelet."),
    key(
        "events.buffer",
        Integer { min: 1, max: 1_000_000 },
        Is("1000"),
        "Events kept for a client that reads slowly, before its stream is ended so that it lists again.",
    ),
    key(
        "events.grace",
        Duration { max: "1h", why: "" },
        Is("30s"),
        "How long a backend's lost event stream is asked for again at least once a second; after that with each new \
         connection. Its lists are compared meanwhile.",
    ),
    key(
        "limits",
        Section,
        Derived("its keys' defaults"),
        "What clients and backends may make crimux hold. A limit that is reached is counted in \
         `crimux_limits_reached_total` and logged at most once a minute.",
    ),
    key(
        "limits.connections",
        Integer { min: 8, max: 100_000 },
        Is("256"),
        "Connections of clients to all sockets together. One more is closed at once; for each of the last eighth an idle one is, of the process that has the most. A process with fewer than four gets another one beyond the limit, up to 16 of them in all.",
    ),
    key(
        "limits.streams",
        Integer { min: 100, max: 100_000 },
        Is("1000"),
        "Calls that one connection may have open; kubelet has all of its calls on one. It is announced to clients, which \
         then wait. Raise it where more probes and pulls run at once than that.",
    ),
    key(
        "limits.metadata_kib",
        Integer { min: 8, max: 1024 },
        Is("64"),
        "Metadata of one request, in KiB. A call with more fails with `ResourceExhausted`.",
    ),
    key(
        "limits.requests_mib",
        Integer { min: 24, max: 16_384 },
        Is("32"),
        "Requests in flight of all clients, in MiB, metadata included. One connection may hold three quarters of it, and \
         always 256 KiB; a call beyond it fails with `ResourceExhausted`.",
    ),
    key(
        "limits.unread_mib",
        Integer { min: 24, max: 16_384 },
        Is("48"),
        "Replies that clients have not read yet, in MiB. One connection may hold three quarters of it, and always one \
         reply; a reply beyond it is replaced by `ResourceExhausted`.",
    ),
    key(
        "limits.list_mib",
        Integer { min: 16, max: 256 },
        Is("32"),
        "A backend's answer to one list, in MiB. kubelet and crictl read lists of at most 16 MiB. Every other answer may \
         have 16 MiB, that to `ExecSync` 33.",
    ),
    key("log", Section, Derived("its keys' defaults"), "crimux's own log."),
    key(
        "log.format",
        OneOf(&["text", "json"]),
        Is("text"),
        "`text` for people, `json` for one JSON object a line.",
    ),
    key(
        "log.level",
        Filter,
        Is("info"),
        "`error`, `warn`, `info`, `debug`, `trace` or `off`, also per target as in `info,crimux::router=debug`. The \
         environment variable `CRIMUX_LOG` goes before it.",
    ),
    key("tracing", Section, Derived("its keys' defaults"), "Spans of calls, sent over OTLP/gRPC."),
    key(
        "tracing.otlp",
        Url,
        Is("off"),
        "Address of the OpenTelemetry collector, such as `http://127.0.0.1:4317`. `off` sends none.",
    ),
    key(
        "tracing.sample_ratio",
        Ratio,
        Is("1"),
        "Share of the calls without a `traceparent` that get a trace, 0 to 1. Lower it on a busy node.",
    ),
];
