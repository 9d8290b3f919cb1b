# shellcheck shell=bash
# kubelet of dev/node: on a machine with cgroup v1 and swap, without systemd, inside the bed's namespaces.

# What kubelet would set on the whole machine, it sets in files of the bed.
SYSCTLS=(vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops kernel/keys/root_maxkeys
  kernel/keys/root_maxbytes)

kubelet_configure() {
  local socket=$NODE/crimux.sock
  [ -z "${NODE_DIRECT:-}" ] || socket=$(bed socket "$NODE_DIRECT")
  mkdir -p "$NODE/kubelet"
  cat >"$NODE/kubelet.yaml" <<CONFIG
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix://$socket
failCgroupV1: false
failSwapOn: false
cgroupDriver: cgroupfs
cgroupsPerQOS: true
enforceNodeAllocatable: []
localStorageCapacityIsolation: true
makeIPTablesUtilChains: false
oomScoreAdj: 0
serializeImagePulls: false
resolvConf: ""
podLogsDir: $NODE/pod-logs
volumePluginDir: $NODE/kubelet/plugins-exec
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
evictionHard: {memory.available: 1Mi, nodefs.available: "1%", imagefs.available: "1%"}
imageGCHighThresholdPercent: 100
syncFrequency: 10s
fileCheckFrequency: 2s
nodeStatusUpdateFrequency: 5s
staticPodPath: ""
featureGates: {$(sed 's/=/: /g; s/,/, /g' <<<"$NODE_FEATURES")}
CONFIG
}

kubelet_start() {
  sysctls_shadow
  bed spawn kubelet "$(tool kubelet)" --config "$NODE/kubelet.yaml" --kubeconfig "$KUBECONFIG_FILE" \
    --root-dir "$NODE/kubelet" --cert-dir "$NODE/kubelet/pki" --hostname-override localhost --node-ip "$NODE_ADDRESS" --v 2
  wait_until 90 "the node to be Ready ($BED/log/kubelet.log)" node_ready || { tail -5 "$BED/log/kubelet.log" >&2; exit 1; }
}

kubelet_stop() { [ -e "$RUN/kubelet.exit" ] || [ ! -e "$RUN/kubelet.pid" ] || bed kill kubelet; }

node_ready() {
  [ ! -e "$RUN/kubelet.exit" ] || { say "kubelet ended"; exit 1; }
  kubectl wait --for condition=Ready node/localhost --timeout 1s
}

sysctls_shadow() {
  bed run sh -ec '
    mkdir -p "$1"
    for name in $2; do
      file=$1/$(echo "$name" | tr / .)
      [ ! -e "$file" ] && [ -e "/proc/sys/$name" ] || continue
      cat "/proc/sys/$name" >"$file"
      mount --bind "$file" "/proc/sys/$name"
    done' sh "$RUN/sysctl" "${SYSCTLS[*]}"
}
