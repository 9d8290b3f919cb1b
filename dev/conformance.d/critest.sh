# shellcheck shell=bash
# critest, the CRI's own suite, on every backend both ways.

run_critest() { # [BACKEND...]
  local name failed=0
  [ $# -gt 0 ] || for name in $BACKENDS; do set -- "$@" "${name%%:*}"; done
  prepare crictl critest
  bed_begin
  bed suite-images
  hold_images
  for name in "$@"; do critest_version "$name" >"$RESULTS/critest-$name-version"; done
  for name in "$@"; do
    critest_once direct "$name" "$BED/run/$name/containerd.sock"
    hold_images
    crimux_begin "$name"
    critest_once through "$name" "$BED/crimux.sock"
    critest_compare "$name" || failed=1
    crimux_end
  done
  return $failed
}

# One line about a backend: the runtime, its version, what runs its containers.
critest_version() { # NAME
  local backend
  for backend in $BACKENDS; do
    [ "${backend%%:*}" != "$1" ] || printf '%s\t%s\t%s\n' "$(bed run "$(tool crictl)" --config "$PARTS/crictl.yaml" \
      --runtime-endpoint "unix://$BED/run/$1/containerd.sock" version |
      awk '/RuntimeName/ { name = $2 } /RuntimeVersion/ { print name " " $2 }')" "$(sed 's/.*://; s/@.*//' <<<"$backend")" "$(date -u +%F)"
  done
}

# Every backend has the images of the suite: the suite itself only pulls through its one endpoint.
hold_images() {
  local backend tag image
  for backend in $BACKENDS; do
    while read -r tag image; do
      bed run "$(tool crictl)" --config "$PARTS/crictl.yaml" --image-endpoint "unix://$BED/run/${backend%%:*}/containerd.sock" \
        --runtime-endpoint "unix://$BED/run/${backend%%:*}/containerd.sock" pull "$image" >/dev/null </dev/null ||
        die "${backend%%:*} cannot pull $image"
    done < <(bed suite-names)
  done
}

# critest_once direct|through NAME SOCKET: its report goes to $RESULTS/critest-NAME-KIND.json.
critest_once() {
  local kind=$1 name=$2 socket=$3 report=$RESULTS/critest-$2-$1 start=$SECONDS code=0
  say "critest $kind on $name ($(date +%H:%M:%S))"
  rm -f "$report.json"
  # A fixed order, so that both runs meet the same.
  timeout "$LIMIT" "$HERE/bed" run "$(tool critest)" --config "$PARTS/crictl.yaml" --runtime-endpoint "unix://$socket" \
    --image-endpoint "unix://$socket" --ginkgo.seed 1 --ginkgo.no-color --ginkgo.json-report "$report.json" \
    >"$report.log" 2>&1 || code=$?
  [ -s "$report.json" ] || { tail -20 "$report.log" >&2; die "critest $kind on $name ended with $code and wrote no report"; }
  say "critest $kind on $name: $(python3 "$PARTS/compare.py" "$report.json") in $((SECONDS - start)) s"
}

# A spec that differs is a difference: none is asked a second time.
critest_compare() { # NAME
  local base=$RESULTS/critest-$1
  python3 "$PARTS/compare.py" "$base-direct.json" "$base-through.json" "$PARTS/accepted" | tee "$base-differences"
}
