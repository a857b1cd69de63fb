package x402server

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/x402"
)

// Route is something that is paid by the request.
type Route struct {
	Kind  string
	Class string         // of the GPUs; empty where the provider has none
	Price metering.Price // of one
	GPUs  int
	Share metering.Share // of them that a request uses: one slot; zero: all of their time
	Most  uint256.Int    // the ceiling of one request, base units
}

// cost is what a request uses in a time at most, base units.
func (r Route) cost(wall time.Duration) (uint256.Int, error) {
	nanos := int64(r.GPUs) * int64(wall)
	if r.Share.Shared() {
		billed, _, err := r.Share.Bill(int64(wall), r.Share.Slots-1)
		if err != nil {
			return uint256.Int{}, err
		}
		nanos = billed
	}
	return r.Price.Charge(uint64(nanos))
}

// The kinds.
const (
	KindTick    = "tick"
	KindStream  = "stream"
	KindMetered = "metered"
	KindRefund  = "refund"
)

// PaidRequest is one request with a payment.
type PaidRequest struct {
	*http.Request
	Route   Route
	Hash    string // of what is asked for: see Identify
	keyed   bool   // an idempotency key is part of that
	Secret  bool   // and it is one that nobody guesses
	Offer   x402.Requirements
	Paid    x402.PaymentPayload
	Terms   channel.Terms
	ID      common.Hash
	Voucher channel.Voucher
	Told    bool   // its voucher is over what the request before it was told
	Content []byte // of a metered request's body

	// Claim is its turn at its channel among the gateways: what is written for it counts only while it is held. nil: there
	// is one gateway.
	Claim *leasestore.Lock
}

// MaxIdempotencyKey bounds the key; bytes. One of secretIdempotencyKey, which 128 random bits take in base64, is on no
// chain and is not guessed: with it an answer is had again though its voucher was claimed.
const (
	MaxIdempotencyKey    = 255
	secretIdempotencyKey = 22
)

// Identify names what a request asks for, so that requests with the same voucher are told apart.
func (r *PaidRequest) Identify() {
	h := sha256.New()
	_, _ = fmt.Fprintf(h, "%s\n%s\n", r.Method, r.URL.RequestURI())
	_, _ = h.Write(r.Content)
	r.Hash = hex.EncodeToString(h.Sum(nil))
	key := r.Header.Get(x402.HeaderIdempotencyKey)
	r.Secret = len(key) >= secretIdempotencyKey
	if r.keyed = key != ""; r.keyed {
		sum := sha256.Sum256([]byte(key))
		r.Hash += " " + hex.EncodeToString(sum[:])
	}
	if r.Paid.Payload.Type == x402.TypeRefund { // by the same voucher a request may have been paid
		r.Hash += " " + KindRefund
		if part := r.Paid.Payload.Refund; part != nil {
			r.Hash += " " + part.Dec()
		}
	}
}

// Based is the base of a request's voucher, zero if it is for less than the price.
func (r *PaidRequest) Based() (base uint256.Int) {
	if r.Paid.Payload.Type == x402.TypeRefund {
		return r.Voucher.Cumulative
	}
	if r.Voucher.Cumulative.Gt(&r.Route.Most) {
		base.Sub(&r.Voucher.Cumulative, &r.Route.Most)
	}
	return base
}

// A request that is sent again is answered from what was kept of the first, and neither served nor charged. But a
// client that keeps nothing, as a script's new process is, signs the very same voucher for each new wish. So a voucher
// that was served is taken for a repetition only where something shows that it is one: an idempotency key, or that the
// first one's answer was never given, a short while ago. Any other is told what was charged, and is served anew.
const (
	// lostWithin is how long after a connection broke under an answer that is had again without a key.
	lostWithin = 30 * time.Second
	// openWithin is how long after its admission a request that this program was
	// killed under, or gave up, is had again without a key.
	openWithin = 5 * time.Minute
)

// Repeats reports whether a request is one that was noted before, sent again.
func (r *PaidRequest) Repeats(e Entry) bool {
	switch {
	case r.keyed:
		return true
	case e.AnsweredAt == 0:
		return time.Since(time.UnixMilli(e.CreatedAt)) < openWithin
	}
	return e.Broken != 0 && time.Since(time.UnixMilli(e.AnsweredAt)) < lostWithin
}
