package leasestore

import (
	"context"
	"testing"
	"time"

	"github.com/gpupay/gpupay/channel/store"
)

// TestRestOverAStop: a process stops while a GPU fails on. The GPU rests for an hour from its last failure, at the next process too.
func TestRestOverAStop(t *testing.T) {
	eachDatabase(t, func(t *testing.T, db *store.DB) {
		g := process(t, New(db).Rests, 0, !db.Shared())
		pass := func(by time.Duration) {
			t.Helper()
			g.ahead += by
			ages(t, db, by)
			g.Pass(t.Context())
		}
		for range 7 { // until it rests for an hour each time
			g.Fails(gpuName)
			pass(0)
			pass(61 * time.Minute)
		}
		g.Fails(gpuName)
		pass(0)
		for range 14 * 60 { // it fails on, each second
			g.ahead += time.Second
			g.Fails(gpuName)
		}
		ages(t, db, 14*time.Minute)
		pass(0)
		stopped, stop := context.WithCancel(t.Context())
		stop()
		g.Sharing.Run(stopped)
		ages(t, db, 50*time.Minute)
		g.ahead += 50 * time.Minute
		g.lets(false, "50 minutes after its last failure")
		process(t, New(db).Rests, 0, !db.Shared()).lets(false, "50 minutes after its last failure, at the next process")
	})
}
