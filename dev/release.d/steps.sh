# shellcheck shell=bash
# The parts of dev/release. They share its variables.
. deploy/home.env
version='' output='' work='' profile='' host=''

missing=()
say() { printf '%(%H:%M:%S)T release: %s\n' -1 "$*" >&2; }
die() { echo "release: $*" >&2; exit 1; }

# lack WHAT WHY: says what is not made, now and at the end.
lack() {
  say "NOT MADE: $1: $2"
  missing+=("$1: $2")
}

report_missing() {
  [ "${#missing[@]}" -gt 0 ] || return 0
  printf 'release: NOT MADE: %s\n' "${missing[@]}" >&2
}

crate_version() { sed -n '/^\[workspace.package\]/,/^$/s/^version = "\(.*\)"/\1/p' Cargo.toml; }

# deterministic_tar DIRECTORY MEMBER FILE [TAR_OPTION...]: owners, times and order say nothing of who made it.
deterministic_tar() {
  tar --create --file "$3" --directory "$1" --format=gnu --sort=name --owner=0 --group=0 --numeric-owner \
    --mtime="@$SOURCE_DATE_EPOCH" --mode='u+rw,go+r,go-w,a-s' "${@:4}" "$2"
}

# pack DIRECTORY NAME FILE: a tar.gz of DIRECTORY with NAME as its only top directory; links are followed.
pack() {
  deterministic_tar "$1" . "$work/pack.tar" --dereference --transform="s,^\.,$2,"
  gzip -9n <"$work/pack.tar" >"$3"
  rm "$work/pack.tar"
}

# --- binaries ---------------------------------------------------------------------------------------------------------

declare -A MACHINE=([amd64]=x86_64 [arm64]=aarch64)

has_std() { [ -d "$(rustc --print target-libdir --target "$1" 2>/dev/null)" ]; }

# target_of ARCHITECTURE: the target that gives a static binary. musl, whose resolver needs no library of the node; without its
# std glibc, for this machine's architecture alone.
target_of() {
  local machine=${MACHINE[$1]} musl=${MACHINE[$1]}-unknown-linux-musl
  has_std "$musl" || ! command -v rustup >/dev/null || timeout 180 rustup target add "$musl" >/dev/null 2>&1 || true
  if has_std "$musl"; then
    echo "$musl"
  elif [ "$machine" = "$(uname -m)" ]; then
    echo "$machine-unknown-linux-gnu"
  fi
}

# c_compiler ARCHITECTURE TARGET: for the C and assembly in ring, and to link with.
c_compiler() {
  local cross=${MACHINE[$1]}-linux-gnu-gcc
  if [ "${MACHINE[$1]}" = "$(uname -m)" ]; then
    case $2 in *musl) command -v musl-gcc || command -v cc ;; *) command -v cc ;; esac
  else
    command -v "$cross" || {
      [ "$(id -u)" = 0 ] && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        "gcc-${MACHINE[$1]}-linux-gnu" "libc6-dev-$1-cross" >/dev/null 2>&1
      command -v "$cross"
    }
  fi
}

# build_binary ARCHITECTURE FILE
build_binary() {
  local target compiler variable directory=${CARGO_TARGET_DIR:-target} cargo_home=${CARGO_HOME:-$HOME/.cargo}
  target=$(target_of "$1")
  if [ -z "$target" ]; then
    lack "everything for $1" "there is no std for ${MACHINE[$1]}-unknown-linux-musl (rustup target add); the release workflow makes it"
    return 1
  fi
  if ! compiler=$(c_compiler "$1" "$target"); then
    lack "everything for $1" "there is no C compiler for it (apt-get install gcc-${MACHINE[$1]}-linux-gnu libc6-dev-$1-cross)"
    return 1
  fi
  case $target in
    *gnu) say "no std for musl: linking glibc statically; names are looked up by files and DNS, whatever nsswitch.conf adds" ;;
  esac
  variable=${target//-/_}
  (
    # No path of this machine is in the binary: they would show in messages, and differ elsewhere.
    export RUSTFLAGS="-C target-feature=+crt-static --remap-path-prefix=$PWD=/crimux --remap-path-prefix=$cargo_home=/cargo"
    export CFLAGS="-ffile-prefix-map=$PWD=/crimux -ffile-prefix-map=$cargo_home=/cargo"
    export "CC_$variable=$compiler"
    case $compiler in */musl-gcc) ;; *) export "CARGO_TARGET_${variable^^}_LINKER=$compiler" ;; esac
    export CARGO_PROFILE_RELEASE_STRIP=symbols CARGO_PROFILE_QUICK_STRIP=symbols
    cargo build --locked --package crimux --bin crimux --profile "$profile" --target "$target" >&2
  )
  install -D -m 755 "$directory/$target/$profile/crimux" "$2"
}

