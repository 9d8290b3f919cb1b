# shellcheck shell=bash
# What every stage is made of: steps that are timed and counted, and skips that are loud.
#
# A result is a line `passed N WHAT` or `failed N WHAT` in $CRIMUX_RESULTS, a skip a line `WHAT: why` in
# $CRIMUX_SKIPS; a stage run by itself, without dev/test, only prints.
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 1
# shellcheck source=/dev/null
. dev/rust.sh
# shellcheck source=/dev/null
. dev/debian.sh
choose_rust
CRIMUX_RESULTS=${CRIMUX_RESULTS:-/dev/null}
CRIMUX_SKIPS=${CRIMUX_SKIPS:-/dev/null}
export CRIMUX_SKIPS

failures=0

# step WHAT COMMAND...: one check.
step() {
  local what=$1 start=$SECONDS
  shift
  printf -- '── %s\n' "$what"
  if "$@"; then
    echo "passed 1 $what" >>"$CRIMUX_RESULTS"
    printf -- '── %s: ok in %d s\n' "$what" $((SECONDS - start))
  else
    echo "failed 1 $what" >>"$CRIMUX_RESULTS"
    failures=$((failures + 1))
    printf -- '── %s: FAILED in %d s\n' "$what" $((SECONDS - start))
  fi
}

# skip WHAT WHY: says what this machine cannot do.
skip() {
  printf 'SKIPPED: %s: %s\n' "$1" "$2"
  printf '%s: %s\n' "$1" "$2" >>"$CRIMUX_SKIPS"
}

# wants WHAT PROGRAM PACKAGE...: a program that WHAT needs. It is installed where that is possible, else WHAT is skipped.
wants() {
  local why
  ! PATH=$PATH:/usr/sbin:/sbin command -v "$2" >/dev/null || return 0
  if ! why=$(install_packages "${@:3}" 2>&1); then
    skip "$1" "$2 is not installed ($(tail -1 <<<"$why"))"
    return 1
  fi
}

# tests WHAT CARGO_ARGUMENTS... [-- TEST_ARGUMENTS...]: Rust tests, counted one by one; with nextest where it is
# installed.
tests() {
  local what=$1 start=$SECONDS log code=0 passed failed
  shift
  log=$(mktemp)
  printf -- '── %s\n' "$what"
  if command -v cargo-nextest >/dev/null; then
    cargo nextest run --no-fail-fast --no-tests=pass "$@" 2>&1 | tee "$log" || code=$?
  else
    cargo test --no-fail-fast "$@" 2>&1 | tee "$log" || code=$?
  fi
  passed=$(count_tests passed "$log")
  failed=$(count_tests failed "$log")
  # It did not build, or a test binary died: no test is counted, the step is.
  [ "$code" = 0 ] || [ "$failed" -gt 0 ] || failed=1
  rm -f "$log"
  echo "passed $passed $what" >>"$CRIMUX_RESULTS"
  [ "$failed" = 0 ] || { echo "failed $failed $what" >>"$CRIMUX_RESULTS"; failures=$((failures + 1)); }
  printf -- '── %s: %d passed, %d failed in %d s\n' "$what" "$passed" "$failed" $((SECONDS - start))
}

# cargo_tool NAME: puts a subcommand of cargo into PATH; one that is not installed comes from dev/tools' cache.
cargo_tool() {
  ! command -v "$1" >/dev/null || return 0
  dev/tools/build "$1" || { cargo install --locked --quiet "$1" && return 0; return 1; }
  PATH=$PATH:$(dev/tools/build --where)/$1
}

# count_tests passed|failed LOG: from nextest's summary, or from cargo test's results, one per binary.
count_tests() {
  sed 's/\x1b\[[0-9;]*m//g' "$2" | awk -v kind="$1" '
    /^ *Summary \[.*tests? run:/ || /^test result:/ {
      gsub(/[,;]/, "")
      for (i = 2; i <= NF; i++) if ($i == kind) n += $(i - 1)
    }
    END { print n + 0 }'
}

# ran STAGE WHAT: for the page of what crimux was held against (dev/tested), when the stage passed: what it ran on.
ran() {
  mkdir -p target/conformance
  [ "$failures" != 0 ] || printf '%s\t%s\n' "$2" "$(date -u +%F)" >"target/conformance/stage-$1"
}

# The version of containerd that a tool of dev/tools is, or Debian's without an argument.
containerd_version() { # [TOOL]
  local program=/usr/bin/containerd
  [ $# = 0 ] || program=$(dev/tools/build --where)/$1/containerd
  [ ! -x "$program" ] && [ $# != 0 ] || "$program" --version | awk '{ sub(/^v/, "", $3); sub(/[+~].*/, "", $3); print $3 }'
}

finish() { [ "$failures" = 0 ]; }
