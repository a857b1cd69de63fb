package main

import (
	"fmt"
	"io"
	"math/big"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/bindings"
	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/internal/fault"
	"github.com/gpupay/gpupay/sdk/audit"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/provider"
	"github.com/gpupay/gpupay/sdk/renter"
)

// report is what the kills came to.
type report struct {
	*world
	took         time.Duration
	channels     int // opened on the chain
	acknowledged int // vouchers, each amount once
	records      uint64
	lost         int // acknowledged and not kept
	twice        int // channels charged for more than their records say
	settled      int // channels that settled exactly the newest accepted voucher
	sent         int // transactions of the provider about channels
	reverted     int // of them: gas for nothing, but no money of anybody's
	untracked    int // channels that hold money and that their payer does not know
	payee        uint64
	payers       uint64
	escrow       uint64
	wrong        []string
}

// audit holds the chain, both sides' databases and what the witness saw against
// each other.
func (w *world) audit() *report {
	r := &report{world: w, took: time.Since(w.begun)}
	w.ctx = w.Context() // what ended the processes does not end the books
	opened := w.opened()
	r.channels = len(opened)
	escrow, err := chain.NewEscrow(w.ctx, w.chain.Backend, w.chain.Escrow)
	if err != nil {
		w.Fatal(err)
	}
	ids := make([]common.Hash, 0, len(opened))
	for id := range opened {
		ids = append(ids, id)
	}
	views, err := escrow.Views(w.ctx, ids)
	if err != nil {
		w.Fatal(err)
	}
	owners := make(map[common.Address]*payer)
	spent := make(map[common.Address]uint64)
	for i := range w.renters {
		owners[addressOf(w.renters[i].key)] = &w.renters[i]
	}
	var total uint64
	err = w.autopsy(w.providerDB(), func(db *store.DB) error {
		for i, id := range ids {
			r.account(db, id, views[i])
			r.bundles(owners[opened[id]], id)
			spent[opened[id]] += views[i].Settled.Uint64()
			total += views[i].Settled.Uint64()
		}
		return nil
	})
	if err != nil {
		w.fault("the provider's database: %v", err)
	}
	for id, t := range w.witness.snapshot() {
		r.acknowledged += t.vouchers
		r.records += t.records
		if _, ok := opened[id]; !ok && !t.acknowledged.IsZero() {
			w.fault("channel %s: a voucher was acknowledged and the channel is not on the chain", id)
		}
	}
	r.balances(total, spent)
	w.mu.Lock()
	defer w.mu.Unlock()
	r.wrong = append(slices.Clone(w.wrong), w.witness.wrong...)
	for _, line := range r.wrong {
		if strings.HasPrefix(line, "lost: ") {
			r.lost++
		}
	}
	return r
}

// opened lists the channels on the chain with their payers.
func (w *world) opened() map[common.Hash]common.Address {
	logs, err := w.chain.Backend.FilterLogs(w.ctx, ethereum.FilterQuery{FromBlock: new(big.Int), Addresses: []common.Address{w.chain.Escrow}})
	if err != nil {
		w.Fatal(err)
	}
	abi := bindings.NewChannelEscrow()
	found := make(map[common.Hash]common.Address)
	for _, log := range logs {
		event, err := abi.UnpackOpenedEvent(&log)
		if err != nil {
			continue // another event
		}
		if _, twice := found[event.ChannelId]; twice {
			w.fault("channel %s was opened twice", common.Hash(event.ChannelId))
		}
		found[event.ChannelId] = event.Payer
	}
	return found
}

// account is one channel in the provider's books.
func (r *report) account(db *store.DB, id common.Hash, view channel.ChainView) {
	s, err := db.Payee().Load(r.ctx, id)
	if err != nil {
		r.fault("channel %s: the provider does not know it: %v", id, err)
		return
	}
	seen := r.witness.snapshot()[id]
	if s.Accepted.Lt(&seen.acknowledged) {
		r.fault("lost: channel %s: %s was acknowledged, %s is on disk", id, seen.acknowledged.Dec(), s.Accepted.Dec())
	}
	if s.Accepted.Gt(&seen.sent) {
		r.fault("channel %s: %s is accepted, %s was sent", id, s.Accepted.Dec(), seen.sent.Dec())
	}
	if view.Finalized && view.Settled == s.Accepted {
		r.settled++
	} else {
		r.fault("channel %s: settled %s, finalized %t, accepted %s", id, view.Settled.Dec(), view.Finalized, s.Accepted.Dec())
	}
}