# tarball ARCHITECTURE: the binary and what stands around it, for nodes without dpkg.
tarball() {
  local root=$work/$1/tarball
  install -D -m 755 "$work/$1/crimux" "$root/usr/bin/crimux"
  install -D -m 644 -t "$root/usr/lib/systemd/system" deploy/systemd/crimux.service deploy/systemd/crimux.socket
  install -D -m 644 -t "$root/usr/lib/tmpfiles.d" deploy/systemd/tmpfiles.d/crimux.conf
  install -D -m 644 -t "$root/etc/crimux" deploy/debian/config.yaml
  install -D -m 644 -t "$root/usr/share/doc/crimux" docs/*.md docs/*.png docs/config.schema.json config.example.yaml \
    CHANGELOG.md LICENSE
  install -D -m 644 "$work/licenses" "$root/usr/share/doc/crimux/third-party-licenses"
  install -D -m 644 -t "$root/usr/share/doc/crimux/examples/kubelet.service.d" deploy/systemd/kubelet.service.d/20-crimux.conf
  install -D -m 644 -t "$root/usr/share/doc/crimux/examples/prometheus" deploy/prometheus/*.rules.yaml
  install -D -m 644 -t "$root/usr/share/doc/crimux/examples/grafana" deploy/grafana/crimux.json
  pack "$root" "crimux-$version" "$output/crimux-$version-linux-$1.tar.gz"
}

# --- the node image ---------------------------------------------------------------------------------------------------

# What the image is made of: a static BusyBox, and flock, which Debian's has not, with the libc that flock loads.
IMAGE_PACKAGES=(busybox-static util-linux libc6)

# fetch_packages ARCHITECTURE DIRECTORY: these packages of Debian, of that architecture, unpacked.
fetch_packages() {
  local lists=$work/apt-$1 options package
  mkdir -p "$lists/state/lists/partial" "$lists/cache/archives/partial" "$2"
  options=(-o "APT::Architecture=$1" -o "APT::Architectures=$1" -o "Dir::State=$lists/state" -o "Dir::Cache=$lists/cache"
    -o Dir::State::status=/dev/null -o APT::Sandbox::User=root -o Acquire::Languages=none)
  # The lists of this machine know its own architecture only, and stay as they are: another one has lists of its own.
  if [ "$1" != "$host" ] || ! (cd "$lists" && apt-get download -qq "${IMAGE_PACKAGES[@]}" >/dev/null 2>&1); then
    apt-get "${options[@]}" update -qq >/dev/null 2>&1 || true
    (cd "$lists" && apt-get "${options[@]}" download -qq "${IMAGE_PACKAGES[@]}" >/dev/null 2>&1) || return 1
  fi
  for package in "$lists"/*.deb; do dpkg-deb --extract "$package" "$2"; done
}

# loader_of ARCHITECTURE: the path that is written into every program.
loader_of() { case $1 in amd64) echo lib64/ld-linux-x86-64.so.2 ;; arm64) echo lib/ld-linux-aarch64.so.1 ;; esac; }

# image_root ARCHITECTURE: what runs crimux-node.sh, and the release that the script installs.
image_root() {
  local root=$work/$1/image debian=$work/$1/debian applet package
  if ! fetch_packages "$1" "$debian"; then
    lack "the node image for $1" "${IMAGE_PACKAGES[*]} cannot be had from Debian here"
    return 1
  fi
  install -D -m 755 "$(find "$debian" -name busybox -path '*bin/*' -type f)" "$root/bin/busybox"
  install -D -m 755 "$(find "$debian" -name flock -path '*bin/*' -type f)" "$root/bin/flock"
  # The loader stands where flock asks for it, whichever way the package has laid it out.
  install -D -m 755 "$(find "$debian" -name 'ld-linux-*.so.*' -type f)" "$root/$(loader_of "$1")"
  install -D -m 755 "$(find "$debian" -name libc.so.6 -type f)" "$root/lib/${MACHINE[$1]}-linux-gnu/libc.so.6"
  # What the script calls; a list of applets cannot be asked of a BusyBox of another architecture.
  for applet in sh cat chmod cmp cp cut dirname grep head ln ls mkdir mv nsenter printf rm rmdir sed sha256sum sleep sort \
    tail test '[' tr wget; do
    ln -s busybox "$root/bin/$applet"
  done
  mkdir -p "$root/tmp" "$root/host" "$root/etc/crimux-node"
  chmod 1777 "$root/tmp"
  printf 'root:x:0:0:root:/:/bin/sh\n' >"$root/etc/passwd"
  printf 'root:x:0:\n' >"$root/etc/group"
  for package in "${IMAGE_PACKAGES[@]}"; do
    install -D -m 644 -t "$root/usr/share/doc/$package" "$debian/usr/share/doc/$package/copyright"
  done
  install -D -m 644 "$work/licenses" "$root/usr/share/doc/crimux/third-party-licenses"
  install -D -m 755 "$work/$1/crimux" "$root/usr/share/crimux/release/crimux"
  install -D -m 644 -t "$root/usr/share/crimux/release" deploy/systemd/crimux.service deploy/systemd/crimux.socket \
    deploy/systemd/kubelet.service.d/20-crimux.conf
}

# --- charts and manifests ---------------------------------------------------------------------------------------------

# A home that is named goes into what is released; the placeholder stays one, which refuses to render.
named_image() { case $CRIMUX_IMAGE in *.example | *.example/*) return 1 ;; esac; }

chart() {
  cp -rL deploy/helm/crimux "$work/chart"
  sed -i "s/^version:.*/version: $version/; s/^appVersion:.*/appVersion: \"$version\"/" "$work/chart/Chart.yaml"
  if named_image; then sed -i "s,^  repository:.*,  repository: $CRIMUX_IMAGE," "$work/chart/values.yaml"; fi
  sed -i "s,^docs:.*,docs: $CRIMUX_DOCS," "$work/chart/values.yaml"
  pack "$work/chart" crimux "$output/crimux-chart-$version.tgz"
}

kubernetes() {
  cp -rL deploy/kubernetes "$work/kubernetes"
  rm -f "$work/kubernetes/base/image.env"
  if named_image; then echo "image=$CRIMUX_IMAGE:$version" >"$work/kubernetes/base/image.env"; fi
  pack "$work/kubernetes" "crimux-$version-kubernetes" "$output/crimux-$version-kubernetes.tar.gz"
}
