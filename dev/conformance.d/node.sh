# shellcheck shell=bash
# Kubernetes' node suite, unchanged: its own etcd, API server and kubelet, directly on a backend and through crimux.

# What of the suite runs, as ginkgo's regular expressions.
FOCUS=${CONFORMANCE_FOCUS:-'\[NodeConformance\]'}
SKIP=${CONFORMANCE_SKIP:-'\[Flaky\]|\[Slow\]|\[Serial\]|\[Feature:'}
# Most of a spec is waiting.
PROCESSES=${CONFORMANCE_PROCESSES:-16}
NODE_ADDRESS=10.100.0.1

run_node() { # [BACKEND...]
  local name failed=0
  LIMIT=${CONFORMANCE_LIMIT:-5400}
  [ $# -gt 0 ] || for name in $BACKENDS; do set -- "${name%%:*}"; break; done
  prepare crictl kubelet e2e_node ginkgo agnhost
  for name in "$@"; do
    node_suite direct "$name"
    node_suite through "$name"
    compare "$RESULTS/e2e_node-$name" || failed=1
  done
  return $failed
}

# node_suite direct|through NAME, in a bed of its own: what one run leaves must not reach the other.
node_suite() {
  local kind=$1 name=$2 socket
  bed_begin
  bed suite-images node
  hold_images node
  node_machine
  if [ "$kind" = direct ]; then
    socket=$(bed socket "$name")
    runtime_version "$name" >"$RESULTS/e2e_node-$name-version"
    runtimes_beside "$name" >"$RESULTS/e2e_node-$name-beside"
    printf '%s\n' "$FOCUS" >"$RESULTS/e2e_node-$name-focus"
  else
    crimux_begin "$name"
    socket=$BED/crimux.sock
  fi
  node_suite_once "$kind" "$name" "$socket"
  bed down
}

# What the suite expects of a machine, in the bed's namespaces: a folder for kubelet whose mounts are shared, no
# systemd, a cgroup that is the root of the pods, an address, and sysctls that kubelet may write.
node_machine() {
  local NODE=$BED RUN=$BED/run
  # shellcheck source=/dev/null
  . "$HERE/node.d/kubernetes.sh"
  # shellcheck source=/dev/null
  . "$HERE/node.d/kubelet.sh"
  network_make
  sysctls_shadow
  mkdir -p "$BED/suite" /var/lib/kubelet
  bed run sh -ec '
    mount -t tmpfs -o mode=755 tmpfs /var/lib/kubelet
    mount --make-rshared /var/lib/kubelet
    for program in $(command -v systemd-run || true); do mount --bind /dev/null "$program"; done
    hierarchies=$(findmnt -rn -t cgroup -o TARGET || echo /sys/fs/cgroup)
    for hierarchy in $hierarchies; do
      mkdir "$hierarchy/suite"
      for file in cpuset.cpus cpuset.mems; do
        [ ! -e "$hierarchy/cpuset.sched_load_balance" ] || cat "$hierarchy/$file" >"$hierarchy/suite/$file"
      done
    done'
  # The suite looks for kubelet beside itself.
  cp "$(tool kubelet)" "$("$HERE/tools/build" --where)/e2e_node/e2e_node.test" "$BED/suite/"
  printf 'os: Linux\nkernelSpec: { versions: [".*"] }\n' >"$BED/suite/system.yaml"
  cat >"$BED/suite/kubelet.yaml" <<CONFIG
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
failSwapOn: false
cgroupDriver: cgroupfs
cgroupsPerQOS: true
cgroupRoot: /suite
podCIDR: 10.100.0.0/24
serializeImagePulls: false
makeIPTablesUtilChains: false
oomScoreAdj: 0
volumeStatsAggPeriod: 10s
fileCheckFrequency: 10s
evictionHard: { memory.available: 1Mi, nodefs.available: "1%", imagefs.available: "1%" }
CONFIG
}

# node_suite_once direct|through NAME SOCKET: its report goes to $RESULTS/e2e_node-NAME-KIND.json.
node_suite_once() {
  local kind=$1 name=$2 socket=unix://$3 report=$RESULTS/e2e_node-$2-$1 start=$SECONDS code=0
  say "the node suite $kind on $name ($(date +%H:%M:%S)): $FOCUS"
  rm -f "$report.json"
  (
    cd "$BED/suite"
    timeout "$LIMIT" "$HERE/bed" run "$(tool ginkgo)" -nodes="$PROCESSES" --no-color --silence-skips --timeout="${LIMIT}s" \
      --focus="$FOCUS" --skip="$SKIP" --output-dir="$BED/suite" --json-report=report.json ./e2e_node.test -- \
      --container-runtime-endpoint="$socket" --image-service-endpoint="$socket" --system-spec-file="$BED/suite/system.yaml" \
      --prepull-images=false --kubelet-config-file="$BED/suite/kubelet.yaml" --node-name=localhost \
      --report-dir="$BED/suite/logs" --kubelet-flags='--kubelet-cgroups= --system-cgroups= --runtime-cgroups='
  ) >"$report.log" 2>&1 || code=$?
  cp "$BED/suite/logs/kubelet.log" "$report-kubelet.log" 2>/dev/null || true
  [ -s "$BED/suite/report.json" ] || { tail -20 "$report.log" >&2; die "the node suite $kind on $name ended with $code and wrote no report"; }
  cp "$BED/suite/report.json" "$report.json"
  say "the node suite $kind on $name: $(python3 "$PARTS/compare.py" "$report.json") in $((SECONDS - start)) s"
}
