package leasestore

import (
	"fmt"
	"testing"
	"time"

	"github.com/gpupay/gpupay/channel/store"
)

// TestFailureAfterAFailOverToAClockBehind: the database fails over to a server whose clock is behind and that has no row of a GPU. One gateway
// writes that the GPU fails, which knew it before or began since: the other one, which knows an older heal, has the failure stand, though its
// version may be a lower one than that of the heal.
func TestFailureAfterAFailOverToAClockBehind(t *testing.T) {
	eachDatabase(t, func(t *testing.T, db *store.DB) {
		for _, knew := range []bool{true, false} {
			t.Run(fmt.Sprintf("who writes it knew the GPU %t", knew), func(t *testing.T) {
				forgetRests(t, db)
				book := New(db).Rests
				a, b := gatewayWith(t, book, 0), gatewayWith(t, book, 0)
				pass := func() {
					for range 3 {
						a.Pass(t.Context())
						b.Pass(t.Context())
					}
				}
				a.Fails(gpuName)
				pass()
				changeRests(t, db, `UPDATE device_rests SET version = version + ?`, (10 * time.Minute).Milliseconds()) // the first server's clock was ten minutes ahead
				pass()
				a.Heals(gpuName)
				pass()
				a.lets(true, "when it is metered, at a")
				b.lets(true, "when it is metered, at b")
				forgetRests(t, db) // the server that is behind
				if !knew {
					a = gatewayWith(t, book, 0)
				}
				a.ahead, b.ahead = time.Second, time.Second
				a.Fails(gpuName)
				a.Pass(t.Context())
				a.lets(false, "after its failure, at a")
				pass()
				a.lets(false, "when b has looked, at a")
				b.lets(false, "when b has looked, at b")
				gatewayWith(t, book, 0).lets(false, "at the next one")
			})
		}
	})
}
