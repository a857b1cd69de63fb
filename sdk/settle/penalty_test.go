package settle

import (
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"

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
			s.punish(id)
			if wait := s.penalty[id].until.Sub(now); wait <= 0 || wait > most {
				t.Fatalf("with a grace period of %s it waits %s, at most %s leaves ten tries", grace, wait, most)
			}
		}
	}
}
