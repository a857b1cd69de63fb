package provider

import (
	"context"
	"encoding/json"
	"net/http"
	"testing"
	"time"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/chaintest"
	"github.com/gpupay/gpupay/internal/devchain"
	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/internal/rig/ticketscheme"
	"github.com/gpupay/gpupay/sdk/internal/scheme"
	"github.com/gpupay/gpupay/sdk/internal/sessionscheme"
	"github.com/gpupay/gpupay/sdk/internal/x402scheme"
	"github.com/gpupay/gpupay/sdk/wire"
	"github.com/gpupay/gpupay/sdk/x402"
)

func sessionOf(p *Server) *sessionscheme.Scheme { return scheme.Of[*sessionscheme.Scheme](p.schemes) }

func x402Of(p *Server) *x402scheme.Scheme { return scheme.Of[*x402scheme.Scheme](p.schemes) }

// mountTickets has the provider paid by the third scheme, on the escrow's channels.
func mountTickets(_ context.Context, p *Server) (mounted, error) {
	return mounted{p.escrow, func(ctx context.Context, d schemeDeps) (scheme.Scheme, error) {
		return ticketscheme.New(ctx, ticketscheme.Deps{
			Tick: d.config.Metering.Tick, RecordEvery: d.config.Metering.RecordEvery, Confirmations: d.config.Chain.Confirmations,
			DB: d.db, Store: d.store, Escrow: d.escrow, Payee: d.payee, Starts: d.starts,
			Leases: d.leases, GPUs: d.gpus, Outbox: d.outbox, Front: d.front,
		})
	}}, nil
}

// Of the clock that the test moves a step is a tick, and costs so many base units a GPU. A tick by x402 pays for so many steps.
const (
	mallStep   = 200 * time.Millisecond
	mallCost   = 200
	mallWindow = 15
)

// mall is a provider of three GPUs that sessions, x402 and tickets pay, on anvil and on a clock that the test moves.
type mall struct {
	*payRig
	session *rig // the same provider, for who pays by sessions
	clock   *sim.Clock
	stale   int // sleepers of providers that are stopped
	steps   uint64
}

func newMall(t *testing.T, third ...mount) *mall {
	t.Helper()
	t.Parallel()
	m := &mall{clock: sim.NewClock()}
	net := chaintest.Anvil(t)
	net.PlaceBatchSettlement(t)
	m.payRig = payRigOn(t, net, func(c *Config) {
		c.Source, c.Metering.Clock, c.Terms.Credit, c.Terms.SuspendTimeout = sim.New(3, sim.Options{Clock: m.clock}), m.clock, time.Minute, 5*time.Second
		c.Metering.Tick, c.Metering.RecordEvery, c.X402.Window, c.X402.Slack = mallStep, 2*mallStep, mallWindow*mallStep, 10*mallStep
		c.mounts = third
	})
	m.session = &rig{chain: &devchain.Chain{Backend: net.Backend, URL: net.URL, Keys: net.Keys, Escrow: net.Escrow, Token: net.Token}, atWork: m.atWork}
	m.session.payer = channel.NewKey(net.Keys[1])
	net.Mint(t, m.session.payer.Address(), 1_000_000)
	return m
}

// step has a tick pass, and every device read then.
func (m *mall) step() {
	m.Helper()
	read := func() {
		testrig.Each(m.T, time.Millisecond, "the devices were read", func() bool { return m.clock.Waiting() > m.stale })
	}
	read()
	m.clock.Advance(mallStep)
	m.steps, m.stale = m.steps+1, 0
	read()
}

// tick buys a window by x402, and has it pass.
func (m *mall) tick(b *buyer, p *x402.PaymentPayload) paid {
	m.Helper()
	before := b.charged
	answer := make(chan *http.Response)
	go func() { answer <- b.pay(p) }()
	eventually(m.T, "the tick is admitted", func() bool {
		l := m.provider.leases.Running(b.terms.ID())
		if l == nil {
			return false
		}
		v, _ := l.Status.Snapshot()
		return v.Reserved.Uint64() > before
	})
	for {
		select {
		case resp := <-answer:
			return b.take(resp)
		default:
			m.step()
		}
	}
}

// restart stops the provider and starts it again, while the clock stands still.
func (m *mall) restart() {
	m.Helper()
	m.shut()
	m.stale = m.clock.Waiting()
	m.start()
	m.session.atWork = m.atWork
}

