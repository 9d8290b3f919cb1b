# shellcheck shell=bash
# The Rust that the scripts of dev/ build with.
#
# rust-toolchain.toml pins the version that releases are built with. A machine without that version, but with one that is new
# enough (rust-version in Cargo.toml), uses its own: trying and testing crimux should download no toolchain.

# choose_rust: sets RUSTUP_TOOLCHAIN to this machine's default if the pinned version is not installed and the default will do.
# Without rustup there is one Rust and nothing to choose.
choose_rust() {
  local pinned least own version
  command -v rustup >/dev/null && [ -z "${RUSTUP_TOOLCHAIN:-}" ] || return 0
  pinned=$(sed -n 's/^channel = "\(.*\)"/\1/p' rust-toolchain.toml)
  ! rustup toolchain list | grep -q "^$pinned-" || return 0
  own=$(rustup default 2>/dev/null | cut -d' ' -f1)
  [ -n "$own" ] || return 0
  version=$(rustc "+$own" --version | cut -d' ' -f2)
  least=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
  [ "$(printf '%s\n' "$least" "$version" | sort -V | head -1)" = "$least" ] || return 0
  export RUSTUP_TOOLCHAIN=$own
  echo "Rust $pinned (rust-toolchain.toml) is not installed: building with $version" >&2
}
