package gateways

import (
	"context"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/internal/pgtest"
	"github.com/gpupay/gpupay/sdk/internal/database"
	"github.com/gpupay/gpupay/sdk/internal/lease"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

// TestNameRunsOut: a gateway that has read nothing for as long as others wait does not say that it lives, and what it took up under its
// old name ends with that name's time. Under the next one it lives again, and the old one lives no more.
func TestNameRunsOut(t *testing.T) {
	const ttl = 2 * time.Second
	db, err := database.Open(t.Context(), pgtest.URL(t), "provider", leasestore.Migrations, "migrations/provider")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	m, expired := newMember(db, ttl), make(chan struct{}, 8)
	beat := func() error { return m.beat(t.Context(), func() { expired <- struct{}{} }) }
	lives := func(name string) bool {
		lives, err := m.members.Lives(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		return lives
	}
	if err := beat(); err == nil {
		t.Error("it lives, and has never read what others wrote")
	}
	m.saw(time.Now())
	old, tenure := m.Identity(), m.Tenure()
	if err := beat(); err != nil || !lives(old) {
		t.Fatalf("it does not live: %v", err)
	}
	<-expired
	if err := beat(); err == nil {
		t.Error("its time was over, and it has the old one back")
	}
	m.rename(func() bool { return false })
	if m.Identity() == old || tenure.Err() == nil || m.Tenure().Err() != nil {
		t.Errorf("what it took up as %s is still its own as %s", old, m.Identity())
	}
	<-expired // also where the new name is never said
	m.saw(time.Now())
	if err := beat(); err != nil || !lives(m.Identity()) || lives(old) {
		t.Errorf("it lives as %s: %t, as %s: %t, %v", m.Identity(), lives(m.Identity()), old, lives(old), err)
	}
	if err := m.leave(); err != nil || lives(m.Identity()) {
		t.Errorf("others wait for a gateway that has left: %v", err)
	}
}

// TestReplicaIsKeptForWhoLooks: a lease of another gateway is one here for all who look at it, until the last of them is gone; the end of
// the provider ends it for those who are left.
func TestReplicaIsKeptForWhoLooks(t *testing.T) {
	life, end := context.WithCancel(t.Context())
	r := replicas{life: func() context.Context { return life }}
	read := func() *lease.Lease { return lease.New(lease.Spec{ID: common.Hash{1}}, lease.View{}) }
	first := r.follow(read())
	if r.follow(read()) != first || !slices.Equal(r.all(), []*lease.Lease{first}) {
		t.Error("two look at two of one lease")
	}
	r.unfollow(first)
	if len(r.all()) != 1 {
		t.Error("it is gone while somebody looks")
	}
	r.unfollow(first)
	r.unfollow(first)
	if len(r.all()) != 0 {
		t.Error("it is kept for nobody")
	}
	second := r.follow(read())
	end()
	<-second.Done
	select {
	case <-first.Done:
		t.Error("what nobody looks at any more has ended")
	default:
	}
}
