#!/usr/bin/env bash
# Runs the NVML path on a machine with a GPU, in under four minutes, and records traces of it:
#
#   metering/nvml/gpucheck.sh build DIR   where there is Go: builds what is needed into DIR
#   metering/nvml/gpucheck.sh run DIR OUT where there is a GPU: tests, costs of a tick, and four traces, into OUT
#
# Nothing is downloaded. The load is a matrix product by PyTorch (python3) or, without it, LOAD names a command; the
# trace of an error needs CuPy. A command that a machine has not is left out, and the log says so.
set -euo pipefail

build() {
	local here=$1
	cd "$(dirname "${BASH_SOURCE[0]}")/../.."
	. ./cgo.env
	mkdir -p "$here"
	go test -c -o "$here/nvml.test" ./metering/nvml
	go build -o "$here/gpupay" ./cmd/gpupay
}

# record writes the trace OUT/NAME.jsonl: name, length, tick, note.
record() { "$programs/gpupay" trace --for "$2" --tick "$3" --out "$out/$1.jsonl" --note "$4"; }

matmul='
import sys, time, torch
a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
end = time.time() + float(sys.argv[1])
while time.time() < end:
    for _ in range(20): a @ a
    torch.cuda.synchronize()
'
# A kernel that writes to an address that is nobody'"'"'s: the renter'"'"'s own fault, which ends its process and harms no other.
badkernel='
import cupy
k = cupy.RawKernel("extern \"C\" __global__ void bad(long long at) { *(volatile int*)at = 1; }", "bad")
k((1,), (1,), (0x10,))
cupy.cuda.runtime.deviceSynchronize()
'

run() {
	programs=$1 out=$2
	mkdir -p "$out"
	local gpu
	gpu=$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | head -1)
	nvidia-smi -q | grep -v -i -E 'serial|uuid' >"$out/smi.txt" || true
	"$programs/nvml.test" -test.v -test.run '^TestGPU' -test.bench '^BenchmarkGPU$' -test.benchtime 2s || true
	record idle 60s 1s "$gpu, idle"
	python3 -c "$matmul" 55 &
	sleep 3
	record load 60s 1s "$gpu, bf16 matrix products from before the start until about 52 s"
	wait
	record fast 10s 100ms "$gpu, idle, ten readings a second"
	(sleep 5; python3 -c "$badkernel" 2>&1 | tail -1) &
	record xid 20s 1s "$gpu, a program's kernel writes to an address that is nobody's after about 5 s" || true
	wait
	"$programs/nvml.test" -test.v -test.run '^$' -test.bench '^BenchmarkGPU$' -test.benchtime 1s || true
}

case ${1:-} in
build) build "$2" ;;
run) run "$2" "$3" ;;
*) sed -n '2,10p' "${BASH_SOURCE[0]}"; exit 64 ;;
esac
