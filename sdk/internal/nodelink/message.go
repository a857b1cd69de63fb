// Package nodelink is what a gateway and a node say to each other, as JSON over HTTP (docs/nodes.md), the gateway's end of it, and the
// list of the nodes of one database.
package nodelink

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"unicode"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/exactjson"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Bounds of a message in bytes. An answer carries records until they exceed PageBytes, or are MaxRecords, and at least one: a
// record of the most devices fits into what is left.
const (
	MaxRequest = 64 << 10
	MaxAnswer  = 8 << 20
	PageBytes  = 1 << 20
	MaxRecords = 100
	MaxAccess  = 64 << 10 // of an access document, as the renter takes it
)

// Start is the body of POST /leases: everything that a node must know to meter a lease by itself.
type Start struct {
	LeaseID    common.Hash     `json:"leaseId"`
	Terms      channel.Terms   `json:"terms"`
	Offer      json.RawMessage `json:"offer"` // the document that the payee signed
	GPUs       int             `json:"gpus"`
	OwedBefore wire.Amount     `json:"owedBefore"`
	WrittenAt  int64           `json:"writtenAt,omitempty"` // in the gateways' table, unix nanoseconds: it grows from lease to lease of a channel
	Money
	Fence
}

// Fence says in every message about a lease which gateway speaks.
type Fence struct {
	// Term is the fencing token of the gateway that runs the lease: a node acts on none that is older than one that it has heard.
	// A gateway from before it says none, and is believed.
	Term *int64 `json:"term,omitempty"`
}

// InTerm is the fence of a term.
func InTerm(term int64) Fence { return Fence{&term} }

// Money is what a lease's channel holds, in base units.
type Money struct {
	Accepted wire.Amount `json:"accepted"` // vouchered
	Deposit  wire.Amount `json:"deposit"`
	// Credit is how much may be owed beyond what is vouchered: the lease's share of its payer's credit. Without it, and at
	// most, that is the offer's.
	Credit *wire.Amount `json:"credit,omitempty"`
	// CreditVersion is the fencing token of Credit: one that is older than what was heard before does not count. A gateway from
	// before it says none, and is believed.
	CreditVersion *int64 `json:"creditVersion,omitempty"`
}

// Sync is the body of POST /leases/{id}/sync.
type Sync struct {
	Money
	Fence
	After uint64 `json:"after"` // the newest record that the gateway has on disk
}

// End is the body of POST /leases/{id}/end.
type End struct {
	Reason string `json:"reason"`
	Closed bool   `json:"closed"` // the gateway asks for nothing more of this lease
	Fence
}

// Lease is a lease as its node has it: the answer to all of these.
type Lease struct {
	LeaseID    common.Hash             `json:"leaseId"`
	State      string                  `json:"state"`
	Reason     string                  `json:"reason,omitempty"`
	Sequence   uint64                  `json:"sequence"` // of the newest record
	Allocation *gpu.Allocation         `json:"allocation,omitempty"`
	Records    []metering.SignedRecord `json:"records,omitempty"` // in order

	// Meter is of the node's key that signs the lease's records, in the answer to its start.
	Meter *common.Address `json:"meter,omitempty"`

	// Credit is what the node holds the lease to, with its version.
	Credit        *wire.Amount `json:"credit,omitempty"`
	CreditVersion int64        `json:"creditVersion,omitempty"`
}

// Status is the answer to GET /status.
type Status struct {
	// Meter is of the key that signs records under offers that name one. Gateways from before ask for it: the others hear a
	// lease's key when it begins.
	Meter   common.Address    `json:"meter"`
	Devices []metering.Device `json:"devices"`
	Free    int               `json:"free"`   // devices that are in no lease
	Leases  []Lease           `json:"leases"` // that no gateway has closed yet
	// Problem is why its devices cannot be listed, as after a driver was upgraded: none is free, and the leases go on.
	Problem string `json:"problem,omitempty"`
}

// MaxText bounds what a gateway takes of a text that a node says, in bytes: it goes into logs, rows and streams.
const MaxText = 256

// oneLine is a node's text as a gateway takes it: one line of at most MaxText.
func oneLine(text string) string {
	text = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text[:min(len(text), MaxText)], ""))
	return text
}

// bound bounds the texts of an answer.
func (l *Lease) bound() { l.Reason = oneLine(l.Reason) }

// bound bounds the texts of an answer, and keeps of a lease what a status says of it: it stays in memory. Devices are looked at where
// the node is enlisted.
func (s *Status) bound() {
	s.Problem = oneLine(s.Problem)
	for i := range s.Leases {
		s.Leases[i].Allocation, s.Leases[i].Records = nil, nil
		s.Leases[i].bound()
	}
}

