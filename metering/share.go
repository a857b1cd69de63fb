package metering

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"slices"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/internal/exactjson"
	"github.com/gpupay/gpupay/metering/merkle"
)

// ErrKind says that evidence is of a kind that this version does not know. It proves nothing against who signed it.
var ErrKind = errors.New("evidence of an unknown kind")

// KindSlots is the kind of evidence of a lease that shares its devices. A lease
// that has its devices for itself has evidence without a kind.
const KindSlots = "slots"

// Bounds on what is shared, and on the list of requests in one record.
const (
	MaxSlots    = 1024
	MaxGPUs     = 64
	MaxRequests = 64
)

// maxSlots is what a list of MaxRequests takes in evidence, in bytes of its canonical
// form, several figures of 19 digits each.
const maxSlots = 14 << 10

// Share is how leases share devices. A request holds one of Slots from its
// acceptance to its last byte, and a slot's second costs GPUs/Slots of a
// GPU-second: all slots together cost what the GPUs do. The zero Share is of a
// lease that has its devices for itself.
type Share struct {
	GPUs  uint32 // devices that each request uses: all of the service's, up to MaxGPUs
	Slots uint32 // requests that may run at once, of all leases together; up to MaxSlots
}

// Shared reports whether devices are shared at all.
func (s Share) Shared() bool { return s != Share{} }

// Validate refuses a share without slots or GPUs, and more of them than the bounds.
func (s Share) Validate() error {
	if s.GPUs == 0 || s.GPUs > MaxGPUs || s.Slots == 0 || s.Slots > MaxSlots {
		return fmt.Errorf("%w: %d slots on %d GPUs, from 1 to %d and from 1 to %d can be shared", ErrEvidence, s.Slots, s.GPUs, MaxSlots, MaxGPUs)
	}
	return nil
}

// Bill is what slot time costs in nanoseconds of one GPU: floor((slotNanos * GPUs +
// carried) / Slots). carried is the rest that the time before left, in parts of
// which Slots make a nanosecond. So the sum of many pieces of time is rounded down
// once, however it was cut, and for leases that ran at once it is at most
// GPUs * the time that passed.
func (s Share) Bill(slotNanos int64, carried uint32) (nanos int64, rest uint32, err error) {
	if err := s.Validate(); err != nil {
		return 0, 0, err
	}
	if slotNanos < 0 || carried >= s.Slots {
		return 0, 0, fmt.Errorf("%w: %d ns in slots, and %d of %d parts of one carried", ErrEvidence, slotNanos, carried, s.Slots)
	}
	high, low := bits.Mul64(uint64(slotNanos), uint64(s.GPUs))
	low, over := bits.Add64(low, uint64(carried), 0)
	if high += over; high >= uint64(s.Slots) {
		return 0, 0, fmt.Errorf("%w: %d ns in slots are over 64 bits", ErrEvidence, slotNanos)
	}
	whole, left := bits.Div64(high, low, uint64(s.Slots))
	if whole > math.MaxInt64 {
		return 0, 0, fmt.Errorf("%w: %d ns in slots are over 63 bits", ErrEvidence, slotNanos)
	}
	return int64(whole), uint32(left), nil
}

// Outcome is how a request ended.
type Outcome string

const (
	RequestDone    Outcome = "done"    // its last byte was sent
	RequestAborted Outcome = "aborted" // by its client: billed up to there
	RequestLimit   Outcome = "limit"   // by the provider, where the lease's credit or the longest time that its offer names was reached: billed up to there
	RequestFailed  Outcome = "failed"  // by anybody else's doing: bills nothing, its partial answer included
)

var outcomes = []Outcome{RequestDone, RequestAborted, RequestLimit, RequestFailed}

// Known reports whether an outcome is one of these.
func (o Outcome) Known() bool { return slices.Contains(outcomes, o) }

// Request is what is billed for one request. Its fields stand in the order of their
// JSON keys.
type Request struct {
	From    int64   `json:"from,string"`  // when it took its slot: ns of monotonic time, on the clock of the devices' readings
	ID      uint64  `json:"id,string"`    // the client's, from 1; once in a lease
	Nanos   int64   `json:"nanos,string"` // of From to To, while every device was seen healthy; of a failed one none
	Outcome Outcome `json:"outcome"`
	To      int64   `json:"to,string"` // when it gave its slot back
}

// Encode is the canonical form of a request: a leaf of the tree of requests.
func (r Request) Encode() []byte { return canonical(r) }

