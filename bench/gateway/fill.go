package gateway

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/holiman/uint256"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/provider"
)

// fill writes the database of a gateway that was ended after it had let a device to each of the first n channels.
func (w *World) fill(ctx context.Context, o Options) (err error) {
	config, err := o.config(w.Payee)
	if err != nil {
		return err
	}
	p, err := provider.New(ctx, config) // makes the tables and publishes the offer
	if err != nil {
		return err
	}
	offer := p.Offer().Hash
	if err := p.Close(); err != nil {
		return err
	}
	db, err := store.Open(ctx, o.Database)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	if err := w.register(ctx, db, o.Leases); err != nil {
		return err
	}
	return w.let(ctx, db, offer, o)
}

// register keeps the channels as a payee does that read them from the chain.
func (w *World) register(ctx context.Context, db *store.DB, n int) error {
	payee := &channel.Payee{Store: db.Payee(), Domain: w.Domain}
	var wait sync.WaitGroup
	const writers = 512 // wait for one fsync together
	failed := make(chan error, writers)
	for first := range writers {
		wait.Go(func() {
			for i := first; i < n; i += writers {
				if _, err := payee.Register(ctx, w.Terms[i], channel.ChainView{Deposit: *uint256.NewInt(deposit)}); err != nil {
					failed <- err
					return
				}
			}
		})
	}
	wait.Wait()
	close(failed)
	return <-failed
}

// let writes the leases, begun one after the other over the minute (o.Period) before now.
func (w *World) let(ctx context.Context, db *store.DB, offer common.Hash, o Options) error {
	const batch = 1000
	begun := time.Now().Add(-o.Period)
	for from := 0; from < o.Leases; from += batch {
		err := db.Update(ctx, func(tx *sqlx.Tx) error {
			for i := from; i < min(from+batch, o.Leases); i++ {
				id := leaseID(i)
				a, err := json.Marshal(gpu.Allocation{LeaseID: id, Devices: []string{sim.UUID(i)}, Access: json.RawMessage(`{"port":22}`)})
				if err != nil {
					return err
				}
				started := begun.Add(o.Period * time.Duration(i) / time.Duration(o.Leases))
				_, err = tx.Exec(`INSERT INTO leases (id, channel, offer, secret_hash, gpus, allocation, owed_before, state, started_at)
					VALUES (?, ?, ?, ?, 1, ?, '0', 'active', ?)`, id.Hex(), w.IDs[i].Hex(), offer.Hex(), secretHash(i), string(a), started.UnixNano())
				if err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func leaseID(i int) common.Hash { return crypto.Keccak256Hash([]byte(fmt.Sprint("lease ", i))) }

// secret is what a renter attaches to its lease with.
func secret(i int) string { return fmt.Sprintf("%064x", i) }

func secretHash(i int) string {
	sum := sha256.Sum256([]byte(secret(i)))
	return hex.EncodeToString(sum[:])
}
