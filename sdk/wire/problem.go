package wire

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"

	"github.com/gpupay/gpupay/sdk/internal/reach"
)

const problemBase = "https://paymentauth.org/problems/"

// Problem is an RFC 9457 error document. It is an error, so that a client can
// return it as it came.
type Problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail,omitempty"`
	// FreeGPUs is how many GPUs a new lease could have now, beside a challenge:
	// who wants more is told before it deposits anything. nil: not said.
	FreeGPUs *int `json:"freeGpus,omitempty"`
	// Classes are those of a provider's GPUs, beside a refusal that asks for one of them: a request names it as ?class=.
	Classes []string `json:"classes,omitempty"`
	// Needs is beside the refusal of a request of a lease that shares its GPUs: what to pay before it is sent again.
	Needs *NeedVoucher `json:"needVoucher,omitempty"`
	// Term is of a node's refusal of what a gateway says that does not run the lease any more: the newest fencing token that
	// the node has heard. nil: not said.
	Term *int64 `json:"term,omitempty"`
}

// Problem types of the two drafts, with the status they are sent with.
var (
	PaymentRequired     = kind("payment-required", "Payment Required", http.StatusPaymentRequired)
	PaymentInsufficient = kind("payment-insufficient", "Payment Insufficient", http.StatusPaymentRequired)
	PaymentExpired      = kind("payment-expired", "Payment Expired", http.StatusPaymentRequired)
	VerificationFailed  = kind("verification-failed", "Verification Failed", http.StatusPaymentRequired)
	MalformedCredential = kind("malformed-credential", "Malformed Credential", http.StatusBadRequest)
	InvalidChallenge    = kind("invalid-challenge", "Invalid Challenge", http.StatusPaymentRequired)
	MethodUnsupported   = kind("method-unsupported", "Method Unsupported", http.StatusBadRequest)

	InvalidSignature     = kind("session/invalid-signature", "Invalid Signature", http.StatusPaymentRequired)
	SignerMismatch       = kind("session/signer-mismatch", "Signer Mismatch", http.StatusPaymentRequired)
	AmountExceedsDeposit = kind("session/amount-exceeds-deposit", "Amount Exceeds Deposit", http.StatusPaymentRequired)
	DeltaTooSmall        = kind("session/delta-too-small", "Delta Too Small", http.StatusPaymentRequired)
	ChallengeNotFound    = kind("session/challenge-not-found", "Challenge Not Found", http.StatusPaymentRequired)
	InsufficientBalance  = kind("session/insufficient-balance", "Insufficient Balance", http.StatusPaymentRequired)
	TransactionReverted  = kind("session/transaction-reverted", "Transaction Reverted", http.StatusConflict)
	ChannelNotFound      = kind("session/channel-not-found", "Channel Not Found", http.StatusGone)
	ChannelFinalized     = kind("session/channel-finalized", "Channel Finalized", http.StatusGone)

	// Not of the drafts: plain HTTP conditions, as RFC 9457 wants them.
	NoClass     = Problem{Type: "about:blank", Title: "Which Class Of GPUs", Status: http.StatusConflict}
	NoSuchClass = Problem{Type: "about:blank", Title: "No Such Class Of GPUs", Status: http.StatusNotFound}
	NoCapacity  = Problem{Type: "about:blank", Title: "No Capacity", Status: http.StatusServiceUnavailable}
	TooMany     = Problem{Type: "about:blank", Title: "Too Many Requests", Status: http.StatusTooManyRequests}
	BadRequest  = Problem{Type: "about:blank", Title: "Bad Request", Status: http.StatusBadRequest}
	TooLarge    = Problem{Type: "about:blank", Title: "Content Too Large", Status: http.StatusRequestEntityTooLarge}
	NotServed   = Problem{Type: "about:blank", Title: "Not Served Here", Status: http.StatusForbidden}
	Internal    = Problem{Type: "about:blank", Title: "Internal Error", Status: http.StatusInternalServerError}
	Unavailable = Problem{Type: "about:blank", Title: "Temporarily Unavailable", Status: http.StatusServiceUnavailable}
)

func kind(name, title string, status int) Problem {
	return Problem{Type: problemBase + name, Title: title, Status: status}
}

// With returns the problem with a detail for the person who reads it.
func (p Problem) With(format string, args ...any) *Problem {
	p.Detail = fmt.Sprintf(format, args...)
	return &p
}

func (p *Problem) Error() string {
	name := strings.TrimPrefix(p.Type, problemBase)
	if name == "about:blank" {
		name = p.Title
	}
	if p.Detail == "" {
		return fmt.Sprintf("%s (HTTP %d)", name, p.Status)
	}
	return fmt.Sprintf("%s (HTTP %d): %s", name, p.Status, p.Detail)
}

// Is lets errors.Is compare by type: errors.Is(err, &wire.ChannelFinalized).
func (p *Problem) Is(target error) bool {
	t, ok := target.(*Problem)
	return ok && t.Type == p.Type && t.Title == p.Title
}

// Write sends the problem as the answer.
func (p *Problem) Write(w http.ResponseWriter) { p.WriteWith(w, nil) }

// WriteWith is Write with a member "error", which clients of other APIs read; none if it is nil.
func (p *Problem) WriteWith(w http.ResponseWriter, other any) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(struct { // the peer is gone if this fails: nobody is left to tell
		*Problem
		Other any `json:"error,omitempty"`
	}{p, other})
}

// IsProblem reports whether an answer is a problem document, and so the provider's own.
func IsProblem(resp *http.Response) bool {
	return strings.HasPrefix(resp.Header.Get("Content-Type"), "application/problem+json")
}

// maxWords bounds each of a problem's texts, in characters.
const maxWords = 300

// maxClasses bounds how many classes of a stranger's problem are shown.
const maxClasses = 64

// Printable is a stranger's problem, fit to be shown: nothing in it steers a terminal or forges a line of a log.
func (p Problem) Printable() Problem {
	p.Type, p.Title, p.Detail = reach.Printable(p.Type, maxWords), reach.Printable(p.Title, maxWords), reach.Printable(p.Detail, maxWords)
	p.Classes = slices.DeleteFunc(slices.Clone(p.Classes[:min(len(p.Classes), maxClasses)]), func(id string) bool { return CheckClassID(id) != nil })
	return p
}

// ParseProblem reads the error of an answer, whatever its body is, fit to be shown.
func ParseProblem(resp *http.Response) *Problem {
	p := Problem{Type: "about:blank", Title: http.StatusText(resp.StatusCode), Status: resp.StatusCode}
	if !IsProblem(resp) {
		return &p
	}
	var got Problem
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxHeader)).Decode(&got); err != nil {
		return &p
	}
	got.Status = resp.StatusCode
	got = got.Printable()
	return &got
}
