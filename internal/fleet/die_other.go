//go:build !linux

package fleet

import "os/exec"

func die(*exec.Cmd) {}
