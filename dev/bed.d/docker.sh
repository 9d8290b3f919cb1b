# shellcheck shell=bash
# Docker as a backend: dockerd of Debian's newer suites (VERSION 26 or 28; 26 without one) with a containerd of its own,
# and cri-dockerd where the machine has one: CRI_DOCKERD=path or PATH. NAME is cri-dockerd, NAME-dockerd is Docker. Its
# handler, and default, is `bed`: runc.

docker_available() { program CRI_DOCKERD cri-dockerd >/dev/null; }

docker_configure() { # NAME docker[@VERSION] NET
  local name=$1 version=26 net=$3 state=$RUN/$1 programs
  case $2 in *@*) version=${2#*@} ;; esac
  programs=$("$HERE/tools/build" --where)
  case $version in
    26) programs=$programs/docker-26:$programs/containerd-1.7 ;;
    28) programs=$programs/docker-28:$programs/containerd-2.1 ;;
    *) die "no such Docker: $version (26, 28)" ;;
  esac
  "$HERE/tools/build" "docker-$version" "containerd-${programs##*-}" >&2 || die "Docker $version cannot be had (see above)"
  mkdir -p "$state/cni"
  echo "$programs" >"$state/programs"
  program CRI_DOCKERD cri-dockerd >"$state/program"
  containerd_network "$name" "$net" >"$state/cni/10-$name.conflist"
  docker_settings "$state" >"$state/daemon.json"
  docker_registry_up
}

docker_settings() { # STATE
  local driver=overlay2
  [ "$(stat -f -c %T "$BED")" != overlayfs ] || driver=vfs
  cat <<JSON
{"hosts": ["unix://$1/docker.sock"], "data-root": "$1/root", "exec-root": "$1/state", "pidfile": "$1/docker.pid",
 "storage-driver": "$driver", "exec-opts": ["native.cgroupdriver=cgroupfs"], "live-restore": true,
 "bridge": "none", "iptables": false, "ip6tables": false,
 "default-runtime": "bed", "runtimes": {"bed": {"path": "$PARTS/runc-shim"}},
 "registry-mirrors": ["http://127.0.0.1:5000"], "insecure-registries": ["registry.k8s.io", "k8s.gcr.io", "gcr.io"]}
JSON
}

# Docker takes mirrors for docker.io alone: the others' names lead to the same registry on the port that they imply.
docker_registry_up() {
  [ ! -e "$RUN/registry-80.pid" ] || return 0
  sed 's/^\(http: {addr: "\):[0-9]*/\1127.0.0.1:80/' "$RUN/registry.yaml" >"$RUN/registry-80.yaml"
  spawn registry-80 docker-registry serve "$RUN/registry-80.yaml"
  wait_until 10 "the registry on port 80 ($LOGS/registry-80.log)" inside curl -s -o /dev/null http://127.0.0.1:80/v2/
  { cat /etc/hosts; echo "127.0.0.1 registry.k8s.io k8s.gcr.io gcr.io"; } >"$RUN/hosts"
  inside mount --bind "$RUN/hosts" /etc/hosts
}

docker_launch() {
  local state=$RUN/$1 path
  path=$(cat "$state/programs"):$PATH
  if [ ! -e "$RUN/$1-dockerd.pid" ] || gone "$1-dockerd"; then
    spawn "$1-dockerd" env PATH="$path" dockerd --config-file "$state/daemon.json"
    wait_until 60 "Docker of $1 ($LOGS/$1-dockerd.log)" inside curl -s -o /dev/null --unix-socket "$state/docker.sock" http://docker/_ping ||
      { tail -5 "$LOGS/$1-dockerd.log" >&2; exit 1; }
  fi
  rm -f "$state/cri-dockerd.sock"
  spawn "$1" env PATH="$path" "$(cat "$state/program")" --container-runtime-endpoint "unix://$state/cri-dockerd.sock" \
    --docker-endpoint "unix://$state/docker.sock" --cri-dockerd-root-directory "$state/cri-dockerd" \
    --network-plugin cni --cni-bin-dir /usr/lib/cni --cni-conf-dir "$state/cni" --cni-cache-dir "$state/cni-cache" \
    --pod-infra-container-image registry.k8s.io/pause:3.9 --streaming-bind-addr 127.0.0.1:0
}

docker_ready() {
  wait_until 60 "cri-dockerd $1 ($LOGS/$1.log)" test -S "$RUN/$1/cri-dockerd.sock" || { tail -5 "$LOGS/$1.log" >&2; exit 1; }
}
