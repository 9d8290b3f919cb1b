# shellcheck shell=bash
# etcd, kube-apiserver and kubectl of dev/node. The API server signs its own certificate; everybody who has the
# one token is an administrator. No controller manager and no scheduler: only what a kubelet needs.

KUBERNETES=$NODE/kubernetes
KUBECONFIG_FILE=$KUBERNETES/kubeconfig

control_plane_start() {
  mkdir -p "$KUBERNETES"
  network_make
  credentials_make
  etcd_start
  apiserver_start
  runtime_classes
}

# kubelet and the API server want an address that is not loopback, and some default route.
network_make() {
  bed run sh -ec "
    ip link show node0 >/dev/null 2>&1 && exit 0
    ip link add node0 type veth peer name node1
    ip link set node1 up
    ip addr add $NODE_ADDRESS/24 dev node0
    ip link set node0 up
    ip route replace default dev node0"
}

credentials_make() {
  local token
  [ ! -e "$KUBECONFIG_FILE" ] || return 0
  token=$(openssl rand -hex 16)
  echo "$token,admin,admin,system:masters" >"$KUBERNETES/tokens.csv"
  openssl genrsa -out "$KUBERNETES/service-account.key" 2048 2>/dev/null
  cat >"$KUBECONFIG_FILE" <<CONFIG
apiVersion: v1
kind: Config
clusters: [{name: node, cluster: {server: "https://127.0.0.1:6443", insecure-skip-tls-verify: true}}]
users: [{name: admin, user: {token: $token}}]
contexts: [{name: node, context: {cluster: node, user: admin}}]
current-context: node
CONFIG
  chmod 600 "$KUBECONFIG_FILE" "$KUBERNETES"/*.key "$KUBERNETES/tokens.csv"
  printf 'timeout: 60\ndebug: false\n' >"$NODE/crictl.yaml"
}

etcd_start() {
  bed spawn etcd "$(tool etcd)" --data-dir "$KUBERNETES/etcd" --unsafe-no-fsync --log-level warn \
    --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
    --listen-peer-urls http://127.0.0.1:2380
  wait_until 30 "etcd ($BED/log/etcd.log)" bed run curl -sf http://127.0.0.1:2379/health
}

apiserver_start() {
  bed spawn apiserver "$(tool kube-apiserver)" --etcd-servers http://127.0.0.1:2379 --secure-port 6443 \
    --advertise-address "$NODE_ADDRESS" --endpoint-reconciler-type none --cert-dir "$KUBERNETES/apiserver" \
    --disable-admission-plugins ServiceAccount --authorization-mode RBAC \
    --token-auth-file "$KUBERNETES/tokens.csv" --allow-privileged=true \
    --service-account-issuer https://127.0.0.1:6443 --service-account-key-file "$KUBERNETES/service-account.key" \
    --service-account-signing-key-file "$KUBERNETES/service-account.key" \
    --kubelet-certificate-authority "" --service-cluster-ip-range 10.101.0.0/24 \
    ${NODE_FEATURES:+--feature-gates "$(api_features)"}
  # The namespace is made a moment after the server calls itself ready.
  wait_until 120 "the API server ($BED/log/apiserver.log)" kubectl get namespace default ||
    { tail -5 "$BED/log/apiserver.log" >&2; exit 1; }
}

# The API server refuses gates that only kubelet has.
api_features() { tr ',' '\n' <<<"$NODE_FEATURES" | sed 's/^/kube:/' | tr '\n' ',' | sed 's/,$//'; }

# The API server does not end on TERM once its etcd is gone, and all of them may go at once with the namespace.
control_plane_stop() { :; }

kubectl() { bed run "$(tool kubectl)" --kubeconfig "$KUBECONFIG_FILE" --cache-dir "$KUBERNETES/cache" "$@"; }

runtime_class() { # NAME
  printf '{"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "%s"}, "handler": "%s"}\n' "$1" "$1"
}

runtime_classes() {
  local backend
  [ -n "$NODE_BACKENDS" ] || return 0
  for backend in $(present_backends); do
    runtime_class "${backend%%:*}"
  done | kubectl apply -f - >/dev/null
}
