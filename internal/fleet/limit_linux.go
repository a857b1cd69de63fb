package fleet

import (
	"syscall"
	"unsafe"
)

// LimitFiles keeps a process from making any file longer than a size, as a quota or
// a full disk would; it lifts the limit for a negative size.
func LimitFiles(pid int, size int64) error {
	limit := syscall.Rlimit{Cur: uint64(size), Max: ^uint64(0)}
	_, _, errno := syscall.RawSyscall6(syscall.SYS_PRLIMIT64, uintptr(pid), syscall.RLIMIT_FSIZE, uintptr(unsafe.Pointer(&limit)), 0, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
