# shellcheck shell=bash
# The test images, built from Debian's static busybox into one OCI layout, without any network.
#
#   pause    sleeps forever           (what every sandbox runs)
#   busybox  a shell and its tools
#   web      an HTTP server on port 80
#
# and, by the names that the field's suites pull (`suite-images`), what stands in for theirs: the same shell with
# the users, groups and servers that they look for.
#
# Built once and shared by all beds; a new recipe below means a new directory.

IMAGES=$BED_CACHE/images-2
SUITE_IMAGES=$BED_CACHE/suite-images-5
NODE_SUITE_IMAGES=$BED_CACHE/node-suite-images-2
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
  # Process 1 ignores SIGTERM if it does not say otherwise, and Docker would wait 10 s for each pod.
  umoci config --image "$layout:pause" --clear=config.cmd --config.stopsignal SIGKILL \
    --config.entrypoint /bin/sleep --config.entrypoint 2147483647
  umoci tag --image "$layout:busybox" web
  umoci config --image "$layout:web" --clear=config.cmd \
    --config.cmd httpd --config.cmd -f --config.cmd -p --config.cmd 80 --config.cmd -h --config.cmd /www
}

# ── for the field's suites ──────────────────────────────────────────────

# The tag of an image in the layout, and the names under which the suites pull it.
suite_names() {
  local e2e=registry.k8s.io/e2e-test-images staging=gcr.io/k8s-staging-cri-tools number
  cat <<NAMES
shell $e2e/busybox:1.29-2
shell $e2e/busybox:1.37.0-2
server $e2e/nginx:1.14-2
server $e2e/nginx:1.27.0-2
server $e2e/nginx:1.28.0-2
server $e2e/httpd:2.4.39-4
hostnet $staging/hostnet-nginx-amd64:latest
nonewprivs $e2e/nonewprivs:1.3
nonewprivs $e2e/nonewprivs:1.4
pause k8s.gcr.io/pause:3.9
pause registry.k8s.io/pause:3.10.2
uid $staging/test-image-user-uid:latest
username $staging/test-image-user-username:latest
uid-group $staging/test-image-user-uid-group:latest
username-group $staging/test-image-user-username-group:latest
predefined-group $staging/test-image-predefined-group:latest
one $staging/test-image-latest:latest
one $staging/test-image-tag:test
one $staging/test-image-tag:all
one $staging/test-image-1:latest
two $staging/test-image-2:latest
three $staging/test-image-3:latest
tags $staging/test-image-tags:1
tags $staging/test-image-tags:2
tags $staging/test-image-tags:3
NAMES
}

# The same for Kubernetes' node suite, of which critest wants nothing.
node_suite_names() {
  local e2e=registry.k8s.io/e2e-test-images
  cat <<NAMES
agnhost $e2e/agnhost:2.55
agnhost $e2e/agnhost:2.66.1
nonroot $e2e/nonroot:1.5
NAMES
}

suite_images_build() {
  images_build
  images_add "$IMAGES" "$SUITE_IMAGES" suite_images_make "the field's suites"
}

# images_add BASE LAYOUT MAKE WHOSE: LAYOUT is BASE and what `MAKE LAYOUT WORK` adds; made once.
images_add() {
  [ ! -d "$2" ] || return 0
  (
    flock 9
    [ ! -d "$2" ] || exit 0
    say "building the images of $4"
    work=$(mktemp -d "$BED_CACHE/suite.XXXXXX")
    cp -a "$1" "$work/oci"
    "$3" "$work/oci" "$work" >/dev/null
    mv "$work/oci" "$2"
    rm -rf "$work"
  ) 9>"$BED_CACHE/lock"
  [ -d "$2" ] || die "the images of $4 could not be built"
}

