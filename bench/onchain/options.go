package onchain

import (
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/gpupay/gpupay/channel"
)

// An option is something that could be otherwise: in the contract, in what it is sent, or both. Its verdict says why it is
// not, or no more.
type option struct {
	name, verdict string
	patches       []patch
	terms         func(*channel.Terms)                     // of channels in a batch
	row           func(row []byte, s channel.State) []byte // from a row as it is, without its group's header
	alone         bool                                     // each row is a group
	amount        byte                                     // what a group says of its amounts, if not their length
	listed        bool                                     // the transaction has an access list
}

// What the patches change.
const (
	pull = `        uint256 before = _measure(token);
        token.safeTransferFrom(msg.sender, address(this), amount);
        _measured(token, before, amount);
    }

    /// @dev Pulls an ERC-3009`
	pullOnly = `        token.safeTransferFrom(msg.sender, address(this), amount);
    }

    /// @dev Pulls an ERC-3009`
	pullMarked = `        uint256 mark = gasleft(); // no deposit within this one has the same
        _measuring = mark;
        uint256 before = token.balanceOf(address(this));
        require(before != 0 || token.code.length != 0, NoToken(token));
        token.safeTransferFrom(msg.sender, address(this), amount);
        unchecked {
            uint256 received = token.balanceOf(address(this)) - before;
            require(received == amount, DepositMismatch(received, amount));
        }
        require(_measuring == mark, Reentered());
    }

    /// @dev Pulls an ERC-3009`
	openedWords = `        assembly ("memory-safe") {
            mstore(add(words, 0xa0), deposit)
            log4(add(words, 0x40), 0x80, opened, id, payer, payee)
        }
`
	openedShort = `        assembly ("memory-safe") {
            mstore(add(words, 0x80), deposit)
            log4(add(words, 0x40), 0x60, opened, id, payer, payee)
            if authorizedSigner {
                mstore(0, authorizedSigner)
                log2(0, 0x20, opened, id)
            }
        }
`
	openedPlain = `        emit Opened(id, payer, payee, token, salt, authorizedSigner, deposit);
`
	idWords = `        bytes32 opened = Opened.selector;
        uint256 words;
        assembly ("memory-safe") {
            words := mload(0x40)
            mstore(words, payer)
            mstore(add(words, 0x20), payee)
            mstore(add(words, 0x40), token)
            mstore(add(words, 0x60), salt)
            mstore(add(words, 0x80), authorizedSigner)
            mstore(add(words, 0xa0), address())
            mstore(add(words, 0xc0), chainid())
            id := keccak256(words, 0xe0)
        }
`
	idPlain = `        id = keccak256(abi.encode(payer, payee, token, salt, authorizedSigner, address(this), block.chainid));
`
	settledLog = `            log2(add(VOUCHER, 0x40), 0x20, topic, id)
`
	recovery = `            let vs := calldataload(add(cursor, 0x20))
            mstore(add(RECOVER, 0x20), add(27, shr(255, vs)))
            mstore(add(RECOVER, 0x40), calldataload(cursor))
            mstore(add(RECOVER, 0x60), shr(1, shl(1, vs)))
`
	recoverWhole = `            calldatacopy(add(RECOVER, 0x40), cursor, 0x40)
            mstore(add(RECOVER, 0x20), byte(0, calldataload(add(cursor, 0x40))))
`
	isSigner      = `            valid := eq(mload(RECOVER), mload(signer))`
	isSignerWhole = `            valid := and(eq(mload(RECOVER), mload(signer)), iszero(gt(mload(add(RECOVER, 0x60)), HALF_ORDER)))`
	payout        = `        if (paid != 0) _pay(token, payee, paid);
    }

    /// @dev The checks of`
)

// signedPlain is the hashes, the recovery and the event of a row as the compiler writes them.
const signedPlain = `        bytes32 r;
        uint256 vs;
        address named;
        assembly ("memory-safe") {
            r := calldataload(cursor)
            vs := calldataload(add(cursor, 0x20))
            named := mload(signer)
        }
        bytes32 digest = voucherDigest(id, uint128(cumulativeAmount));
        address by = ecrecover(digest, uint8(27 + (vs >> 255)), r, bytes32(vs << 1 >> 1));
        valid = by == named && by != address(0);
    }

    /// @dev The same as`

const signedWords = `        assembly ("memory-safe") {
            mstore(add(VOUCHER, 0x20), id)
            mstore(add(VOUCHER, 0x40), cumulativeAmount)
            mstore(add(DIGEST, 0x40), keccak256(VOUCHER, 0x60))
            mstore(RECOVER, keccak256(add(DIGEST, 0x1e), 0x42))
` + recovery + `
            // For a bad signature the precompile returns nothing: the digest stays, and is nobody's address.
            pop(staticcall(gas(), 1, RECOVER, 0x80, RECOVER, 0x20))
` + isSigner + `
        }
    }

    /// @dev The same as`

func change(old, new string) patch { return patch{escrowFile, old, new} }

