//! `docs/rpc.md`: every RPC with its route, its rule and what happens when a backend fails, from the method
//! table.
//!
//! The document cannot differ from the table that the proxy walks. `UPDATE=1 cargo test --test integration
//! rpc` rewrites it.

use std::fmt::Write as _;

use crimux::method::{self, Deadline, Effect, ImageCall, Kind, List, LocalReply, Method, OnUnknownId, Route};

const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/rpc.md");

const HEAD: &str = "\
# Every RPC: route, rule, partial failure

<!-- Generated from the method table (src/method.rs): UPDATE=1 cargo test --test integration rpc -->

All of CRI 0.37, in the order of the API. The same rows serve `runtime.v1` and `runtime.v1alpha2`, towards clients and
towards backends. A method of `RuntimeService` that is not in the table goes, unread, to the owner of the ID in its
field 1, else to the default backend; one of `ImageService` goes to the default backend. Its reply is streamed through.

*Unreachable is never absent*: where a backend cannot be asked, the last column says what stands in for it. \"Its
deadline\" is `timeouts.list`, `.read` or `.stats` of the backend; a backend that outlasts it is late until it answers
again; after a second time within 30 s, for a minute, only in time. `UpdateRuntimeConfig` has `timeouts.runtime_config`, `RemoveImage` `timeouts.remove_image`. A client's own deadline
that is shorter counts instead. An empty ID is `InvalidArgument`, save where the row says otherwise.

*What only some backends have*: an RPC is answered `Unimplemented` while kubelet then has another source for the pods of all
backends, and otherwise by the backends that have it. Pod stats have such a source (cAdvisor), so all must have them, unless
`pod_sandbox_stats` is `union`; descriptors, metrics and events have none, so those that have them answer. An RPC about one
object is its owner's, whose `Unimplemented` passes (checkpoints); a stream list falls back to the unary one. A backend that is
left out of an answer is counted (`crimux_backends_left_out_total`) and named in the log and by `crimux status`.

*What would crash a client*: kubelet reads some fields without a check. A message of a list or an event without such a field
is left out and counted (`crimux_items_left_out_total`; the table is `src/merge/required.rs`), text that is not UTF-8 is
repaired (`crimux_texts_repaired_total`).

| RPC | route | rule | when a backend cannot be asked |
|---|---|---|---|
";

fn row(method: &Method) -> String {
    let (route, rule, failure) = match method.route {
        Route::Handler(field) => ("handler", handler(field), "`Unavailable`".to_owned()),
        Route::Owner(kind, absent) => ("owner", owner(kind, absent), owner_failure(method)),
        Route::Image(call) => ("image", image(call).to_owned(), image_failure(call).to_owned()),
        Route::FanOut(list) => ("fan-out", merged(list).to_owned(), fan_out_failure(list, method.deadline)),
        Route::StreamList(list) => ("stream list", relayed(list), relay_failure(list)),
        Route::Broadcast => (
            "broadcast",
            "to every backend, as it came".to_owned(),
            "its error; kubelet tries again".to_owned(),
        ),
        Route::Local(answer) => {
            let (rule, failure) = answered(answer);
            ("local", rule.to_owned(), failure.to_owned())
        }
        Route::Events => ("events", events().to_owned(), events_failure().to_owned()),
    };
    let rule = [rule.as_str(), effect(method.effect), question(method)].join("");
    format!("| {} | {route} | {rule} | {failure} |", method.name)
}

fn handler(field: u32) -> String {
    format!(
        "to the backend of the handler in field {field}, which becomes that backend's name for it; unknown: `InvalidArgument`"
    )
}

fn owner(kind: Kind, absent: OnUnknownId) -> String {
    let denied = match absent {
        OnUnknownId::NotFound => "`NotFound`",
        OnUnknownId::Ok => "OK, as for one that its owner answers `NotFound` for and does not list",
    };
    format!("to the owner of the {} in field 1; an ID that every backend denies: {denied}", kind.word())
}

fn owner_failure(method: &Method) -> String {
    match method.effect {
        Effect::Status(_) => {
            "the last-known status while it agrees with the last-known list, else `Unavailable`".to_owned()
        }
        Effect::Stats(_) => "its last-known stats from the list; `Unavailable` if there are none".to_owned(),
        _ => "`Unavailable`".to_owned(),
    }
}

fn effect(effect: Effect) -> &'static str {
    match effect {
        Effect::None | Effect::Changed => "",
        Effect::SandboxCreated | Effect::ContainerCreated => {
            "; the new ID is recorded before the reply goes out"
        }
        Effect::PodRestored => {
            "; the sandbox and every restored container are recorded before the reply goes out"
        }
        Effect::ContainerStarted | Effect::ContainerStopped | Effect::SandboxStopped => {
            "; the new state is recorded"
        }
        Effect::ContainerRemoved | Effect::SandboxRemoved => "; the removal is recorded",
        Effect::Status(_) => "; the reply is remembered",
        Effect::Stats(_) => "; of a backend with `local: false` without `writable_layer.fs_id`",
        Effect::StreamUrl => "; a URL that kubelet could not dial becomes one of the relay",
    }
}

