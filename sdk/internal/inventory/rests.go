package inventory

import (
	"context"
	"log/slog"
	"slices"
	"time"
)

// Rest is what a book has of a device that could not be metered. It says for how long, and not when: no two processes have one clock.
type Rest struct {
	Device  string
	Version int64         // of what the book has of the device, or had when this process read it last; 0: nothing
	Span    time.Duration // for how long it rests each time, until it fails again
	Left    time.Duration // until it may go into a new lease
	Healed  bool          // it was metered since
	Well    time.Duration // for how long it has been, where it was
}

// RestBook keeps rests for the other processes of a host and for the next one. What it has of a device has another version each time
// that it is written.
type RestBook interface {
	// Put writes news, and returns those that it has now. A heal is of the failure that this process knew: it is not written where
	// another process has written since. A failure always is, and ends no rest earlier than what was written.
	Put(ctx context.Context, news []Rest) (has []Rest, err error)
	// All are the rests that it has.
	All(ctx context.Context) ([]Rest, error)
	// Redate has rests whose age it does not know, as its clock was set back, begin now.
	Redate(ctx context.Context) error
}

const (
	// sharedEvery is how often a book is read that others write to, and how old news is at most that is written while it can be.
	sharedEvery = time.Second
	// sharedTimeout bounds a pass: of a database that is away, too.
	sharedTimeout = 5 * time.Second
	// lastTimeout bounds the last one, for which the process that stops waits.
	lastTimeout = 2 * time.Second
	// renewed is the part of a span by which a rest that goes on is longer than the book has it before that is written again.
	renewed = 4
	// loneEvery is how often a book is read to which nobody else writes, for what it has forgotten.
	loneEvery = time.Hour
	// settled is for how long nothing more was heard of a device before the end of its rest is written as it is.
	settled = 2 * time.Second
)

// Sharing has what rests at one process rest at all that have its book, and at the next one. Who decides on a lease asks memory alone: while
// the book is away each process goes by what it knows, and what it heard meanwhile is written when the book is back.
type Sharing struct {
	Book  RestBook
	Sick  []*Quarantine // all hear the same; what the first one heard is written
	Alone bool          // nobody else writes to the book
	Log   *slog.Logger

	read time.Time // when the book was last; zero: it was not
	away bool      // it failed last time, and that was said
}

// Run passes news on until the context ends, and what is left of them then.
func (s *Sharing) Run(ctx context.Context) {
	for {
		stirred := s.Sick[0].stirs()
		if s.away {
			stirred = nil // or it was tried at each reading
		}
		select {
		case <-stirred:
		case <-time.After(sharedEvery):
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastTimeout)
			defer cancel()
			s.Sick[0].ends()
			if news, _ := s.Sick[0].news(); len(news) > 0 {
				s.Pass(last)
			}
			return
		}
		s.Pass(ctx)
	}
}

// Pass writes what is news here and reads what is news elsewhere. What fails is said once, and done by a later pass.
func (s *Sharing) Pass(ctx context.Context) {
	within, cancel := context.WithTimeout(ctx, sharedTimeout)
	defer cancel()
	err := s.pass(within)
	switch {
	case ctx.Err() != nil: // the process stops
	case err == nil && s.away:
		s.Log.Info("the database has the rests of GPUs again")
	case err != nil && !s.away:
		s.Log.Warn("GPUs that could not be metered rest here, and the database does not say so to the other gateways and the next process: it is tried again each second", "error", err)
	}
	s.away = err != nil
}

func (s *Sharing) pass(ctx context.Context) error {
	news, at := s.Sick[0].news()
	if len(news) == 0 && s.Alone && !s.read.IsZero() && at.Sub(s.read) < loneEvery {
		return nil
	}
	var written []Rest
	if len(news) > 0 {
		var err error
		if written, err = s.Book.Put(ctx, news); err != nil {
			return err
		}
	}
	if s.Alone {
		if err := s.Book.Redate(ctx); err != nil {
			return err
		}
	}
	began := time.Now()
	all, err := s.Book.All(ctx)
	if err != nil {
		return err
	}
	s.read = at
	for _, q := range s.Sick {
		q.learn(all, written, at, time.Since(began))
	}
	return nil
}

