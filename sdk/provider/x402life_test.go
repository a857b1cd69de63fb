package provider

import (
	"bufio"
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/crypto"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/pgtest"
	"github.com/gpupay/gpupay/sdk/x402"
)

// TestWithdrawalIsNotServed: a payer that takes its money back is claimed from
// at once and served no more; a refund is still given, and ends the withdrawal.
func TestWithdrawalIsNotServed(t *testing.T) {
	r := newPayRig(t)
	b := r.buyer("/tick")
	b.open(20_000)
	r.chain.RPC(t, nil, "anvil_setBalance", b.key.Address(), "0xde0b6b3a7640000")
	private := b.private
	r.chain.Transact(t, private, r.contract.Address(), r.contract.InitiateWithdrawCall(b.terms, *uint256.NewInt(10_000)).Data)
	eventually(t, "the lease ends", func() bool { return r.provider.leases.Running(b.terms.ID()) == nil })
	eventually(t, "what was used is claimed", func() bool {
		used, on := b.used(), b.on().View
		return on.Settled == used && !used.IsZero()
	})
	kept := b.kept()
	b.charged = kept.Spent.Uint64()
	for _, p := range []*x402.PaymentPayload{b.payment(b.next()), b.depositing(b.next(), 20_000)} {
		if refused := b.refused(b.pay(p)); !strings.Contains(refused.Error, "withdrawal") {
			t.Errorf("refused with %q", refused.Error)
		}
	}
	if b.holds() != 20_000 {
		t.Errorf("a deposit was sent: %d", b.holds())
	}
	b.refund(0)
	eventually(t, "the channel is open again", func() bool { return b.kept().Status == channel.Open })
	b.open(20_000)
}

// TestRestartGoesOnWithTicks: the lease, what is reserved of it, and the books.
func TestRestartGoesOnWithTicks(t *testing.T) {
	r := newPayRig(t)
	b := r.buyer("/tick")
	first := b.open(20_000)
	r.restart()
	b.provider = r.provider
	if next := b.again(); next.LeaseID != first.LeaseID {
		t.Errorf("another lease: %s, before %s", next.LeaseID, first.LeaseID)
	}
	r.shut() // while nothing is asked for
	r.start()
	b.provider = r.provider
	b.again()
	if kept := b.kept(); kept.Spent.Uint64() < b.charged {
		t.Errorf("told %d, charged %s", b.charged, kept.Spent.Dec())
	}
}

// TestOnPostgres: the same on a server.
func TestX402(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]func(*testing.T){
		"ticks":   TestTicksFromDepositToPayout,
		"refunds": TestRefunds,
		"restart": TestRestartGoesOnWithTicks,
		"stream":  TestStreamAgain,
		"metered": TestMeteredChargesWhatWasUsed,
		"many":    TestManyAtOnceAreAllServed,
	} {
		t.Run(onPostgres+" "+name, test)
	}
}

// TestGatewaysShareAChannel: a lease that runs at one gateway is ticked through
// the other, and many requests at both are served one after the other.
func TestGatewaysShareAChannel(t *testing.T) {
	database := pgtest.URL(t)
	change := func(c *Config) {
		c.Database, c.Takeover, c.X402.Slack = database, 20*time.Second, 10*time.Second
	}
	one := newPayRig(t, change)
	two := payRigOn(t, one.chain, change)
	for _, r := range []*payRig{one, two} { // however late one that was corrected comes
		x402Of(r.provider).Queue.Hold = time.Minute
	}
	b := one.buyer("/tick")
	first := b.open(900_000)
	there := *b
	there.payRig = two
	second := there.again()
	if second.LeaseID != first.LeaseID || two.provider.leases.Running(b.terms.ID()) != nil {
		t.Errorf("another lease %s, first %s", second.LeaseID, first.LeaseID)
	}
	base := there.charged
	got := make(chan int)
	for i := range 6 {
		at := there
		if i%2 == 0 {
			at.payRig = one
		}
		go func() {
			status, _ := at.stock(base)
			got <- status
		}()
	}
	served := 0
	for range 6 {
		if <-got == http.StatusOK {
			served++
		}
	}
	if served != 6 {
		t.Errorf("%d of 6 were served", served)
	}
	there.charged = 0
	there.corrected(there.pay(there.payment(1)))
	there.refund(0)
	used := there.used()
	if on := there.on().View; on.Settled != used || on.Deposit != used {
		t.Errorf("after the refund %+v, used %s", on, used.Dec())
	}
}

