package sidecar_test

import (
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/gpupay/gpupay/internal/sqlfault"
	"github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/sidecar"
)

// TestNoFaultOfTheDatabaseIsSilent: requests are sent, billed and paid while each place that sends a statement to the provider's database, or to the
// renter's, is told once that the disk failed. Every fault is in a log or in an error, and at the end the chain has what the records say: what was
// served, and never more than the renter measured.
func TestNoFaultOfTheDatabaseIsSilent(t *testing.T) {
	t.Parallel()
	for _, side := range []string{"provider", "renter"} {
		t.Run(side, func(t *testing.T) {
			dir, log := t.TempDir(), &rig.Log{}
			disk := sqlfault.At(t, dir)
			t.Cleanup(func() {
				if t.Failed() && testing.Verbose() {
					fmt.Println(log)
				}
			})
			text := slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
			s := newShop(t, func(c *sidecar.Config) {
				c.Provider.Commands.Timeout = time.Second
				if side == "provider" {
					c.Provider.Database, c.Provider.Log = filepath.Join(dir, "provider.db"), text
				}
			})
			g := s.guest(renter.Options{}, func(c *renter.Config) {
				c.Patience, c.Log = time.Minute, text
				if side == "renter" {
					c.Database = filepath.Join(dir, "renter.db")
				}
			})
			disk.Arm(true)
			var all sync.WaitGroup
			for range 3 {
				all.Go(func() {
					for served := 0; served < 8; {
						status, _, _, err := g.post(t.Context(), ask{Millis: 30})
						switch {
						case err != nil:
							fmt.Fprintln(log, "returned:", err)
						case status == http.StatusOK:
							served++
						}
						time.Sleep(20 * time.Millisecond)
					}
				})
			}
			running := make(chan struct{})
			go func() { // a renter whose disk fails ends, and is started again
				for {
					fmt.Fprintln(log, "returned:", <-g.ran)
					select {
					case <-running:
						return
					default:
						g.run()
					}
				}
			}()
			all.Wait()
			var closing renter.Closing
			for range 600 {
				var err error
				if closing, err = g.rental.Close(t.Context()); err == nil {
					break
				}
				fmt.Fprintln(log, "returned:", err)
				time.Sleep(100 * time.Millisecond)
			}
			close(running)
			disk.Arm(false)
			if paid := g.close(s.chain); paid == 0 || closing.Owed != closing.Settled {
				t.Errorf("%d were paid of %+v", paid, closing)
			}
			disk.Said(t, log.String(), map[string]string{
				"paystream.(*leaseStream).Reattach": "what cannot be read to attach once more as a lease is given back is read again for its last record",
			})
		})
	}
}
