#!/bin/sh
# Installs, upgrades, rolls back and removes crimux on one node.
#
#   crimux-node.sh run        install, then wait for SIGTERM (what the DaemonSet runs)
#   crimux-node.sh install    bring the node to the release in $CRIMUX_SOURCE with the config $CRIMUX_CONFIG
#   crimux-node.sh ready      exit 0 when this pod's release is active and kubelet runs through it
#   crimux-node.sh rollback   go back to the release that was active before
#   crimux-node.sh remove     point kubelet back to where it was and take crimux off the node
#   crimux-node.sh run-remove remove, then wait for SIGTERM
#
# A release is one binary, its units and one config; it is staged below /opt/crimux/releases under the hash of its
# contents, so that installing the same twice does nothing and going back is the same step as going forward.
# kubelet is touched last, and only when crimux runs. Whatever fails is put back to what was active.
#
# Files are reached below $CRIMUX_ROOT; commands of the node run in its mount namespace (or through $CRIMUX_HOST_RUN).
set -eu

ROOT=${CRIMUX_ROOT-/host}
SOURCE=${CRIMUX_SOURCE:-/usr/share/crimux/release}
CONFIG=${CRIMUX_CONFIG:-/etc/crimux-node/config.yaml}
HOST_RUN=${CRIMUX_HOST_RUN:-}
# files: edit the files kubelet reads its endpoint from; none: leave kubelet alone.
KUBELET=${CRIMUX_KUBELET:-files}
# A unit counts as running after SETTLE looks in a row, PAUSE seconds apart, out of at most TRIES.
TRIES=${CRIMUX_TRIES:-60}
SETTLE=${CRIMUX_SETTLE:-10}
PAUSE=${CRIMUX_PAUSE:-1}
# The pod's own note of what it installed.
NOTE=${CRIMUX_NOTE:-/tmp/crimux-release}

ENDPOINT=unix:///run/crimux/crimux.sock
KUBELET_DEFAULT=unix:///run/containerd/containerd.sock
HOME_DIR=$ROOT/opt/crimux
RELEASES=$HOME_DIR/releases
UNITS=$ROOT/etc/systemd/system
FLAG_FILES="etc/default/kubelet etc/sysconfig/kubelet var/lib/kubelet/kubeadm-flags.env"
YAML_FILES="var/lib/kubelet/config.yaml var/lib/kubelet/instance-config.yaml"

log() { printf 'crimux-node: %s\n' "$*" >&2; }
die() { log "error: $*"; exit 1; }

# Runs a command as the node itself would.
host() {
    if [ -n "$HOST_RUN" ]; then
        "$HOST_RUN" "$@"
    else
        nsenter --target 1 --mount -- "$@"
    fi
}

# put SOURCE TARGET MODE: replaces TARGET atomically; answers 1 when it was the same already.
put() {
    if cmp -s "$1" "$2"; then return 1; fi
    mkdir -p "$(dirname "$2")" || die "cannot make the directory of $2"
    cp "$1" "$2.crimux-new" || die "cannot write $2"
    chmod "$3" "$2.crimux-new" || die "cannot set the mode of $2"
    mv -f "$2.crimux-new" "$2" || die "cannot replace $2"
}

# recall NAME: the release noted as `active` or `previous`, or nothing.
recall() {
    if [ -e "$HOME_DIR/$1" ]; then cat "$HOME_DIR/$1"; fi
}

# note NAME RELEASE
note() {
    printf '%s\n' "$2" > "$HOME_DIR/$1.new"
    mv -f "$HOME_DIR/$1.new" "$HOME_DIR/$1"
}

# One installation at a time on a node: an `install` pod may still end while a `remove` pod starts.
lock() {
    mkdir -p "$ROOT/run"
    exec 9> "$ROOT/run/crimux-node.lock"
    tries=0
    # BusyBox's flock has no time limit of its own.
    until flock -n 9; do
        tries=$((tries + 1))
        [ "$tries" -lt 300 ] || die "another crimux-node is at work on this node"
        sleep 1
    done
}

# wait_for UNIT: whether it runs, and goes on running.
wait_for() {
    tries=0 good=0
    while [ "$tries" -lt "$TRIES" ]; do
        tries=$((tries + 1))
        if host systemctl is-active --quiet "$1"; then good=$((good + 1)); else good=0; fi
        if [ "$good" -ge "$SETTLE" ]; then return 0; fi
        sleep "$PAUSE"
    done
    log "$1 does not stay up"
    return 1
}

# --- releases ---------------------------------------------------------------------------------------------------------