// victim is the environment of a provider that the test kills.
const victim = "GPUPAY_TEST_X402_VICTIM"

// TestX402Victim is the provider's process; by itself it does nothing.
func TestX402Victim(t *testing.T) {
	args := strings.Fields(os.Getenv(victim))
	if len(args) == 0 {
		t.Skip("it is run by TestKilledMidTick")
	}
	key, err := crypto.HexToECDSA(args[0])
	if err != nil {
		t.Fatal(err)
	}
	config := payConfig(t, channel.NewKey(key), args[1], args[2], args[3], args[4])
	config.X402.Window = time.Second
	if len(args) > 5 {
		config.Records.HighWater = args[5]
	}
	p, err := New(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = p.Run(context.Background()) }()
	server := httptest.NewServer(p)
	fmt.Println("serving " + server.URL)
	select {}
}

// spawn runs the rig's provider in a process of its own. The function kills it.
func (r *payRig) spawn() (kill func()) {
	r.Helper()
	_, kill = r.spawnOn(r.chain.URL)
	return kill
}

// spawnOn has the process speak to an endpoint.
func (r *payRig) spawnOn(url string) (process *os.Process, kill func()) {
	r.Helper()
	cmd := exec.CommandContext(r.Context(), os.Args[0], "-test.run=^TestX402Victim$", "-test.timeout=5m")
	cmd.Env = append(os.Environ(), victim+"="+strings.Join([]string{
		hex.EncodeToString(crypto.FromECDSA(r.chain.Keys[0])), url, r.chain.Escrow.Hex(), r.chain.Token.Hex(), r.config.Database, r.config.Records.HighWater}, " "))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		r.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if url, ok := strings.CutPrefix(lines.Text(), "serving "); ok {
			r.server = &httptest.Server{URL: url}
			go func() { _, _ = io.Copy(io.Discard, out) }()
			return cmd.Process, func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }
		}
	}
	r.Fatal("the provider's process ended")
	return nil, nil
}

// TestKilledMidTick: a provider that is killed while it serves a request serves
// the same request when it is back, as the first or as a copy, and everything
// that it ever charged was answered.
func TestKilledMidTick(t *testing.T) {
	r := newPayRig(t, func(c *Config) { c.X402.Window = time.Second })
	r.shut()
	kill := r.spawn()
	b := r.buyer("/tick")
	b.open(100_000)
	for n := range 6 {
		p := b.payment(b.next())
		answered := make(chan *http.Response, 1)
		go func() {
			req, err := http.NewRequestWithContext(t.Context(), "GET", r.server.URL+"/tick", nil)
			if err == nil {
				req.Header = headerOf(t, p)
				resp, err := http.DefaultClient.Do(req)
				if err == nil {
					resp.Body.Close()
				}
			}
			close(answered)
		}()
		time.Sleep(time.Duration(100+n*200) * time.Millisecond)
		kill()
		<-answered
		kill = r.spawn()
		resp := b.pay(p)
		if resp.StatusCode == http.StatusPaymentRequired {
			b.corrected(resp) // a piece of slack was used and stated before the request came
			resp = b.pay(b.payment(b.next()))
		}
		b.take(resp)
	}
	kill()
	r.start()
	b.provider = r.provider
	b.idle()
	if err := r.provider.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	used := b.used()
	if on := b.on().View; on.Settled != used {
		t.Errorf("claimed %s, charged %s", on.Settled.Dec(), used.Dec())
	}
	b.receives(used.Uint64())
}
