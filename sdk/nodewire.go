package sdk

import (
	"encoding/json"
	"fmt"
	"strings"
	"unicode"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/exactjson"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/wire"
)

// What a gateway and a node say to each other, as JSON over HTTP: see docs/nodes.md.

// Bounds of a message in bytes. An answer carries records until they exceed
// nodePage, and at least one: a record of the most devices fits into what is left.
const (
	maxNodeRequest = 64 << 10
	maxNodeAnswer  = 8 << 20
	nodePage       = 1 << 20
	maxNodeRecords = 100
)

// nodeStart is the body of POST /leases: everything that a node must know to
// meter a lease by itself.
type nodeStart struct {
	LeaseID    common.Hash     `json:"leaseId"`
	Terms      channel.Terms   `json:"terms"`
	Offer      json.RawMessage `json:"offer"` // the document that the payee signed
	GPUs       int             `json:"gpus"`
	OwedBefore wire.Amount     `json:"owedBefore"`
	WrittenAt  int64           `json:"writtenAt,omitempty"` // in the gateways' table, unix nanoseconds: it grows from lease to lease of a channel
	nodeMoney
	nodeTerm
}

// nodeTerm says in every message about a lease who speaks.
type nodeTerm struct {
	// Term is the fencing token of the gateway that runs the lease: a node acts on none that is older than one that it has heard.
	// A gateway from before it says none, and is believed.
	Term *int64 `json:"term,omitempty"`
}

func inTerm(term int64) nodeTerm { return nodeTerm{&term} }

// nodeMoney is what a lease's channel holds, in base units.
type nodeMoney struct {
	Accepted wire.Amount `json:"accepted"` // vouchered
	Deposit  wire.Amount `json:"deposit"`
	// Credit is how much may be owed beyond what is vouchered: the lease's share of its payer's credit. Without it, and at
	// most, that is the offer's.
	Credit *wire.Amount `json:"credit,omitempty"`
	// CreditVersion is the fencing token of Credit: one that is older than what was heard before does not count. A gateway from
	// before it says none, and is believed.
	CreditVersion *int64 `json:"creditVersion,omitempty"`
}

// nodeSync is the body of POST /leases/{id}/sync.
type nodeSync struct {
	nodeMoney
	nodeTerm
	After uint64 `json:"after"` // the newest record that the gateway has on disk
}

// nodeEnd is the body of POST /leases/{id}/end.
type nodeEnd struct {
	Reason string `json:"reason"`
	Closed bool   `json:"closed"` // the gateway asks for nothing more of this lease
	nodeTerm
}

// nodeLease is a lease as its node has it: the answer to all of these.
type nodeLease struct {
	LeaseID    common.Hash             `json:"leaseId"`
	State      leaseState              `json:"state"`
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

// nodeStatus is the answer to GET /status.
type nodeStatus struct {
	// Meter is of the key that signs records under offers that name one. Gateways from before ask for it: the others hear a
	// lease's key when it begins.
	Meter   common.Address    `json:"meter"`
	Devices []metering.Device `json:"devices"`
	Free    int               `json:"free"`   // devices that are in no lease
	Leases  []nodeLease       `json:"leases"` // that no gateway has closed yet
	// Problem is why its devices cannot be listed, as after a driver was upgraded: none is free, and the leases go on.
	Problem string `json:"problem,omitempty"`
}

// maxNodeText bounds what a gateway takes of a text that a node says, in bytes: it goes into logs, rows and streams.
const maxNodeText = 256

// brief is a node's text as a gateway takes it: of one line, and not longer than maxNodeText.
func brief(text string) string {
	text = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text[:min(len(text), maxNodeText)], ""))
	return text
}

// curb bounds the texts of an answer.
func (l *nodeLease) curb() { l.Reason = brief(l.Reason) }

// curb bounds the texts of an answer. Devices are looked at where the node is enlisted.
func (s *nodeStatus) curb() {
	s.Problem = brief(s.Problem)
	for i := range s.Leases {
		s.Leases[i].curb()
	}
}

// nodeRefusal is why a gateway begins no lease at a node.
type nodeRefusal struct {
	Reason string `json:"reason"`
}

// parseNode reads one document of the protocol.
func parseNode(raw []byte, into any) error {
	if err := exactjson.Unmarshal(raw, into); err != nil {
		return fmt.Errorf("it does not parse: %w", err)
	}
	return nil
}

// check refuses a start that could not be metered, or not paid to who signs the
// offer. It returns the offer.
func (s nodeStart) check() (wire.SignedOffer, error) {
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
	if s.LeaseID == (common.Hash{}) || s.GPUs < 1 || s.GPUs > maxGPUs {
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

// state is what the channel of the lease holds.
func (s nodeStart) state() channel.State {
	return channel.State{ID: s.Terms.ID(), Terms: s.Terms, Status: channel.Open,
		Accepted: s.Accepted.Int, Deposit: s.Deposit.Int, Spent: s.OwedBefore.Int}
}