suite_images_make() { # LAYOUT WORK
  local layout=$1 work=$2 name
  suite_image busybox shell
  # nmeter, which Debian's busybox lacks: the node suite writes each line's time with it (`nmeter -d0 %3t`).
  suite_layer "$layout:shell" "$work/shell" sh -c "mkdir bin && cp $PARTS/suite/* bin/ && echo '
    #include <stdio.h>
    #include <time.h>
    int main(void) {
      struct timespec now;
      char text[16];
      clock_gettime(CLOCK_REALTIME, &now);
      strftime(text, sizeof text, \"%T\", gmtime(&now.tv_sec));
      printf(\"%s.%03ld%c\", text, now.tv_nsec / 1000000, 10);
      return 0;
    }' | cc -static -Os -s -x c -o bin/nmeter -"
  suite_image shell server --clear=config.cmd --config.cmd nginx --config.cmd "master process" --config.cmd 80
  suite_image shell hostnet --clear=config.cmd --config.cmd nginx --config.cmd "master process" --config.cmd 12003
  suite_image shell uid --config.user 1002
  suite_image shell username --config.user www-data
  suite_image shell uid-group --config.user 1003:1004
  suite_image shell username-group --config.user www-data:1004
  for name in one two three tags; do
    suite_image shell "$name"
    suite_layer "$layout:$name" "$work/$name" sh -c "echo $name >$name"
  done
  # The user is in a group that the image alone knows.
  suite_image shell predefined-group --config.user 1000
  suite_layer "$layout:predefined-group" "$work/group" sh -c "mkdir etc
    printf '%s\n' root:x:0:0:root:/root:/bin/sh default-user:x:1000:1000::/home:/bin/sh >etc/passwd
    printf '%s\n' root:x:0: default-user:x:1000: group-defined-in-image:x:50000:default-user >etc/group"
  # A program with the bit that no_new_privs takes away.
  suite_image shell nonewprivs --config.user 1000 --clear=config.cmd --config.entrypoint /nnp
  suite_layer "$layout:nonewprivs" "$work/nnp" sh -c "echo '
    #include <stdio.h>
    #include <unistd.h>
    int main(void) { printf(\"Effective uid: %d%c\", geteuid(), 10); return 0; }' |
    cc -static -Os -s -x c -o nnp - && chmod 4755 nnp"
}

# suite_image FROM TAG CONFIG...: a tag more in $layout.
suite_image() { umoci tag --image "$layout:$1" "$2" && umoci config --image "$layout:$2" "${@:3}"; }

node_suite_images_build() {
  suite_images_build
  [ -d "$NODE_SUITE_IMAGES" ] || "$HERE/tools/build" agnhost || die "the node suite's images need agnhost (see above)"
  images_add "$SUITE_IMAGES" "$NODE_SUITE_IMAGES" node_suite_images_make "Kubernetes' node suite"
}

node_suite_images_make() { # LAYOUT WORK
  local layout=$1 work=$2 agnhost
  agnhost=$("$HERE/tools/build" --where)/agnhost/agnhost
  suite_image shell nonroot --config.user 1234
  suite_image shell agnhost --clear=config.cmd --config.entrypoint /agnhost --config.cmd pause
  # Its specs look for curl, for a user in a group that the image alone knows, and run it under a second name.
  suite_layer "$layout:agnhost" "$work/agnhost" bash -c "mkdir -p usr/bin etc uploads
    cp $agnhost agnhost && ln -s agnhost agnhost-2
    cp \$(command -v curl) usr/bin/
    ldd usr/bin/curl | grep -o '/[^ ]*' | xargs -I{} cp --parents -L {} .
    printf '%s\n' root:x:0:0:root:/root:/bin/sh user-defined-in-image:x:1000:1000::/home:/bin/sh >etc/passwd
    printf '%s\n' root:x:0: user-defined-in-image:x:1000: \
      group-defined-in-image:x:50000:user-defined-in-image >etc/group"
}

# suite_layer IMAGE DIRECTORY COMMAND...: adds what the command makes in an empty directory.
suite_layer() {
  mkdir "$2"
  (cd "$2" && "${@:3}")
  tar -C "$2" --owner=0 --group=0 --numeric-owner --mtime=@0 -cf "$2.tar" .
  umoci raw add-layer --image "$1" "$2.tar"
}
