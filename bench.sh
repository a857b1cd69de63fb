#!/usr/bin/env bash
# Measures gpupay beside what others do, on a machine that does nothing else. It takes Go, a C compiler and PostgreSQL (Debian's
# package postgresql). What go test -bench prints is kept in bench/results; benchstat (golang.org/x/perf/cmd/benchstat) gives
# medians and intervals, and the charts of docs/performance.md are drawn. ROUNDS (7) and BENCHTIME (200ms)
# can be set, and arguments go to the last program: try -help.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
. ./cgo.env
results=$PWD/bench/results/$(git rev-parse --short HEAD).txt
TMPDIR=$(mktemp -d "$PWD/.bench-XXXXXX") # the disk that is measured: /tmp is memory on many machines
export TMPDIR
trap 'rm -rf "$TMPDIR"' EXIT
chmod 755 "$TMPDIR" # PostgreSQL's server runs as somebody else
mkdir -p "${results%/*}"
for ((round = 0; round < ${ROUNDS:-7}; round++)); do # side by side: what else the machine does falls on all of them
	go test -C bench -run '^$' -bench . -benchtime "${BENCHTIME:-200ms}" -timeout 2h ./received ./loopback ./forwarding
	go test -run '^$' -bench '^BenchmarkTick$' -benchtime "${BENCHTIME:-200ms}" ./metering/nvml
done | tee "$results"
go run -C bench ./leases -scratch "$TMPDIR" "$@" | tee -a "$results"

chart() { go run -C bench ./plot -match "$1" -x "$2" -line "$3" -figure "$4" -o "$PWD/docs/performance/$5.svg" <"$results"; }
chart Accept/inflight=1 channels payee vouchers/s received-1-in-flight
chart Accept/inflight=8 channels payee vouchers/s received-8-in-flight
chart BenchmarkPay renters way payments/s loopback-payments
chart Leases/stream=none leases stream MiB-resident leases-memory
chart Leases/stream=none leases stream cores-busy leases-cores
