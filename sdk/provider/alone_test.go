package provider

import (
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/gpupay/gpupay/sdk/node"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/wallet"
)

// TestOneProgramOnOneDatabase: a provider, a node and a renter each own their database while they run. A second one is
// refused with the file's name; what reads still works beside the first.
func TestOneProgramOnOneDatabase(t *testing.T) {
	r := newRig(t)
	o := newOutpost(t)
	config := renter.Config{Chain: wallet.Chain{Backend: r.chain.Backend}, Token: r.chain.Token, Key: r.payer, Database: t.TempDir() + "/renter.db",
		Caps: wallet.Caps{PricePerGPUHour: "4.00", PerLease: "10", PerDay: "20", PerPayee: wallet.Unlimited}}
	client, err := renter.New(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	for path, open := range map[string]func() (io.Closer, error){
		r.config.Database: func() (io.Closer, error) { return New(t.Context(), r.config) },
		o.config.Database: func() (io.Closer, error) { return node.New(t.Context(), o.config) },
		config.Database:   func() (io.Closer, error) { return renter.New(t.Context(), config) },
	} {
		second, err := open()
		if err == nil {
			second.Close()
		}
		if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), path) {
			t.Errorf("a second program on %s: %v", path, err)
		}
	}
	lease := r.open(1, 100_000, "")
	lease.record()
	if b, err := ExportFile(t.Context(), r.config.Database, lease.terms.ID()); err != nil || len(b.Leases) != 1 {
		t.Errorf("export beside the program that runs: %v", err)
	}
	if _, err := renter.RentalsFile(t.Context(), config.Database); err != nil {
		t.Errorf("a list beside the program that runs: %v", err)
	}
}
