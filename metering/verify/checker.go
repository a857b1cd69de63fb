package verify

import (
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/internal/eip712"
	"github.com/gpupay/gpupay/metering"
)

// What a [Checker] refuses a record for. All but ErrReplayed mean: do not pay,
// keep the record, it is signed.
var (
	ErrSignature = errors.New("record is not signed by the offer's metering key")
	ErrLease     = errors.New("record is of another lease")
	ErrReplayed  = errors.New("record was checked before") // harmless: a stream that was resumed
	ErrSequence  = errors.New("record is not the next in number")
	ErrForked    = errors.New("record contradicts an earlier one")
	ErrBackwards = errors.New("record takes back metered time")
	ErrClock     = errors.New("record claims more time than passed")
	ErrCredit    = errors.New("record claims more than the offer's credit lets a lease owe")
	ErrDevices   = errors.New("record is about devices that were not leased")
	ErrRoom      = errors.New("records come so often, or are so large, that they would fill the disk")
)

// Config is what the payer knows by itself.
type Config struct {
	Lease metering.Lease
	Key   common.Address // the metering key that the signed offer names

	// Tolerance is how far each device's time may run ahead of this checker's
	// own clock, by the drift of two clocks. It is the most that a lying clock
	// can cost, at the lease's price, for each device, once a lease.
	Tolerance time.Duration

	// RecordEvery is how often records come at most, on the average. What they take
	// on disk is bounded by it and [RecordRoom]; zero: it is not.
	RecordEvery time.Duration

	Clock metering.Clock // System if nil
}

// Checker decides for the payer whether a record may be paid. It is not for
// several goroutines at once.
type Checker struct {
	config Config
	domain common.Hash
	state  State
}

// New starts the payer's clock: call it before the lease is asked for.
// Its first byte may come late, and what was metered meanwhile is no lie.
func New(config Config) (*Checker, error) {
	c, err := prepare(config)
	if err != nil {
		return nil, err
	}
	c.state = State{BootID: c.config.Clock.BootID(), Owed: config.Lease.OwedBefore, Start: c.config.Clock.Now()}
	return c, nil
}

// Resume goes on after a restart of the payer. Within one boot of its
// host it still has the lease's beginning on a clock that nobody sets; after a
// reboot only the wall clock spans the hole, and that may be behind: beside it stands
// what the payee can have served on credit. See CheckWithin.
func Resume(config Config, s State) (*Checker, error) {
	c, err := prepare(config)
	if err != nil {
		return nil, err
	}
	c.state = s
	c.state.Devices = slices.Clone(s.Devices)
	now, boot := c.config.Clock.Now(), c.config.Clock.BootID()
	if boot == s.BootID && (boot != "" || c.missed().Abs() < c.noticed()) { // where boots have no names, each process has its own clock
		return c, nil
	}
	elapsed := max(now.Wall-s.Start.Wall, s.Elapsed)
	c.state.BootID, c.state.Unsure = boot, true
	c.state.Start.Boot = now.Boot - elapsed
	c.state.Start.Mono = now.Mono - elapsed
	return c, nil
}

func prepare(config Config) (*Checker, error) {
	if err := config.Lease.Validate(); err != nil {
		return nil, err
	}
	if config.Tolerance < 0 {
		return nil, fmt.Errorf("%w: a tolerance of %s refuses everything", ErrClock, config.Tolerance)
	}
	if config.Key == (common.Address{}) {
		return nil, fmt.Errorf("%w: the offer names none", ErrSignature)
	}
	if config.Clock == nil {
		config.Clock = metering.System
	}
	config.Lease.Devices = slices.Clone(config.Lease.Devices)
	return &Checker{config: config, domain: metering.Domain(config.Lease.ChainID, config.Lease.Escrow)}, nil
}

// State is what to store after each good record, before its voucher is signed.
func (c *Checker) State() State {
	s := c.state
	s.Devices = slices.Clone(s.Devices)
	s.Elapsed = c.Elapsed()
	return s
}

