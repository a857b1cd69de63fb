package provider

import (
	"context"
	"errors"
	"math/big"
	"net/http"
	"strings"
	"time"

	"github.com/holiman/uint256"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/admit"
	"github.com/gpupay/gpupay/sdk/internal/gpumetrics"
	"github.com/gpupay/gpupay/sdk/internal/lease"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/internal/remote"
	"github.com/gpupay/gpupay/sdk/wire"
)

// providerMetrics counts what an operator watches. Amounts are in units of the
// token, as floats: they are for graphs and never come back into arithmetic
// about money.
type providerMetrics struct {
	gpumetrics.Leases
	registry *prometheus.Registry
	streams  prometheus.Gauge
	vouchers *prometheus.CounterVec
	problems *prometheus.CounterVec
	forgone  prometheus.Counter
}

func newProviderMetrics(leases *lease.Manager) *providerMetrics {
	m := &providerMetrics{
		Leases:   gpumetrics.NewLeases(),
		registry: prometheus.NewRegistry(),
		streams:  prometheus.NewGauge(prometheus.GaugeOpts{Name: "gpupay_streams", Help: "Renters' open event streams."}),
		vouchers: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "gpupay_vouchers_total", Help: "Vouchers with a right signature, by outcome."}, []string{"outcome"}),
		problems: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "gpupay_refused_total", Help: "Requests refused, by problem."}, []string{"problem"}),
		forgone:  prometheus.NewCounter(prometheus.CounterOpts{Name: "gpupay_forgone_leases_total", Help: "Leases at nodes whose last records were given up: their node was away for too long, or what it gave did not hold."}),
	}
	m.registry.MustRegister(m.streams, m.vouchers, m.problems, m.forgone, m.GPU, m.Gaps, gpumetrics.Collector{Look: leases.GPUs})
	return m
}

// collectMoney has what is owed, vouchered and settled on all contracts among the metrics, be they watched or not.
func (p *Server) collectMoney() {
	p.metrics.registry.MustRegister(p.leases.Services, &moneyCollector{leases: &p.leases, nodes: p.nodes, channels: p.payee.Store, debts: p.store.Debts,
		sender: p.sender, sponsor: p.sponsor, settles: &p.settlement, decimals: p.token.Decimals})
}

// Voucher counts a voucher that was taken.
func (m *providerMetrics) Voucher(o channel.Outcome) { m.vouchers.WithLabelValues(o.String()).Inc() }

// Refused counts a request that was refused.
func (m *providerMetrics) Refused(p *wire.Problem) {
	name := p.Title
	if i := strings.Index(p.Type, "/problems/"); i >= 0 {
		name = p.Type[i+len("/problems/"):]
	}
	m.problems.WithLabelValues(name).Inc()
}

// moneyCollector reads the ledger when it is asked, so that a graph can never
// disagree with it.
type moneyCollector struct {
	leases   *lease.Manager
	nodes    *remote.Nodes // nil where this gateway meters
	channels channel.Store // of all contracts
	debts    leasestore.Debts
	sender   *chain.Sender
	sponsor  *admit.GasSponsor
	settles  *settlement
	decimals uint8 // of the token
}

var (
	descLeases     = prometheus.NewDesc("gpupay_leases", "Leases running.", nil, nil)
	descRefused    = prometheus.NewDesc("gpupay_refused_nodes", "Nodes that begin no lease: their GPUs are of another kind than those of the first.", nil, nil)
	descAway       = prometheus.NewDesc("gpupay_unreachable_nodes", "Nodes that did not answer when they were asked last: their leases go on within their credit, and no other begins there.", nil, nil)
	descSeen       = prometheus.NewDesc("gpupay_chain_seen_seconds", "How long ago the chain was last seen to its newest block.", nil, nil)
	descUnmetered  = prometheus.NewDesc("gpupay_unmetered_leases", "Leases none of whose GPUs can be metered: they are suspended.", nil, nil)
	descOwed       = prometheus.NewDesc("gpupay_spent_tokens", "Charged for GPU time, all channels that are not finalized.", nil, nil)
	descAccepted   = prometheus.NewDesc("gpupay_accepted_tokens", "Vouchered, all channels that are not finalized.", nil, nil)
	descSettled    = prometheus.NewDesc("gpupay_settled_tokens", "Settled on-chain, all channels that are not finalized.", nil, nil)
	descAtRisk     = prometheus.NewDesc("gpupay_at_risk_tokens", "Charged and not yet settled: what a failure of everything could cost.", nil, nil)
	descWrittenOff = prometheus.NewDesc("gpupay_written_off_tokens", "Charged on channels that are closed, never paid and not asked for any more: forgiven, or older than DebtKept.", nil, nil)
	descUnwatched  = prometheus.NewDesc("gpupay_unwatched_channels", "Channels with something to settle whose contract is not watched: it is not settled, and their payers can take it back.", nil, nil)
	descHeld       = prometheus.NewDesc("gpupay_held_tokens", "Settled and waiting in the contract: the token refuses to pay it out, or fetching it is not worth the gas yet.", nil, nil)
	descCoin       = prometheus.NewDesc("gpupay_coin_wei", "Native coin that the provider's key can still spend on gas: nothing can be settled without.", nil, nil)
	descReserve    = prometheus.NewDesc("gpupay_coin_reserve_wei", "Native coin that is kept for settlements: with less, nothing is sent for renters.", nil, nil)
	descOldest     = prometheus.NewDesc("gpupay_oldest_unsettled_seconds", "How long the oldest voucher has waited for its settlement.", nil, nil)
	descGas        = prometheus.NewDesc("gpupay_gas_spent_ether", "Gas paid for transactions that were mined.", nil, nil)
)

