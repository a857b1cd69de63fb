package renter_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/internal/paystream"
	"github.com/gpupay/gpupay/sdk/internal/peer"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/internal/rig/renterrig"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/wire"
)

// wrongs are what a value of a message may be instead: too small, too large, or somebody else's.
func wrongs(v any) []any {
	switch v := v.(type) {
	case string:
		if strings.HasPrefix(v, "0x") {
			return []any{"0x" + strings.Repeat("0", len(v)-2), "0x" + strings.Repeat("1", len(v)-2), "", "0x"}
		}
		return []any{"", "0", "1", "-1", "18446744073709551615", "9223372036854775807", "340282366920938463463374607431768211455", strings.Repeat("9", 80), "somebody else's", strings.Repeat("x", 600_000)}
	case float64:
		return []any{0, 1, 2, -1, 1e18, 1.5, "1"}
	case bool:
		return []any{!v, nil}
	case []any:
		return []any{[]any{}, append(slices.Clone(v), v...), nil}
	}
	return []any{nil}
}

// variants calls f with the document as it is after each change of one of its values, and without each of them.
func variants(t *testing.T, document []byte, f func(what string, document []byte)) {
	t.Helper()
	var tree any
	if err := json.Unmarshal(document, &tree); err != nil {
		t.Fatal(err)
	}
	send := func(what string) {
		changed, err := json.Marshal(tree)
		if err != nil {
			t.Fatal(err)
		}
		f(what, changed)
	}
	var walk func(path string, v any, set func(any))
	walk = func(path string, v any, set func(any)) {
		for i, wrong := range wrongs(v) {
			set(wrong)
			send(fmt.Sprintf("%s is %.20v (%d)", path, wrong, i))
		}
		set(v)
		switch v := v.(type) {
		case map[string]any:
			for _, key := range slices.Sorted(maps.Keys(v)) {
				kept := v[key]
				delete(v, key)
				send(path + "." + key + " is missing")
				walk(path+"."+key, kept, func(x any) { v[key] = x })
			}
		case []any:
			for i := range v {
				walk(fmt.Sprintf("%s[%d]", path, i), v[i], func(x any) { v[i] = x })
			}
		}
	}
	walk("", tree, func(x any) { tree = x })
}

// TestEveryFieldOfWhatAProviderSends: whatever a field of a record, a demand, a status, a refusal, a receipt or a second lease says, signed or not, the
// renter owes no more than an honest record says, and signs for no more than that and its prepayment.
func TestEveryFieldOfWhatAProviderSends(t *testing.T) {
	m := testrig.NewMarket(t)
	v := testrig.NewHostile(t, m, nil)
	streamed := make(chan *testrig.Stream, 1)
	v.Script = func(p *testrig.Stream) {
		p.Honest(2)
		streamed <- p
	}
	r := renterrig.Open(t, renterrig.Config(t, m, m.Payer))
	const prepay = 100 * time.Millisecond
	l, err := r.Rent(t.Context(), v.Server.URL, renter.Options{Deposit: "0.1", PayEvery: 50 * time.Millisecond, Prepay: prepay})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := renterrig.Background(ctx, l)
	p := <-streamed
	testrig.Eventually(t, "records", func() bool { return l.Snapshot().Sequence == 2 })
	cancel()
	<-done
	honest := p.Next(50 * time.Millisecond)
	most, err := v.Price.Charge(uint64(prepay))
	if err != nil {
		t.Fatal(err)
	}
	most.Add(&most, &honest.Owed)

	row, refused, taken := l.Lease().Row, 0, 0
	send := func(name, what string, document []byte) {
		t.Helper()
		err := l.Lease().Handle(t.Context(), wire.Event{Name: name, Data: document})
		if owed := l.Lease().Owed(); owed.Gt(&honest.Owed) {
			t.Errorf("%s, %s: %s owed, honest is %s (%v)", name, what, owed.Dec(), honest.Owed.Dec(), err)
		}
		if paid, err := l.Lease().Payer.State(t.Context(), l.Lease().ID); err != nil || paid.Signed.Gt(&most) {
			t.Errorf("%s, %s: %s signed for, %s at most (%v)", name, what, paid.Signed.Dec(), most.Dec(), err)
		}
		if taken++; err != nil {
			taken, refused = taken-1, refused+1
		}
		l.Lease().Row, l.Lease().Demand = row, paystream.Demand{}
		err = r.Wallet().DB.Update(t.Context(), func(tx *sqlx.Tx) error {
			_, err := tx.Exec(`DELETE FROM rental_records WHERE sequence > 2`)
			return err
		})
		if err != nil || l.Lease().Forget() != nil {
			t.Fatal(err)
		}
	}
	document, err := json.Marshal(honest)
	if err != nil {
		t.Fatal(err)
	}
	variants(t, document, func(what string, document []byte) {
		send(wire.EventUsage, what, document)
		var rec metering.SignedRecord
		if json.Unmarshal(document, &rec) != nil {
			return
		}
		for name, change := range map[string]func(*metering.SignedRecord){
			"signed":              func(*metering.SignedRecord) {},
			"signed and hashed":   func(r *metering.SignedRecord) { r.EvidenceHash = r.Evidence.Hash() },
			"signed and added up": func(r *metering.SignedRecord) { addUp(r, p) },
		} {
			signed, err := json.Marshal(p.Resign(rec, change))
			if err != nil {
				t.Fatal(err)
			}
			send(wire.EventUsage, what+", "+name, signed)
		}
	})
	for name, message := range map[string]any{
		wire.EventNeedVoucher: wire.NeedVoucher{ChannelID: l.Lease().ID, RequiredCumulative: wire.NewAmount(honest.Owed), Deposit: wire.NewAmount(row.Deposit)},
		wire.EventStatus:      wire.Status{State: "active", Reason: "none"},
		wire.EventProblem:     wire.AmountExceedsDeposit.With("a voucher is refused"),
		wire.EventLease:       wire.Lease{LeaseID: row.Lease, ChannelID: l.Lease().ID, Devices: row.Devices, State: "active"},
	} {
		document, err := json.Marshal(message)
		if err != nil {
			t.Fatal(err)
		}
		variants(t, document, func(what string, document []byte) { send(name, what, document) })
	}
	send(wire.EventStatus, "the end", []byte(`{"state":"ended"}`))
	for _, size := range []int{0, 1, 31, 32, 33, 600_000} { // receipts over the duplex stream are bytes
		for _, digit := range []byte{0, 1, 0xff} {
			send(peer.EventAccepted, fmt.Sprintf("a receipt of %d bytes %d", size, digit), bytes.Repeat([]byte{digit}, size))
		}
	}
	if refused < 200 || taken == 0 {
		t.Errorf("%d were refused and %d taken: the test shows nothing", refused, taken)
	}
	t.Logf("%d refused, %d taken", refused, taken)
}

// addUp makes a record of what its evidence says, as a payee that lies well would.
func addUp(r *metering.SignedRecord, p *testrig.Stream) {
	r.Nanos = uint64(r.Evidence.Total)
	if owed, err := p.Lease.Owed(r.Nanos); err == nil {
		r.Owed = owed
	}
	r.EvidenceHash = r.Evidence.Hash()
}
