package tower

import (
	"context"
	"errors"
	"io"
	"math/big"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/exactjson"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/serve"
	"github.com/gpupay/gpupay/sdk/wire"
)

// What a tower reads of a request, and how long an answer may take.
const (
	maxVouchers     = 100
	maxVouchersBody = 128 << 10 // that many vouchers, and room
	maxRelayBody    = 4 << 10
	answerTime      = 20 * time.Second
)

// Vouchers is the body of POST /vouchers, and Receipts its answer, in
// the same order.
type (
	Vouchers struct {
		Vouchers []Voucher `json:"vouchers"`
	}
	Receipts struct {
		Receipts []Receipt `json:"receipts"`
	}
)

// Problems of a tower's own.
var (
	problemSigner   = wire.Problem{Type: "about:blank", Title: "Invalid Signature", Status: http.StatusForbidden}
	problemNotFound = wire.Problem{Type: "about:blank", Title: "No Such Channel", Status: http.StatusNotFound}
	problemConflict = wire.Problem{Type: "about:blank", Title: "Conflict", Status: http.StatusConflict}
	problemGone     = wire.Problem{Type: "about:blank", Title: "Channel Is Final", Status: http.StatusGone}
	problemValue    = wire.Problem{Type: "about:blank", Title: "Unprocessable Amount", Status: http.StatusUnprocessableEntity}
)

// problems maps what can go wrong to what a client is told. The first
// match counts.
var problems = []struct {
	err  error
	kind wire.Problem
}{
	{errNotServed, wire.NotServed},
	{errTooSmall, wire.NotServed},
	{channel.ErrTerms, wire.BadRequest},
	{channel.ErrSignature, problemSigner},
	{channel.ErrUnknown, problemNotFound},
	{channel.ErrFinalized, problemGone},
	{channel.ErrExceedsDeposit, problemValue},
	{channel.ErrAmount, problemValue},
	{errUsed, problemConflict},
	{errNotDue, problemConflict},
	{errBudget, wire.TooMany},
	{errBusy, wire.TooMany},
	{chain.ErrUnreachable, wire.Unavailable},
	{chain.ErrFunds, wire.Unavailable},
}

func (t *Tower) problem(err error) *wire.Problem {
	var problem *wire.Problem
	if errors.As(err, &problem) {
		return problem
	}
	for _, p := range problems {
		if !errors.Is(err, p.err) {
			continue
		}
		if p.kind.Status == http.StatusServiceUnavailable { // our endpoint and our balance are our own affair
			t.config.Log.Error("watchtower cannot act", "err", err)
			return p.kind.With("the watchtower cannot reach its chain or pay its gas at the moment: try again later")
		}
		return p.kind.With("%v", err)
	}
	var dear *chain.TooDear
	if errors.As(err, &dear) {
		return wire.NotServed.With("it takes %d gas, and this watchtower sends nothing for others that takes more than %d: send it yourself", dear.Gas, dear.Call.MaxGas)
	}
	var revert *chain.Revert
	if errors.As(err, &revert) {
		return problemConflict.With("%s", revert.Refusal())
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return wire.Unavailable.With("it took too long: try again")
	}
	t.config.Log.Error("watchtower", "err", err)
	return wire.Internal.With("see the watchtower's log")
}

func (t *Tower) routes() {
	t.mux = http.NewServeMux()
	t.mux.HandleFunc("POST /vouchers", t.postVouchers)
	t.mux.HandleFunc("POST /close-requests", t.postCloseRequest)
	t.mux.HandleFunc("POST /withdrawals", t.postWithdrawal)
}

// ServeHTTP serves payees and payers. There is nothing to read: what a tower
// holds is told to nobody.
func (t *Tower) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !t.guard.request(r) {
		wire.TooMany.With("too many requests from your address").Write(w)
		return
	}
	t.mux.ServeHTTP(w, r)
}

func (t *Tower) postVouchers(w http.ResponseWriter, r *http.Request) {
	var body Vouchers
	if err := readBody(w, r, maxVouchersBody, &body); err != nil {
		t.problem(err).Write(w)
		return
	}
	if n := len(body.Vouchers); n == 0 || n > maxVouchers {
		wire.BadRequest.With("%d vouchers: send 1 to %d", n, maxVouchers).Write(w)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), answerTime)
	defer cancel()
	outcomes, errs := t.taker.take(ctx, t.guard.limits.ClientIP(r), body.Vouchers)
	answer := Receipts{Receipts: make([]Receipt, len(outcomes))}
	for i, outcome := range outcomes {
		answer.Receipts[i].ChannelID = body.Vouchers[i].Channel().ID()
		if errs[i] != nil {
			answer.Receipts[i].Problem = t.problem(errs[i])
			t.metrics.vouchers.WithLabelValues("refused").Inc()
			continue
		}
		answer.Receipts[i].Outcome = outcome.String()
		t.metrics.vouchers.WithLabelValues(outcome.String()).Inc()
	}
	serve.JSON(w, http.StatusOK, answer)
}

