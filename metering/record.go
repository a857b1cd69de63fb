package metering

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/internal/eip712"
	"github.com/gpupay/gpupay/internal/exactjson"
)

// ErrRecord says that bytes are not a usage record.
var ErrRecord = errors.New("malformed usage record")

// recordType is the EIP-712 type of a record, in the domain {name "gpupay usage
// record", version "1", chainId, verifyingContract: the escrow}.
const recordType = "UsageRecord(bytes32 leaseId,bytes32 channelId,bytes32 offerHash,uint64 sequence,bytes32 previous," +
	"uint64 nanos,uint32 devices,uint128 owedBefore,uint128 owed,uint64 from,uint64 to,bool final,bytes32 evidenceHash)"

var recordTypeHash = eip712.TypeHash(recordType)

// Signer signs records with the payee's metering key: 65 bytes r, s, v.
type Signer interface {
	Address() common.Address
	Sign(ctx context.Context, digest common.Hash) ([]byte, error)
}

// Record is the payee's statement of a lease's metered time up to now. Every
// figure is cumulative, so the newest record replaces all before it.
type Record struct {
	LeaseID      common.Hash
	ChannelID    common.Hash
	OfferHash    common.Hash // the signed offer that the price comes from
	Sequence     uint64      // from 1
	Previous     common.Hash // digest of the record before; zero for the first
	Nanos        uint64      // billed over all devices since the lease began
	Devices      uint32      // how many devices the lease has
	OwedBefore   uint256.Int // what the channel owed when the lease began, base units
	Owed         uint256.Int // OwedBefore plus the charge for Nanos: the voucher to sign
	From         uint64      // unix ns, of the stretch the evidence is about; evidence only
	To           uint64      // unix ns; evidence only
	Final        bool        // no record follows
	EvidenceHash common.Hash
}

// Domain is the EIP-712 domain separator of records for one escrow.
func Domain(chainID uint64, escrow common.Address) common.Hash {
	return eip712.DomainSeparator("gpupay usage record", "1", chainID, escrow)
}

// Digest is what the payee signs, and what the next record names as Previous.
func (r Record) Digest(domain common.Hash) common.Hash {
	var buf [14 * 32]byte
	return eip712.Digest(domain, eip712.Words(buf[:0]).
		Hash(recordTypeHash).
		Hash(r.LeaseID).
		Hash(r.ChannelID).
		Hash(r.OfferHash).
		Uint64(r.Sequence).
		Hash(r.Previous).
		Uint64(r.Nanos).
		Uint64(uint64(r.Devices)).
		Uint256(&r.OwedBefore).
		Uint256(&r.Owed).
		Uint64(r.From).
		Uint64(r.To).
		Bool(r.Final).
		Hash(r.EvidenceHash).
		Sum())
}

// SignedRecord is a record, the payee's signature and the evidence it hashes.
type SignedRecord struct {
	Record
	Signature []byte // 65 bytes r, s, v
	Evidence  Evidence
}

type recordJSON struct {
	LeaseID      string `json:"leaseId"`
	ChannelID    string `json:"channelId"`
	OfferHash    string `json:"offerHash"`
	Sequence     string `json:"sequence"`
	Previous     string `json:"previous"`
	Nanos        string `json:"nanos"`
	Devices      uint32 `json:"devices"`
	OwedBefore   string `json:"owedBefore"`
	Owed         string `json:"owed"`
	From         string `json:"from"`
	To           string `json:"to"`
	Final        bool   `json:"final"`
	EvidenceHash string `json:"evidenceHash"`
}

type signedJSON struct {
	recordJSON
	Signature string   `json:"signature"`
	Evidence  Evidence `json:"evidence"`
}

// MarshalJSON writes hashes as lowercase hex and 64-bit numbers and amounts as
// decimal strings.
func (r Record) MarshalJSON() ([]byte, error) { return json.Marshal(r.wire()) }