# stage: copies the release in the image beside those on the node and prints its name.
stage() {
    for file in crimux crimux.service crimux.socket 20-crimux.conf; do
        [ -e "$SOURCE/$file" ] || die "$SOURCE/$file is missing in the image"
    done
    [ -e "$CONFIG" ] || die "$CONFIG is missing"
    mkdir -p "$RELEASES"
    rm -rf "$RELEASES/.stage"
    mkdir "$RELEASES/.stage"
    cp "$SOURCE/crimux" "$SOURCE/crimux.service" "$SOURCE/crimux.socket" "$SOURCE/20-crimux.conf" "$RELEASES/.stage/"
    cp "$CONFIG" "$RELEASES/.stage/config.yaml"
    chmod 0755 "$RELEASES/.stage/crimux"
    chmod 0600 "$RELEASES/.stage/config.yaml"
    write_release_drop_in > "$RELEASES/.stage/10-release.conf"
    name=$(cd "$RELEASES/.stage" && sha256sum -- * | sha256sum | cut -c1-16)
    if [ -d "$RELEASES/$name" ]; then rm -rf "$RELEASES/.stage"; else mv "$RELEASES/.stage" "$RELEASES/$name"; fi
    printf '%s\n' "$name"
}

# The units in the release start /usr/bin/crimux; here the binary is below /opt, which is writable on more systems.
write_release_drop_in() {
    cat <<'UNIT'
# Written by crimux-node.sh: the binary of the active release.
[Service]
ExecStart=
ExecStart=/opt/crimux/current/crimux serve --config /etc/crimux/config.yaml
ExecReload=
ExecReload=/opt/crimux/current/crimux check --config /etc/crimux/config.yaml
ExecReload=/bin/sh -c 'kill -HUP $MAINPID'
UNIT
}

# check RELEASE: lets the release's own binary read the release's config where it will lie (paths in it may be relative).
check() {
    put "$RELEASES/$1/config.yaml" "$ROOT/etc/crimux/config.yaml.candidate" 0600 || true
    if host "/opt/crimux/releases/$1/crimux" check --config /etc/crimux/config.yaml.candidate; then
        rm -f "$ROOT/etc/crimux/config.yaml.candidate"
    else
        rm -f "$ROOT/etc/crimux/config.yaml.candidate"
        die "crimux check refuses the config; nothing was changed"
    fi
}

# same RELEASE RELEASE FILE...: whether both hold the same files.
same() {
    [ -n "$1" ] && [ -d "$RELEASES/$1" ] || return 1
    left=$RELEASES/$1 right=$RELEASES/$2
    shift 2
    for file in "$@"; do cmp -s "$left/$file" "$right/$file" || return 1; done
}

# activate RELEASE: files, then systemd, then wait. Answers 1 when crimux does not stay up.
activate() {
    from=$RELEASES/$1 active=$(recall active) service=no socket=no config=no
    put "$from/config.yaml" "$ROOT/etc/crimux/config.yaml" 0600 && config=yes
    put "$from/crimux.service" "$UNITS/crimux.service" 0644 && service=yes
    put "$from/10-release.conf" "$UNITS/crimux.service.d/10-release.conf" 0644 && service=yes
    put "$from/20-crimux.conf" "$UNITS/kubelet.service.d/20-crimux.conf" 0644 && service=yes
    put "$from/crimux.socket" "$UNITS/crimux.socket" 0644 && socket=yes
    ln -sfn "releases/$1" "$HOME_DIR/current.new" || die "cannot link the release"
    mv -fT "$HOME_DIR/current.new" "$HOME_DIR/current" || die "cannot link the release"
    # Compared with the release that is known to run, so that an installation that was cut off is finished, not skipped.
    if [ "$active" != "$1" ]; then
        same "$active" "$1" config.yaml || config=yes
        same "$active" "$1" crimux crimux.service 10-release.conf || service=yes
        same "$active" "$1" crimux.socket || socket=yes
    fi
    apply_units "$service" "$socket" "$config"
    wait_for crimux.service
}

# apply_units SERVICE SOCKET CONFIG: the least that makes systemd run what the files say.
apply_units() {
    if [ "$1$2" != nono ]; then
        host systemctl daemon-reload || die "systemd does not answer"
        host systemctl enable --quiet crimux.socket crimux.service || die "cannot enable crimux"
    fi
    if [ "$2" = yes ]; then
        host systemctl stop crimux.service crimux.socket || true
        host systemctl start crimux.socket || log "crimux.socket does not start"
    fi
    if [ "$1$2" != nono ]; then
        log "restarting crimux"
        host systemctl restart crimux.service || log "crimux does not start"
    elif [ "$3" = yes ]; then
        log "reloading crimux"
        host systemctl reload crimux.service || log "crimux does not reload"
    else
        host systemctl start crimux.service || log "crimux does not start"
    fi
}

