//go:build unix

package gpu

import (
	"os/exec"
	"syscall"
)

// ofItsOwnGroup has a command end with everything that it started, when its time is
// up.
func ofItsOwnGroup(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
}
