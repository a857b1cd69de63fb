package settle

import (
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/chain"
)

// graced is a contract of which only the grace period matters.
type graced struct {
	chain.Contract
	grace time.Duration
}

func (g graced) Grace() time.Duration { return g.grace }

// However often a channel fails, it is tried again within a tenth of the grace period, and at least each ten minutes.
func TestPenaltyLeavesManyTries(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	for grace, most := range map[time.Duration]time.Duration{10 * time.Minute: time.Minute, 24 * time.Hour: 10 * time.Minute} {
		s := &Settler{Contract: graced{grace: grace}, Now: func() time.Time { return now }}
		s.init()
		id := common.Hash{1}
		for range 40 {
			s.backOff(id)
			if wait := s.queue.kept[id].wait; wait <= 0 || wait > most {
				t.Fatalf("with a grace period of %s it waits %s, at most %s leaves ten tries", grace, wait, most)
			}
		}
	}
}

// TestPenaltyAfterAClockSetBack: a channel that failed is tried again when its time is over, and at once when the clock was set
// back by hours: its payer's grace period goes on meanwhile.
func TestPenaltyAfterAClockSetBack(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	s := &Settler{Contract: graced{grace: time.Hour}, Now: func() time.Time { return now }}
	s.init()
	states := []channel.State{{ID: common.Hash{1}}}
	s.backOff(states[0].ID)
	if len(s.queue.free(states, now)) != 0 {
		t.Error("tried again at once")
	}
	began := now
	if now = began.Add(10 * time.Minute); len(s.queue.free(states, now)) != 1 {
		t.Error("not tried again after ten minutes")
	}
	if now = began.Add(-3 * time.Hour); len(s.queue.free(states, now)) != 1 {
		t.Error("not tried again with the clock three hours back")
	}
}