// openings are options of an open with a limited allowance.
var openings = []option{
	{name: "id and event as the compiler writes them", patches: []patch{change(idWords, idPlain), change(openedWords, openedPlain)},
		verdict: "by hand: both are the same words"},
	{name: "an access list of the token and its slots", listed: true,
		verdict: "not kept: it pays on Ethereum only, a rollup charges for its bytes; who likes can send one"},
	{name: "no lock", patches: []patch{
		change("        require(_measuring == 0, Reentered());\n\n        _measuring = 1;\n\n", ""), change("\n        _measuring = 0;\n", "")},
		verdict: "not kept: a token with a fee that calls back could have one payment counted twice"},
	{name: "the lock looked at only after the transfer", patches: []patch{change(pull, pullMarked)},
		verdict: "not kept: a deposit within a deposit would not fail itself, but the one that it is in"},
	{name: "the signer in an event of its own, if there is one", patches: []patch{change(openedWords, openedShort)},
		verdict: "not kept: with a signer it costs more, and who reads the terms needs both events"},
	{name: "the deposit neither measured nor locked", patches: []patch{change(pull, pullOnly)},
		verdict: "not kept: a token that takes a fee, or calls back, could leave the escrow short"},
	{name: "no event", patches: []patch{change(openedWords, "")},
		verdict: "not kept: the terms are nowhere else on the chain"},
	{name: "no event, nor measured, nor locked", patches: []patch{change(openedWords, ""), change(pull, pullOnly)},
		verdict: "not kept: for comparison, the sketch has none of these either"},
}

// rows are options of a channel in a batch.
var rows = []option{
	{name: "a salt of 32 bytes instead of 4", terms: func(t *channel.Terms) { t.Salt = crypto.Keccak256Hash(t.Payer[:]) },
		verdict: "leading zeros are left out"},
	{name: "a salt of 8 bytes, as a Renter draws it", terms: func(t *channel.Terms) {
		t.Salt = common.BytesToHash(crypto.Keccak256(t.Payer[:])[:8])
	}, verdict: "as it is: who counts up instead saves this"},
	{name: "the signer named though it is the payer", terms: func(t *channel.Terms) { t.AuthorizedSigner = t.Payer },
		verdict: "the payer signs if nobody is named"},
	{name: "each row a group of its own", alone: true, verdict: "rows of one shape share a header"},
	{name: "amounts of 12 bytes", amount: 12, row: func(row []byte, s channel.State) []byte {
		word := s.Accepted.Bytes32()
		return append(append(append([]byte(nil), row[:payerEnd]...), word[20:]...), row[payerEnd+s.Accepted.ByteLen():]...)
	}, verdict: "as long as the longest of a group"},
	{name: "amounts as what is new, not in total", patches: []patch{change("                Slot slot = _get(id);\n",
		"                Slot slot = _get(id);\n                cumulativeAmount += slot.settled();\n")},
		row: func(row []byte, s channel.State) []byte {
			unsettled := s.Unsettled()
			more := unsettled.Bytes32()
			changed := append([]byte(nil), row...)
			copy(changed[payerEnd:payerEnd+s.Accepted.ByteLen()], more[32-s.Accepted.ByteLen():])
			return changed
		}, verdict: "not kept: whoever settles first makes all that is on its way invalid"},
	{name: "signatures of 65 bytes", patches: []patch{
		change("calldataload(add(cursor, 0x40))\n                    mstore(ID", "calldataload(add(cursor, 0x41))\n                    mstore(ID"),
		change("add(84, amountLength)", "add(85, amountLength)"), change(recovery, recoverWhole), change(isSigner, isSignerWhole),
	}, row: func(row []byte, s channel.State) []byte {
		return append(append([]byte(nil), s.Signature...), row[64:]...)
	},
		verdict: "compact, as EIP-2098 has it: v is a bit of s, and s needs no comparison"},
	{name: "hashes, recovery and event as the compiler writes them", patches: []patch{
		change(signedWords, signedPlain), change("                        _emitSettled(id);\n", "                        emit Settled(id, cumulativeAmount);\n")},
		verdict: "by hand, on words that are laid out once"},
	{name: "an access list of the channels' slots", listed: true,
		verdict: "not kept: it pays on Ethereum only, a rollup charges for its bytes"},
	{name: "the event's amount in 12 bytes", patches: []patch{change(settledLog, "            log2(add(VOUCHER, 0x54), 0x0c, topic, id)\n")},
		verdict: "not kept: no ABI says so, and nobody could read it"},
	{name: "the event without its name (anonymous)", patches: []patch{change(settledLog, "            log1(add(VOUCHER, 0x40), 0x20, id)\n")},
		verdict: "not kept: indexers and explorers find events by their name"},
	{name: "one event a batch", patches: []patch{
		change(settledLog, `            let next := mload(0x40)
            mstore(next, id)
            mstore(add(next, 0x20), shl(160, mload(add(VOUCHER, 0x40))))
            mstore(0x40, add(next, 44))
`),
		change(payout, `        bytes32 topic = Settled.selector;
        assembly ("memory-safe") {
            log1(WORDS_END, sub(mload(0x40), WORDS_END), topic)
        }
`+payout),
	}, verdict: "not kept: who waits for a channel could no more ask for its events"},
}

// payerEnd is where a row's amount begins.
const payerEnd = 84
