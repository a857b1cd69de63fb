package provider

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/gpupay/gpupay/internal/testclock"
	"github.com/gpupay/gpupay/sdk/gpu"
)

func hostGPUs(t *testing.T, n int) *gpu.HostAllocator {
	t.Helper()
	h, err := gpu.NewHostAllocator(t.Context(), testclock.GPUs(n))
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// script is a command that logs its environment, prints out and exits.
func script(t *testing.T, body string) (command []string, calls func() string) {
	t.Helper()
	dir := t.TempDir()
	path, log := filepath.Join(dir, "hook.sh"), filepath.Join(dir, "calls")
	if err := os.WriteFile(path, []byte("#!/bin/sh\necho \"$1 $NVIDIA_VISIBLE_DEVICES $GPUPAY_LEASE\" >> "+log+"\n"+body+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return []string{path}, func() string {
		raw, _ := os.ReadFile(log)
		return string(raw)
	}
}
