# shellcheck shell=bash
# CRI-O as a backend, where the machine has one: CRIO=path or PATH, with `pinns` beside it or in PATH. Its monitor
# (conmon) comes from Debian. It knows the handlers runc (its default) and crun.

crio_available() { program CRIO crio >/dev/null; }

crio_configure() { # NAME RUNTIME NET
  local name=$1 net=$3 state=$RUN/$1 crio driver=overlay
  install_packages conmon || die "CRI-O needs conmon"
  crio=$(program CRIO crio)
  mkdir -p "$state"/{cni,conf.d,log}
  echo "$crio" >"$state/program"
  # An overlay on an overlay (a bed inside a container) is refused by the kernel.
  [ "$(stat -f -c %T "$BED")" != overlayfs ] || driver=vfs
  containerd_network "$name" "$net" >"$state/cni/10-$name.conflist"
  registry_hosts >"$state/registries.conf"
  echo '{"default": [{"type": "insecureAcceptAnything"}]}' >"$state/policy.json"
  crio_settings "$state" "$driver" "$(crio_pinns "$crio")" >"$state/crio.conf"
}

crio_pinns() { # CRIO
  local beside
  beside=$(dirname "$1")/pinns
  if [ -x "$beside" ]; then echo "$beside"; else command -v pinns || die "CRI-O needs pinns, beside it or in PATH"; fi
}

crio_settings() { # STATE DRIVER PINNS
  cat <<TOML
[crio]
  root = "$1/root"
  runroot = "$1/state"
  storage_driver = "$2"
  log_dir = "$1/log"
  version_file = "$1/version"
  clean_shutdown_file = "$1/clean"
[crio.api]
  listen = "$1/crio.sock"
  stream_address = "127.0.0.1"
  stream_port = "0"
[crio.runtime]
  default_runtime = "runc"
  cgroup_manager = "cgroupfs"
  conmon_cgroup = "pod"
  pinns_path = "$3"
  namespaces_dir = "$1/namespaces"
  container_exits_dir = "$1/exits"
  container_attach_socket_dir = "$1/attach"
  apparmor_profile = "unconfined"
  [crio.runtime.runtimes.runc]
    runtime_path = "$PARTS/runc-shim"
    runtime_root = "$1/runc"
    monitor_path = "/usr/bin/conmon"
    monitor_cgroup = "pod"
  [crio.runtime.runtimes.crun]
    runtime_path = "$PARTS/crun-shim"
    runtime_root = "$1/crun"
    monitor_path = "/usr/bin/conmon"
    monitor_cgroup = "pod"
[crio.image]
  pause_image = "registry.k8s.io/pause:3.9"
  pause_command = ""
  signature_policy = "$1/policy.json"
[crio.network]
  network_dir = "$1/cni"
  plugin_dirs = ["/usr/lib/cni"]
[crio.nri]
  enable_nri = false
TOML
}

crio_launch() {
  local state=$RUN/$1
  rm -f "$state/crio.sock"
  spawn "$1" "$(cat "$state/program")" --config "$state/crio.conf" --config-dir "$state/conf.d" \
    --registries-conf "$state/registries.conf"
}

crio_ready() {
  wait_until 60 "CRI-O $1 ($LOGS/$1.log)" test -S "$RUN/$1/crio.sock" || { tail -5 "$LOGS/$1.log" >&2; exit 1; }
}