func (t *Tower) postCloseRequest(w http.ResponseWriter, r *http.Request) {
	var q wire.LeaveRequest
	if err := readBody(w, r, maxRelayBody, &q); err != nil {
		t.problem(err).Write(w)
		return
	}
	t.relayed(w, r, func(ctx context.Context) error { return t.relay.requestClose(ctx, t.guard.limits.ClientIP(r), q) })
}

func (t *Tower) postWithdrawal(w http.ResponseWriter, r *http.Request) {
	var terms wire.Terms
	if err := readBody(w, r, maxRelayBody, &terms); err != nil {
		t.problem(err).Write(w)
		return
	}
	t.relayed(w, r, func(ctx context.Context) error {
		return t.relay.withdrawFor(ctx, t.guard.limits.ClientIP(r), terms.Channel())
	})
}

// relayed answers 200 when the chain has it, and 503 when it is not known yet
// whether it will: to ask again is harmless.
func (t *Tower) relayed(w http.ResponseWriter, r *http.Request, relay func(context.Context) error) {
	ctx, cancel := context.WithTimeout(r.Context(), answerTime)
	defer cancel()
	if err := relay(ctx); err != nil {
		t.problem(err).Write(w)
		return
	}
	serve.JSON(w, http.StatusOK, map[string]string{"status": "done"})
}

func readBody(w http.ResponseWriter, r *http.Request, most int64, into any) error {
	// A ResponseWriter without deadlines leaves it to the server's own.
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Now().Add(serve.BodyTimeout))
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, most))
	if err == nil {
		if err = exactjson.Unmarshal(body, into); err == nil {
			_ = control.SetReadDeadline(time.Time{})
			return nil
		}
	}
	w.Header().Set("Connection", "close")
	var large *http.MaxBytesError
	if errors.As(err, &large) {
		return wire.TooLarge.With("at most %d bytes are read", large.Limit)
	}
	return wire.BadRequest.With("the body does not parse: %v", err)
}

// Health answers 200 while the tower can act: its chain is there, its clock is
// right, and its key can pay for gas. 503 and the reason otherwise.
func (t *Tower) Health() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), 5*time.Second)
		defer cancel()
		status, code := "ok", http.StatusOK
		if err := t.fit(ctx); err != nil {
			status, code = err.Error(), http.StatusServiceUnavailable
		}
		serve.JSON(w, code, map[string]string{"status": status})
	})
}

// fitCoin is the least native coin, in wei, that a tower should have: below it
// one settlement might not be paid.
const fitCoin = 1e15

func (t *Tower) fit(ctx context.Context) error {
	if err := t.db.View().PingContext(ctx); err != nil {
		return err
	}
	if err := t.escrow.CheckClock(ctx, 2*time.Minute); err != nil {
		return err
	}
	coin, err := t.escrow.Backend().BalanceAt(ctx, t.Address(), nil)
	if err != nil {
		return err
	}
	if coin.Cmp(big.NewInt(fitCoin)) < 0 {
		return errors.New("send " + t.Address().Hex() + " native coin for gas: it has " + coin.String() + " wei")
	}
	return nil
}

// metrics counts what an operator watches.
type metrics struct {
	registry *prometheus.Registry
	vouchers *prometheus.CounterVec
	relays   *prometheus.CounterVec
}

func newMetrics(t *Tower) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		vouchers: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "gpupay_tower_vouchers_total", Help: "Vouchers received, by outcome."}, []string{"outcome"}),
		relays:   prometheus.NewCounterVec(prometheus.CounterOpts{Name: "gpupay_tower_relayed_total", Help: "Transactions for payers that were mined, by kind."}, []string{"kind"}),
	}
	gas := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "gpupay_tower_gas_spent_ether", Help: "Gas paid for transactions that were mined."}, func() float64 {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		wei, err := t.GasSpent(ctx)
		if err != nil {
			return -1
		}
		ether, _ := new(big.Float).Quo(new(big.Float).SetInt(wei), big.NewFloat(1e18)).Float64()
		return ether
	})
	closing := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "gpupay_tower_closing_channels", Help: "Channels in their grace period."}, func() float64 {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		states, err := t.payee.Channels(ctx, channel.Closing)
		if err != nil {
			return -1
		}
		return float64(len(states))
	})
	m.registry.MustRegister(m.vouchers, m.relays, gas, closing)
	return m
}

func (m *metrics) relayed(kind chain.Kind) { m.relays.WithLabelValues(string(kind)).Inc() }

// Metrics serves Prometheus metrics, for the operator.
func (t *Tower) Metrics() http.Handler {
	return promhttp.HandlerFor(t.metrics.registry, promhttp.HandlerOpts{})
}