// CheckStart refuses the answer to the start of a lease that is another one's, or by which it could not be reached or metered.
// The access document is kept with the lease as it is written here, and read again by whoever takes the lease over.
func (l *Lease) CheckStart(id common.Hash) error {
	if l.Allocation == nil || l.LeaseID != id {
		return fmt.Errorf("its answer is about lease %s and names no devices", l.LeaseID)
	}
	if l.Meter == nil || *l.Meter == (common.Address{}) {
		return errors.New("it does not say which key signs the lease's records: it is from before nodes had keys of their own")
	}
	written, err := json.Marshal(l.Allocation.Access)
	if err == nil && len(written) > MaxAccess {
		err = fmt.Errorf("its access document has %d bytes, of at most %d", len(written), MaxAccess)
	}
	return err
}

// Refusal is why a gateway begins no lease at a node.
type Refusal struct {
	Reason string `json:"reason"`
	// Devices are those that go into no lease, maxWithheld at most: the node's others do. Without them it begins none.
	Devices []string `json:"devices,omitempty"`
}

// maxWithheld is how many devices a Refusal names. A host has fewer; none more fit into a message.
const maxWithheld = 256

// Parse reads one document of the protocol.
func Parse(raw []byte, into any) error {
	if err := exactjson.Unmarshal(raw, into); err != nil {
		return fmt.Errorf("it does not parse: %w", err)
	}
	return nil
}

// Check refuses a start that could not be metered, or not paid to the signer of the offer. It returns the offer.
func (s Start) Check() (wire.SignedOffer, error) {
	offer, err := wire.ParseOffer(s.Offer)
	if err != nil {
		return offer, err
	}
	if err := s.Terms.Validate(); err != nil {
		return offer, err
	}
	if common.Address(offer.Payee) != s.Terms.Payee || offer.ChainID != s.Terms.ChainID {
		return offer, fmt.Errorf("the offer is payee %s's on chain %d, the channel pays %s on chain %d",
			offer.Payee, offer.ChainID, s.Terms.Payee, s.Terms.ChainID)
	}
	if s.LeaseID == (common.Hash{}) || s.GPUs < 1 || s.GPUs > wire.MaxGPUs {
		return offer, fmt.Errorf("lease %s of %d GPUs is none", s.LeaseID, s.GPUs)
	}
	if offer.RecordEvery < metering.MinRecordEvery.Milliseconds() || offer.Tick < 1 || offer.MaxGap < offer.Tick || offer.RecordEvery < offer.Tick || offer.Tick > maxOfferMillis ||
		offer.MaxGap > maxOfferMillis || offer.RecordEvery > maxOfferMillis {
		return offer, fmt.Errorf("a tick of %d ms, gaps from %d ms and records every %d ms cannot be metered", offer.Tick, offer.MaxGap, offer.RecordEvery)
	}
	_, err = offer.Price()
	return offer, err
}

// maxOfferMillis bounds the times in an offer: a day.
const maxOfferMillis = 24 * 60 * 60 * 1000

// ChannelState is what the channel of the lease holds.
func (s Start) ChannelState() channel.State {
	return channel.State{ID: s.Terms.ID(), Terms: s.Terms, Status: channel.Open,
		Accepted: s.Accepted.Int, Deposit: s.Deposit.Int, Spent: s.OwedBefore.Int}
}

// MoneyOf is what a channel holds, without a share of its payer's credit.
func MoneyOf(accepted, deposit uint256.Int) Money {
	return Money{Accepted: wire.NewAmount(accepted), Deposit: wire.NewAmount(deposit)}
}

// Version is the fencing token of the credit; 0 where none is said.
func (m Money) Version() int64 {
	if m.CreditVersion == nil {
		return 0
	}
	return *m.CreditVersion
}

// WithCredit says how much of its payer's credit the lease has, and the version of that.
func (m Money) WithCredit(share uint256.Int, version int64) Money {
	credit := wire.NewAmount(share)
	m.Credit, m.CreditVersion = &credit, &version
	return m
}

// Problems of a node's own.
var (
	Unauthorized    = wire.Problem{Type: "about:blank", Title: "Unauthorized", Status: http.StatusUnauthorized}
	NoLease         = wire.Problem{Type: "about:blank", Title: "No Such Lease", Status: http.StatusNotFound}
	LeaseEnded      = wire.Problem{Type: "about:blank", Title: "Lease Has Ended", Status: http.StatusGone}
	SpoolRolledBack = wire.Problem{Type: "about:blank", Title: "Spool Rolled Back", Status: http.StatusConflict}
	Deposed         = wire.Problem{Type: "about:blank", Title: "Another Gateway Runs It", Status: http.StatusConflict}
)
