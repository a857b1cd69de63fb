package store_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/gpupay/gpupay/channel/store"
)

// lockFile has the test binary own a database until it is killed.
const lockFile = "GPUPAY_LOCK_STORE"

func ownForEver(path string) error {
	if _, err := store.OpenAlone(context.Background(), path); err != nil {
		return err
	}
	fmt.Println("open")
	select {}
}

// TestTwoProcessesOnOneFile: of two programs on one database the second is told who has it, by whatever name it calls
// the file; tools still read. The lock ends with its process, however that ends.
func TestTwoProcessesOnOneFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "money.db")
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), lockFile+"="+path)
	child.Stderr = os.Stderr
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = child.Process.Kill() })
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "open\n" {
		t.Fatalf("%q, %v", line, err)
	}
	link := filepath.Join(t.TempDir(), "link.db")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{path, link} {
		db, err := store.OpenAlone(t.Context(), name)
		if err == nil {
			db.Close()
		}
		if !errors.Is(err, store.ErrInUse) || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), strconv.Itoa(child.Process.Pid)) {
			t.Errorf("%s, which process %d has: %v", name, child.Process.Pid, err)
		}
	}
	tool, err := store.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tool.Payee().Unsettled(t.Context()); err != nil {
		t.Errorf("reading beside the program that runs: %v", err)
	}
	if err := tool.Close(); err != nil {
		t.Error(err)
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait()
	db, err := store.OpenAlone(t.Context(), path)
	if err != nil {
		t.Fatalf("after the other process was killed: %v", err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if db, err = store.OpenAlone(t.Context(), path); err != nil {
		t.Fatalf("after it was closed: %v", err)
	}
	if err := db.Close(); err != nil {
		t.Error(err)
	}
}
