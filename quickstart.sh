#!/usr/bin/env bash
# Runs the quickstart. Arguments are passed on: try --help.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

# NVIDIA's header marks dozens of functions as deprecated, at every first build.
export CGO_CFLAGS="${CGO_CFLAGS:--O2 -g} -Wno-deprecated-declarations"
# NVML's symbols are found when its library is loaded. Linkers that bind every symbol at start (Ubuntu's do) end the
# program before it begins.
[[ $(uname) != Linux ]] || export CGO_LDFLAGS="${CGO_LDFLAGS:--O2 -g} -Wl,-z,lazy"

exec go run ./examples/quickstart "$@"
