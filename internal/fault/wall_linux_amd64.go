//go:build faults

package fault

import (
	"encoding/binary"
	"fmt"
	"os"
	"reflect"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ahead is the file that Wall names, in memory.
var ahead *atomic.Int64

// The process's wall clock is what time.Now says, wherever it is called: its assembler
// begins with a jump to stepped from here on.
func init() {
	path := os.Getenv(Wall)
	if path == "" {
		return
	}
	if err := stepWith(path); err != nil {
		panic(fmt.Sprintf("%s=%s: %v", Wall, path, err))
	}
}

func stepWith(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	page, err := unix.Mmap(int(file.Fd()), 0, 8, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	ahead = (*atomic.Int64)(unsafe.Pointer(&page[0]))
	code, err := os.OpenFile("/proc/self/mem", os.O_RDWR, 0) // the pages are not writable
	if err != nil {
		return err
	}
	defer code.Close()
	jump := append([]byte{0x49, 0xbc}, binary.LittleEndian.AppendUint64(nil, uint64(reflect.ValueOf(stepped).Pointer()))...) // MOVQ $stepped, R12
	jump = append(jump, 0x41, 0xff, 0xe4)                                                                                    // JMP R12
	_, err = code.WriteAt(jump, int64(reflect.ValueOf(now).Pointer()))
	return err
}

//go:linkname now time.now
func now() (sec int64, nsec int32, mono int64)

//go:linkname nanotime runtime.nanotime
func nanotime() int64

// stepped is the host's time, with what the wall clock is ahead of it. The scheduler
// calls it too, on a stack on which a system call must not be told to it.
func stepped() (sec int64, nsec int32, mono int64) {
	var wall unix.Timespec
	_, _, _ = unix.RawSyscall(unix.SYS_CLOCK_GETTIME, unix.CLOCK_REALTIME, uintptr(unsafe.Pointer(&wall)), 0)
	at := wall.Nano() + ahead.Load()
	return at / int64(time.Second), int32(at % int64(time.Second)), nanotime()
}
