package channel

import (
	"fmt"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/internal/eip712"
)

// A Scheme is a protocol of payment channels whose voucher is a (bytes32
// channel id, uint128 cumulative amount). What a payee, a store, a settler and a
// watcher do is the same for all; a Scheme is all that differs off-chain, and
// chain.Contract is all that differs on-chain.
type Scheme uint8

const (
	// Session is the public draft draft-evm-session-00, which the escrow contract
	// of this project follows.
	Session Scheme = iota
	// BatchSettlement is the scheme of that name of x402, version 2.
	BatchSettlement
)

// Where x402's contracts are on every chain that has them. Stock clients know no
// others: an offer cannot name one.
var (
	BatchSettlementEscrow    = common.HexToAddress("0x4020074e9dF2ce1deE5A9C1b5c3f541D02a10003")
	BatchSettlementCollector = common.HexToAddress("0x4020806089470a89826cB9fB1f4059150b550004") // of ERC-3009 deposits
)

// The bounds of Terms.WithdrawDelay in BatchSettlement.
const (
	MinWithdrawDelay = 15 * time.Minute
	MaxWithdrawDelay = 30 * 24 * time.Hour
)

// rules is what there is to know of a scheme.
type rules struct {
	name            string
	domain, version string // of the EIP-712 domain
	voucher         string // its EIP-712 type
	id              func(Terms) common.Hash
	check           func(Terms) error
	payable         func(State) uint256.Int
	reopen          string // what ends a pending close, beside opening another channel
	lower           bool   // a voucher may be for less than an earlier one
	lasting         bool   // see Scheme.Lasting
}

var schemes = [...]rules{
	Session: {
		name:   "session",
		domain: "EVM Payment Channel", version: "1",
		voucher: "Voucher(bytes32 channelId,uint128 cumulativeAmount)",
		id:      sessionID,
		check:   checkSession,
		payable: func(s State) uint256.Int { return s.Accepted },
		reopen:  "top it up to cancel the close",
	},
	BatchSettlement: {
		name:   "batch-settlement",
		domain: batchDomain, version: batchVersion,
		voucher: "Voucher(bytes32 channelId,uint128 maxClaimableAmount)",
		id:      batchSettlementID,
		check:   checkBatchSettlement,
		payable: used,
		reopen:  "wait until the withdrawal is over",
		lower:   true,
		lasting: true,
	},
}

// noScheme is what a number has that is no scheme's: nothing is checked, named or
// paid under it.
var noScheme = rules{
	name:    "of no known protocol",
	id:      func(Terms) common.Hash { return common.Hash{} },
	check:   func(t Terms) error { return fmt.Errorf("%w: there is no scheme %d", ErrTerms, uint8(t.Scheme)) },
	payable: func(State) uint256.Int { return uint256.Int{} },
}

func (s Scheme) rules() rules {
	if int(s) >= len(schemes) {
		return noScheme
	}
	return schemes[s]
}

// String returns the scheme's name.
func (s Scheme) String() string { return s.rules().name }

// Lasting reports whether channels are never over: once a deposit is used up, or was taken back, payers come back with another. No lease's
// end is the end of one.
func (s Scheme) Lasting() bool { return s.rules().lasting }

// Domain returns what ties this scheme's vouchers to one contract on one chain.
func (s Scheme) Domain(chainID uint64, escrow common.Address) Domain {
	r := s.rules()
	return Domain{
		scheme:    s,
		chainID:   chainID,
		escrow:    escrow,
		separator: eip712.DomainSeparator(r.domain, r.version, chainID, escrow),
		voucher:   eip712.TypeHash(r.voucher),
	}
}

// sessionID is keccak256(abi.encode(payer, payee, token, salt, authorizedSigner,
// escrow, chainid)).
func sessionID(t Terms) common.Hash {
	var buf [7 * 32]byte
	return eip712.Words(buf[:0]).
		Address(t.Payer).Address(t.Payee).Address(t.Token).
		Hash(t.Salt).Address(t.AuthorizedSigner).
		Address(t.Escrow).Uint64(t.ChainID).
		Sum()
}

func checkSession(t Terms) error {
	if t.PayeeAuthorizer != (common.Address{}) || t.WithdrawDelay != 0 {
		return fmt.Errorf("%w: scheme %s has no payee authorizer and no withdraw delay", ErrTerms, Session)
	}
	return nil
}

const batchDomain, batchVersion = "x402 Batch Settlement", "1"

var channelConfigType = eip712.TypeHash("ChannelConfig(address payer,address payerAuthorizer,address receiver," +
	"address receiverAuthorizer,address token,uint40 withdrawDelay,bytes32 salt)")

// batchSettlementID is the EIP-712 digest of the channel's configuration.
func batchSettlementID(t Terms) common.Hash {
	var buf [8 * 32]byte
	config := eip712.Words(buf[:0]).Hash(channelConfigType).
		Address(t.Payer).Address(t.AuthorizedSigner).
		Address(t.Payee).Address(t.PayeeAuthorizer).
		Address(t.Token).Uint64(t.WithdrawDelay).Hash(t.Salt).
		Sum()
	return eip712.Digest(eip712.DomainSeparator(batchDomain, batchVersion, t.ChainID, t.Escrow), config)
}

func checkBatchSettlement(t Terms) error {
	const least, most = uint64(MinWithdrawDelay / time.Second), uint64(MaxWithdrawDelay / time.Second)
	if t.WithdrawDelay < least || t.WithdrawDelay > most {
		return fmt.Errorf("%w: a withdraw delay of %d s is not from %d to %d", ErrTerms, t.WithdrawDelay, least, most)
	}
	if t.PayeeAuthorizer == (common.Address{}) {
		return fmt.Errorf("%w: no payee authorizer", ErrTerms)
	}
	return nil
}

// used is what was charged of what was signed for: a voucher of BatchSettlement
// is a ceiling, and only the charge may be claimed under it. Its last base unit
// is never claimed: as long as less was charged than was signed for, the payer's
// next voucher, and the one that shows it wants a refund, differ from every one
// that was made public by a claim.
func used(s State) uint256.Int {
	var most uint256.Int
	if !s.Accepted.IsZero() {
		most.SubUint64(&s.Accepted, 1)
	}
	if s.Spent.Lt(&most) {
		return s.Spent
	}
	return most
}