# switch RELEASE: activates it and notes it, or goes back to the one that was active.
switch() {
    before=$(recall active)
    if activate "$1"; then
        if [ "$before" != "$1" ]; then
            if [ -n "$before" ]; then note previous "$before"; fi
            note active "$1"
        fi
        return 0
    fi
    if [ -n "$before" ] && [ "$before" != "$1" ]; then
        log "going back to release $before"
        note active "$1"
        activate "$before" || log "release $before does not stay up either"
        note active "$before"
    fi
    die "release $1 does not run on this node; see journalctl -u crimux"
}

# prune: keeps the active release and the one before.
prune() {
    for path in "$RELEASES"/*; do
        name=${path##*/}
        if [ "$name" != "$(recall active)" ] && [ "$name" != "$(recall previous)" ]; then rm -rf "$path"; fi
    done
}

# --- kubelet ----------------------------------------------------------------------------------------------------------

# endpoint_in FILE: the endpoint that a file of flags or a YAML file gives, or nothing.
endpoint_in() {
    if [ ! -e "$ROOT/$1" ]; then return 0; fi
    case $1 in
        *.yaml) sed -n 's/^containerRuntimeEndpoint:[[:space:]]*["'\'']\{0,1\}\([^"'\''[:space:]]*\).*/\1/p' "$ROOT/$1" ;;
        *) sed -n '/^[[:space:]]*#/d; s/.*--container-runtime-endpoint[= ]\([^"'\''[:space:]]*\).*/\1/p' "$ROOT/$1" ;;
    esac | tail -n 1
}

# kubelet_endpoint: what kubelet uses now; a flag goes before the file, KUBELET_EXTRA_ARGS before kubeadm's flags.
kubelet_endpoint() {
    for file in $FLAG_FILES var/lib/kubelet/config.yaml; do
        found=$(endpoint_in "$file")
        if [ -n "$found" ]; then printf '%s\n' "$found"; return 0; fi
    done
    printf '%s\n' "$KUBELET_DEFAULT"
}

# edit FILE SCRIPT: sed in place, keeping owner and mode.
edit() {
    cp -p "$ROOT/$1" "$ROOT/$1.crimux-new" || die "cannot edit $1"
    sed "$2" "$ROOT/$1" > "$ROOT/$1.crimux-new" || die "cannot edit $1"
    mv -f "$ROOT/$1.crimux-new" "$ROOT/$1" || die "cannot edit $1"
}

# set_endpoint ENDPOINT: in every file that names one; answers 1 when none does.
set_endpoint() {
    set_any=1
    for file in $FLAG_FILES $YAML_FILES; do
        if [ -z "$(endpoint_in "$file")" ]; then continue; fi
        set_any=0
        case $file in
            *.yaml) edit "$file" "s|^containerRuntimeEndpoint:.*|containerRuntimeEndpoint: $1|" ;;
            *) edit "$file" "s|--container-runtime-endpoint\([= ]\)[^\"'[:space:]]*|--container-runtime-endpoint\1$1|" ;;
        esac
    done
    return "$set_any"
}

