package slots

import (
	"math"
	"slices"

	"github.com/gpupay/gpupay/metering/usage"
)

// maxSpans bounds how many stretches of healthy time are remembered. Of time before
// the oldest one nothing is billed that is reported now.
const maxSpans = 64

// span is a stretch of monotonic time, in nanoseconds.
type span struct {
	from, to int64
	before   int64 // healthy time before from; of all devices together alone
}

// sight is what the readings of one device say.
type sight struct {
	at      int64  // the stamp of the newest; -1: there is none
	healthy []span // not looked at together with the other devices yet
}

// health is for how long all devices were seen healthy together, up to each moment
// that the readings of every device have reached.
type health struct {
	devices []sight
	upTo    int64 // reached; -1: nowhere yet
	spans   []span
	lost    bool // older ones were forgotten
}

func newHealth(devices int) health {
	h := health{devices: make([]sight, devices), upTo: -1}
	for i := range h.devices {
		h.devices[i].at = -1
	}
	return h
}

// observe takes what a meter made of the reading of device i that is stamped at.
func (h *health) observe(i int, at int64, in usage.Interval) {
	if in.Class == usage.Late {
		return
	}
	d := &h.devices[i]
	d.at = at
	if in.Class == usage.Allocated {
		d.healthy = grown(d.healthy, span{from: at - in.Nanos, to: at})
	}
	h.advance()
}

// grown appends a stretch to those before it, of which it may be the rest.
func grown(spans []span, s span) []span {
	if n := len(spans); n > 0 && spans[n-1].to == s.from {
		spans[n-1].to = s.to
		return spans
	}
	if len(spans) == maxSpans {
		spans = slices.Delete(spans, 0, 1)
	}
	return append(spans, s)
}

// advance looks at the devices together, as far as all of them were read.
func (h *health) advance() {
	to := int64(math.MaxInt64)
	for i := range h.devices {
		to = min(to, h.devices[i].at)
	}
	if to <= h.upTo {
		return
	}
	all := []span{{from: h.upTo, to: to}}
	for i := range h.devices {
		d := &h.devices[i]
		all = both(all, d.healthy)
		d.healthy = slices.DeleteFunc(d.healthy, func(s span) bool { return s.to <= to })
	}
	for _, s := range all {
		s.before = h.total()
		h.lost = h.lost || len(h.spans) == maxSpans && h.spans[maxSpans-1].to != s.from
		h.spans = grown(h.spans, s)
	}
	h.upTo = to
}

// both is the time that is in a and in b, each in order.
func both(a, b []span) []span {
	var common []span
	for i, j := 0, 0; i < len(a) && j < len(b); {
		if from, to := max(a[i].from, b[j].from), min(a[i].to, b[j].to); from < to {
			common = append(common, span{from: from, to: to})
		}
		if a[i].to < b[j].to {
			i++
		} else {
			j++
		}
	}
	return common
}

// total is all healthy time so far.
func (h *health) total() int64 {
	if len(h.spans) == 0 {
		return 0
	}
	last := h.spans[len(h.spans)-1]
	return last.before + last.to - last.from
}

// until is the healthy time before a moment that readings have reached. It is not
// known where it was forgotten: then it is at most that.
func (h *health) until(t int64) (healthy int64, known bool) {
	for i := len(h.spans) - 1; i >= 0; i-- {
		if s := h.spans[i]; t >= s.from {
			return s.before + min(t, s.to) - s.from, true
		}
	}
	if !h.lost {
		return 0, true
	}
	return h.spans[0].before, false
}
