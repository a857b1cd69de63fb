#!/usr/bin/env bash
# Runs the quickstart. Arguments are passed on: try --help.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
. ./cgo.env
exec go run ./examples/quickstart "$@"
