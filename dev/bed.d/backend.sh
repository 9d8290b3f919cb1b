# shellcheck shell=bash
# A backend of any kind: containerd, crio or docker, which is in $RUN/NAME/kind. Without that file the machine lacks its
# programs, and it was skipped. Each kind has the functions KIND_available, KIND_configure, KIND_launch and KIND_ready.

backend_up() { # NAME RUNTIME[@VERSION] NET
  namespace_alive || die "not up: $BED"
  [ $# = 3 ] || die "backend wants NAME RUNTIME NET"
  backend_configure "$@"
  backend_launch "$1"
  backend_ready "$1"
}

backend_configure() { # NAME RUNTIME[@VERSION] NET
  local kind=containerd
  case ${2%%@*} in crio | docker) kind=${2%%@*} ;; esac
  "${kind}_available" || { say "SKIPPED: backend $1 ($2)"; return 0; }
  mkdir -p "$RUN/$1"
  "${kind}_configure" "$@"
  echo "$kind" >"$RUN/$1/kind"
}

backend_kind() { cat "$RUN/$1/kind" 2>/dev/null || true; }

backend_launch() {
  local kind
  kind=$(backend_kind "$1")
  [ -z "$kind" ] || "${kind}_launch" "$1"
}

backend_ready() {
  local kind
  kind=$(backend_kind "$1")
  [ -z "$kind" ] || "${kind}_ready" "$1"
}

# Its programs live on, and so do its containers.
backend_restart() {
  if ! gone "$1"; then
    signal "$1" KILL
    wait_until 10 "the end of $1" gone "$1"
  fi
  backend_launch "$1"
  backend_ready "$1"
}

backend_socket() {
  case $(backend_kind "$1") in
    containerd) echo "$RUN/$1/containerd.sock" ;;
    crio) echo "$RUN/$1/crio.sock" ;;
    docker) echo "$RUN/$1/cri-dockerd.sock" ;;
  esac
}

# program VARIABLE NAME: the path of a program that this machine may have: the variable's value, else from PATH.
program() {
  local path=${!1:-}
  [ -n "$path" ] || path=$(command -v "$2" || true)
  [ -x "$path" ] || { say "SKIPPED: $2: it is not installed here ($1=path names one)"; return 1; }
  readlink -f "$path"
}
