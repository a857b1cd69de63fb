package sdk

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/metering"
)

// span is a stretch of a device's monotonic time that was billed almost whole.
// What of it was not billed is no more than a hundredth.
type span struct {
	UUID   string `json:"uuid"`
	BootID string `json:"bootId"`
	From   int64  `json:"from,string"` // ns on the host's clock
	To     int64  `json:"to,string"`
	Billed int64  `json:"billed,string"` // ns
}

// maxSpans bounds what is kept of a lease that is suspended again and again: the
// newest.
const maxSpans = 256

// spansWith adds what a record bills. Stretches that follow each other are one.
func spansWith(spans []span, rec metering.SignedRecord) []span {
	spans = slices.Clone(spans)
	for _, d := range rec.Evidence.Devices {
		next := span{d.Device.UUID, d.Device.BootID, d.From.Mono, d.To.Mono, d.Nanos.Allocated}
		if next.Billed == 0 || next.To <= next.From {
			continue
		}
		i := len(spans) - 1
		for i >= 0 && spans[i].UUID != next.UUID {
			i--
		}
		if i >= 0 && spans[i].BootID == next.BootID && spans[i].To == next.From && spans[i].dense() && next.dense() {
			spans[i].To, spans[i].Billed = next.To, spans[i].Billed+next.Billed
			continue
		}
		spans = append(spans, next)
	}
	return spans[max(0, len(spans)-maxSpans):]
}

func (s span) dense() bool { return (s.To-s.From)-s.Billed <= (s.To-s.From)/100 }

// overlaps reports whether some instant was billed in both: together they bill
// more than there was.
func (s span) overlaps(o span) bool {
	if s.UUID != o.UUID || s.BootID != o.BootID || s.From >= o.To || o.From >= s.To {
		return false
	}
	return s.Billed+o.Billed > max(s.To, o.To)-min(s.From, o.From)
}

// letDevices is the GPU time of each payee that this renter was billed for, over
// all its rentals.
type letDevices struct {
	mu    sync.Mutex
	spans map[common.Address]map[common.Hash][]span // by payee and channel
}

// keep notes what a channel was billed for.
func (d *letDevices) keep(payee common.Address, id common.Hash, spans []span) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.spans == nil {
		d.spans = make(map[common.Address]map[common.Hash][]span)
	}
	if d.spans[payee] == nil {
		d.spans[payee] = make(map[common.Hash][]span)
	}
	d.spans[payee][id] = spans
}

// twice refuses spans of a channel of which another one was billed a part.
func (d *letDevices) twice(payee common.Address, id common.Hash, spans []span) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for other, theirs := range d.spans[payee] {
		if other == id {
			continue
		}
		for _, o := range theirs {
			if i := slices.IndexFunc(spans, o.overlaps); i >= 0 {
				return fmt.Errorf("%w: %s from %d to %d, also in channel %s", ErrLetTwice, o.UUID, max(o.From, spans[i].From), min(o.To, spans[i].To), other)
			}
		}
	}
	return nil
}

// recall takes up what is on disk.
func (d *letDevices) recall(ctx context.Context, s rentalStore) error {
	rows, err := s.list(ctx, `ORDER BY updated_at`)
	for _, row := range rows {
		d.keep(row.Terms.Payee, row.Terms.ID(), row.Spans)
	}
	return err
}