# refuse_lost_pods ENDPOINT: kubelet must find the pods it has now behind crimux too.
refuse_lost_pods() {
    for file in $FLAG_FILES $YAML_FILES; do
        if [ -e "$ROOT/$file" ] && grep -Eq '^[^#]*(--image-service-endpoint|imageServiceEndpoint:)' "$ROOT/$file"; then
            die "$file sets an image service endpoint; images must go through crimux as well: remove it first"
        fi
    done
    path=${1#unix://}
    path=${path#/var}
    if ! grep -Eq "^[^#]*endpoint:.*unix://(/var)?$path([^[:alnum:]]|\$)" "$ROOT/etc/crimux/config.yaml"; then
        die "kubelet's present runtime $1 is no backend in the config: its pods would be lost; kubelet was not touched"
    fi
}

# point_kubelet: kubelet to crimux, with what was there before noted once.
point_kubelet() {
    if [ "$KUBELET" = none ]; then log "kubelet is left alone"; return 0; fi
    now=$(kubelet_endpoint)
    if [ "$now" = "$ENDPOINT" ]; then return 0; fi
    refuse_lost_pods "$now"
    note endpoint-before "$now"
    if ! set_endpoint "$ENDPOINT"; then
        [ -e "$ROOT/var/lib/kubelet/config.yaml" ] ||
            die "it is not known where kubelet reads its endpoint; set it by hand and CRIMUX_KUBELET=none"
        note endpoint-appended yes
        printf '\ncontainerRuntimeEndpoint: %s\n' "$ENDPOINT" >> "$ROOT/var/lib/kubelet/config.yaml"
    fi
    log "restarting kubelet with $ENDPOINT instead of $now"
    host systemctl restart kubelet.service || true
    if ! wait_for kubelet.service; then
        restore_kubelet
        die "kubelet does not run through crimux; it was put back to $now"
    fi
    log "kubeadm without the gate NodeLocalCRISocket also needs: kubectl annotate node NAME --overwrite kubeadm.alpha.kubernetes.io/cri-socket=$ENDPOINT"
}

# restore_kubelet: the endpoint from before, if crimux-node changed it. Answers 1 when kubelet does not stay up.
restore_kubelet() {
    before=$(recall endpoint-before)
    if [ -z "$before" ]; then return 0; fi
    if [ -e "$HOME_DIR/endpoint-appended" ]; then
        edit var/lib/kubelet/config.yaml "\|^containerRuntimeEndpoint: $ENDPOINT\$|d"
    else
        set_endpoint "$before" || true
    fi
    log "restarting kubelet with $before"
    host systemctl restart kubelet.service || true
    wait_for kubelet.service || return 1
    rm -f "$HOME_DIR/endpoint-before" "$HOME_DIR/endpoint-appended"
}

# --- verbs ------------------------------------------------------------------------------------------------------------

do_install() {
    lock
    if [ -e "$ROOT/var/lib/dpkg/info/crimux.list" ]; then die "crimux is on this node as a Debian package; purge it first"; fi
    release=$(stage)
    check "$release"
    switch "$release"
    point_kubelet
    prune
    printf '%s\n' "$release" > "$NOTE"
    log "release $release is active"
}

do_ready() {
    if [ ! -e "$NOTE" ] || [ "$(cat "$NOTE")" != "$(recall active)" ]; then die "this pod's release is not active"; fi
    host systemctl is-active --quiet crimux.service || die "crimux does not run"
    if [ "$KUBELET" = none ]; then return 0; fi
    [ "$(kubelet_endpoint)" = "$ENDPOINT" ] || die "kubelet does not point to crimux"
    host systemctl is-active --quiet kubelet.service || die "kubelet does not run"
}

do_rollback() {
    lock
    target=$(recall previous)
    if [ -z "$target" ] || [ ! -d "$RELEASES/$target" ]; then die "there is no release to go back to"; fi
    check "$target"
    switch "$target"
    log "release $target is active"
}

# refuse_orphans: pods elsewhere than on the default backend would run on where kubelet no longer looks.
refuse_orphans() {
    pods=$(host /opt/crimux/current/crimux ps --output json) || die "crimux ps does not answer; start crimux first"
    default=$(sed -n 's/^default_backend:[[:space:]]*\([^[:space:]#]*\).*/\1/p' "$ROOT/etc/crimux/config.yaml")
    others=$(printf '%s\n' "$pods" | grep -o '"backend": *"[^"]*"' | cut -d'"' -f4 | sort -u | grep -Fvx "$default" || true)
    if [ -n "$others" ]; then
        die "pods still run on: $(printf '%s' "$others" | tr '\n' ' ')- delete or move them first (crimux ps)"
    fi
}

do_remove() {
    lock
    if [ ! -e "$HOME_DIR/active" ]; then log "crimux is not installed here"; return 0; fi
    refuse_orphans
    restore_kubelet || die "kubelet does not run without crimux; crimux was left in place"
    if [ "$KUBELET" != none ] && [ "$(kubelet_endpoint)" = "$ENDPOINT" ]; then
        die "kubelet still points to crimux, and it was not crimux-node that pointed it there; change that first"
    fi
    host systemctl disable --quiet --now crimux.service crimux.socket
    rm -f "$UNITS/crimux.service" "$UNITS/crimux.socket" "$UNITS/kubelet.service.d/20-crimux.conf"
    rm -rf "$UNITS/crimux.service.d"
    host systemctl daemon-reload
    rm -f "$ROOT/etc/crimux/config.yaml"
    rmdir "$ROOT/etc/crimux" "$UNITS/kubelet.service.d" 2> /dev/null || true
    rm -rf "$HOME_DIR" "$ROOT/var/lib/crimux"
    log "crimux is removed"
}

# Gives up the lock and waits for SIGTERM; an upgrade replaces this pod, and ending it changes nothing on the node.
hold() {
    exec 9>&-
    trap 'exit 0' TERM INT
    while :; do
        sleep 3600 &
        wait $!
    done
}

case ${1:-} in
    run) do_install; hold ;;
    run-remove) do_remove; hold ;;
    install) do_install ;;
    ready) do_ready ;;
    rollback) do_rollback ;;
    remove) do_remove ;;
    *) sed -n 's/^# \{0,1\}//; 3,9p' "$0" >&2; exit 2 ;;
esac
