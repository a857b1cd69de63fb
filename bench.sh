#!/usr/bin/env bash
# Measures gpupay beside what others do and writes docs/performance.md. It takes Go, a C compiler and PostgreSQL (Debian's
# package postgresql). Arguments are passed on: try -help.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
. ./cgo.env
go build -C bench -o "${TMPDIR:-/tmp}/gpupay-bench-$$" ./cmd
trap 'rm -f "${TMPDIR:-/tmp}/gpupay-bench-$$"' EXIT
"${TMPDIR:-/tmp}/gpupay-bench-$$" "$@"