// Elapsed is how long the lease has run on the payer's own clock, in
// nanoseconds. The clock counts on while the payer's host sleeps: the GPU does.
func (c *Checker) Elapsed() int64 {
	return max(0, c.config.Clock.Now().Boot-c.state.Start.Boot)
}

// Stop notes that the lease ends now, for the payer: it gives the devices back, or
// the payee says that it took them. Records of the time before are checked and
// owed as ever. Of what was metered later, by more than the tolerance, nothing is
// payable; it is no lie either: the payee may not have heard of it yet. most is as
// for CheckWithin, and all that is payable from now on, whatever is paid and
// however long the lease stands stopped: the credit is for time before it. A lease in
// slots uses a part of its devices' time: there most bounds it, and the payer's own books.
func (c *Checker) Stop(most uint256.Int) {
	if c.state.Stopped == 0 {
		c.compare(most)
		c.state.Stopped = max(1, c.Elapsed())
	}
	if c.state.Payable == nil {
		c.state.Payable = &most
	}
}

// payable is what a record owes for time before the lease was stopped.
func (c *Checker) payable(s metering.SignedRecord) uint256.Int {
	if c.state.Stopped == 0 {
		return s.Owed
	}
	limit, nanos := c.state.Stopped+int64(c.config.Tolerance), uint64(0)
	for _, d := range s.Evidence.Devices {
		nanos += uint64(min(d.Total, limit))
	}
	owed, err := c.config.Lease.Owed(min(nanos, s.Nanos))
	if err != nil {
		return c.state.Owed
	}
	if most := c.state.Payable; most != nil && owed.Gt(most) {
		return *most
	}
	return owed
}

// Limit is the most device time, in nanoseconds over all devices, that the
// payer's clock allows now.
func (c *Checker) Limit() uint64 {
	high, limit := bits.Mul64(c.deviceLimit(), uint64(len(c.config.Lease.Devices)))
	if high != 0 {
		return ^uint64(0)
	}
	return limit
}

func (c *Checker) deviceLimit() uint64 {
	return uint64(c.Elapsed()) + uint64(c.config.Tolerance)
}

// Check accepts a record that the payer may pay, and remembers it; then
// Record.Owed is what to sign a voucher for. It changes nothing if it refuses.
// It bounds time only by the payer's clock: a payer that may be away asks
// CheckWithin.
func (c *Checker) Check(s metering.SignedRecord) error { return c.check(s, c.state.Ceiling) }

// CheckWithin is Check for a payee that serves on credit: most is what may be
// owed at this moment, in base units, whatever time passed. A payee that keeps
// its signed offer stops there, so more (ErrCredit) was never served or is
// against what it signed. It holds for the records to come, too: over the lowest
// of these ceilings a payee gets only by GPU time that passes since, so that no
// time is billed that it did not serve before, in however many records.
//
// Where this host's clock may have missed time, after a reboot or a pause of a
// virtual machine, it is set forward to where most could be owed: a record up to
// that proves nothing against the payee.
func (c *Checker) CheckWithin(s metering.SignedRecord, most uint256.Int) error {
	c.compare(most)
	ceiling := c.ceiling(most)
	return c.check(s, &ceiling, func(s metering.SignedRecord, _ common.Hash) error { return c.credit(s, most, ceiling) })
}

func (c *Checker) check(s metering.SignedRecord, ceiling *Ceiling, more ...func(metering.SignedRecord, common.Hash) error) error {
	digest := s.Digest(c.domain)
	checks := []func(metering.SignedRecord, common.Hash) error{c.signature, c.lease, c.chain, c.money, c.evidence, c.clock, c.room}
	for _, check := range append(checks, more...) {
		if err := check(s, digest); err != nil {
			return fmt.Errorf("lease %s, record %d: %w", c.config.Lease.ID, s.Sequence, err)
		}
	}
	c.accept(s, digest)
	c.state.Ceiling = ceiling
	return nil
}

