package lease

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"slices"
	"sync/atomic"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/internal/fault"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/usage"
	"github.com/gpupay/gpupay/sdk/internal/highwater"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
)

// records are what of a lease is on disk, or should be: its state, and the signed records of what it used. Its goroutine alone writes them.
type records struct {
	*core
	balance *balance

	recorder *usage.Recorder
	draft    *leasestore.Pending                                         // measured, not yet signed: it is signed as it is, or never
	Unstored *metering.SignedRecord                                      // signed, not yet on disk: the store failed
	Closing  atomic.Pointer[func(*sqlx.Tx, metering.SignedRecord) error] // goes to disk with the final record
	written  []writtenRecord                                             // the newest of those that are on disk, where others share the database
	unsaved  bool                                                        // the lease's state is not on disk: the store failed
	rewrite  *time.Timer                                                 // wants to try that again
	waiting  atomic.Pointer[context.CancelFunc]                          // ends the wait for the database: see inCredit
}

// inCredit bounds how long an active lease waits for the database by what is left of its credit: then it has to be suspended.
// What was not written is tried again. Who waits for nobody's service, or stops, waits for as long as the database does.
func (r *records) inCredit(ctx context.Context) (context.Context, context.CancelFunc) {
	if v := r.Status.Look(); v.State != leasestore.Active || v.stalled || r.life == nil || r.life.Err() != nil {
		return ctx, func() {}
	}
	ctx, cancel := context.WithTimeout(ctx, max(r.balance.timeLeft(), leasestore.OwnerTimeout))
	r.waiting.Store(&cancel)
	return ctx, cancel
}

// cancelWait ends a wait for the database that inCredit bounds: the payer's other leases have used the credit meanwhile, or others may run
// this one.
func (r *records) cancelWait() {
	if cancel := r.waiting.Load(); cancel != nil {
		(*cancel)()
	}
}

// Enter is a change of state, which is on disk as soon as it can be.
func (r *records) Enter(ctx context.Context, state leasestore.State, reason string) {
	r.Deps.Log.Info("lease "+string(state), "lease", r.ID, "channel", r.Terms.ID(), "reason", reason)
	r.Show(state, reason)
	r.unsaved = true
	_ = r.SaveState(ctx) // logged and tried again
}

// Show shows another state.
func (r *records) Show(state leasestore.State, reason string) {
	r.Status.Update(func(v *View) {
		v.State, v.Reason = state, reason
		v.Version++
		v.Ask(state, reason)
	})
	r.balance.Claims(state == leasestore.Active)
}

// retryWrite is how long a lease waits before it tries again to write its state.
const retryWrite = time.Second

// SaveState has the lease's state on disk.
func (r *records) SaveState(ctx context.Context) error {
	if !r.unsaved {
		return nil
	}
	v := r.Status.Look()
	write, cancel := r.inCredit(ctx)
	err := r.Deps.Store.Leases.SetState(write, r.ID, r.Term, v.State, v.Reason, 0)
	cancel()
	if err == nil {
		r.unsaved = false
		return nil
	}
	r.Fence.Check(err)
	if ctx.Err() == nil { // else it is written as the process stops
		r.Deps.Log.Error("the lease's state could not be stored: it is tried again", "lease", r.ID, "state", string(v.State), "error", err)
	}
	r.writeLater()
	return err
}

// writeLater has the lease try again what it could not write.
func (r *records) writeLater() {
	if r.rewrite == nil {
		r.rewrite = time.AfterFunc(retryWrite, r.Inbox.Wake)
		return
	}
	r.rewrite.Reset(retryWrite)
}

// unwritten reports whether something of the lease is not on disk that should be.
func (r *records) unwritten() bool { return r.unsaved || r.draft != nil || r.Unstored != nil }

// Make cuts the meter and makes the next signed record durable before anyone sees it. What an earlier attempt left behind goes first: a
// second record of the same number would be a fork that the payee signed.
func (r *records) Make(ctx context.Context, final bool) error {
	if err := r.complete(ctx); err != nil {
		return err
	}
	if last, ok := r.recorder.Last(); ok && last.Final {
		return nil
	}
	evidence, err := r.Meter.Cut(final)
	draft, failed := r.recorder.Draft(evidence, final)
	saved, unsaved := r.Meter.Save()
	if err = cmp.Or(err, failed, unsaved); err != nil {
		r.Fence.Check(err)
		r.Deps.Log.Error("usage record could not be made", "lease", r.ID, "error", err)
		return err
	}
	r.draft = &leasestore.Pending{Draft: draft, Meter: saved}
	return r.complete(ctx)
}