func (c *moneyCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descLeases, descUnmetered, descRefused, descAway, descSeen, descOwed, descAccepted, descSettled, descAtRisk, descWrittenOff, descUnwatched, descHeld, descGas, descCoin, descReserve, descOldest} {
		ch <- d
	}
}

func (c *moneyCollector) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	gauge := func(d *prometheus.Desc, v float64) { ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v) }
	leases := c.leases.All()
	gauge(descLeases, float64(len(leases)))
	gauge(descUnmetered, float64(lease.Unmetered(leases)))
	sums, err := c.sums(ctx)
	if err != nil {
		ch <- prometheus.NewInvalidMetric(descOwed, err)
		return
	}
	gauge(descOwed, c.units(sums.spent))
	gauge(descAccepted, c.units(sums.accepted))
	gauge(descSettled, c.units(sums.settled))
	gauge(descAtRisk, c.units(sums.atRisk))
	gauge(descWrittenOff, c.units(sums.writtenOff))
	gauge(descHeld, c.units(c.settles.held()))
	if states, err := c.settles.unwatched(ctx); err == nil {
		gauge(descUnwatched, float64(len(states)))
	}
	if wei, err := c.sender.GasSpent(ctx); err == nil {
		ether, _ := new(big.Float).Quo(new(big.Float).SetInt(wei), big.NewFloat(1e18)).Float64()
		gauge(descGas, ether)
	}
	if f, err := c.sponsor.Funds(ctx); err == nil {
		gauge(descCoin, float(f.Coin))
		gauge(descReserve, float(f.Reserve))
	}
	refused, away := c.nodes.Unfit()
	gauge(descRefused, float64(len(refused)))
	gauge(descAway, float64(len(away)))
	if seen, ok := c.settles.chainSeen(); ok {
		gauge(descSeen, time.Since(seen).Seconds())
	}
	if age, err := c.sender.Store.Oldest(ctx, time.Now()); err == nil {
		gauge(descOldest, age.Seconds())
	}
}

// float is an amount of wei for a graph.
func float(wei *big.Int) float64 {
	f, _ := new(big.Float).SetInt(wei).Float64()
	return f
}

type ledgerSums struct{ spent, accepted, settled, atRisk, writtenOff uint256.Int }

func (c *moneyCollector) sums(ctx context.Context) (sums ledgerSums, err error) {
	states, err := c.channels.List(ctx, channel.Open, channel.Closing)
	for _, s := range states {
		sums.spent.Add(&sums.spent, &s.Spent)
		sums.accepted.Add(&sums.accepted, &s.Accepted)
		sums.settled.Add(&sums.settled, &s.Settled)
		if s.Spent.Gt(&s.Settled) {
			var open uint256.Int
			open.Sub(&s.Spent, &s.Settled)
			sums.atRisk.Add(&sums.atRisk, &open)
		}
	}
	lost, lostErr := c.debts.WrittenOff(ctx)
	for _, amount := range lost {
		sums.writtenOff.Add(&sums.writtenOff, &amount)
	}
	return sums, errors.Join(err, lostErr)
}

// units is an amount for a graph.
func (c *moneyCollector) units(amount uint256.Int) float64 {
	scale := new(big.Float).SetInt(new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(c.decimals)), nil))
	f, _ := new(big.Float).Quo(new(big.Float).SetInt(amount.ToBig()), scale).Float64()
	return f
}

// Metrics serves Prometheus metrics. They tell how the business goes: do not serve them to the world.
func (p *Server) Metrics() http.Handler {
	return promhttp.HandlerFor(p.metrics.registry, promhttp.HandlerOpts{})
}