// compare looks for time that the payer's clock may have missed: its host was
// rebooted, or the wall clock went ahead of it. Then the payee has its credit once
// more, for that time, under a ceiling that begins anew. No payee can bring that
// about. A wall clock that was set back is compared from there.
func (c *Checker) compare(most uint256.Int) {
	missed := c.missed()
	noticed := missed > c.noticed()
	if noticed || missed < 0 {
		c.state.Start.Wall += int64(missed)
	}
	if noticed || c.state.Unsure {
		c.state.Ceiling, c.state.Unsure = nil, false // a clock that is behind would make an honest payee a liar
		c.setForward(most)
	}
}

// missed is how far the wall clock went ahead of the one that nobody sets.
func (c *Checker) missed() time.Duration {
	now, start := c.config.Clock.Now(), c.state.Start
	return time.Duration((now.Wall - now.Boot) - (start.Wall - start.Boot))
}

// noticed is how much time a clock may miss, in all, unnoticed: the tolerance makes
// up for it.
func (c *Checker) noticed() time.Duration { return max(c.config.Tolerance/2, 10*time.Millisecond) }

// setForward has the clock allow what could be owed now at most, whichever device
// ran for it.
func (c *Checker) setForward(most uint256.Int) {
	var ran int64
	for _, d := range c.state.Devices {
		ran = max(ran, d.Total)
	}
	behind := ran + max(0, lasts(c.config.Lease, most)-int64(c.state.Nanos)) - c.Elapsed()
	if c.config.Lease.Share.Shared() { // its devices run whether or not it uses them, and say nothing of it
		behind = lasts(c.config.Lease, most)/int64(len(c.config.Lease.Devices)) + 1 - c.Elapsed()
	}
	if behind <= 0 {
		return
	}
	start := &c.state.Start
	start.Boot, start.Mono, start.Wall = start.Boot-behind, start.Mono-behind, start.Wall-behind
}

// ceiling is the lower of the one that is remembered, as far as it has risen, and
// most, which is right now. One is enough to remember: all rise alike.
func (c *Checker) ceiling(most uint256.Int) Ceiling {
	now := Ceiling{At: c.Elapsed(), Owed: most}
	last := c.state.Ceiling
	if last == nil {
		return now
	}
	if risen := c.risen(*last, now.At, 0); risen.Gt(&most) {
		return now
	}
	return *last
}

// credit refuses what is over most, or over the ceiling by more than the
// tolerance for two clocks.
func (c *Checker) credit(s metering.SignedRecord, most uint256.Int, ceiling Ceiling) error {
	now := c.Elapsed()
	if risen := c.risen(ceiling, now, c.config.Tolerance); risen.Lt(&most) && s.Owed.Gt(&risen) {
		return fmt.Errorf("%w: %s owed, at most %s may be: %s ago it was %s, and there is only the GPU time since",
			ErrCredit, s.Owed.Dec(), risen.Dec(), time.Duration(now-ceiling.At).Round(time.Millisecond), ceiling.Owed.Dec())
	}
	if s.Owed.Gt(&most) {
		return fmt.Errorf("%w: %s owed, at most %s may be", ErrCredit, s.Owed.Dec(), most.Dec())
	}
	return nil
}

// slew is how much faster than ours an honest payee's clock may run: one part in
// so many. Time synchronization slews a clock by half as much at most.
const slew = 1000

// risen is a ceiling at a later time of the lease, in nanoseconds: higher by what
// all devices earn meanwhile, and for slack more each. What is too much for an
// amount is no ceiling.
func (c *Checker) risen(from Ceiling, at int64, slack time.Duration) uint256.Int {
	passed := uint64(max(0, at-from.At))
	high, nanos := bits.Mul64(passed+passed/slew+uint64(slack), uint64(len(c.config.Lease.Devices)))
	earned, err := c.config.Lease.Price.Charge(nanos)
	earned.AddUint64(&earned, 1) // each charge is rounded by itself
	var risen uint256.Int
	if _, over := risen.AddOverflow(&from.Owed, &earned); high != 0 || err != nil || over {
		return *risen.SetAllOne()
	}
	return risen
}

