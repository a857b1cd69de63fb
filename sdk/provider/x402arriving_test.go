package provider

import (
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/wire"
)

// servedSoon has a client of a metered route served while others' requests are not done yet.
func (b *buyer) servedSoon() {
	b.Helper()
	pay, answer := b.payment(b.next()), make(chan *http.Response, 1)
	go func() { answer <- b.pay(pay) }()
	select {
	case resp := <-answer:
		b.take(resp)
	case <-time.After(8 * time.Second):
		b.Fatal("a request waits for what another one has to wait for")
	}
}

// TestDepositHoldsUpNoRoute: while deposits of new clients of a metered route are on their way, and while their bodies do not come,
// its other clients are served; the route's GPU is kept from everybody else, and in the end from nobody.
func TestDepositHoldsUpNoRoute(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"sqlite", onPostgres} {
		t.Run(name, func(t *testing.T) {
			r := newPayRig(t, onOneGPU)
			routed(r, map[string]http.Handler{"/infer": http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "served") })})
			a := r.buyer("/infer")
			a.take(<-a.opens())
			b, c := r.buyer("/infer"), r.buyer("/infer")
			r.chain.Automine(t, false)
			first, second := b.opens(), c.opens()
			r.underWay(b)
			r.underWay(c)
			for range 3 {
				a.servedSoon()
			}
			r.buyer("/tick").isFull()
			r.chain.Automine(t, true)
			r.chain.Mine(t, 1)
			b.isServed(first)
			c.isServed(second)

			d := r.buyer("/infer")
			body, client := io.Pipe()
			req, err := http.NewRequestWithContext(t.Context(), "POST", r.server.URL+"/infer", body)
			if err != nil {
				t.Fatal(err)
			}
			req.Header, req.ContentLength = headerOf(t, d.depositing(d.next(), 300_000)), 1
			late := make(chan *http.Response, 1)
			go func() {
				resp, err := http.DefaultClient.Do(req)
				if err != nil {
					t.Error(err)
				}
				late <- resp
			}()
			eventually(t, "the deposit is there", func() bool { return d.holds() > 0 })
			a.servedSoon()
			_, _ = client.Write([]byte("x"))
			_ = client.Close()
			if resp := <-late; resp == nil || resp.StatusCode != http.StatusOK {
				t.Errorf("%v %v", resp, wire.ParseProblem(resp))
			}
			if free := r.provider.config.Allocator.(gpu.Capacity).Free(); free != 1 {
				t.Errorf("%d free", free)
			}
		})
	}
}
