# shellcheck shell=bash
# Registries inside the namespace: every image name resolves to the one on port 5000, private.bed/... to the
# one on port 5001, which asks for a password. Users of the latter: alice/wonderland, bob/builder.

registry_up() {
  registry_start registry 5000 ''
  registry_push 5000 '' "${IMAGE_NAMES[@]}"
  # Docker's short names (busybox, web) live under library/.
  registry_push 5000 library/ busybox:latest web:latest
}

registry_auth_up() {
  namespace_alive || die "not up: $BED"
  [ ! -e "$RUN/registry-auth.pid" ] || { say "the registry with passwords is up"; return 0; }
  local users=$RUN/registry-auth.users
  { registry_user alice wonderland; registry_user bob builder; } >"$users"
  registry_start registry-auth 5001 "auth: {htpasswd: {realm: bed, path: $users}}"
  registry_push 5001 alice/ busybox:latest web:latest
  registry_push 5001 bob/ busybox:latest web:latest
  say "registry-auth: private.bed/{alice,bob}/{busybox,web}:latest, users alice:wonderland bob:builder"
}

# What critest pulls, and with `node` what Kubernetes' node suite pulls, under the names they pull it by; a mirror
# knows a name without its host.
registry_suites_up() { # [node]
  namespace_alive || die "not up: $BED"
  suite_images_build
  registry_suite_push "$SUITE_IMAGES" < <(suite_names)
  [ "${1:-}" = node ] || return 0
  node_suite_images_build
  registry_suite_push "$NODE_SUITE_IMAGES" < <(node_suite_names)
}

registry_suite_push() { # LAYOUT, lines of suite_names on stdin
  local tag name
  while read -r tag name; do
    inside skopeo --insecure-policy copy -q --dest-tls-verify=false "oci:$1:$tag" \
      "docker://127.0.0.1:5000/${name#*/}" </dev/null
  done
}

# One htpasswd line; the registry only takes bcrypt, which perl's crypt (libxcrypt) can do.
registry_user() {
  perl -e 'printf "%s:%s\n", $ARGV[0], crypt($ARGV[1], q($2y$05$bedbedbedbedbedbedbedu))' "$1" "$2"
}

registry_start() { # NAME PORT AUTH
  cat >"$RUN/$1.yaml" <<CONFIG
version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: $RUN/$1}, delete: {enabled: true}}
http: {addr: ":$2"}
$3
CONFIG
  spawn "$1" docker-registry serve "$RUN/$1.yaml"
  # 401 is an answer too.
  wait_until 10 "the registry on port $2 ($LOGS/$1.log)" inside curl -s -o /dev/null "http://127.0.0.1:$2/v2/"
}

registry_push() { # PORT PREFIX IMAGE...
  local port=$1 prefix=$2 image credentials=()
  shift 2
  [ "$port" = 5000 ] || credentials=(--dest-creds alice:wonderland)
  for image in "$@"; do
    inside skopeo --insecure-policy copy -q --dest-tls-verify=false "${credentials[@]}" \
      "oci:$IMAGES:${image%%:*}" "docker://127.0.0.1:$port/$prefix$image"
  done
}

# registry_mirror DIRECTORY HOST: containerd's registry hosts, so that plain image names reach the registries
# at HOST over http.
registry_mirror() {
  mkdir -p "$1/_default" "$1/private.bed"
  printf '[host."http://%s:5000"]\n  capabilities = ["pull", "resolve"]\n' "$2" >"$1/_default/hosts.toml"
  printf 'server = "http://%s:5001"\n[host."http://%s:5001"]\n  capabilities = ["pull", "resolve"]\n' "$2" "$2" \
    >"$1/private.bed/hosts.toml"
}

# The same for what reads registries.conf.
registry_hosts() {
  local name
  echo 'unqualified-search-registries = ["docker.io"]'
  for name in docker.io registry.k8s.io k8s.gcr.io gcr.io quay.io; do
    printf '[[registry]]\nprefix = "%s"\nlocation = "127.0.0.1:5000"\ninsecure = true\n' "$name"
  done
  printf '[[registry]]\nprefix = "private.bed"\nlocation = "127.0.0.1:5001"\ninsecure = true\n'
}
