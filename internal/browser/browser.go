// Package browser has tests run in a real browser.
package browser

import (
	"os/exec"
	"testing"
)

// Open has headless Chromium show a page until the test ends.
func Open(t testing.TB, url string) {
	t.Helper()
	cmd := exec.Command(Need(t), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
		"--user-data-dir="+t.TempDir(), "--remote-debugging-port=0", url)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
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
