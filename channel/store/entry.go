package store

import (
	"bytes"
	"context"
	"database/sql/driver"
	"fmt"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
)

// entry is a payee's channel in a group: however many of its vouchers are in the
// group, it is read once and its newest state is written once.
type entry struct {
	state   channel.State
	changed bool // it is to be written, and among the group's dirty
}

// scratch is where a state is changed before it is known to be sound.
type scratch struct {
	state     channel.State
	signature []byte // room for it: who changes a state may write into what is there
}

// run leaves the changed state in n.
func (n *scratch) run(before *channel.State, change func(*channel.State) error) error {
	n.state = *before
	n.signature = append(n.signature[:0], before.Signature...)
	n.state.Signature = n.signature
	if err := change(&n.state); err != nil {
		return err
	}
	n.state.ID, n.state.Terms = before.ID, before.Terms
	if err := sound(before, &n.state); err != nil {
		return err
	}
	if same(before, &n.state) {
		n.state.Signature = before.Signature
		return nil
	}
	n.state.UpdatedAt = time.Now()
	n.state.Signature = bytes.Clone(n.state.Signature) // the caller keeps his
	return nil
}

// change is what an op asks for.
func (g *group) change(o *op) error {
	e, err := g.entry(o.id)
	if err != nil {
		return err
	}
	if err := g.next.run(&e.state, o.change); err != nil {
		return err
	}
	if !same(&e.state, &g.next.state) {
		e.state = g.next.state
		if !e.changed {
			e.changed, g.dirty = true, append(g.dirty, e)
		}
	}
	o.kept = e.state
	o.kept.Signature = bytes.Clone(o.kept.Signature)
	return nil
}

// changeNow is a change that the writer that runs can read back by SQL.
func (g *group) changeNow(id common.Hash, change func(*channel.State) error) (channel.State, error) {
	e, err := g.entry(id)
	if err != nil {
		return channel.State{}, err
	}
	if err := g.next.run(&e.state, change); err != nil {
		return channel.State{}, err
	}
	if same(&e.state, &g.next.state) {
		return e.state, nil
	}
	if err := g.save(&entry{state: g.next.state}); err != nil {
		return channel.State{}, err
	}
	g.touched = append(g.touched, id)
	e.state = g.next.state
	return e.state, nil
}

func (g *group) entry(id common.Hash) (*entry, error) {
	if e, ok := g.channels[id]; ok {
		return e, nil
	}
	if g.db.dialect == postgres {
		return nil, unknown(id) // prefetch would have found it
	}
	s, ok := g.db.cache.peek(id)
	if !ok {
		var err error
		if s, err = lockPayee(context.Background(), g.tx, id); err != nil {
			return nil, err
		}
	}
	return g.keep(id, s), nil
}

// keep has a channel as it is in the database.
func (g *group) keep(id common.Hash, s channel.State) *entry {
	e, ok := g.channels[id]
	if last := len(g.spare) - 1; !ok && last >= 0 {
		e, g.spare = g.spare[last], g.spare[:last]
	} else if !ok {
		e = new(entry)
	}
	*e = entry{state: s}
	g.channels[id] = e
	return e
}

// sound refuses, for the one writer, what would fail the whole group later.
func sound(before, after *channel.State) error {
	limit := channel.MaxAmount()
	for _, a := range [...]*uint256.Int{&after.Deposit, &after.Settled, &after.Accepted, &after.Spent} {
		if a.Gt(&limit) {
			return fmt.Errorf("channel %s: %w: %s is over 96 bits", after.ID, channel.ErrAmount, a.Dec())
		}
	}
	if after.Accepted.Lt(&before.Accepted) || after.Spent.Lt(&before.Spent) {
		return fmt.Errorf("channel %s: %w: accepted %s or spent %s would fall",
			after.ID, channel.ErrLower, after.Accepted.Dec(), after.Spent.Dec())
	}
	return nil
}

func same(a, b *channel.State) bool {
	return a.Deposit == b.Deposit && a.Settled == b.Settled && a.Accepted == b.Accepted && a.Spent == b.Spent &&
		a.Status == b.Status && a.CloseRequestedAt == b.CloseRequestedAt && bytes.Equal(a.Signature, b.Signature)
}

// flush writes the channels of a file that changed.
func (g *group) flush() error {
	if len(g.dirty) == 0 {
		return nil
	}
	if err := g.save(g.dirty...); err != nil {
		return err
	}
	for _, e := range g.dirty {
		e.changed = false
	}
	g.dirty = g.dirty[:0]
	return nil
}

// save writes channels of a file.
func (g *group) save(entries ...*entry) error {
	return g.conn.Raw(func(c any) error {
		prepared, err := c.(driver.Conn).Prepare(payeeUpdate) // once: the driver keeps it
		if err != nil {
			return err
		}
		defer prepared.Close()
		for _, e := range entries {
			if err := g.row.save(prepared.(driver.StmtExecContext), &e.state); err != nil {
				return err
			}
		}
		return nil
	})
}

// rowArgs are the arguments of payeeUpdate. The driver is given them as they
// are: database/sql would make each of them anew for each row.
type rowArgs struct {
	id        common.Hash
	amounts   [4][16]byte // deposit, settled, accepted, spent
	signature [65]byte    // but for one of another length
	values    [11]driver.NamedValue
	whole     driver.Value // the signature's 65 bytes
}

func (r *rowArgs) save(prepared driver.StmtExecContext, s *channel.State) error {
	if r.values[0].Value == nil {
		a := &r.amounts
		for i, v := range [...]driver.Value{a[0][:], a[1][:], a[2][:], a[3][:], nil, nil, nil, nil, r.id[:], a[2][:], a[3][:]} {
			r.values[i] = driver.NamedValue{Ordinal: i + 1, Value: v}
		}
		r.whole = r.signature[:]
	}
	r.id = s.ID
	for i, amount := range [...]*uint256.Int{&s.Deposit, &s.Settled, &s.Accepted, &s.Spent} {
		word := amount.Bytes32()
		copy(r.amounts[i][:], word[16:])
	}
	if len(s.Signature) == len(r.signature) {
		copy(r.signature[:], s.Signature)
		r.values[4].Value = r.whole
	} else {
		r.values[4].Value = blob(s.Signature)
	}
	r.values[5].Value = int64(s.Status)
	r.values[6].Value, r.values[7].Value = int64(s.CloseRequestedAt), s.UpdatedAt.UnixNano()
	done, err := prepared.ExecContext(context.Background(), r.values[:])
	if err != nil {
		return err
	}
	return saved(done, s)
}
