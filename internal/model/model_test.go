package model

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"
	"pgregory.net/rapid"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/sdk/chain"
)

// sequence is how many steps a world lives on average, those that come to nothing included: a quarter.
const sequence = 100

// worlds is how many rapid makes before it is asked whether that is enough.
const worlds = 20

// steps is how many random steps TestBooks makes in all: GPUPAY_MODEL_STEPS, or 20,000.
func steps(t *testing.T) int { return setting(t, "GPUPAY_MODEL_STEPS", 20_000) }

// span is how long TestBooks goes on, however many steps that are: GPUPAY_MODEL_SECONDS. Zero: as long as its steps take.
func span(t *testing.T) time.Duration {
	if os.Getenv("GPUPAY_MODEL_SECONDS") == "" {
		return 0
	}
	return time.Duration(setting(t, "GPUPAY_MODEL_SECONDS", 0)) * time.Second
}

// setting is a number above zero from the environment.
func setting(t *testing.T, name string, usual int) int {
	text := os.Getenv(name)
	if text == "" {
		return usual
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("%s is %q, want a number", name, text)
	}
	return n
}

// TestMain lets the heap grow: a world lives for a quarter of a second, and half of the collector's work is in vain.
func TestMain(m *testing.M) {
	debug.SetGCPercent(800)
	os.Exit(m.Run())
}

func set(t *testing.T, name, value string) {
	if err := flag.Set(name, value); err != nil {
		t.Fatal(err)
	}
}

// TestBooks lets everybody do anything, and counts the money after each step and when all had their chance. With
// -rapid.seed it makes the same steps each time.
func TestBooks(t *testing.T) {
	set(t, "rapid.checks", strconv.Itoa(worlds))
	set(t, "rapid.steps", strconv.Itoa(sequence))
	set(t, "rapid.nofailfile", "true") // its seed is in the output
	set(t, "rapid.shrinktime", "10s")
	seen := map[string]int{}
	began, want, long := time.Now(), steps(t), span(t)
	seed := seedOf(t)
	for seen["steps"] < want && long == 0 || time.Since(began) < long {
		rapid.Check(t, func(rt *rapid.T) { live(rt, seen) })
		if seed != 0 {
			seed += 1 << 32 // rapid goes on from a seed in small steps
			set(t, "rapid.seed", strconv.FormatUint(seed, 10))
		}
	}
	t.Logf("%d steps, %v", seen["steps"], seen)
}

