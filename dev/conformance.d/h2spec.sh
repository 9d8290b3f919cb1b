# shellcheck shell=bash
# h2spec against crimux's socket. Needs neither root nor a runtime: crimux itself answers Version.

run_h2spec() {
  "$HERE/tools/build" h2spec
  [ -n "${CRIMUX:-}" ] || cargo build --quiet --manifest-path "$TOP/Cargo.toml" --package crimux --bin crimux
  mkdir -p "$RESULTS"
  h2spec_serve
  say "h2spec against crimux ($(date +%H:%M:%S))"
  h2spec_once "$RESULTS/h2spec"
  date -u +%F >"$RESULTS/h2spec-date"
  python3 "$PARTS/h2spec.py" "$RESULTS/h2spec.xml" "$(h2spec_deviations)"
}

# h2spec_once REPORT: each case waits up to 10 s for an answer, since the machine may be busy.
h2spec_once() {
  local report=$1 code=0
  rm -f "$report.xml"
  # It ends with 1 if a case fails, which is judged by the list.
  timeout "$LIMIT" "$(tool h2spec)" --strict --host 127.0.0.1 --port "$H2SPEC_PORT" --timeout 10 \
    --path /runtime.v1.RuntimeService/Version --junit-report "$report.xml" >"$report.log" 2>&1 || code=$?
  [ -s "$report.xml" ] || { tail -5 "$report.log" >&2; die "h2spec ended with $code and wrote no report"; }
}

h2spec_deviations() {
  echo "$TOP/crates/grpc-http2/h2spec-deviations.txt"
}

# Starts crimux and a relay for TCP; both end with this script.
h2spec_serve() {
  local directory deadline
  directory=$(mktemp -d)
  cat >"$directory/crimux.yaml" <<CONFIG
listen: unix://$directory/crimux.sock
listen_owner: self
state_dir: $directory/state
admin: { socket: $directory/admin.sock, http: off }
default_backend: absent
backends: { absent: { endpoint: "unix://$directory/absent.sock" } }
CONFIG
  setpriv --pdeathsig KILL "$(crimux_binary)" serve --config "$directory/crimux.yaml" >"$RESULTS/h2spec-crimux.log" 2>&1 &
  local crimux=$!
  coproc RELAY { exec setpriv --pdeathsig KILL python3 "$PARTS/relay.py" "$directory/crimux.sock"; }
  # shellcheck disable=SC2064
  trap "kill $crimux $RELAY_PID 2>/dev/null || true; wait $crimux $RELAY_PID 2>/dev/null || true; rm -rf '$directory'" EXIT
  read -r -t 20 H2SPEC_PORT <&"${RELAY[0]}" || die "the relay does not start"
  deadline=$((SECONDS + 20))
  until [ -S "$directory/crimux.sock" ]; do
    kill -0 $crimux 2>/dev/null && [ $SECONDS -lt $deadline ] || { tail -5 "$RESULTS/h2spec-crimux.log" >&2; die "crimux does not serve"; }
    sleep 0.1
  done
}
