# shellcheck shell=bash
# The private namespace: making it, entering it, the processes in it, ending it.
#
# `unshare` is its holder: it stays outside the pid namespace, takes that namespace's first process with it
# when it dies (--kill-child), and with it the kernel ends everything inside. The holder is remembered by pid
# and start time, so that a pid used again by another process is never taken for it.

# Beds are made and swept one at a time, so that no sweep sees a cgroup whose first process is on its way.
BED_LOCK=/run/lock/crimux-bed.lock

# Prints when a process started, in ticks since boot; nothing for one that has ended but was not reaped yet.
start_time() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | awk '$1 != "Z" { print $20 }'; }

# Prints the holder's pid while it is alive.
holder() {
  local pid started
  read -r pid started 2>/dev/null <"$RUN/holder" || return 1
  [ -n "$started" ] && [ "$(start_time "$pid")" = "$started" ] && echo "$pid"
}

namespace_alive() { [ -e "$RUN/ready" ] && holder >/dev/null; }

namespace_up() {
  local parent=() cgroup=crimux-bed-$$-$RANDOM
  # The holder then dies with this script, however that ends.
  [ "${1:-}" != --with-parent ] || parent=(setpriv --pdeathsig KILL)
  mkdir -p "$RUN" "$LOGS" "$(dirname $BED_LOCK)"
  rm -rf "${LOGS:?}"/*
  exec 9>$BED_LOCK
  flock -w 60 9 || die "another bed holds $BED_LOCK"
  cgroups_sweep
  echo "$cgroup" >"$RUN/cgroup"
  cgroups_make "$cgroup"
  (
    exec 9>&-
    cgroups_join "$cgroup"
    exec "${parent[@]}" unshare --mount --net --pid --cgroup --fork --kill-child --mount-proc \
      --propagation private bash "$PARTS/init" "$RUN/ready" </dev/null >"$LOGS/init.log" 2>&1
  ) &
  local pid=$!
  disown
  echo "$pid $(start_time $pid)" >"$RUN/holder"
  wait_until 10 "the namespace ($LOGS/init.log)" test -e "$RUN/ready" || { cat "$LOGS/init.log" >&2; exit 1; }
  cgroups_delegate "$cgroup" "$pid"
  exec 9>&-
}

namespace_down() {
  local pid cgroup
  if pid=$(holder); then kill -KILL "$pid"; fi
  if cgroup=$(cat "$RUN/cgroup" 2>/dev/null); then
    wait_until 20 "the bed's processes to end" cgroups_empty "$cgroup"
    wait_until 5 "the bed's cgroups to go" cgroups_remove "$cgroup"
  fi
}

# ── cgroups ─────────────────────────────────────────────────────────────────────────────────────────────
# One cgroup per bed in every hierarchy; a cgroup namespace makes it the root of what the runtimes see, so
# that beds do not meet and all that is left over has one name. With v1 mounted, v2 is left alone.

cgroup_roots() {
  local v1
  v1=$(findmnt -rn -t cgroup -o TARGET || true)
  if [ -n "$v1" ]; then echo "$v1"; else findmnt -rn -t cgroup2 -o TARGET; fi
}

cgroups_make() {
  local root file
  for root in $(cgroup_roots); do
    mkdir -p "$root/$1"
    # A v1 cpuset starts empty and accepts no process until it has CPUs and memory.
    for file in cpuset.cpus cpuset.mems; do
      [ ! -e "$root/cpuset.sched_load_balance" ] || cat "$root/$file" >"$root/$1/$file"
    done
  done
}

# v2 allows no processes beside child cgroups: the holder follows init into a leaf, then children may have
# controllers.
cgroups_delegate() {
  local root controller
  for root in $(cgroup_roots); do
    [ -e "$root/$1/init" ] || continue
    echo "$2" >"$root/$1/init/cgroup.procs"
    for controller in $(cat "$root/$1/cgroup.controllers"); do
      echo "+$controller" >"$root/$1/cgroup.subtree_control" || say "no cgroup controller $controller"
    done
  done
}

cgroups_join() {
  local root leaf
  for root in $(cgroup_roots); do
    leaf=$root/$1
    [ ! -e "$leaf/init" ] || leaf=$leaf/init
    echo "$BASHPID" >"$leaf/cgroup.procs"
  done
}

cgroups_empty() {
  local root
  for root in $(cgroup_roots); do
    [ -d "$root/$1" ] || continue
    [ -z "$(find "$root/$1" -name cgroup.procs -exec cat {} + 2>/dev/null)" ] || return 1
  done
}

cgroups_remove() {
  local root left=0
  for root in $(cgroup_roots); do
    [ -d "$root/$1" ] || continue
    find "$root/$1" -depth -type d -exec rmdir {} + 2>/dev/null || true
    [ ! -d "$root/$1" ] || left=1
  done
  return $left
}

# Removes what beds left behind whose holder was killed.
cgroups_sweep() {
  local root name
  for root in $(cgroup_roots); do
    for name in "$root"/crimux-bed-*; do
      [ -d "$name" ] || continue
      name=$(basename "$name")
      ! cgroups_empty "$name" || cgroups_remove "$name" || true
    done
  done
}

# ── processes ───────────────────────────────────────────────────────────────────────────────────────────

# Replaces this shell by a command inside the namespace.
inside_exec() {
  local pid
  pid=$(holder) || die "not up: $BED"
  cgroups_join "$(cat "$RUN/cgroup")"
  exec nsenter --mount="/proc/$pid/ns/mnt" --net="/proc/$pid/ns/net" --cgroup="/proc/$pid/ns/cgroup" \
    --pid="/proc/$pid/ns/pid_for_children" --wd="$PWD" "$@"
}

inside() { (inside_exec "$@"); }

# spawn NAME CMD...: the process becomes a child of the namespace's init; its exit code goes to NAME.exit.
spawn() {
  local name=$1
  shift
  rm -f "$RUN/$name.exit" "$RUN/$name.pid"
  [ ! -e "$LOGS/$name.log" ] || mv "$LOGS/$name.log" "$LOGS/$name.log.previous"
  # --fork: the one who started it goes away, so that init adopts and reaps it.
  inside setsid --fork sh "$PARTS/keep" "$RUN/$name" "$LOGS/$name.log" "$@"
  wait_until 5 "$name to start" test -e "$RUN/$name.pid"
}

signal() { inside kill "-$2" "$(cat "$RUN/$1.pid")"; }

gone() { [ -e "$RUN/$1.exit" ]; }