// seedOf is the seed that was asked for, or 0.
func seedOf(t *testing.T) uint64 {
	seed, err := strconv.ParseUint(flag.Lookup("rapid.seed").Value.String(), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return seed
}

// live is the life of one world.
func live(t *rapid.T, seen map[string]int) {
	w := newWorld(t, seen)
	actions := rapid.StateMachineActions(&actions{w})
	for i, often := range []string{"Open", "Pay", "Pay", "Pay", "Pay", "Pay", "Pay", "TopUp", "Work", "Work", "TakeBack"} {
		actions[fmt.Sprintf("%s (%d)", often, i)] = actions[often]
	}
	for name, action := range actions {
		if name != "" {
			actions[name] = func(t *rapid.T) { w.T = t; action(t); seen["steps"]++ }
		}
	}
	t.Repeat(actions)
	w.T = t
	w.finale()
}

// actions are what may happen next.
type actions struct{ w *world }

var amounts = rapid.OneOf(
	rapid.Uint64Range(1, 5),         // dust
	rapid.Uint64Range(100, 100_000), // usual
	rapid.Uint64Range(capChannel/2, capChannel),
)

func (x *actions) any(t *rapid.T) *account {
	if len(x.w.accounts) == 0 {
		t.Skip("no account yet")
	}
	return x.w.accounts[rapid.IntRange(0, len(x.w.accounts)-1).Draw(t, "account")]
}

// Open makes a channel with the payer's authorization, which a stranger carries.
func (x *actions) Open(t *rapid.T) {
	w := x.w
	if len(w.accounts) >= 12 || w.sick() {
		t.Skip()
	}
	p := w.payers[rapid.IntRange(0, 1).Draw(t, "payer")]
	a := w.newAccount(p, rapid.SampledFrom([]channel.Scheme{channel.Session, channel.BatchSettlement}).Draw(t, "scheme"))
	amount := amounts.Draw(t, "deposit")
	err, may := p.pays(a.terms.Scheme).Open(w.ctx, a.terms, units(amount)), p.affords(a, amount)
	if (err == nil) != may {
		w.Fatalf("opening %s with %d: %v", a, amount, err)
	}
	if !may {
		return
	}
	a.funded, a.agreed = amount, amount
	w.must(a.deposit(amount, true, w.stranger))
	w.accounts = append(w.accounts, a)
	if rapid.IntRange(0, 3).Draw(t, "confirmed") > 0 {
		for range confirmations {
			_, err := w.chain.Mine()
			w.must(err)
		}
	}
}

// Pay signs for something and has it taken.
func (x *actions) Pay(t *rapid.T) {
	a := x.any(t)
	amount := a.own
	switch rapid.IntRange(0, 9).Draw(t, "how") {
	case 0: // the same again
	case 1:
		amount = rapid.Uint64Range(0, a.own).Draw(t, "less")
	case 2:
		amount = a.funded
	case 3:
		amount += amounts.Draw(t, "more")
	case 4:
		amount++
	default:
		amount = rapid.Uint64Range(a.own, max(a.own, a.funded)).Draw(t, "within")
	}
	a.pay(amount, amounts.Draw(t, "charge"))
}

// TopUp adds to a channel: the payer's authorization, carried by a stranger or the payer, or a stranger's own money.
func (x *actions) TopUp(t *rapid.T) {
	w, a := x.w, x.any(t)
	amount := amounts.Draw(t, "amount")
	s := w.onChain()[a]
	if s.final || a.gone || w.sick() {
		t.Skip()
	}
	if a.session() && rapid.Bool().Draw(t, "gift") {
		_ = w.send(w.stranger, w.token.ApproveCall(w.escrow, channel.MaxAmount()))
		w.must(w.send(w.stranger, w.till.session.TopUpCall(a.terms, units(amount))))
		a.meant += amount
		return
	}
	if !a.fund(amount) {
		return
	}
	w.must(a.deposit(amount, false, w.stranger))
}

// fund has the payer's books expect more, if its caps allow.
func (a *account) fund(amount uint64) bool {
	if a.closed && !a.lost && !a.over {
		_, err := a.payer.pays(a.terms.Scheme).Reopen(a.w.ctx, a.id)
		a.w.must(err)
		a.closed = false
	}
	err := a.payer.pays(a.terms.Scheme).Fund(a.w.ctx, a.id, units(a.funded+amount))
	if may := !a.lost && !a.over && a.payer.affords(a, a.funded+amount); (err == nil) != may {
		a.w.Fatalf("a deposit of %d more on %s: %v", amount, a, err)
	}
	if err == nil {
		a.funded += amount
		a.agreed, a.closed = a.funded, false
	}
	return err == nil
}

// Look has a payer see what the chain says.
func (x *actions) Look(t *rapid.T) {
	w, a := x.w, x.any(t)
	if s := w.onChain()[a]; s.deposit > 0 && !w.sick() {
		a.look(s)
	}
}

// OwnTopUp is a transaction of the payer's own, from its allowance, which nothing but its outbox keeps from being sent
// twice; the node may not tell for long that it was mined, nor know it by its hash.
func (x *actions) OwnTopUp(t *rapid.T) {
	w, a := x.w, x.any(t)
	amount := amounts.Draw(t, "amount")
	if s := w.onChain()[a]; !a.session() || s.final || a.gone || w.sick() || !a.fund(amount) {
		t.Skip()
	}
	_, err := a.payer.sender.Submit(w.ctx, w.till.session.TopUpCall(a.terms, units(amount)))
	w.must(err)
	a.meant += amount
	if rapid.Bool().Draw(t, "late") {
		w.chain.Mute()
		w.chain.Unindexed = rapid.Bool().Draw(t, "unindexed")
		for range rapid.IntRange(0, 6).Draw(t, "looks") {
			w.pass(interval)
			for range 20 {
				_, err := w.chain.Mine()
				w.must(err)
			}
			_ = w.during("the payer's outbox", a.payer.sender.Sync)
		}
		w.chain.Unindexed = false
		w.chain.Unmute()
		w.noteLate()
	}
	_ = w.during("the payer's outbox", a.payer.sender.Sync)
}

// AskBack starts the grace period.
func (x *actions) AskBack(t *rapid.T) {
	w, a := x.w, x.any(t)
	s := w.onChain()[a]
	if s.final || s.locked() == 0 || s.closing != 0 || w.sick() || rapid.IntRange(0, 5).Draw(t, "wants") > 0 {
		t.Skip()
	}
	if !a.lost {
		_, err := a.payer.pays(a.terms.Scheme).Close(w.ctx, a.id)
		w.must(err)
		a.closed = true
	}
	w.must(a.askBack(s))
}

// TakeBack ends it, if it is over.
func (x *actions) TakeBack(t *rapid.T) {
	w, a := x.w, x.any(t)
	s := w.onChain()[a]
	if w.sick() || s.closing == 0 || s.final {
		t.Skip()
	}
	over := w.chain.Time()+1 >= s.closing+uint64(grace/time.Second)
	if err := a.takeBack(); (err == nil) != over {
		w.Fatalf("taking back at %d what was asked for at %d: %v", w.chain.Time(), s.closing, err)
	} else if err == nil {
		a.gone = a.session()
		w.seen["taken back"]++
	}
}

// Leave is the payee's consent: it closes, or gives back what is free.
func (x *actions) Leave(t *rapid.T) {
	w, a := x.w, x.any(t)
	s := w.onChain()[a]
	if !a.known || s.final || s.deposit == 0 || w.sick() || rapid.IntRange(0, 2).Draw(t, "wants") > 0 {
		t.Skip()
	}
	d := w.till.desk(a.terms.Scheme)
	call, err := w.till.batch.RefundCall(w.ctx, w.till.state(a), units(rapid.Uint64Range(1, capChannel).Draw(t, "refund")))
	w.must(err)
	if a.session() {
		state, err := d.payee.Close(w.ctx, a.id)
		w.must(err)
		call = w.till.session.CloseCall(a.terms, state.Accepted, state.Signature)
	}
	if err := w.till.submit(call); err != nil && !isRevert(err) && !errors.Is(err, chain.ErrAnswer) { // after a restore it signs nothing for a while
		w.Fatal(err)
	} else if err == nil {
		a.gone = a.session()
		d.settler.Expect(a.terms) // as a provider does when it sees that something was claimed
		w.seen["left"]++
	} else {
		_, err := d.payee.Keep(w.ctx, a.id)
		w.must(err)
	}
	w.till.work()
}

// OldAnswer is what the chain said of a channel a while ago: an endpoint was slow to say it. It undoes no end.
func (x *actions) OldAnswer(t *rapid.T) {
	w, a := x.w, x.any(t)
	if !a.known || a.answer == nil || rapid.Bool().Draw(t, "asked") {
		views, _, err := w.till.desk(a.terms.Scheme).contract.Confirmed(w.ctx, []common.Hash{a.id}, confirmations)
		w.must(err)
		a.answer = &views[0].View
		return
	}
	before := w.till.state(a)
	if before.Status != channel.Finalized {
		t.Skip("what is open is asked for in turn")
	}
	s, err := w.till.desk(a.terms.Scheme).payee.Register(w.ctx, a.terms, *a.answer)
	w.must(err)
	w.seen["old answers"]++
	if s.Status != channel.Finalized {
		w.Fatalf("an old answer has %s %s again", a, s.Status)
	}
}

// Settle settles one channel at once.
func (x *actions) Settle(t *rapid.T) {
	a := x.any(t)
	if a.known {
		_ = x.w.till.settleNow(a)
	}
}

// Work is the payee's program doing what it does each minute.
func (x *actions) Work(t *rapid.T) {
	for range rapid.IntRange(1, 4).Draw(t, "minutes") {
		x.w.pass(interval)
		if x.w.till.work() && !x.w.sick() {
			x.w.checkClosing()
		}
	}
}

// Absence is time in which the payee does nothing.
func (x *actions) Absence(t *rapid.T) {
	w := x.w
	w.pass(time.Duration(rapid.OneOf(rapid.IntRange(1, 5), rapid.IntRange(1, 20), rapid.IntRange(20, 70)).Draw(t, "minutes")) * time.Minute)
	w.noteLate()
}

// Restart begins programs anew on their databases.
func (x *actions) Restart(t *rapid.T) {
	w := x.w
	if w.chain.Indexing {
		t.Skip()
	}
	w.till.close()
	w.till = openTill(w)
	p := w.payers[rapid.IntRange(0, 1).Draw(t, "payer")]
	p.close()
	p.open()
}

// Second is another program on a database that is open.
func (x *actions) Second(t *rapid.T) {
	ctx, cancel := context.WithTimeout(x.w.ctx, time.Millisecond)
	defer cancel()
	file := rapid.SampledFrom([]string{tillFile, x.w.payers[0].file()}).Draw(t, "file")
	if db, err := store.OpenAlone(ctx, filepath.Join(x.w.dir, file)); err == nil {
		_ = db.Close()
		t.Fatalf("two programs have %s", file)
	}
}

// Jump sets the clock of the programs wrong, or right.
func (x *actions) Jump(t *rapid.T) {
	x.w.wall = x.w.wall.Add(time.Duration(rapid.IntRange(-180, 180).Draw(t, "minutes")) * time.Minute)
}

// Restore makes a backup of a database, or has its program go on from the last one.
func (x *actions) Restore(t *rapid.T) {
	w := x.w
	if w.chain.Indexing {
		t.Skip()
	}
	if rapid.Bool().Draw(t, "payee's") {
		w.till.close()
		restore := rapid.Bool().Draw(t, "restore")
		w.restored = w.restored || restore && w.kept != nil
		w.kept = w.backup(tillFile, w.kept, restore, nil)
		w.till = openTill(w)
		w.till.lookAround()
		return
	}
	p := w.payers[rapid.IntRange(0, 1).Draw(t, "payer")]
	p.close()
	p.kept = w.backup(p.file(), p.kept, rapid.Bool().Draw(t, "restore"), p)
	p.open()
}

// Reorg undoes less than what was waited for.
func (x *actions) Reorg(t *rapid.T) {
	w := x.w
	if w.sick() {
		t.Skip()
	}
	depth := rapid.IntRange(1, confirmations-1).Draw(t, "depth")
	drops := rapid.Bool().Draw(t, "drops")
	ours := w.payee.Address()
	w.must(w.chain.Reorg(depth, func(tx *types.Transaction) bool {
		from, err := types.Sender(types.LatestSignerForChainID(tx.ChainId()), tx)
		w.must(err)
		return from != ours || !drops
	}))
}

// Halt stops the chain for a while, in which programs go on.
func (x *actions) Halt(t *rapid.T) {
	w := x.w
	w.chain.Halted = true
	w.pass(interval)
	w.till.work() // which knows of the last block now
	before := w.fees()
	for range rapid.IntRange(0, 3).Draw(t, "minutes") {
		w.pass(interval)
		w.till.work()
		w.checkFees(before)
	}
	if rapid.Bool().Draw(t, "forgets") {
		w.chain.Forget()
	}
	w.chain.Halted = false
	_, err := w.chain.Mine()
	w.must(err)
	w.pass(0)
	w.noteLate()
}

// Blind is a node that cannot say yet which transactions it knows.
func (x *actions) Blind(t *rapid.T) {
	w := x.w
	w.chain.Indexing = true
	for range rapid.IntRange(1, 2).Draw(t, "hours") {
		for range rapid.IntRange(0, 40).Draw(t, "blocks") {
			_, err := w.chain.Mine()
			w.must(err)
		}
		w.pass(interval)
		w.till.work()
	}
	w.chain.Indexing = false
	w.noteLate()
}

// Check holds after every step.
func (x *actions) Check(t *rapid.T) {
	x.w.T = t
	x.w.check()
}

// fees counts the versions of what is in flight.
func (w *world) fees() map[chain.TxID]int {
	flying, err := w.till.sender.InFlight(w.ctx)
	w.must(err)
	versions := make(map[chain.TxID]int, len(flying))
	for _, tx := range flying {
		versions[tx.ID] = len(tx.Attempts)
	}
	return versions
}

// checkFees: a chain that makes no block takes no fee either, however high. A version that a block passed over before the
// chain stood still may be replaced once.
func (w *world) checkFees(before map[chain.TxID]int) {
	for id, n := range w.fees() {
		if was, ok := before[id]; ok && n > was+1 {
			w.Fatalf("the fee of %s was raised %d times though no block came", id, n-was)
		}
	}
}

// noteLate remembers which channels' grace periods end without the payee: it did not hear of the close, or was paid since.
func (w *world) noteLate() {
	for a, s := range w.onChain() {
		if s.closing != 0 && (!a.heard || s.settled < a.payable()) && w.chain.Time() >= s.closing+uint64(grace/time.Second) {
			a.late = true
		}
	}
}

// check is what holds at any moment.
func (w *world) check() {
	states := w.onChain()
	var settled uint64
	locked := map[*payer]uint64{}
	signed := map[*payer]uint64{}
	for _, a := range w.accounts {
		s := states[a]
		if s.settled > a.signed {
			w.Fatalf("%d were settled, and signed for are %d: %s", s.settled, a.signed, a)
		}
		if s.deposit > a.meant {
			w.Fatalf("%d were deposited, and meant were %d: %s", s.deposit, a.meant, a)
		}
		settled += s.settled
		locked[a.payer] += s.locked()
		signed[a.payer] += a.signed
	}
	if got := w.balance(w.payee.Address()); got > settled {
		w.Fatalf("the payee has %d, and settled were %d", got, settled)
	}
	for _, p := range w.payers {
		if have := w.balance(p.address()) + locked[p]; have+signed[p] < minted {
			w.Fatalf("%s has %d of %d, and signed for %d", p.name, have, uint64(minted), signed[p])
		}
	}
}

// checkClosing holds after a round of a payee whose chain answers: of a channel that closes, all is fetched. On a restored database it
// signs nothing for two minutes and 32 blocks.
func (w *world) checkClosing() {
	for a, s := range w.onChain() {
		a.heard = s.closing != 0
		want := a.payable()
		if !a.known || !a.heard || s.final || s.settled >= want || a.late {
			continue
		}
		if err := w.till.settleNow(a); !w.restored || !errors.Is(err, chain.ErrAnswer) {
			w.Fatalf("a channel closes and %d of %d are settled (now: %v): %s", s.settled, want, err, a)
		}
		w.seen["closing channels that waited after a restore"]++
	}
}

// finale gives everybody its chance, and then all has to be where it belongs.
func (w *world) finale() {
	for range int(maxAge/interval) + 3 {
		w.round(interval)
	}
	w.check()
	states := w.onChain()
	var settled uint64
	for _, a := range w.accounts {
		s := states[a]
		settled += s.settled
		if s.settled > 0 {
			w.seen["channels that were settled"]++
		}
		if a.late {
			w.seen["late channels"]++
		}
		if want := a.payable(); s.settled < want && !a.late {
			w.Fatalf("after %s %d of %d are settled: %s, on the chain %+v", maxAge, s.settled, want, a, s)
		}
	}
	if got := w.balance(w.payee.Address()); got != settled { // a claim that a re-org undid may come back while nobody expects it
		w.seen["payouts that waited for the hourly look"]++
		w.round(time.Hour)
		w.round(time.Hour) // the last look may have been in what is the future since the clock was set back
	}
	if got := w.balance(w.payee.Address()); got != settled {
		w.Fatalf("the payee has %d, and settled were %d", got, settled)
	}
}

// round has time go by, and everybody do what it does meanwhile.
func (w *world) round(d time.Duration) {
	w.pass(d)
	w.during("the payers' outboxes", func(ctx context.Context) error {
		for _, p := range w.payers {
			w.must(p.sender.Sync(ctx))
		}
		return nil
	})
	w.till.work()
}
