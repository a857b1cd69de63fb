//go:build linux && cgo

package metercost

// #cgo LDFLAGS: -ldl
// #include <dlfcn.h>
// #include <stdlib.h>
// static void calls(void *f, long n, int only) { ((void (*)(long, int))f)(n, only); }
// static void idle(void *f, unsigned us) { ((void (*)(unsigned))f)(us); }
// static unsigned count(void *f, int on) { return ((unsigned (*)(int))f)(on); }
// static void nothing(void) {}
import "C"

import (
	"context"
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"unsafe"
)

var (
	//go:embed library/nvml.c
	nvmlSource []byte
	//go:embed library/bare.c
	bareSource []byte
)

// library is the stand-in for the driver's, and what it can do beside NVML.
type library struct {
	path                string
	handle              unsafe.Pointer
	loop, wait, counter unsafe.Pointer
}

// build compiles the library with the C compiler that cgo uses, against NVIDIA's own header: go-nvml has it.
func build(ctx context.Context, dir string) (*library, error) {
	header, err := goTool(ctx, "list", "-m", "-f", "{{.Dir}}", "github.com/NVIDIA/go-nvml")
	if err != nil {
		return nil, err
	}
	compiler, err := goTool(ctx, "env", "CC")
	if err != nil {
		return nil, err
	}
	dir, err = filepath.Abs(dir) // a name without a slash is looked up elsewhere
	if err != nil {
		return nil, err
	}
	args := []string{"-shared", "-fPIC", "-O2", "-I", filepath.Join(header, "gen", "nvml"), "-o", filepath.Join(dir, "libnvidia-ml.so.1")}
	for name, source := range map[string][]byte{"nvml.c": nvmlSource, "bare.c": bareSource} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, source, 0o600); err != nil {
			return nil, err
		}
		args = append(args, path)
	}
	words := append(strings.Fields(compiler), args...) // CC may carry flags
	if out, err := exec.CommandContext(ctx, words[0], words[1:]...).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("compile the stand-in library: %w\n%s", err, out)
	}
	return load(filepath.Join(dir, "libnvidia-ml.so.1"))
}

func goTool(ctx context.Context, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, "go", args...).Output()
	if err != nil {
		return "", fmt.Errorf("go %s: %w", strings.Join(args, " "), err)
	}
	return strings.TrimSpace(string(out)), nil
}

func load(path string) (*library, error) {
	name := C.CString(path)
	defer C.free(unsafe.Pointer(name))
	l := &library{path: path, handle: C.dlopen(name, C.RTLD_LAZY)}
	if l.handle == nil {
		return nil, fmt.Errorf("load the stand-in library: %s", C.GoString(C.dlerror()))
	}
	for name, to := range map[string]*unsafe.Pointer{"gpupay_calls": &l.loop, "gpupay_idle": &l.wait, "gpupay_count": &l.counter} {
		symbol := C.CString(name)
		*to = C.dlsym(l.handle, symbol)
		C.free(unsafe.Pointer(symbol))
		if *to == nil {
			return nil, fmt.Errorf("the stand-in library has no %s", name)
		}
	}
	return l, nil
}

// every makes all calls of n ticks, in C.
func (l *library) every(n int) { C.calls(l.loop, C.long(n), -1) }

// only makes one of the calls n times, in C.
func (l *library) only(call, n int) { C.calls(l.loop, C.long(n), C.int(call)) }

// idle has a wait for events take so many microseconds.
func (l *library) idle(us int) { C.idle(l.wait, C.uint(us)) }

// counted is how many calls of a tick the library sees while one works.
func (l *library) counted(work func() error) (int, error) {
	C.count(l.counter, 1)
	err := work()
	return int(C.count(l.counter, 0)), err
}

// nothing is n calls from Go of a C function that is empty.
func nothing(n int) {
	for range n {
		C.nothing()
	}
}

func (l *library) close() { C.dlclose(l.handle) }
