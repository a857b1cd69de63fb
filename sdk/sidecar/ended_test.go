package sidecar_test

import (
	"sync"
	"testing"
	"time"

	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/sidecar"
)

// TestKillAfterManyEnded: what many requests at once used is on disk soon after they ended, but for half of the credit.
func TestKillAfterManyEnded(t *testing.T) {
	s := newShop(t, func(c *sidecar.Config) {
		c.Provider.Share.Slots, c.Provider.Terms.Credit, c.Provider.Metering.RecordEvery = 4, time.Second, time.Minute
	})
	g := s.guest(renter.Options{Prepay: time.Minute})
	time.Sleep(time.Second)
	g.must(10)
	time.Sleep(time.Second) // paid ahead
	var wait sync.WaitGroup
	took := make([]time.Duration, 4)
	for i := range took {
		wait.Add(1)
		go func() { defer wait.Done(); took[i] = g.must(6000) }()
	}
	wait.Wait()
	time.Sleep(time.Second)
	s.kill()
	var all time.Duration
	for _, d := range took {
		all += d
	}
	if lost := all/4 - time.Duration(g.stated(s)); lost > 700*time.Millisecond {
		t.Errorf("%s of %s are lost: half of the credit is 0.5 s", lost, all/4)
	}
}
