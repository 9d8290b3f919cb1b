# shellcheck shell=bash
# One containerd of the bed: its configuration, its start, its end. All of them know the handlers runc, crun
# and runsc; they differ in their default, in their version and in their pods' network.
#
# RUNTIME is runc, crun or runsc, with @VERSION where it matters: `debian` (the machine's own package), `1.7`,
# `2.1` (Debian's newer suites) or `newest` (what dev/tools names). BED_CONTAINERD is the version without one.

BED_CONTAINERD=${BED_CONTAINERD:-newest}

containerd_available() { :; }

# The shim that a containerd starts is the first in PATH.
containerd_launch() {
  spawn "$1" env PATH="$(cat "$RUN/$1/programs"):$PATH" containerd --config "$RUN/$1/config.toml"
}

# containerd_programs VERSION: prints the folder of a containerd and its shim, built or fetched when missing.
containerd_programs() {
  local tool=containerd-$1
  case $1 in
    debian) echo /usr/bin; return ;;
    newest) tool=containerd ;;
  esac
  if "$HERE/tools/build" "$tool" >&2; then
    echo "$("$HERE/tools/build" --where)/$tool"
  else
    say "SKIPPED: containerd $1: using Debian's, $(containerd --version | awk '{ print $3 }')"
    echo /usr/bin
  fi
}

containerd_ready() {
  wait_until 30 "containerd $1 ($LOGS/$1.log)" grep -qs 'containerd successfully booted' "$LOGS/$1.log" ||
    { tail -5 "$LOGS/$1.log" >&2; exit 1; }
}

# containerd_configure NAME RUNTIME NET; the optional settings of a remote node come as variables:
# REMOTE (its address: CRI with mTLS on 10010, streaming on 10011), REGISTRY (address of the registries).
containerd_configure() {
  local name=$1 runtime=${2%%@*} version=$BED_CONTAINERD net=$3 state=$RUN/$1
  case $2 in *@*) version=${2#*@} ;; esac
  case $runtime in runc | crun | runsc) ;; *) die "no such runtime: $runtime (runc, crun, runsc)" ;; esac
  mkdir -p "$state/cni"
  containerd_programs "$version" >"$state/programs"
  registry_mirror "$state/certs.d" "${REGISTRY:-127.0.0.1}"
  containerd_network "$name" "$net" >"$state/cni/10-$name.conflist"
  {
    containerd_base "$state"
    containerd_cri "$state" "$runtime"
    containerd_runtime runc /usr/sbin/runc
    containerd_runtime crun "$PARTS/crun-shim"
    containerd_runtime runsc "$PARTS/runsc-shim"
  } >"$state/config.toml"
}

containerd_network() { # NAME NET
  cat <<CNI
{"cniVersion": "0.4.0", "name": "$1", "plugins": [
  {"type": "bridge", "bridge": "br-$1", "isGateway": true, "ipMasq": true, "hairpinMode": true,
   "ipam": {"type": "host-local", "ranges": [[{"subnet": "$2.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
CNI
}

containerd_base() { # STATE
  cat <<TOML
version = 2
root = "$1/root"
state = "$1/state"
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.internal.v1.tracing", "io.containerd.tracing.processor.v1.otlp", "io.containerd.nri.v1.nri"]
[plugins."io.containerd.internal.v1.opt"]
  path = "$1/opt"
[grpc]
  address = "$1/containerd.sock"
TOML
  [ -n "${REMOTE:-}" ] || return 0
  cat <<TOML
  tcp_address = "$REMOTE:10010"
  tcp_tls_cert = "$BED/tls/server.crt"
  tcp_tls_key = "$BED/tls/server.key"
  tcp_tls_ca = "$BED/tls/ca.crt"
TOML
}

containerd_cri() { # STATE RUNTIME
  local snapshotter=overlayfs
  # An overlay on an overlay (a bed inside a container) is refused by the kernel.
  [ "$(stat -f -c %T "$BED")" != overlayfs ] || snapshotter=native
  # restrict_oom_score_adj: without CAP_SYS_RESOURCE a pod's score cannot go below containerd's own.
  cat <<TOML
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "registry.k8s.io/pause:3.9"
  restrict_oom_score_adj = true
  disable_tcp_service = $([ -n "${REMOTE:-}" ] && echo false || echo true)
  stream_server_address = "${REMOTE:-127.0.0.1}"
  stream_server_port = "$([ -n "${REMOTE:-}" ] && echo 10011 || echo 0)"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$1/cni"
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "$1/certs.d"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "$snapshotter"
    default_runtime_name = "$2"
TOML
}

containerd_runtime() { # HANDLER BINARY
  cat <<TOML
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.$1]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.$1.options]
        BinaryName = "$2"
TOML
}