func (r Request) validate() error {
	switch {
	case r.ID == 0:
		return errors.New("a request without an id")
	case !r.Outcome.Known():
		return fmt.Errorf("request %d ended %.20q", r.ID, r.Outcome)
	case r.From < 0 || r.To < r.From:
		return fmt.Errorf("request %d ran from %d to %d", r.ID, r.From, r.To)
	case r.Nanos < 0 || r.Nanos > r.To-r.From:
		return fmt.Errorf("request %d is billed %d ns, and held its slot for %d: %d too many", r.ID, r.Nanos, r.To-r.From, r.Nanos-(r.To-r.From))
	case r.Outcome == RequestFailed && r.Nanos != 0:
		return fmt.Errorf("request %d failed, and is billed %d ns", r.ID, r.Nanos)
	}
	return nil
}

// SlotEvidence is the part of a shared lease's evidence that its time is counted from:
// the requests that ended since the cut before. Its encoding is canonical, and no
// other is read.
type SlotEvidence struct {
	Carried   uint32      `json:"carried"`            // the rest of the cut before, in parts of which Slots make a nanosecond
	GPUs      uint32      `json:"gpus"`               // as in Share
	More      uint64      `json:"more,string"`        // requests left out of Requests
	MoreNanos int64       `json:"moreNanos,string"`   // of those
	Requests  []Request   `json:"requests,omitempty"` // in the order in which they were settled, at most MaxRequests; failed ones are left out first
	Rest      uint32      `json:"rest"`               // what is carried to the next cut
	Root      common.Hash `json:"root"`               // of all of them, those left out as well, as of samples
	SlotNanos int64       `json:"slotNanos,string"`   // of all of them
	Slots     uint32      `json:"slots"`              // as in Share
}

// Share is how the lease shares its devices, by this evidence.
func (s SlotEvidence) Share() Share { return Share{GPUs: s.GPUs, Slots: s.Slots} }

// UnmarshalJSON reads the canonical form alone, of figures within their bounds. White space may stand in it.
func (s *SlotEvidence) UnmarshalJSON(b []byte) error {
	type plain SlotEvidence
	var p plain
	var form bytes.Buffer
	if err := json.Compact(&form, b); err != nil {
		return err
	}
	if form.Len() > maxSlots { // before any of it is kept
		return fmt.Errorf("%w: its requests have %d bytes, at most %d are read", ErrEvidence, form.Len(), maxSlots)
	}
	if err := exactjson.Unmarshal(b, &p); err != nil {
		return err
	}
	if !bytes.Equal(form.Bytes(), canonical(p)) {
		return fmt.Errorf("%w: its slots are not in canonical form", ErrEvidence)
	}
	read := SlotEvidence(p)
	if err := read.validate(); err != nil {
		return err
	}
	*s = read
	return nil
}

// validate checks that the figures agree with one another.
func (s SlotEvidence) validate() error {
	if err := s.Share().Validate(); err != nil {
		return err
	}
	if len(s.Requests) > MaxRequests || s.More > 0 && len(s.Requests) < MaxRequests || s.MoreNanos < 0 || s.More == 0 && s.MoreNanos != 0 {
		return fmt.Errorf("%w: %d requests, and %d more with %d ns", ErrEvidence, len(s.Requests), s.More, s.MoreNanos)
	}
	sum, seen, tree := s.MoreNanos, make(map[uint64]bool), merkle.Tree{}
	for _, r := range s.Requests {
		if err := r.validate(); err != nil {
			return fmt.Errorf("%w: %w", ErrEvidence, err)
		}
		if seen[r.ID] {
			return fmt.Errorf("%w: request %d stands twice in it", ErrEvidence, r.ID)
		}
		seen[r.ID] = true
		if sum > math.MaxInt64-r.Nanos {
			return fmt.Errorf("%w: its requests overflow", ErrEvidence)
		}
		sum += r.Nanos
		tree.Add(r.Encode())
	}
	if sum != s.SlotNanos {
		return fmt.Errorf("%w: its requests sum to %d ns, it states %d: %d too many", ErrEvidence, sum, s.SlotNanos, s.SlotNanos-sum)
	}
	if most, at := AtOnce(s.Requests); most > int(s.Slots) {
		return fmt.Errorf("%w: %d requests ran at once, at %d, in %d slots", ErrEvidence, most, at, s.Slots)
	}
	if s.More > 0 {
		return nil
	}
	if root := tree.Root(); root != s.Root {
		return fmt.Errorf("%w: its requests have the root %s, it states %s", ErrEvidence, root, s.Root)
	}
	return nil
}

