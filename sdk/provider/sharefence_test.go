package provider

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/sdk/internal/nodelink"
	"github.com/gpupay/gpupay/sdk/internal/remote"
	"github.com/gpupay/gpupay/sdk/internal/spool"
)

// TestOldShareIsNotHeard: what a gateway says late of a lease's share, deposed or not, raises none at its node and lowers none
// in the database; a gateway from before shares had versions is believed; and one whose database is a copy from before takes
// up what the node has heard of since.
func TestOldShareIsNotHeard(t *testing.T) {
	north := newOutpost(t)
	r := newRig(t, quiet, north.link)
	lease := r.open(1, 100_000, "")
	id := lease.lease.LeaseID
	type share struct {
		Amount  string `db:"amount"`
		Told    string `db:"told"`
		Version int64  `db:"version"`
	}
	stored := func() (row share) {
		t.Helper()
		if err := r.provider.db.View().Get(&row, `SELECT amount, told, version FROM credit_shares WHERE lease = ?`, id.Hex()); err != nil {
			t.Fatal(err)
		}
		return row
	}
	spooled := func() spool.Row {
		t.Helper()
		row, err := north.disk.Get(t.Context(), north.disk.DB.View(), id)
		if err != nil {
			t.Fatal(err)
		}
		return row
	}
	waitFor(t, func() bool { return spooled().Version > 0 && spooled().Version == stored().Version })
	north.set(true, nil) // from here on the gateways are ours
	fair, newest := stored().Amount, stored().Version+10
	say := func(share uint64, version int64) string {
		t.Helper()
		money := nodelink.MoneyOf(uint256.Int{}, *uint256.NewInt(100_000)).WithCredit(*uint256.NewInt(share), version)
		if version < 0 {
			money.CreditVersion = nil
		}
		body, err := json.Marshal(nodelink.Sync{Money: money})
		if err != nil {
			t.Fatal(err)
		}
		resp := north.knock("POST", "/leases/"+id.Hex()+"/sync", body)
		var answer nodelink.Lease
		if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil || answer.Credit == nil {
			t.Fatal(resp.Status, err)
		}
		if got := spooled(); got.Credit != answer.Credit.Dec() || got.Version != answer.CreditVersion {
			t.Errorf("the node keeps %s of version %d and answers %s of version %d", got.Credit, got.Version, answer.Credit.Dec(), answer.CreditVersion)
		}
		return fmt.Sprintf("%s of version %d", answer.Credit.Dec(), answer.CreditVersion)
	}
	for _, step := range []struct {
		what    string
		share   uint64
		version int64
		want    string
	}{
		{"a share", 700, newest, fmt.Sprintf("700 of version %d", newest)},
		{"an older, larger one", 1900, newest - 1, fmt.Sprintf("700 of version %d", newest)},
		{"the same one again", 700, newest, fmt.Sprintf("700 of version %d", newest)},
		{"one without a version", 800, -1, fmt.Sprintf("800 of version %d", newest)},
		{"an old one after it", 1900, 0, fmt.Sprintf("800 of version %d", newest)},
	} {
		if got := say(step.share, step.version); got != step.want {
			t.Errorf("%s: the lease has %s, want %s", step.what, got, step.want)
		}
	}
	late := remote.Portion{Held: *uint256.NewInt(2000), Tell: *uint256.NewInt(1), Version: stored().Version - 1}
	if err := r.provider.nodes.Config.Shares.Heard(t.Context(), id, late); err != nil || stored().Amount != fair {
		t.Errorf("a late answer lowered the share to %s: %v", stored().Amount, err)
	}
	r.restart() // its database is a copy from before
	north.set(false, nil)
	waitFor(t, func() bool {
		return stored().Version > newest && spooled().Version > newest && spooled().Credit == fair
	})
	gave := stored().Version
	r.sql(`UPDATE credit_shares SET version = 1, told = '1'`) // a server that was behind, under the process that gave them
	waitFor(t, func() bool { return stored().Version >= gave && spooled().Version == stored().Version })
}
