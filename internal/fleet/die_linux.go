package fleet

import (
	"os/exec"
	"syscall"
)

// die makes the kernel end a process with the test, also when the test is killed.
func die(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