// bundles exports what both sides kept and has it verified against the chain,
// and against each other.
func (r *report) bundles(owner *payer, id common.Hash) {
	payee, err := provider.ExportFile(r.ctx, r.providerDB(), id)
	if err == nil {
		err = audit.Failures(audit.Verify(r.ctx, payee, r.chain.Backend))
	}
	if err != nil {
		r.fault("channel %s: the provider's books: %v", id, err)
		return
	}
	r.charged(payee)
	r.transactions(payee)
	if owner == nil {
		r.untracked++
		r.fault("channel %s: nobody's", id)
		return
	}
	payer, err := renter.ExportFile(r.ctx, owner.db, id)
	if err != nil {
		r.untracked++
		r.fault("channel %s: %s lost track of it: %v", id, owner.name, err)
		return
	}
	if err := audit.Failures(audit.Verify(r.ctx, payer, r.chain.Backend)); err != nil {
		r.fault("channel %s: the books of %s: %v", id, owner.name, err)
	}
	for _, e := range payer.Evidence {
		r.fault("channel %s: %s accuses an honest provider: %s", id, owner.name, e.Reason)
	}
	if found := audit.Compare(payee, payer).Equivocations; len(found) > 0 {
		r.fault("channel %s: the provider signed two records of one number", id)
	}
}

// charged holds what the channel was charged against the newest record.
func (r *report) charged(b *audit.Bundle) {
	owed := "0"
	for _, l := range b.Leases {
		if n := len(l.Records); n > 0 {
			owed = l.Records[n-1].Owed.Dec()
		}
	}
	err := r.autopsy(r.providerDB(), func(db *store.DB) error {
		s, err := db.Payee().Load(r.ctx, b.Channel)
		if err == nil && s.Spent.Dec() != owed {
			r.twice++
			r.fault("channel %s: charged %s, its records say %s", b.Channel, s.Spent.Dec(), owed)
		}
		return err
	})
	if err != nil {
		r.fault("channel %s: %v", b.Channel, err)
	}
}

// transactions counts what the provider sent about a channel. One close is
// enough, whoever was killed while it was under way.
func (r *report) transactions(b *audit.Bundle) {
	closes := 0
	for _, tx := range b.Transactions {
		r.sent++
		if tx.Hash != (common.Hash{}) && !tx.Succeeded {
			r.reverted++
		}
		if tx.Kind == chain.Close {
			closes++
		}
	}
	if closes > 1 {
		r.fault("channel %s: %d closes were sent", b.Channel, closes)
	}
}

// balances adds up who has the tokens now.
func (r *report) balances(total uint64, spent map[common.Address]uint64) {
	r.payee = r.chain.Tokens(r, addressOf(r.provider.key))
	r.escrow = r.chain.Tokens(r, r.chain.Escrow)
	for _, one := range r.renters {
		left := r.chain.Tokens(r, addressOf(one.key))
		r.payers += left
		if want := uint64(purse) - spent[addressOf(one.key)]; left != want {
			r.fault("%s has %d, its channels settled %d of %d", one.name, left, spent[addressOf(one.key)], uint64(purse))
		}
	}
	if r.payee != total || r.escrow != 0 {
		r.fault("the provider has %d, its channels settled %d; the escrow holds %d", r.payee, total, r.escrow)
	}
}

func (r *report) print(out io.Writer) {
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(table, "killed\tafter this step\tkills\t\n")
	for _, side := range []string{"provider", "gasless renter", "renter with coin"} {
		steps := map[string][]fault.Step{"provider": fault.Provider(), "gasless renter": fault.Renter(false), "renter with coin": fault.Renter(true)}[side]
		for _, step := range append(steps, randomStep) {
			fmt.Fprintf(table, "%s\t%s\t%d\t\n", side, step, r.tally[side][string(step)])
		}
	}
	table.Flush()
	fmt.Fprintf(out, "\nthe provider's transactions about channels %d, reverted %d", r.sent, r.reverted)
	minted := uint64(purse) * uint64(len(r.renters))
	fmt.Fprintf(out, "\nkills: provider %d, renters %d, in %.0f s (seed %d; a renter gave up by itself and was run again %d times)\n",
		r.count["provider"], r.count["renter"], r.took.Seconds(), r.seed, r.gone)
	fmt.Fprintf(out, "vouchers acknowledged %d, lost %d; usage records %d\n", r.acknowledged, r.lost, r.records)
	fmt.Fprintf(out, "channels %d, charged twice %d, settled = accepted %d of %d\n", r.channels, r.twice, r.settled, r.channels)
	fmt.Fprintf(out, "renters: vouchers lower than one before %d, over the records shown %d, funded channels lost track of %d\n",
		r.witness.lower, r.witness.unproven, r.untracked)
	fmt.Fprintf(out, "ledger: renters %d + provider %d + escrow %d = %d of %d base units\n",
		r.payers, r.payee, r.escrow, r.payers+r.payee+r.escrow, minted)
	for _, line := range r.wrong {
		fmt.Fprintln(out, "WRONG:", line)
	}
}
