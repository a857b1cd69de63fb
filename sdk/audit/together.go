package audit

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/internal/billed"
)

// VerifyTogether checks what no bundle shows alone: that no GPU of a payee was
// billed twice for one time, in whichever of its channels. Verify each bundle
// first. Of several bundles of one channel the one that bills more counts:
// Compare holds them against each other.
func VerifyTogether(bundles []*Bundle) []Check {
	byPayee := make(map[common.Address]map[common.Hash][]leaseSpan)
	var payees []common.Address
	for _, b := range bundles {
		payee := common.Address(b.Terms.Payee)
		if byPayee[payee] == nil {
			byPayee[payee] = make(map[common.Hash][]leaseSpan)
			payees = append(payees, payee)
		}
		if spans := b.spans(billed.RealOnly); billedIn(spans) >= billedIn(byPayee[payee][b.Channel]) {
			byPayee[payee][b.Channel] = spans
		}
	}
	var checks []Check
	for _, payee := range payees {
		channels := byPayee[payee]
		if len(channels) < 2 {
			continue
		}
		var all []leaseSpan
		for _, spans := range channels {
			all = append(all, spans...)
		}
		checks = append(checks, Check{Name: "together: one GPU is billed once", Detail: fmt.Sprintf("%d channels of payee %s", len(channels), payee), Err: billedTwice(all)})
	}
	return checks
}

// leaseSpan is what a lease bills. Ours is the payee's wall clock.
type leaseSpan struct {
	billed.Span
	lease common.Hash
}

// spans is what a bundle's records bill, on the clocks that its payee names.
func (b *Bundle) spans(of func(metering.SignedRecord) metering.SignedRecord) (all []leaseSpan) {
	for i := range b.Leases {
		var spans []billed.Span
		for _, rec := range b.Leases[i].Records {
			for _, d := range of(rec).Evidence.Devices {
				d.Total = d.Nanos.Allocated // nothing was billed before its beginning
				one := metering.SignedRecord{Evidence: metering.Evidence{Kind: rec.Evidence.Kind, Devices: []metering.DeviceEvidence{d}}}
				spans = billed.Add(spans, one, billed.Hearing{Boot: "the payee's", Began: min(d.From.Wall, d.To.Wall), Now: max(d.From.Wall, d.To.Wall)})
			}
		}
		for _, s := range spans {
			all = append(all, leaseSpan{s, b.Leases[i].ID})
		}
	}
	return all
}

func billedIn(spans []leaseSpan) (sum int64) {
	for _, s := range spans {
		if s.Ours != "" {
			sum += s.Billed
		}
	}
	return sum
}

// bootOverlap is by how much a wall clock may be set back at a reboot.
const bootOverlap = time.Minute

// billedTwice finds GPUs that are billed for more than the time that there was on
// their hosts' clocks or, over several boots, on the payee's wall clock, and boots
// of one host that ran at once: it has one at a time.
func billedTwice(spans []leaseSpan) error {
	var failed findings
	boots := grouped(spans, func(s leaseSpan) (ofDevice, bool) { return ofDevice{s.UUID, s.BootID}, s.OnHost() })
	for i, b := range boots {
		failed.add(b.crowded(deviceSpans{ofDevice: b.ofDevice}))
		parent := parentOf(b.spans)
		for _, other := range boots {
			if other.boot == b.boot && other.uuid == parent {
				failed.add(b.crowded(other))
			}
		}
		for _, other := range boots[:i] {
			if other.boot != b.boot && cmp.Or(parentOf(other.spans), other.uuid) == cmp.Or(parent, b.uuid) {
				failed.add(b.atOnce(other))
			}
		}
	}
	devices := grouped(spans, func(s leaseSpan) (ofDevice, bool) { return ofDevice{uuid: s.UUID}, true })
	for _, d := range devices {
		failed.add(d.overBoots(deviceSpans{ofDevice: d.ofDevice}))
		parent := parentOf(d.spans)
		for _, other := range devices {
			if other.uuid == parent {
				failed.add(d.overBoots(other))
			}
		}
	}
	return failed.err()
}

// ofDevice is a device in one boot of its host, or in all of them.
type ofDevice struct{ uuid, boot string }

// deviceSpans is what was billed of it.
type deviceSpans struct {
	ofDevice
	spans []leaseSpan
}

// grouped is spans by device, in the order in which they come first.
func grouped(spans []leaseSpan, key func(leaseSpan) (ofDevice, bool)) (all []deviceSpans) {
	at := make(map[ofDevice]int)
	for _, s := range spans {
		k, ok := key(s)
		if !ok {
			continue
		}
		i, known := at[k]
		if !known {
			i, at[k] = len(all), len(all)
			all = append(all, deviceSpans{ofDevice: k})
		}
		all[i].spans = append(all[i].spans, s)
	}
	return all
}

