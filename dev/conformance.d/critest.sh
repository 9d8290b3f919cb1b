# shellcheck shell=bash
# critest, the CRI's own suite, on every backend both ways.

run_critest() { # [BACKEND...]
  local name failed=0
  [ $# -gt 0 ] || for name in $BACKENDS; do set -- "$@" "${name%%:*}"; done
  prepare crictl critest
  bed_begin
  bed suite-images
  hold_images
  for name in "$@"; do
    present "$name" || continue
    runtime_version "$name" >"$RESULTS/critest-$name-version"
    runtimes_beside "$name" >"$RESULTS/critest-$name-beside"
    critest_once direct "$name" "$(bed socket "$name")"
    # Pods of specs that failed hold images which other specs remove.
    on "$name" rmp --all --force >/dev/null 2>&1 || say "$name has pods of the direct run left"
    hold_images
    crimux_begin "$name"
    critest_once through "$name" "$BED/crimux.sock"
    compare "$RESULTS/critest-$name" || failed=1
    crimux_end
  done
  return $failed
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