// complete has what was measured on disk, then signed, then on disk as signed. It
// goes on wherever an earlier attempt stopped, in this process or another one.
func (r *records) complete(ctx context.Context) error {
	ctx, cancel := r.inCredit(ctx)
	defer cancel()
	if r.Unstored != nil {
		if err := r.Commit(ctx); err != nil {
			return err
		}
	}
	if r.draft == nil {
		return nil
	}
	rec, err := r.sign(ctx, *r.draft)
	if err != nil {
		r.Fence.Check(err)
		r.Deps.Log.Error("usage record could not be signed", "lease", r.ID, "sequence", r.draft.Record.Sequence, "error", err)
		return err
	}
	fault.Point(fault.RecordSigned)
	r.draft, r.Unstored = nil, &rec
	return r.Commit(ctx)
}

// sign signs a draft that is in the database, in the term that is ours: whoever takes the lease over finds it there and signs the same. The
// mark outside the database says no if the database forgot what was signed.
func (r *records) sign(ctx context.Context, p leasestore.Pending) (metering.SignedRecord, error) {
	if r.Fence.Aborted.Load() {
		return metering.SignedRecord{}, leasestore.ErrRolledBack
	}
	err := r.Deps.Store.Records.Reserve(ctx, r.Term, p)
	if errors.Is(err, leasestore.ErrRolledBack) && r.writeAgain(ctx) == nil {
		err = r.Deps.Store.Records.Reserve(ctx, r.Term, p)
	}
	if err != nil {
		return metering.SignedRecord{}, err
	}
	fault.Point(fault.RecordReserved)
	mark := highwater.Mark{Sequence: p.Record.Sequence, Digest: r.recorder.Digest(p.Record)}
	states := highwater.Total{Channel: p.Record.ChannelID, Owed: p.Record.Owed}
	if err := r.Deps.Marks.Raise(ctx, r.recorder.Signer(), r.ID, mark, states); err != nil {
		return metering.SignedRecord{}, err
	}
	fault.Point(fault.RecordMarked)
	return r.recorder.Sign(ctx, p.Draft)
}

// writtenRecord is a record that was on disk, and where the meter stood at it.
type writtenRecord struct {
	record metering.SignedRecord
	meter  json.RawMessage
}

// maxWritten is how many of them a lease remembers: a server that is further behind has lost more than the lease can tell.
const maxWritten = 3

// writeAgain writes records down that the database has forgotten, as after a fail-over
// to a server that was a little behind: they are signed, and shown.
func (r *records) writeAgain(ctx context.Context) error {
	row, err := r.Deps.Store.Leases.ByID(ctx, r.ID.Hex())
	if err != nil {
		return err
	}
	missing := slices.DeleteFunc(slices.Clone(r.written), func(w writtenRecord) bool { return w.record.Sequence <= uint64(row.Sequence) })
	if len(missing) == 0 || missing[0].record.Sequence != uint64(row.Sequence)+1 {
		return leasestore.ErrRolledBack
	}
	books := r.Deps.Store.Records
	books.Late = true // of what was charged later, or settled, the charge stands
	for _, w := range missing {
		if err := books.Append(ctx, r.Term, w.record, w.meter, nil); err != nil {
			return err
		}
	}
	r.Deps.Log.Warn("the database had forgotten records, as after a fail-over to a server that was behind: they are written again", "lease", r.ID, "records", len(missing))
	return nil
}

// Commit has the record that was signed on disk, and its charge, under the fencing token.
func (r *records) Commit(ctx context.Context) error {
	rec, books := *r.Unstored, r.Deps.Store.Records
	var meter json.RawMessage // a node keeps that of what it meters
	var err error
	if books.Late = !r.MetersHere(); !books.Late {
		if meter, err = r.Meter.Save(); err != nil {
			return err
		}
	}
	err = books.Append(ctx, r.Term, rec, meter, r.Closing.Load())
	if errors.Is(err, leasestore.ErrRolledBack) && !r.MetersHere() {
		r.Fence.Lost.Store(true) // it is taken up again as the database has it, and its node has the rest
	} else if errors.Is(err, leasestore.ErrRolledBack) && r.writeAgain(ctx) == nil {
		err = books.Append(ctx, r.Term, rec, meter, r.Closing.Load())
	}
	if err != nil {
		r.Fence.Check(err)
		r.Deps.Log.Error("usage record could not be stored", "lease", r.ID, "sequence", rec.Sequence, "error", err)
		return err
	}
	fault.Point(fault.RecordStored)
	r.Unstored = nil
	if r.MetersHere() && r.Deps.Store.DB.Shared() {
		r.written = append(r.written[max(0, len(r.written)+1-maxWritten):], writtenRecord{rec, meter})
	}
	r.Deps.Metrics.Recorded(rec)
	r.Status.Update(func(v *View) { v.Shows(&rec) })
	return nil
}
