# Short names for dev/*; `just` lists them. Everything here can be run without just.

[private]
default:
    @just --list --unsorted

# a debug build
build:
    cargo build --workspace

# format what is there
fmt:
    cargo fmt --all

# format and lints as the tests want them
lint:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings

# every test that needs no root, or the stages that are named: just test real vm
test *STAGES="unit":
    ./dev/test {{ STAGES }}

# what a build machine runs
ci:
    ./.ci/run

# three real runtimes and a pod on each
quickstart *ARGS:
    ./dev/quickstart {{ ARGS }}

# crimux beside the direct call, nginx and HAProxy
bench *ARGS:
    ./dev/bench {{ ARGS }}

# the Debian package
package *ARGS:
    ./dev/package {{ ARGS }}

# everything of a release in one folder
release VERSION *ARGS:
    ./dev/release {{ VERSION }} {{ ARGS }}

# the documentation of the code
doc:
    cargo doc --workspace --no-deps --document-private-items --open
