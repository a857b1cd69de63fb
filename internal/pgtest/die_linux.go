package pgtest

import (
	"os/exec"
	"syscall"
)

// die makes the kernel end the server with the test, also when the test is
// killed.
func die(cmd *exec.Cmd) { cmd.SysProcAttr.Pdeathsig = syscall.SIGQUIT }
