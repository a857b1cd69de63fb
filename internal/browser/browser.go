// Package browser has tests run in a real browser.
package browser

import (
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"
)

// Open has headless Chromium show a page until the test ends.
func Open(t testing.TB, url string) {
	t.Helper()
	program := Need(t)
	dir, err := os.MkdirTemp("", "browser")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--user-data-dir="+dir, "--remote-debugging-port=0", url)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // it is many processes
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait()
		for end := time.Now().Add(5 * time.Second); os.RemoveAll(dir) != nil && time.Now().Before(end); { // some of them end later
			time.Sleep(20 * time.Millisecond)
		}
	})
}

// Need skips the test where no Chromium is installed, and says where it is.
func Need(t testing.TB) (program string) {
	t.Helper()
	for _, name := range []string{"chromium", "chromium-headless-shell", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	t.Skip("no Chromium is here: Debian's package chromium has it")
	return ""
}
