# shellcheck shell=bash
# A remote node: a containerd with mount, network and host name of its own, on the other end of a veth.
# The bed reaches it as 10.77.N.2 and its pods as 10.91.N.0/24; inside the bed the veth is called veth-NAME
# (`ip link set veth-NAME down` pulls the cable).

node_up() { # NAME N
  local name=$1 n=$2 state=$RUN/$1
  namespace_alive || die "not up: $BED"
  [ ! -e "$RUN/$name.pid" ] || die "$name is up already"
  tls_make
  REMOTE=10.77.$n.2 REGISTRY=10.77.$n.1 containerd_configure "$name" runc "10.91.$n"
  echo containerd >"$state/kind"
  inside ip link add "veth-$name" type veth peer name "peer-$name"
  inside ip addr add "10.77.$n.1/24" dev "veth-$name"
  inside ip link set "veth-$name" up
  spawn "$name" unshare --mount --net --uts --propagation private bash "$PARTS/node-init" "$name" "$n" "$state"
  wait_until 10 "node $name" test -e "$state/waiting"
  inside ip link set "peer-$name" netns "$(cat "$RUN/$name.pid")"
  : >"$state/cable"
  containerd_ready "$name"
  inside ip route replace "10.91.$n.0/24" via "10.77.$n.2"
  say "node $name: https://10.77.$n.2:10010, certificates in $BED/tls"
}