func (c *Checker) accept(s metering.SignedRecord, digest common.Hash) {
	c.state.Last, c.state.Sequence = digest, s.Sequence
	c.state.Nanos, c.state.Owed, c.state.Final = s.Nanos, c.payable(s), s.Final
	if c.config.RecordEvery > 0 {
		c.state.Kept += size(s)
	}
	c.state.Devices = after(s.Evidence, c.state.Devices)
	c.state.Rest = s.Evidence.Rest()
}

// signature comes first: what is not signed by the payee proves nothing about
// it, whatever else is wrong.
func (c *Checker) signature(s metering.SignedRecord, digest common.Hash) error {
	signer, err := eip712.Recover(digest, s.Signature)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrSignature, err)
	}
	if signer != c.config.Key {
		return fmt.Errorf("%w: signed by %s, the offer names %s", ErrSignature, signer, c.config.Key)
	}
	return nil
}

func (c *Checker) lease(s metering.SignedRecord, _ common.Hash) error {
	l := c.config.Lease
	if s.LeaseID != l.ID {
		return fmt.Errorf("%w: %s", ErrLease, s.LeaseID)
	}
	if s.ChannelID != l.ChannelID {
		return fmt.Errorf("%w: it names channel %s, not %s", ErrLease, s.ChannelID, l.ChannelID)
	}
	if s.OfferHash != l.OfferHash {
		return fmt.Errorf("%w: it names offer %s, not %s", ErrLease, s.OfferHash, l.OfferHash)
	}
	return nil
}

func (c *Checker) chain(s metering.SignedRecord, digest common.Hash) error {
	last := c.state
	if s.Sequence == last.Sequence && digest == last.Last && last.Sequence > 0 {
		return ErrReplayed
	}
	if s.Sequence == last.Sequence && last.Sequence > 0 {
		return fmt.Errorf("%w: there are two of number %d: %s and %s", ErrForked, s.Sequence, last.Last, digest)
	}
	if s.Sequence != last.Sequence+1 {
		return fmt.Errorf("%w: expected %d", ErrSequence, last.Sequence+1)
	}
	if last.Final {
		return fmt.Errorf("%w: record %d was the final one", ErrForked, last.Sequence)
	}
	if s.Previous != last.Last {
		return fmt.Errorf("%w: it follows %s, the payer has %s", ErrForked, s.Previous, last.Last)
	}
	if s.Nanos < last.Nanos {
		return fmt.Errorf("%w: %d ns after %d ns", ErrBackwards, s.Nanos, last.Nanos)
	}
	return nil
}

func (c *Checker) money(s metering.SignedRecord, _ common.Hash) error {
	l := c.config.Lease
	if s.OwedBefore != l.OwedBefore {
		return fmt.Errorf("%w: it begins at %s owed, the lease began at %s", metering.ErrPrice, s.OwedBefore.Dec(), l.OwedBefore.Dec())
	}
	owed, err := l.Owed(s.Nanos)
	if err != nil {
		return err
	}
	if s.Owed != owed {
		return fmt.Errorf("%w: %d ns at %s per %s come to %s owed, it says %s",
			metering.ErrPrice, s.Nanos, l.Price.Amount.Dec(), l.Price.Unit, owed.Dec(), s.Owed.Dec())
	}
	return nil
}