/// What an empty ID means to the one method whose existence kubelet asks for by it.
fn question(method: &Method) -> &'static str {
    if method.name == "PodSandboxStats" {
        return "; the empty ID asks whether pod stats exist, and the answer (`pod_sandbox_stats`) stands until it is asked again";
    }
    ""
}

fn image(call: ImageCall) -> &'static str {
    match call {
        ImageCall::Pull => {
            "to the store of the pod in `sandbox_config`, else of `image.runtime_handler`, else of the default backend; never to two ([images.md](images.md))"
        }
        ImageCall::Status => {
            "to the store of the pod it is for; of several, present only if all have the same; without annotations, and no start under way: to the default backend ([images.md](images.md))"
        }
        ImageCall::Remove => {
            "to every store that lists this very ID; else the ID in the other spelling; else this tag or digest, as the client wrote it, and the runtime decides whether other tags go too; else a prefix of one ID"
        }
    }
}

fn image_failure(call: ImageCall) -> &'static str {
    match call {
        ImageCall::Pull => "`Unavailable`",
        ImageCall::Status => {
            "`Unavailable`, never absent; of several stores that may be meant, the others answer"
        }
        ImageCall::Remove => {
            "removed from the others; `Unavailable` if it was last known to list the image, or if no store lists it"
        }
    }
}

fn merged(list: List) -> &'static str {
    match list {
        List::Sandboxes | List::Containers => "the encoded lists one after the other",
        List::ContainerStats | List::SandboxStats => {
            "the encoded lists one after the other; of a backend with `local: false` without `writable_layer.fs_id`"
        }
        List::Images => {
            "one entry for each image ID, tags and digests united; pinned if a local backend pins it or if only remote or down ones have it"
        }
        List::Filesystems => {
            "the default backend's first, each mountpoint once, none of a backend with `local: false`"
        }
        List::MetricDescriptors => {
            "united by name, in the default backend's label order; labels that are the same keep the order announced before"
        }
        List::SandboxMetrics => "one after the other, the labels in the order that was announced",
    }
}

fn standing_in(list: List) -> &'static str {
    match list {
        List::Sandboxes | List::Containers | List::Images => {
            "its last-known items, filtered as asked; `Unavailable` if it was never listed"
        }
        List::ContainerStats => {
            "its last-known stats; left out if there are none. Its own error, if no backend has values to give"
        }
        List::SandboxStats => {
            "its last-known stats; left out if there are none. Its own error, if no backend has values to give. A backend \
             without the RPC: as the empty ID was answered, before that by `pod_sandbox_stats`"
        }
        List::Filesystems => {
            "its last-known filesystems; left out if there are none; `Unavailable` while the default backend has none"
        }
        List::MetricDescriptors => {
            "its last-known descriptors; waited for 3 s if it was never heard, then left out"
        }
        List::SandboxMetrics => "left out. Its own error, if no backend has values to give",
    }
}

fn fan_out_failure(list: List, deadline: Deadline) -> String {
    let deadline = match deadline {
        Deadline::Fast => "within 80 ms",
        _ => "after its deadline",
    };
    format!("{} ({deadline})", standing_in(list))
}

fn relayed(list: List) -> String {
    let unary = list.unary().name;
    match list {
        List::Images => format!("as {unary}, in frames below 4 MiB"),
        List::SandboxMetrics => format!(
            "frame by frame, the labels as in {unary}; a backend without streams is asked for {unary}"
        ),
        List::ContainerStats | List::SandboxStats => {
            format!(
                "frame by frame, filesystems as in {unary}; a backend without streams is asked for {unary}"
            )
        }
        _ => format!(
            "frame by frame, as they came; a backend without streams is asked for {unary}, in frames below 4 MiB"
        ),
    }
}

fn relay_failure(list: List) -> String {
    match list {
        List::SandboxMetrics => standing_in(list).to_owned(),
        _ => format!("{}. Of one that breaks off, those that did not go out yet", standing_in(list)),
    }
}

fn answered(answer: LocalReply) -> (&'static str, &'static str) {
    match answer {
        LocalReply::Version => (
            "the default backend's name and version, or crimux's (`identity`)",
            "what it said last; `Unavailable` if it never did",
        ),
        LocalReply::Status => (
            "conditions of the default and `required` backends, one more for each backend; handlers by their public names",
            "its conditions stand for 30 s, then they are false",
        ),
        LocalReply::RuntimeConfig => (
            "the default backend's cgroup driver; `cgroup_driver` if it has no RuntimeConfig, else `Unimplemented`",
            "what it said last, or `cgroup_driver`; `Unavailable` if there is neither",
        ),
    }
}

fn events() -> &'static str {
    "the events of all backends as they came; of one that does not stream, the changes of its lists, compared once a \
     second; a client that does not read `events.buffer` events in time: `ResourceExhausted`"
}

fn events_failure() -> &'static str {
    "what changed meanwhile is told once it is back; the stream goes on"
}

#[test]
fn the_document_says_what_the_method_table_says() {
    let mut document = HEAD.to_owned();
    for method in method::all() {
        writeln!(document, "{}", row(method)).unwrap();
    }
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(PATH, &document).unwrap();
    }
    let written = std::fs::read_to_string(PATH).unwrap_or_default();
    assert!(
        written == document,
        "docs/rpc.md is not of this table: UPDATE=1 cargo test --test integration rpc"
    );
}
