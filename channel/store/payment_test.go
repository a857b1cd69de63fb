package store

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/gpupay/gpupay/channel"
)

// TestAPaymentMakesFewObjects counts those of a group of changes, as vouchers
// make them.
func TestAPaymentMakesFewObjects(t *testing.T) { each(t, testAPaymentMakesFewObjects) }

func testAPaymentMakesFewObjects(t *testing.T, db *DB) {
	const writers = 200
	most := map[dialect]float64{sqlite: 6, postgres: 14}[db.dialect]
	signature := make([]byte, 65)
	waiting := make([]*op, writers)
	for n := range waiting {
		id := create(t, db, byte(n))
		waiting[n] = &op{ctx: t.Context(), id: id, terms: stateOf(byte(n)).Terms, done: make(chan struct{}, 1), change: func(s *channel.State) error {
			s.Accepted.AddUint64(&s.Accepted, 1)
			s.Signature = signature
			return nil
		}}
	}
	g := &group{db: db.shared, channels: make(map[common.Hash]*entry)}
	objects := testing.AllocsPerRun(10, func() {
		g.commit(slices.Clone(waiting))
		for _, o := range waiting {
			if <-o.done; o.err != nil {
				t.Error(o.err)
			}
		}
	})
	if each := objects / writers; each > most {
		t.Errorf("%.1f objects a payment, want at most %.0f", each, most)
	}
	if s := load(t, db, waiting[0].id); s.Accepted != units(11) {
		t.Errorf("accepted %s after 11 rounds", s.Accepted.Dec())
	}
}

// TestASignatureIsKeptAsItWasGiven: neither who gave it, nor who was shown it in
// a change that came to nothing, can reach what is kept.
func TestASignatureIsKeptAsItWasGiven(t *testing.T) { each(t, testASignatureIsKeptAsItWasGiven) }

func testASignatureIsKeptAsItWasGiven(t *testing.T, db *DB) {
	id := create(t, db, 1)
	given := []byte{1, 2, 3}
	change := func(s *channel.State) error {
		s.Accepted, s.Signature = units(5), given
		return nil
	}
	if _, err := db.Payee().Update(t.Context(), id, change); err != nil {
		t.Fatal(err)
	}
	given[0] = 9
	got, err := db.Payee().Update(t.Context(), id, func(s *channel.State) error { return nil })
	if err != nil || got.Signature[0] != 1 {
		t.Fatalf("what was kept is %x, %v", got.Signature, err)
	}
	got.Signature[1] = 9
	_, err = db.Payee().Update(t.Context(), id, func(s *channel.State) error {
		s.Signature[2] = 9
		return errors.New("undone")
	})
	if err == nil {
		t.Fatal("no error")
	}
	if s := load(t, db, id); !slices.Equal(s.Signature, []byte{1, 2, 3}) {
		t.Errorf("what is kept is %x", s.Signature)
	}
	again, err := db.Payee().Update(t.Context(), id, func(s *channel.State) error {
		s.Spent = units(1)
		return nil
	})
	if err != nil || !slices.Equal(again.Signature, []byte{1, 2, 3}) {
		t.Errorf("a later change sees %x, %v", again.Signature, err)
	}
}

func TestTerms(t *testing.T) { each(t, testTerms) }

func testTerms(t *testing.T, db *DB) {
	id := create(t, db, 1)
	for range 2 { // read, and remembered
		if got, err := db.Payee().Terms(t.Context(), id); err != nil || got != stateOf(1).Terms {
			t.Errorf("%+v, %v", got, err)
		}
	}
	unknown := stateOf(2)
	for range 2 {
		if got, err := db.Payee().Terms(t.Context(), unknown.ID); !errors.Is(err, channel.ErrUnknown) {
			t.Errorf("%+v, %v", got, err)
		}
	}
	create(t, db, 2) // that it was unknown is not remembered
	if got, err := db.Payee().Terms(t.Context(), unknown.ID); err != nil || got != unknown.Terms {
		t.Errorf("%+v, %v", got, err)
	}
}

// TestTermsAreBounded: a full memory of terms starts anew.
func TestTermsAreBounded(t *testing.T) {
	var c termsCache
	for n := range maxCached + 2 {
		c.keep(common.Hash{byte(n >> 16), byte(n >> 8), byte(n)}, channel.Terms{})
	}
	if len(c.of) != 2 {
		t.Errorf("%d are kept, want 2", len(c.of))
	}
}

// TestReplicasJudgeByTheDatabase: a process remembers a channel's terms, and
// nothing else that another one may change.
func TestReplicasJudgeByTheDatabase(t *testing.T) {
	dbs := replicas(t, 2)
	key, domain := paymentKey(t), channel.EscrowDomain(31337, common.Address{1})
	here, there := &channel.Payee{Store: dbs[0].Payee(), Domain: domain}, &channel.Payee{Store: dbs[1].Payee(), Domain: domain}
	terms := stateOf(1).Terms
	terms.Payer = key.Address()
	view := channel.ChainView{Deposit: units(10)}
	if _, err := here.Register(t.Context(), terms, view); err != nil {
		t.Fatal(err)
	}
	pay := func(p *channel.Payee, amount uint64) (channel.Receipt, error) {
		v, err := domain.Sign(t.Context(), key, terms.ID(), units(amount))
		if err != nil {
			t.Fatal(err)
		}
		return p.Accept(t.Context(), v)
	}
	observe := func(v channel.ChainView) {
		if _, err := there.Observe(t.Context(), terms.ID(), v); err != nil {
			t.Fatal(err)
		}
	}
	for _, step := range []struct {
		name   string
		at     *channel.Payee
		before func()
		amount uint64
		want   channel.Outcome
		err    error
	}{
		{"first", here, nil, 3, channel.Accepted, nil},
		{"elsewhere", there, nil, 5, channel.Accepted, nil},
		{"the same here", here, nil, 5, channel.Replayed, nil},
		{"lower than elsewhere", here, nil, 4, channel.Stale, nil},
		{"over the deposit", here, nil, 11, 0, channel.ErrExceedsDeposit},
		{"topped up elsewhere", here, func() { observe(channel.ChainView{Deposit: units(20)}) }, 11, channel.Accepted, nil},
		{"closing elsewhere", here, func() { observe(channel.ChainView{Deposit: units(20), CloseRequestedAt: 1}) }, 12, 0, channel.ErrClosing},
	} {
		if step.before != nil {
			step.before()
		}
		if r, err := pay(step.at, step.amount); r.Outcome != step.want || !errors.Is(err, step.err) {
			t.Errorf("%s: %s, %v; want %s, %v", step.name, r.Outcome, err, step.want, step.err)
		}
	}
}

func paymentKey(t *testing.T) *channel.Key {
	t.Helper()
	private, err := crypto.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	return channel.NewKey(private)
}

// TestACancelledCallerIsNotKept: before its group, and with terms that are known.
func TestACancelledCallerIsNotKept(t *testing.T) { each(t, testACancelledCallerIsNotKept) }

func testACancelledCallerIsNotKept(t *testing.T, db *DB) {
	id := create(t, db, 1)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := db.Payee().Update(ctx, id, func(s *channel.State) error {
		s.Accepted = units(5)
		return nil
	})
	if s := load(t, db, id); !errors.Is(err, context.Canceled) || !s.Accepted.IsZero() {
		t.Errorf("kept %s, %v", s.Accepted.Dec(), err)
	}
}