func (c *Checker) evidence(s metering.SignedRecord, _ common.Hash) error {
	e := s.Evidence
	if err := c.config.Lease.Share.Match(e); err != nil {
		return err
	}
	if size, most := len(e.Encode()), maxEvidence+maxDeviceEvidence*len(c.config.Lease.Devices); size > most {
		return fmt.Errorf("%w: it has %d bytes, at most %d are kept", metering.ErrEvidence, size, most)
	}
	if err := texts(e); err != nil {
		return err
	}
	if hash := e.Hash(); hash != s.EvidenceHash {
		return fmt.Errorf("%w: it hashes to %s, the record says %s", metering.ErrEvidence, hash, s.EvidenceHash)
	}
	if err := c.devices(s); err != nil {
		return err
	}
	if err := e.Validate(); err != nil {
		return err
	}
	if uint64(e.Total) != s.Nanos || uint64(e.Nanos) != s.Nanos-c.state.Nanos {
		return fmt.Errorf("%w: it adds %d to make %d ns, the record adds %d to make %d",
			metering.ErrEvidence, e.Nanos, e.Total, s.Nanos-c.state.Nanos, s.Nanos)
	}
	if carried(e) != c.state.Rest {
		return fmt.Errorf("%w: it carries %d parts of a nanosecond over, the last record left %d", metering.ErrEvidence, carried(e), c.state.Rest)
	}
	if err := offered(c.config.Lease, e); err != nil {
		return err
	}
	for _, d := range e.Devices {
		if err := c.continues(d); err != nil {
			return err
		}
	}
	return nil
}

// What a payer keeps of one record, in bytes of its canonical form: the lists of
// a device's evidence stop at 64 entries, and each text is a name.
const (
	maxEvidence       = 18 << 10 // its list of requests included
	maxDeviceEvidence = 32 << 10
	maxName           = 256
)

// texts refuses names that fill a disk or steer a terminal.
func texts(e metering.Evidence) error {
	texts := []string{e.Source}
	for _, d := range e.Devices {
		texts = append(texts, d.Device.BootID, d.Device.Driver, d.Device.Name, d.Device.NVML, d.Device.Parent, d.Device.PCI,
			d.Device.Slice, d.Device.UUID, d.Device.VBIOS)
		texts = append(texts, d.Missing...)
		for _, g := range d.Gaps {
			texts = append(texts, g.Reason)
		}
		for _, x := range d.XIDs {
			texts = append(texts, string(x.Fault))
		}
	}
	for _, text := range texts {
		if len(text) > maxName || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
			return fmt.Errorf("%w: %.40q is no name", metering.ErrEvidence, text)
		}
	}
	return nil
}

func (c *Checker) devices(s metering.SignedRecord) error {
	leased := c.config.Lease.Devices
	if int(s.Devices) != len(leased) || len(s.Evidence.Devices) != len(leased) {
		return fmt.Errorf("%w: %d in the record, %d in its evidence, %d leased",
			ErrDevices, s.Devices, len(s.Evidence.Devices), len(leased))
	}
	seen := make(map[string]bool)
	for _, d := range s.Evidence.Devices {
		if !slices.Contains(leased, d.Device.UUID) || seen[d.Device.UUID] {
			return fmt.Errorf("%w: %q", ErrDevices, d.Device.UUID)
		}
		seen[d.Device.UUID] = true
	}
	return nil
}

// continues checks that a device's evidence starts where the last one ended, so
// that no second is shown twice.
func (c *Checker) continues(d metering.DeviceEvidence) error {
	last, ok := among(c.state.Devices, d)
	if ok {
		return follows(d, last)
	}
	if d.Total != d.Nanos.Allocated {
		return fmt.Errorf("%w: %s starts at %d ns", metering.ErrEvidence, d.Device.UUID, d.Total-d.Nanos.Allocated)
	}
	return nil
}

// clock holds the record against the payer's own clock, in all and for each
// device: one device's honest gap must not make room for another's lie. The time of
// devices that leases share is not billed, and goes on where our clock missed some.
func (c *Checker) clock(s metering.SignedRecord, _ common.Hash) error {
	if limit := c.Limit(); s.Nanos > limit {
		return fmt.Errorf("%w: %d ns over %d devices, %d ns passed, the limit is %d ns",
			ErrClock, s.Nanos, len(c.config.Lease.Devices), c.Elapsed(), limit)
	}
	if c.config.Lease.Share.Shared() {
		return nil
	}
	for _, d := range s.Evidence.Devices {
		if limit := c.deviceLimit(); uint64(d.Total) > limit {
			return fmt.Errorf("%w: %s claims %d ns, the limit is %d ns", ErrClock, d.Device.UUID, d.Total, limit)
		}
	}
	return nil
}