// UnmarshalJSON accepts one form of every value: the one MarshalJSON writes.
func (r *Record) UnmarshalJSON(b []byte) error {
	var w recordJSON
	if err := exactjson.Unmarshal(b, &w); err != nil {
		return fmt.Errorf("%w: %w", ErrRecord, err)
	}
	record, err := w.record()
	if err != nil {
		return err
	}
	*r = record
	return nil
}

// MarshalJSON writes the record's fields, the signature and the evidence in one
// object.
func (s SignedRecord) MarshalJSON() ([]byte, error) {
	return json.Marshal(signedJSON{
		recordJSON: s.Record.wire(),
		Signature:  "0x" + hex.EncodeToString(s.Signature),
		Evidence:   s.Evidence,
	})
}

// UnmarshalJSON parses a signed record. It checks the form, not the signature:
// package verify does that.
func (s *SignedRecord) UnmarshalJSON(b []byte) error {
	var w signedJSON
	if err := exactjson.Unmarshal(b, &w); err != nil {
		return fmt.Errorf("%w: %w", ErrRecord, err)
	}
	record, err := w.record()
	if err != nil {
		return err
	}
	signature, err := parseHex("signature", w.Signature, 65)
	if err != nil {
		return err
	}
	*s = SignedRecord{Record: record, Signature: signature, Evidence: w.Evidence}
	return nil
}

func (r Record) wire() recordJSON {
	decimal := func(n uint64) string { return strconv.FormatUint(n, 10) }
	return recordJSON{
		LeaseID:      r.LeaseID.Hex(),
		ChannelID:    r.ChannelID.Hex(),
		OfferHash:    r.OfferHash.Hex(),
		Sequence:     decimal(r.Sequence),
		Previous:     r.Previous.Hex(),
		Nanos:        decimal(r.Nanos),
		Devices:      r.Devices,
		OwedBefore:   r.OwedBefore.Dec(),
		Owed:         r.Owed.Dec(),
		From:         decimal(r.From),
		To:           decimal(r.To),
		Final:        r.Final,
		EvidenceHash: r.EvidenceHash.Hex(),
	}
}

func (w recordJSON) record() (Record, error) {
	r := Record{Devices: w.Devices, Final: w.Final}
	var errs []error
	hash := func(name, s string) (h common.Hash) {
		b, err := parseHex(name, s, 32)
		errs = append(errs, err)
		copy(h[:], b)
		return h
	}
	number := func(name, s string) uint64 {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil || strconv.FormatUint(n, 10) != s {
			errs = append(errs, fmt.Errorf("%w: %s %.32q is not a canonical decimal", ErrRecord, name, s))
		}
		return n
	}
	amount := func(name, s string) uint256.Int {
		n, err := parseAmount(s)
		if err != nil {
			errs = append(errs, fmt.Errorf("%w: %s: %w", ErrRecord, name, err))
		}
		return n
	}
	r.LeaseID, r.ChannelID, r.OfferHash = hash("leaseId", w.LeaseID), hash("channelId", w.ChannelID), hash("offerHash", w.OfferHash)
	r.Previous, r.EvidenceHash = hash("previous", w.Previous), hash("evidenceHash", w.EvidenceHash)
	r.Sequence, r.Nanos = number("sequence", w.Sequence), number("nanos", w.Nanos)
	r.From, r.To = number("from", w.From), number("to", w.To)
	r.OwedBefore, r.Owed = amount("owedBefore", w.OwedBefore), amount("owed", w.Owed)
	return r, errors.Join(errs...)
}

// parseHex parses 0x and n bytes of lowercase hex.
func parseHex(name, s string, n int) ([]byte, error) {
	digits, ok := strings.CutPrefix(s, "0x")
	b, err := hex.DecodeString(digits)
	if !ok || err != nil || len(b) != n || digits != strings.ToLower(digits) {
		return nil, fmt.Errorf("%w: %s is not 0x and %d bytes of lowercase hex", ErrRecord, name, n)
	}
	return b, nil
}