// show shows a ticket, signed by one of the chain's accounts.
func (m *mall) show(n int, terms channel.Terms, sum uint64) *http.Response {
	m.Helper()
	text, err := json.Marshal(ticketscheme.Ticket{Payer: wire.Address(terms.Payer), Salt: terms.Salt, Sum: wireAmount(sum),
		Signature: m.session.sign(channel.NewKey(m.chain.Keys[n]), terms, sum)})
	if err != nil {
		m.Fatal(err)
	}
	return m.send("POST", "/ticket", http.Header{ticketscheme.Header: {string(text)}})
}

// TestThirdScheme: a scheme that is a package of its own and a line where schemes are mounted is asked for beside the two others, opens a
// lease, is paid, metered, restored and settled on the chain to the base unit. The leases of the others go on beside it as they were.
func TestThirdScheme(t *testing.T) {
	m := newMall(t, mountTickets)
	asked := m.send("GET", "/lease", nil)
	for _, header := range []string{"WWW-Authenticate", x402.HeaderRequired, ticketscheme.Header} {
		if asked.StatusCode != http.StatusPaymentRequired || asked.Header.Get(header) == "" {
			t.Errorf("%s: no scheme asks to be paid by %s", asked.Status, header)
		}
	}
	tenant := m.session.open(1, 100_000, "")
	b := m.buyer("/tick")
	first := m.tick(b, b.depositing(b.next(), 50_000))

	const account, bought, sum = 2, 20 * mallCost, 35 * mallCost // base units of the first ticket, and of both
	terms := m.session.terms(channel.NewKey(m.chain.Keys[account]).Address(), 1)
	deposit := *uint256.NewInt(20_000)
	m.chain.Mint(t, terms.Payer, deposit.Uint64())
	m.session.send(account, m.token.ApproveCall(m.chain.Escrow, deposit))
	m.session.send(account, m.provider.escrow.OpenCall(terms, deposit))
	resp := m.show(account, terms, bought)
	var ticket wire.Lease
	if err := json.NewDecoder(resp.Body).Decode(&ticket); err != nil || resp.StatusCode != http.StatusOK || len(ticket.Access) == 0 {
		t.Fatalf("%s: %+v: %v", resp.Status, ticket, err)
	}
	for range 14 {
		m.step()
	}
	m.restart()
	if l := m.provider.leases.Running(terms.ID()); l == nil || l.ID != ticket.LeaseID || l.Credit.Postpaid() || m.provider.leases.Running(tenant.terms.ID()) == nil {
		t.Fatalf("after a restart the ticket's lease is %+v", l)
	}
	kept := b.kept()
	b.charged = kept.Spent.Uint64() // its lease went on to the end of its slack
	if more := m.show(account, terms, sum); more.StatusCode != http.StatusOK {
		t.Errorf("another ticket on the same channel: %s", more.Status)
	}
	second := m.tick(b, b.payment(b.next()))
	for m.provider.Service(terms.ID()) == string(leasestore.Active) {
		m.step()
	}
	eventually(t, "the lease ends whose ticket is used up", func() bool { return m.provider.leases.Running(terms.ID()) == nil })
	last, err := m.provider.store.Records.Last(t.Context(), ticket.LeaseID)
	if err != nil || !last.Final || last.Owed.Uint64() != sum {
		t.Fatalf("metered %+v: %v", last, err)
	}
	if again := m.show(account, terms, sum); again.StatusCode != http.StatusPaymentRequired {
		t.Errorf("a ticket that is used up: %s", again.Status)
	}

	final := tenant.release()
	tenant.pay(owedIn(final))
	if want := m.steps * mallCost; owedIn(final) != want {
		t.Errorf("a session beside it is charged %d, and was metered for %d", owedIn(final), want)
	}
	for _, tick := range []paid{first, second} {
		if tick.ChargedAmount.Uint64() != mallWindow*mallCost {
			t.Errorf("a tick beside it is charged %s", tick.ChargedAmount.Dec())
		}
	}
	used := b.used()
	if err := m.provider.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.receives(sum + owedIn(final) + used.Uint64())
	if view, err := m.provider.escrow.View(t.Context(), terms.ID(), nil); err != nil || view.Settled.Uint64() != sum {
		t.Errorf("of the ticket's channel %s is settled: %v", view.Settled.Dec(), err)
	}
}
