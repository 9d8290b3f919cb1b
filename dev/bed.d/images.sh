# shellcheck shell=bash
# The test images, built from Debian's static busybox into one OCI layout, without any network.
#
#   pause    sleeps forever           (what every sandbox runs)
#   busybox  a shell and its tools
#   web      an HTTP server on port 80
#
# Built once and shared by all beds; a new recipe below means a new directory.

IMAGES=$BED_CACHE/images-1
IMAGE_NAMES=(pause:3.9 busybox:latest web:latest)

images_build() {
  [ ! -d "$IMAGES" ] || return 0
  mkdir -p "$BED_CACHE"
  (
    flock 9
    [ ! -d "$IMAGES" ] || exit 0
    say "building the test images"
    work=$(mktemp -d "$BED_CACHE/images.XXXXXX")
    images_base "$work/root"
    tar -C "$work/root" --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -cf "$work/base.tar" .
    images_layout "$work/oci" "$work/base.tar" >/dev/null
    mv "$work/oci" "$IMAGES"
    rm -rf "$work"
  ) 9>"$BED_CACHE/lock"
  [ -d "$IMAGES" ] || die "the test images could not be built"
}

# images_base ROOT: busybox, its applets, the few files that runtimes look users up in.
images_base() {
  local root=$1 applet
  mkdir -p "$root"/{bin,sbin,usr/bin,usr/sbin,etc,tmp,root,home,var/log,var/run,proc,sys,dev,www}
  chmod 1777 "$root/tmp"
  cp /bin/busybox "$root/bin/busybox"
  for applet in $(/bin/busybox --list); do
    [ "$applet" = busybox ] || ln -s busybox "$root/bin/$applet"
  done
  printf '%s\n' root:x:0:0:root:/root:/bin/sh daemon:x:1:1:daemon:/usr/sbin:/bin/false \
    www-data:x:33:33:www-data:/www:/bin/false nobody:x:65534:65534:nobody:/home:/bin/false >"$root/etc/passwd"
  printf '%s\n' root:x:0: daemon:x:1: www-data:x:33: nogroup:x:65534: >"$root/etc/group"
  echo 'hello from busybox httpd' >"$root/www/index.html"
}

images_layout() {
  local layout=$1 base=$2
  umoci init --layout "$layout"
  umoci new --image "$layout:busybox"
  umoci raw add-layer --image "$layout:busybox" "$base"
  umoci config --image "$layout:busybox" --config.cmd sh \
    --config.env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
  umoci tag --image "$layout:busybox" pause
  umoci config --image "$layout:pause" --clear=config.cmd \
    --config.entrypoint /bin/sleep --config.entrypoint 2147483647
  umoci tag --image "$layout:busybox" web
  umoci config --image "$layout:web" --clear=config.cmd \
    --config.cmd httpd --config.cmd -f --config.cmd -p --config.cmd 80 --config.cmd -h --config.cmd /www
}