// crowded is more billed on a host's clock than there was, of a device and of one that cannot be let beside it.
func (b deviceSpans) crowded(rival deviceSpans) error {
	spans := slices.Concat(b.spans, rival.spans)
	s, found := tooMuch(spans)
	if !found {
		return nil
	}
	return letTwice(spans, func(o leaseSpan) bool { return o.From < s.To && s.From < o.To },
		"%s for %d ns between %d and %d of boot %q", billed.Named(b.uuid, rival.uuid), s.Billed, s.From, s.To, b.boot)
}

// overBoots is more billed in several boots than there was, of a device and of one that cannot be let beside it.
func (b deviceSpans) overBoots(rival deviceSpans) error {
	spans := slices.Concat(b.spans, rival.spans)
	s, found := overBoots(spans)
	if !found {
		return nil
	}
	return letTwice(spans, func(o leaseSpan) bool { return o.Since < s.To && s.From < o.Until },
		"by the payee's wall clock %s was billed for %s of %s, or that clock was set back", billed.Named(b.uuid, rival.uuid), time.Duration(s.Billed), time.Duration(s.To-s.From))
}

// atOnce is two boots of one host that ran at once, by more than its wall clock may be set back. One card, whole or in
// slices, is in one host.
func (b deviceSpans) atOnce(other deviceSpans) error {
	one, two := wallTime(b.spans), wallTime(other.spans)
	both := min(one.To, two.To) - max(one.From, two.From)
	if both <= int64(bootOverlap) {
		return nil
	}
	return letTwice(slices.Concat(other.spans, b.spans), func(leaseSpan) bool { return true },
		"by the payee's wall clock the host of %s ran for %s in boots %q and %q at once, or that clock was set back", b.uuid, time.Duration(both), other.boot, b.boot)
}

// letTwice is billed.ErrTwice, of the leases of those spans that which picks.
func letTwice(spans []leaseSpan, which func(leaseSpan) bool, format string, args ...any) error {
	return fmt.Errorf("%w: %w: %s, in %s", ErrBundle, billed.ErrTwice, fmt.Sprintf(format, args...), leasesOf(spans, which))
}

// parentOf is the GPU that a MIG slice was cut from, "" of a whole one.
func parentOf(spans []leaseSpan) string {
	for _, s := range spans {
		if s.Parent != "" {
			return s.Parent
		}
	}
	return ""
}

// overBoots finds a time on the payee's wall clock in which a device was billed in
// several boots for more than there was. One boot alone is held to its own clock,
// on which a wall clock that is set back shows nothing.
func overBoots(spans []leaseSpan) (billed.Stretch, bool) {
	type boot struct {
		id    string
		lease common.Hash // of a boot that has no name, or is one of several
	}
	var all []leaseSpan
	for _, s := range spans {
		if s.Ours != "" {
			all = append(all, s)
		}
	}
	slices.SortFunc(all, func(a, b leaseSpan) int { return cmp.Compare(a.Until, b.Until) })
	for _, first := range all {
		inBoot, sum := make(map[boot]int64), int64(0)
		for _, s := range all {
			if s.Since < first.Since {
				continue
			}
			b := boot{id: s.BootID}
			if b.id == "" {
				b.lease = s.lease
			}
			inBoot[b] += s.Billed
			sum += s.Billed
			length := s.Until - first.Since
			most := length + int64(bootOverlap) + length/billed.Slew
			if sum <= most {
				continue
			}
			var capped int64
			for _, ns := range inBoot {
				capped += min(ns, length)
			}
			if capped > most {
				return billed.Stretch{From: first.Since, To: s.Until, Billed: capped}, true
			}
		}
	}
	return billed.Stretch{}, false
}

// tooMuch looks at the spans of one boot of a device. A boot without a name is no
// one boot.
func tooMuch(spans []leaseSpan) (billed.Stretch, bool) {
	if spans[0].BootID == "" {
		return billed.Stretch{}, false
	}
	all := make([]billed.Stretch, len(spans))
	for i, s := range spans {
		all[i] = billed.Stretch{From: s.From, To: s.To, Billed: s.Billed}
	}
	return billed.Crowded(all, math.MaxInt64, math.MinInt64, billed.Exactly)
}

func wallTime(spans []leaseSpan) billed.Stretch {
	s := billed.Stretch{From: math.MaxInt64, To: math.MinInt64}
	for _, o := range spans {
		s.From, s.To = min(s.From, o.Since), max(s.To, o.Until)
	}
	return s
}

// leasesOf names the leases of spans.
func leasesOf(spans []leaseSpan, which func(leaseSpan) bool) string {
	var names []string
	for _, s := range spans {
		if name := "lease " + s.lease.Hex(); which(s) && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	if len(names) > maxFindings {
		names = append(names[:maxFindings], "others")
	}
	return strings.Join(names, ", ")
}