// stirs is told when there are news.
func (q *Quarantine) stirs() <-chan struct{} {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.stirred == nil {
		q.stirred = make(chan struct{}, 1)
	}
	return q.stirred
}

// stir tells it. The caller holds mu.
func (q *Quarantine) stir() {
	select {
	case q.stirred <- struct{}{}:
	default: // it knows, or there is nobody
	}
}

// ends has each rest be news that ends later than the book has it, by however little: nobody writes it later.
func (q *Quarantine) ends() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for uuid, r := range q.rests {
		if r.healed.IsZero() && r.until.After(r.kept) {
			r.changed = q.time()
			q.rests[uuid] = r
		}
	}
}

// news is what the book does not have, and the time of that.
func (q *Quarantine) news() (all []Rest, at time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := q.time()
	for uuid, r := range q.rests {
		ends := r.healed.IsZero() && r.until.After(r.kept) && now.Sub(r.until.Add(-r.span)) >= settled
		if r.changed.IsZero() && !ends {
			continue
		}
		news := Rest{Device: uuid, Version: r.version, Span: r.span, Left: max(r.until.Sub(now), 0), Healed: !r.healed.IsZero()}
		if news.Healed {
			news.Well = max(now.Sub(r.healed), 0)
		}
		all = append(all, news)
	}
	return all, now
}

// learn takes what the book has, as it was up to late ago, and which of it this process wrote: what was news at a time. A book that has a
// rest no more, or as it was before, was put back to an earlier moment: what is known here is news again. A failure after a heal of which is
// known here is no such row, whatever its version: the database may have gone over to a server whose clock is behind.
func (q *Quarantine) learn(all, written []Rest, told time.Time, late time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.rests == nil {
		q.rests = make(map[string]rest)
	}
	now := q.time()
	for uuid, r := range q.rests {
		if !r.changed.After(told) {
			r.changed = time.Time{}
		}
		if r.changed.IsZero() && r.version != 0 && !slices.ContainsFunc(all, func(has Rest) bool { return has.Device == uuid }) {
			if !now.Before(r.until) {
				delete(q.rests, uuid) // the book has forgotten it
				continue
			}
			r.version, r.kept, r.changed = 0, time.Time{}, now
			q.stir()
		}
		q.rests[uuid] = r
	}
	for _, has := range all {
		r := q.rests[has.Device]
		if has.Version == r.version {
			continue
		}
		ours := slices.ContainsFunc(written, func(w Rest) bool { return w.Device == has.Device && w.Version == has.Version })
		if has.Version < r.version && !ours && !r.before(has, now) {
			r.version, r.kept, r.changed = has.Version, now.Add(has.Left-late), now
			q.rests[has.Device] = r
			q.stir()
			continue
		}
		if has.Healed && !ours {
			delete(q.lost, has.Device) // it has rested for that, or pays it off where it is billed
		}
		q.rests[has.Device] = r.learned(has, ours, now.Add(-late))
	}
}

// before reports whether a device was metered before it failed as the book has it now.
func (r rest) before(has Rest, now time.Time) bool {
	return !has.Healed && !r.healed.IsZero() && now.Add(has.Left-has.Span).After(r.healed)
}

// learned is a rest after the book has said what it has of it. What was heard here since the book was told stands where the book has what
// we wrote. Where it has what another process wrote, only a failure does: a heal was of a failure before that.
func (r rest) learned(has Rest, ours bool, now time.Time) rest {
	next := rest{until: now.Add(has.Left), span: has.Span, version: has.Version, kept: now.Add(has.Left), others: !ours || r.others}
	if has.Healed {
		next.healed = now.Add(-has.Well)
	}
	switch heard := !r.changed.IsZero(); {
	case heard && ours:
		r.version, r.kept = next.version, next.kept
		return r
	case heard && r.healed.IsZero():
		next.span, next.healed, next.changed, next.others = max(r.span, next.span), time.Time{}, r.changed, r.others
		if r.until.After(next.until) {
			next.until = r.until
		}
	}
	return next
}
