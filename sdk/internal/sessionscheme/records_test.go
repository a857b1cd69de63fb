package sessionscheme

import (
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/sdk/internal/database"
	"github.com/gpupay/gpupay/sdk/internal/highwater"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/wire"
)

func openStore(t *testing.T) *store.DB {
	t.Helper()
	db, err := database.Open(t.Context(), filepath.Join(t.TempDir(), "p.db"), "provider", leasestore.Migrations, "migrations/provider")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

// TestWhatWasSignedHereIsCharged: a channel is charged what was signed on this host and the database forgot; one that was charged more
// meanwhile is taken as it is then, and one whose newest lease cannot be read is not served.
func TestWhatWasSignedHereIsCharged(t *testing.T) {
	t.Parallel()
	db := openStore(t)
	marks, err := highwater.Open(t.Context(), filepath.Join(t.TempDir(), "marks"))
	if err != nil {
		t.Fatal(err)
	}
	defer marks.Close()
	terms := channel.Terms{Payer: common.Address{1}}
	before, err := db.Payee().Create(t.Context(), channel.State{ID: terms.ID(), Terms: terms, Status: channel.Open, Deposit: *uint256.NewInt(1000)})
	if err != nil {
		t.Fatal(err)
	}
	d := Records{core{&Deps{DB: db, Store: leasestore.New(db), Payee: &channel.Payee{Store: db.Payee()}, Marks: marks}}}
	signed := func(sequence, owed uint64) {
		t.Helper()
		if err := marks.Raise(t.Context(), common.Address{2}, common.Hash{3}, highwater.Mark{Sequence: sequence, Digest: common.Hash{byte(sequence)}}, highwater.Total{Channel: terms.ID(), Owed: *uint256.NewInt(owed)}); err != nil {
			t.Fatal(err)
		}
	}
	signed(1, 200)
	if s, err := d.Remember(t.Context(), before); err != nil || s.Spent.Uint64() != 200 {
		t.Errorf("%s are charged of 200 that were signed for: %v", s.Spent.Dec(), err)
	}
	if _, err := d.Payee.Charge(t.Context(), terms.ID(), *uint256.NewInt(300)); err != nil {
		t.Fatal(err)
	}
	if s, err := d.Remember(t.Context(), before); err != nil || s.Spent.Uint64() != 300 {
		t.Errorf("%s are charged, where 300 were meanwhile: %v", s.Spent.Dec(), err)
	}
	signed(2, 400)
	if err := db.Update(t.Context(), func(tx *sqlx.Tx) error { _, err := tx.Exec(`ALTER TABLE leases RENAME TO gone`); return err }); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Remember(t.Context(), before); err == nil {
		t.Error("a channel whose newest lease is not known is served")
	}
}

// TestClassOfACredential: a request that names no class is for that of the offer whose challenge it answers.
func TestClassOfACredential(t *testing.T) {
	t.Parallel()
	offer := wire.SignedOffer{Offer: wire.Offer{Class: &wire.Class{ID: "h100"}}, Hash: common.Hash{1}}
	d := Challenges{core: core{&Deps{Store: leasestore.New(openStore(t))}}}
	defer runtime.KeepAlive(d.Store.Offers.Shared(offer))
	minter := &wire.Minter{Secret: make([]byte, 32), Realm: "gpupay", TTL: time.Minute, Now: time.Now}
	for hash, want := range map[common.Hash]string{offer.Hash: "h100", {2}: ""} {
		challenge, err := minter.Mint(wire.Request{ExternalID: hash.Hex()}, "nonce")
		if err != nil {
			t.Fatal(err)
		}
		header, err := wire.Credential{Challenge: challenge, Payload: wire.Payload{Action: wire.ActionRelease, ChannelID: common.Hash{3}}}.Header()
		if err != nil {
			t.Fatal(err)
		}
		r := httptest.NewRequest(http.MethodPost, "/lease", nil)
		r.Header.Set("Authorization", header)
		if class := d.classOf(r); class != want {
			t.Errorf("%q, want %q", class, want)
		}
	}
}
