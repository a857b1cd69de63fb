package loopback

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/gpupay/gpupay/bench"
)

// parts are what the gateway's processors do.
var parts = bench.Parts{
	{Name: "recover the signer (libsecp256k1)", Word: "secp256k1."},
	{Name: "hash vouchers and readings", Word: "keccak"},
	{Name: "collect garbage", Word: "runtime.gcBgMarkWorker"},
	{Name: "SQLite: commit, which writes and syncs", Word: "(*SQLiteTx).Commit"},
	{Name: "SQLite: statements", Word: "go-sqlite3."},
	{Name: "the store in Go, database/sql included", Word: "channel/store."},
	{Name: "sockets: reads and writes in the kernel", Word: "internal/poll."},
	{Name: "WebSocket frames", Word: "coder/websocket."},
	{Name: "judge and copy, in Go", Word: "channel.(*Payee)"},
	{Name: "meter the leases", Word: "gpupay/metering."},
	{Name: "tell the lease, answer, and the rest of the provider", Word: "gpupay/sdk."},
	{Name: "switch between goroutines", Word: "runtime."},
}

// profileTime is how long a gateway is watched.
const profileTime = 2 * time.Second

// profiled has the renters pay for somewhat longer than the gateway is watched. rate is what they pay a second.
func profiled(ctx context.Context, c *crowd, rate float64) (t bench.Table, file bench.File, err error) {
	step := len(c.renters) * flight
	n := int(rate * 1.5 * profileTime.Seconds())
	n = max(n-n%step, step)
	c.work = tally{}
	if err := c.prepare(ctx, n); err != nil {
		return t, file, err
	}
	paid := make(chan error, 1)
	go func() { paid <- c.run(ctx, n) }()
	var data []byte
	err = c.gateway.Get(ctx, fmt.Sprintf("/debug/pprof/profile?seconds=%d", int(profileTime.Seconds())), func(resp *http.Response) (err error) {
		data, err = io.ReadAll(resp.Body)
		return err
	})
	if failed := <-paid; failed != nil {
		err = failed
	}
	if err != nil {
		return t, file, err
	}
	each := float64(c.work.processor.Microseconds()) / float64(c.work.payments)
	t, anonymous, err := parts.Table(data, each, "a payment")
	t.Title = fmt.Sprintf("Where the gateway's processors' time goes with %s renters, %s:", bench.Count(len(c.renters)), c.name)
	return t, bench.File{Name: "stream.pprof", Data: anonymous}, err
}
