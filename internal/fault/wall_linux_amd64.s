//go:build faults

// This file lets wall_linux_amd64.go name functions that have no body there.