// AtOnce is how many of the requests held a slot at one moment, at most, and the
// first such moment. One that gives its slot back as another takes one is not
// beside it.
func AtOnce(requests []Request) (most int, at int64) {
	var froms, tos []int64
	for _, r := range requests {
		if r.To > r.From {
			froms, tos = append(froms, r.From), append(tos, r.To)
		}
	}
	slices.Sort(froms)
	slices.Sort(tos)
	ended := 0
	for i, from := range froms {
		for tos[ended] <= from { // one ends after it: the request itself
			ended++
		}
		if now := i + 1 - ended; now > most {
			most, at = now, from
		}
	}
	return most, at
}

// slots checks what evidence of a shared lease says of its time against its own devices.
func (e Evidence) slots() error {
	s := e.Slots
	if s == nil {
		return fmt.Errorf("%w: it is of slots and has none", ErrEvidence)
	}
	if err := s.validate(); err != nil {
		return err
	}
	if int(s.GPUs) != len(e.Devices) {
		return fmt.Errorf("%w: slots of %d GPUs, and %d devices", ErrEvidence, s.GPUs, len(e.Devices))
	}
	nanos, rest, err := s.Share().Bill(s.SlotNanos, s.Carried)
	if err != nil {
		return err
	}
	if nanos != e.Nanos || rest != s.Rest {
		return fmt.Errorf("%w: %d ns in slots and %d parts carried are %d ns and %d parts, it states %d and %d",
			ErrEvidence, s.SlotNanos, s.Carried, nanos, rest, e.Nanos, s.Rest)
	}
	if e.Total < e.Nanos {
		return fmt.Errorf("%w: more time since the last record than since the start", ErrEvidence)
	}
	healthy, seen := int64(math.MaxInt64), int64(math.MaxInt64)
	for _, d := range e.Devices {
		healthy, seen = min(healthy, d.Total), min(seen, d.To.Mono)
	}
	if high, most := bits.Mul64(uint64(healthy), uint64(s.GPUs)); high == 0 && uint64(e.Total) > most {
		return fmt.Errorf("%w: %d ns of its devices in all, and they were healthy together for %d", ErrEvidence, e.Total, most)
	}
	for _, r := range s.Requests {
		if r.Nanos > max(0, seen-r.From) {
			return fmt.Errorf("%w: request %d is billed %d ns from %d on, and its devices were read until %d", ErrEvidence, r.ID, r.Nanos, r.From, seen)
		}
	}
	return nil
}

// known refuses evidence whose kind this version has never heard of.
func (e Evidence) known() error {
	if e.Kind != "" && e.Kind != KindSlots {
		return fmt.Errorf("%w: %.32q. Its figures were not looked at: update this program to have it checked", ErrKind, e.Kind)
	}
	return nil
}

// UnmarshalJSON reads evidence with exact keys. Of a kind that is not known it
// reads the kind alone: it is refused in words where it is checked.
func (e *Evidence) UnmarshalJSON(b []byte) error {
	var is struct {
		Kind string `json:"kind"`
	}
	if err := exactjson.Unmarshal(b, &is); err != nil {
		return err
	}
	read := Evidence{Kind: is.Kind}
	if read.known() == nil {
		type plain Evidence
		if err := exactjson.Unmarshal(b, (*plain)(&read)); err != nil {
			return err
		}
	}
	*e = read
	return nil
}

// Rest is what a record leaves to the next one, in parts of a nanosecond of which as
// many make one as the lease has slots.
func (e Evidence) Rest() uint32 {
	if e.Slots == nil {
		return 0
	}
	return e.Slots.Rest
}

// Match checks that evidence is of the kind of a lease with this share, with its slots.
func (s Share) Match(e Evidence) error {
	if err := e.known(); err != nil {
		return err
	}
	switch {
	case !s.Shared() && (e.Kind != "" || e.Slots != nil):
		return fmt.Errorf("%w: it is of slots, and the lease has its devices for itself", ErrEvidence)
	case s.Shared() && (e.Kind != KindSlots || e.Slots == nil):
		return fmt.Errorf("%w: the lease has %d slots, and it is of none", ErrEvidence, s.Slots)
	case s.Shared() && e.Slots.Share() != s:
		return fmt.Errorf("%w: it is of %d slots on %d GPUs, the lease is of %d on %d", ErrEvidence, e.Slots.Slots, e.Slots.GPUs, s.Slots, s.GPUs)
	}
	return nil
}
