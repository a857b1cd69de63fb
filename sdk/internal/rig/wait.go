package rig

import (
	"testing"
	"time"
)

// Eventually waits up to a minute for something that another goroutine brings about.
func Eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	Each(t, 5*time.Millisecond, what, ok)
}

// Each is Eventually with a pause between two looks.
func Each(t testing.TB, pause time.Duration, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(pause) {
		if time.Now().After(deadline) {
			t.Fatalf("waited a minute for %s", what)
		}
	}
}
