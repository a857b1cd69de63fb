// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {EIP712} from "solady/utils/EIP712.sol";
import {SafeTransferLib} from "solady/utils/SafeTransferLib.sol";
import {SignatureCheckerLib} from "solady/utils/SignatureCheckerLib.sol";

import {Channel, Credit, IChannelEscrow, SkipReason, Terms} from "./IChannelEscrow.sol";
import {IERC3009} from "./IERC3009.sol";
import {FINALIZED, OPEN, Slot, SlotLib} from "./Slot.sol";

/// @title ChannelEscrow
/// @notice One contract for all channels of a chain. See IChannelEscrow for what every function promises.
/// @dev Every function checks, then changes state, then emits, then calls the token: a token that calls back finds the
/// books in order. Only deposits are measured across a call, so only they hold a lock.
contract ChannelEscrow is IChannelEscrow, EIP712 {
    using SafeTransferLib for address;

    /// @dev A payee that looks at the chain every few minutes must not be able to miss a close request.
    uint40 private constant MIN_GRACE_PERIOD = 10 minutes;

    /// @dev The year 2286 in seconds. A clock that counts anything finer is past it, and a grace period would be over at once.
    uint256 private constant MAX_TIMESTAMP = 1e10;

    /// @dev What a refused transfer must leave of the gas for the payout to be credited. A call is given at most 63/64 of
    /// what there is, so the token had 63 times this much: none that works refuses for want of it, and whoever sends the
    /// transaction cannot choose a gas limit that turns a payment into a credit.
    uint256 private constant MIN_GAS_AFTER_REFUSAL = 10_000;

    /// @dev Once the counter of close requests is here, a pending request stays: else a signed one could be used again.
    uint256 private constant MAX_CLOSE_REQUESTS = type(uint16).max;

    /// @dev Half the order of secp256k1: every signature has a twin with the other `s`, of which one is refused.
    uint256 private constant HALF_ORDER = 0x7fffffffffffffffffffffffffffffff5d576e7357a4501ddfe92f46681b20a0;

    bytes32 private constant VOUCHER_TYPEHASH = keccak256("Voucher(bytes32 channelId,uint128 cumulativeAmount)");
    bytes32 private constant REQUEST_CLOSE_TYPEHASH =
        keccak256("RequestClose(bytes32 channelId,uint256 nonce,uint256 deadline)");
    bytes32 private constant CLOSE_TYPEHASH =
        keccak256("Close(bytes32 channelId,uint128 cumulativeAmount,uint256 deadline)");
    bytes32 private constant CANCEL_CLOSE_TYPEHASH =
        keccak256("CancelClose(bytes32 channelId,uint256 nonce,uint256 deadline)");
    bytes32 private constant WITHDRAW_CREDIT_TYPEHASH =
        keccak256("WithdrawCredit(address account,address token,address to,uint256 nonce,uint256 deadline)");

    /// @inheritdoc IChannelEscrow
    uint40 public immutable gracePeriod;

    /// @dev By account and token. Hashed twice, so that no entry can be where a channel is.
    mapping(address => mapping(address => Credit)) private _credits;

    /// @dev One while a deposit is measured, else zero. A whole word, since a bool would be read each time it is written.
    uint256 private transient _measuring;

    constructor(uint40 grace) {
        require(grace >= MIN_GRACE_PERIOD, GracePeriodTooShort(grace, MIN_GRACE_PERIOD));
        require(block.timestamp <= MAX_TIMESTAMP, NotInSeconds(block.timestamp));

        gracePeriod = grace;
    }

    /*//////////////////////////////////////////////////////////////
                                DEPOSITS
    //////////////////////////////////////////////////////////////*/

    /// @inheritdoc IChannelEscrow
    function open(address payee, address token, uint128 deposit, bytes32 salt, address authorizedSigner)
        external
        returns (bytes32 id)
    {
        id = _open(msg.sender, payee, token, salt, authorizedSigner, deposit);

        _pull(token, deposit);
    }

    /// @inheritdoc IChannelEscrow
    function openWithAuthorization(
        address payee,
        address token,
        uint128 deposit,
        bytes32 salt,
        address authorizedSigner,
        address from,
        uint256 validAfter,
        uint256 validBefore,
        bytes32 nonce,
        bytes calldata signature
    ) external returns (bytes32 id) {
        _requireNonce(nonce, keccak256(abi.encode(from, payee, token, salt, authorizedSigner)));

        id = _open(from, payee, token, salt, authorizedSigner, deposit);

        _receive(token, from, deposit, validAfter, validBefore, nonce, signature);
    }

    /// @inheritdoc IChannelEscrow
    function topUp(Terms calldata terms, uint128 additionalDeposit) external {
        _topUp(terms, additionalDeposit, msg.sender, msg.sender == terms.payer);

        _pull(terms.token, additionalDeposit);
    }

    /// @inheritdoc IChannelEscrow
    function topUpWithAuthorization(
        Terms calldata terms,
        uint128 additionalDeposit,
        address from,
        bytes32 topUpSalt,
        uint256 validAfter,
        uint256 validBefore,
        bytes32 nonce,
        bytes calldata signature
    ) external {
        _requireNonce(nonce, keccak256(abi.encode(_id(terms), additionalDeposit, from, topUpSalt)));

        _topUp(terms, additionalDeposit, from, false);

        _receive(terms.token, from, additionalDeposit, validAfter, validBefore, nonce, signature);
    }

    /// @dev Books a new channel; the caller brings the money in.
    function _open(address payer, address payee, address token, bytes32 salt, address authorizedSigner, uint256 deposit)
        private
        returns (bytes32 id)
    {
        bool nobody;
        assembly ("memory-safe") {
            nobody := or(iszero(payee), eq(payee, address())) // one branch, where || would be two
        }
        require(!nobody, InvalidPayee(payee));
        unchecked {
            if (deposit - 1 >= type(uint96).max) _refuseDeposit(deposit);
        }
        // By hand, since the words that hash to the id are the event's too, once the deposit is in place of the escrow.
        bytes32 opened = Opened.selector;
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
        require(Slot.unwrap(_get(id)) == 0, ChannelExists(id));

        _put(id, SlotLib.create(deposit));

        assembly ("memory-safe") {
            mstore(add(words, 0xa0), deposit)
            log4(add(words, 0x40), 0x80, opened, id, payer, payee)
        }
    }

    /// @dev Books a top-up; the caller brings the money in.
    function _topUp(Terms calldata terms, uint256 amount, address from, bool cancels) private {
        (bytes32 id, Slot slot) = _load(terms);
        require(amount != 0, ZeroAmount());
        uint256 deposit = slot.deposit() + amount;
        require(deposit <= type(uint96).max, AmountTooLarge(deposit, type(uint96).max));

        slot = slot.fund(amount);
        cancels = cancels && slot.closeRequestedAt() != 0 && slot.closeRequests() != MAX_CLOSE_REQUESTS;
        if (cancels) slot = slot.cancel();
        _put(id, slot);

        if (cancels) emit CloseCancelled(id);
        emit ToppedUp(id, from, amount, deposit);
    }

    /// @dev Pulls from the caller's allowance.
    function _pull(address token, uint256 amount) private {
        uint256 before = _measure(token);
        token.safeTransferFrom(msg.sender, address(this), amount);
        _measured(token, before, amount);
    }

    /// @dev Pulls an ERC-3009 authorization. What the token returns does not matter, what arrives does.
    function _receive(
        address token,
        address from,
        uint256 amount,
        uint256 validAfter,
        uint256 validBefore,
        bytes32 nonce,
        bytes calldata signature
    ) private {
        uint256 before = _measure(token);
        IERC3009(token).receiveWithAuthorization(from, address(this), amount, validAfter, validBefore, nonce, signature);
        _measured(token, before, amount);
    }

    /// @dev Begins to measure a deposit. Without the lock a token with hooks could count one payment for two channels.
    function _measure(address token) private returns (uint256 balance) {
        require(_measuring == 0, Reentered());

        _measuring = 1;

        balance = token.balanceOf(address(this));
        if (balance == 0) require(token.code.length != 0, NoToken(token));
    }

    /// @dev Ends measuring: a channel must hold what its events say.
    function _measured(address token, uint256 before, uint256 expected) private {
        unchecked {
            uint256 received = token.balanceOf(address(this)) - before;
            require(received == expected, DepositMismatch(received, expected));
        }

        _measuring = 0;
    }

    /*//////////////////////////////////////////////////////////////
                               SETTLEMENT
    //////////////////////////////////////////////////////////////*/

    /// @inheritdoc IChannelEscrow
    function settle(Terms calldata terms, uint128 cumulativeAmount, bytes calldata signature) external {
        (bytes32 id, Slot slot) = _load(terms);
        uint256 amount = _payable(id, slot, terms, cumulativeAmount, signature);

        _put(id, slot.pay(amount));

        emit Settled(id, cumulativeAmount);

        _pay(terms.token, terms.payee, amount);
    }

    /// @inheritdoc IChannelEscrow
    function settleBatch(address payee, address token, bytes calldata rows) external returns (uint256 paid) {
        _layOut(payee, token);
        uint256 cursor;
        uint256 end;
        assembly ("memory-safe") {
            cursor := rows.offset
            end := add(cursor, rows.length)
        }

        for (uint256 row; cursor != end;) {
            uint256 amount;
            uint256 count;
            (amount, cursor, count) = _settleGroup(cursor, end, row);
            unchecked {
                paid += amount;
                row += count;
            }
        }

        if (paid != 0) _pay(token, payee, paid);
    }

    /// @dev The checks of `settle` and `close`: the amount that the voucher is worth now.
    function _payable(bytes32 id, Slot slot, Terms calldata terms, uint256 cumulativeAmount, bytes calldata signature)
        private
        view
        returns (uint256)
    {
        require(cumulativeAmount > slot.settled(), Stale(id, cumulativeAmount, slot.settled()));
        require(cumulativeAmount <= slot.deposit(), ExceedsDeposit(id, cumulativeAmount, slot.deposit()));
        address signer = terms.authorizedSigner == address(0) ? terms.payer : terms.authorizedSigner;
        _requireSignature(id, signer, voucherDigest(id, uint128(cumulativeAmount)), signature);

        unchecked {
            return cumulativeAmount - slot.settled();
        }
    }

    /*//////////////////////////////////////////////////////////////
                                BATCHES
    //////////////////////////////////////////////////////////////*/

    // A batch lays its words out once and then only overwrites what differs from row to row. They are at a fixed place,
    // so that no row has to add up addresses:
    //
    //     ID       payer | payee | token | salt | authorizedSigner | escrow | chainid    hashes to the channel's id
    //     VOUCHER  voucher typehash | id | cumulative amount                             hashes to the struct hash
    //     DIGEST   0x1901 | domain separator | struct hash                               hashes, from its last two bytes on
    //     RECOVER  digest | v | r | s                                                    what ecrecover takes
    //
    // Rows come in groups of one shape, so that nothing about the shape is worked out, or paid for in calldata, for each.
    // Signature and payer come first in a row: they are where they are whatever the lengths. Salt and signer are adjacent
    // among the words of ID, so that one copy places both.

    uint256 private constant ID = 0x400;
    uint256 private constant VOUCHER = 0x4e0;
    uint256 private constant DIGEST = 0x540;
    uint256 private constant RECOVER = 0x5a0;
    uint256 private constant WORDS_END = 0x620;

    /// @dev Allocates the words and writes those that are the same in all rows. It comes first in a batch, when nothing
    /// else is in memory yet.
    function _layOut(address payee, address token) private view {
        bytes32 typehash = VOUCHER_TYPEHASH;
        bytes32 separator = _domainSeparator();
        assembly ("memory-safe") {
            mstore(0x40, WORDS_END)
            mstore(add(ID, 0x20), payee)
            mstore(add(ID, 0x40), token)
            mstore(add(ID, 0xa0), address())
            mstore(add(ID, 0xc0), chainid())
            mstore(VOUCHER, typehash)
            mstore(DIGEST, 0x1901)
            mstore(add(DIGEST, 0x20), separator)
        }
    }

    /// @dev Pays the rows of the group whose header is at `cursor`, of which the first is row number `row`. What is the same
    /// in all its rows is worked out here, once.
    function _settleGroup(uint256 cursor, uint256 end, uint256 row)
        private
        returns (uint256 paid, uint256 groupEnd, uint256 count)
    {
        bool malformed;
        uint256 amountShift; // by how much to shift a word that begins with the amount
        uint256 tailAt; // where in a row its salt, and its signer if it has one, are
        uint256 tailLength;
        uint256 tailTo; // where in ID these belong
        uint256 signer; // which word of ID signs
        uint256 stride;
        assembly ("memory-safe") {
            let header := calldataload(cursor)
            let named := shr(255, header)
            let saltLength := and(shr(248, header), 0x7f)
            let amountLength := byte(1, header)
            count := shr(240, shl(16, header))
            cursor := add(cursor, 4)

            amountShift := sub(256, shl(3, amountLength))
            tailAt := add(84, amountLength)
            tailLength := add(saltLength, shl(5, named))
            tailTo := sub(add(ID, 0x80), saltLength)
            stride := add(tailAt, tailLength)
            signer := add(ID, shl(7, named))
            groupEnd := add(cursor, mul(count, stride))
            malformed := or(gt(groupEnd, end), or(gt(saltLength, 32), gt(amountLength, 12)))

            // Rows write the same bytes of these words each.
            mstore(add(ID, 0x60), 0)
            mstore(add(ID, 0x80), 0)
        }
        require(!malformed, MalformedRow(row));

        unchecked {
            for (; cursor != groupEnd; cursor += stride) {
                bytes32 id;
                uint256 cumulativeAmount;
                assembly ("memory-safe") {
                    let head := calldataload(add(cursor, 0x40))
                    mstore(ID, shr(96, head))
                    calldatacopy(tailTo, add(cursor, tailAt), tailLength)
                    id := keccak256(ID, 0xe0)
                    cumulativeAmount := shr(amountShift, shl(160, head))
                }
                Slot slot = _get(id);

                if (slot.covers(cumulativeAmount)) {
                    if (_signed(cursor, id, cumulativeAmount, signer)) {
                        uint256 amount = cumulativeAmount - slot.settled();
                        paid += amount;
                        _put(id, slot.pay(amount));
                        _emitSettled(id);
                        continue;
                    }
                }
                emit SettlementSkipped(id, row + count - (groupEnd - cursor) / stride, _reason(slot, cumulativeAmount));
            }
        }
    }

    /// @dev Whether the address in the word at `signer` signed the amount, by the signature at `cursor`. Same rule as
    /// `_recovers`, on the words that are laid out: the compact form has no room for another v, nor for an s of the upper
    /// half, but for values so few that no signature will ever have one.
    function _signed(uint256 cursor, bytes32 id, uint256 cumulativeAmount, uint256 signer)
        private
        view
        returns (bool valid)
    {
        assembly ("memory-safe") {
            mstore(add(VOUCHER, 0x20), id)
            mstore(add(VOUCHER, 0x40), cumulativeAmount)
            mstore(add(DIGEST, 0x40), keccak256(VOUCHER, 0x60))
            mstore(RECOVER, keccak256(add(DIGEST, 0x1e), 0x42))
            let vs := calldataload(add(cursor, 0x20))
            mstore(add(RECOVER, 0x20), add(27, shr(255, vs)))
            mstore(add(RECOVER, 0x40), calldataload(cursor))
            mstore(add(RECOVER, 0x60), shr(1, shl(1, vs)))

            // For a bad signature the precompile returns nothing: the digest stays, and is nobody's address.
            pop(staticcall(gas(), 1, RECOVER, 0x80, RECOVER, 0x20))
            valid := eq(mload(RECOVER), mload(signer))
        }
    }

    /// @dev The same as `emit Settled`, with the amount that `_signed` left in VOUCHER.
    function _emitSettled(bytes32 id) private {
        bytes32 topic = Settled.selector;
        assembly ("memory-safe") {
            log2(add(VOUCHER, 0x40), 0x20, topic, id)
        }
    }

    /// @dev Why a row was not paid.
    function _reason(Slot slot, uint256 cumulativeAmount) private pure returns (SkipReason) {
        if (slot.status() == FINALIZED) return SkipReason.Finalized;
        if (slot.status() != OPEN) return SkipReason.Unknown;
        if (cumulativeAmount <= slot.settled()) return SkipReason.Stale;
        return cumulativeAmount > slot.deposit() ? SkipReason.ExceedsDeposit : SkipReason.BadSignature;
    }

    /*//////////////////////////////////////////////////////////////
                                CLOSING
    //////////////////////////////////////////////////////////////*/

    /// @inheritdoc IChannelEscrow
    function close(Terms calldata terms, uint128 cumulativeAmount, bytes calldata signature) external {
        require(msg.sender == terms.payee, NotPayee(msg.sender, terms.payee));

        _close(terms, cumulativeAmount, signature);
    }

    /// @inheritdoc IChannelEscrow
    function closeWithAuthorization(
        Terms calldata terms,
        uint128 cumulativeAmount,
        bytes calldata signature,
        uint256 deadline,
        bytes calldata payeeSignature
    ) external {
        _requireTime(deadline);
        bytes32 id = _id(terms);
        bytes32 digest = _hashTypedData(keccak256(abi.encode(CLOSE_TYPEHASH, id, cumulativeAmount, deadline)));
        _requireSignature(id, terms.payee, digest, payeeSignature);

        _close(terms, cumulativeAmount, signature);
    }

    /// @inheritdoc IChannelEscrow
    function requestClose(Terms calldata terms) external {
        require(msg.sender == terms.payer, NotPayer(msg.sender, terms.payer));

        (bytes32 id, Slot slot) = _load(terms);
        _requestClose(id, slot);
    }

    /// @inheritdoc IChannelEscrow
    function requestCloseWithAuthorization(Terms calldata terms, uint256 deadline, bytes calldata payerSignature)
        external
    {
        _requireTime(deadline);
        (bytes32 id, Slot slot) = _load(terms);
        bytes32 digest =
            _hashTypedData(keccak256(abi.encode(REQUEST_CLOSE_TYPEHASH, id, slot.closeRequests(), deadline)));
        _requireSignature(id, terms.payer, digest, payerSignature);

        _requestClose(id, slot);
    }

    /// @inheritdoc IChannelEscrow
    function cancelCloseWithAuthorization(Terms calldata terms, uint256 deadline, bytes calldata payerSignature)
        external
    {
        _requireTime(deadline);
        (bytes32 id, Slot slot) = _load(terms);
        require(slot.closeRequestedAt() != 0, CloseNotRequested(id));
        require(slot.closeRequests() != MAX_CLOSE_REQUESTS, CloseRequestsUsedUp(id));
        bytes32 digest =
            _hashTypedData(keccak256(abi.encode(CANCEL_CLOSE_TYPEHASH, id, slot.closeRequests(), deadline)));
        _requireSignature(id, terms.payer, digest, payerSignature);

        _put(id, slot.cancel());

        emit CloseCancelled(id);
    }

    /// @inheritdoc IChannelEscrow
    function withdraw(Terms calldata terms) external {
        (bytes32 id, Slot slot) = _load(terms);
        require(slot.closeRequestedAt() != 0, CloseNotRequested(id));
        uint256 withdrawableAt = _graceEnd(slot.closeRequestedAt());
        require(block.timestamp >= withdrawableAt, GracePeriodActive(id, block.timestamp, withdrawableAt));

        uint256 refund = _finalize(id, slot);

        if (refund != 0) _pay(terms.token, terms.payer, refund);
    }

    /// @dev Pays the voucher, refunds the rest. One that the token refuses does not keep the other from its money.
    function _close(Terms calldata terms, uint256 cumulativeAmount, bytes calldata signature) private {
        (bytes32 id, Slot slot) = _load(terms);
        uint256 amount = cumulativeAmount == slot.settled() ? 0 : _payable(id, slot, terms, cumulativeAmount, signature);

        if (amount != 0) emit Settled(id, cumulativeAmount);
        uint256 refund = _finalize(id, slot.pay(amount));

        if (amount != 0) _pay(terms.token, terms.payee, amount);
        if (refund != 0) _pay(terms.token, terms.payer, refund);
    }

    function _requestClose(bytes32 id, Slot slot) private {
        uint256 requestedAt = slot.closeRequestedAt();
        require(requestedAt == 0, CloseAlreadyRequested(id, _graceEnd(requestedAt)));

        _put(id, slot.request(uint40(block.timestamp)));

        emit CloseRequested(id, _graceEnd(block.timestamp));
    }

    /// @dev The first moment of `withdraw`.
    function _graceEnd(uint256 requestedAt) private view returns (uint256) {
        unchecked {
            return requestedAt + gracePeriod;
        }
    }

    /// @dev Leaves the tombstone and says what is left for the payer.
    function _finalize(bytes32 id, Slot slot) private returns (uint256 refund) {
        unchecked {
            refund = slot.deposit() - slot.settled();
        }

        _put(id, slot.finalize());

        emit Closed(id, slot.settled(), refund);
    }

    /*//////////////////////////////////////////////////////////////
                                CREDIT
    //////////////////////////////////////////////////////////////*/

    /// @inheritdoc IChannelEscrow
    function withdrawCredit(address token, address to) external {
        _withdrawCredit(msg.sender, token, to);
    }

    /// @inheritdoc IChannelEscrow
    function withdrawCreditWithAuthorization(
        address account,
        address token,
        address to,
        uint256 deadline,
        bytes calldata signature
    ) external {
        if (to != account) _requirePermission(account, token, to, deadline, signature);

        _withdrawCredit(account, token, to);
    }

    /// @dev Pays from what is booked as paid already. If the token refuses, it is credited: whoever earned it presented its
    /// voucher in time, and the token's mood of that moment must not cost it the money.
    function _pay(address token, address to, uint256 amount) private {
        bool ran;
        bool paid;
        assembly ("memory-safe") {
            mstore(0x14, to)
            mstore(0x34, amount)
            mstore(0x00, 0xa9059cbb000000000000000000000000) // transfer(address,uint256)
            ran := call(gas(), token, 0, 0x10, 0x44, 0x00, 0x20)
            paid := and(eq(mload(0x00), 1), ran)
            mstore(0x34, 0)
        }
        if (!paid) _unpaid(token, to, amount, ran);
    }

    /// @dev Credits a payout for which the token did not answer true, unless it is one of those that answer nothing.
    function _unpaid(address token, address account, uint256 amount, bool ran) private {
        bool silent;
        assembly ("memory-safe") {
            silent := iszero(returndatasize())
        }
        if (ran && silent && token.code.length != 0) return;
        require(gasleft() >= MIN_GAS_AFTER_REFUSAL, TransferFailed());

        _credits[account][token].amount += uint128(amount);

        emit Credited(account, token, amount);
    }

    function _requirePermission(address account, address token, address to, uint256 deadline, bytes calldata signature)
        private
        view
    {
        _requireTime(deadline);
        uint256 nonce = _credits[account][token].withdrawals;
        bytes32 digest =
            _hashTypedData(keccak256(abi.encode(WITHDRAW_CREDIT_TYPEHASH, account, token, to, nonce, deadline)));
        _requireSignature(0, account, digest, signature);
    }

    function _withdrawCredit(address account, address token, address to) private {
        require(to != address(0) && to != address(this), InvalidRecipient(to));
        Credit storage credited = _credits[account][token];
        uint256 amount = credited.amount;
        require(amount != 0, NoCredit(account, token));

        credited.amount = 0;
        ++credited.withdrawals;

        emit CreditWithdrawn(account, token, to, amount);

        token.safeTransfer(to, amount);
    }

    /*//////////////////////////////////////////////////////////////
                                 VIEWS
    //////////////////////////////////////////////////////////////*/

    /// @inheritdoc IChannelEscrow
    function channel(bytes32 id) public view returns (Channel memory) {
        Slot slot = _get(id);
        return Channel({
            deposit: slot.deposit(),
            settled: slot.settled(),
            closeRequestedAt: slot.closeRequestedAt(),
            closeRequests: slot.closeRequests(),
            open: slot.status() == OPEN,
            finalized: slot.status() == FINALIZED
        });
    }

    /// @inheritdoc IChannelEscrow
    function channels(bytes32[] calldata ids) external view returns (Channel[] memory all) {
        all = new Channel[](ids.length);
        for (uint256 i; i < ids.length; ++i) {
            all[i] = channel(ids[i]);
        }
    }

    /// @inheritdoc IChannelEscrow
    function credit(address account, address token) external view returns (Credit memory) {
        return _credits[account][token];
    }

    /// @inheritdoc IChannelEscrow
    function channelId(Terms calldata terms) external view returns (bytes32) {
        return _id(terms);
    }

    /// @inheritdoc IChannelEscrow
    function voucherDigest(bytes32 id, uint128 cumulativeAmount) public view returns (bytes32) {
        return _hashTypedData(keccak256(abi.encode(VOUCHER_TYPEHASH, id, cumulativeAmount)));
    }

    function _domainNameAndVersion() internal pure override returns (string memory, string memory) {
        return ("EVM Payment Channel", "1");
    }

    /*//////////////////////////////////////////////////////////////
                                 CHECKS
    //////////////////////////////////////////////////////////////*/

    /// @dev keccak256(abi.encode(terms, address(this), block.chainid)). The terms are hashed as they were sent: an address
    /// with anything before it is in the terms of no channel.
    function _id(Terms calldata terms) private view returns (bytes32 id) {
        assembly ("memory-safe") {
            let words := mload(0x40)
            calldatacopy(words, terms, 0xa0)
            mstore(add(words, 0xa0), address())
            mstore(add(words, 0xc0), chainid())
            id := keccak256(words, 0xe0)
        }
    }

    /// @dev The channel of these terms, which must be open.
    function _load(Terms calldata terms) private view returns (bytes32 id, Slot slot) {
        id = _id(terms);
        slot = _get(id);
        if (slot.status() == OPEN) return (id, slot);
        require(slot.status() != FINALIZED, ChannelFinalized(id));
        revert UnknownChannel(id);
    }

    /// @dev The id is a hash already, so it is the storage slot: hashing it again, as a mapping does, would only cost gas.
    function _get(bytes32 id) private view returns (Slot slot) {
        assembly ("memory-safe") {
            slot := sload(id)
        }
    }

    function _put(bytes32 id, Slot slot) private {
        assembly ("memory-safe") {
            sstore(id, slot)
        }
    }

    function _refuseDeposit(uint256 deposit) private pure {
        require(deposit != 0, ZeroAmount());
        revert AmountTooLarge(deposit, type(uint96).max);
    }

    function _requireNonce(bytes32 actual, bytes32 expected) private pure {
        require(actual == expected, NonceMismatch(actual, expected));
    }

    function _requireTime(uint256 deadline) private view {
        require(block.timestamp <= deadline, DeadlinePassed(deadline, block.timestamp));
    }

    function _requireSignature(bytes32 id, address signer, bytes32 digest, bytes calldata signature) private view {
        if (_recovers(signer, digest, signature)) return;
        require(
            signer.code.length != 0
                && SignatureCheckerLib.isValidERC1271SignatureNowCalldata(signer, digest, signature),
            InvalidSignature(id, signer)
        );
    }

    /// @dev ECDSA comes before ERC-1271: a payer's key stays good for its vouchers when its address gets code (EIP-7702).
    function _recovers(address signer, bytes32 digest, bytes calldata signature) private pure returns (bool) {
        if (signature.length != 65) return false;
        if (uint256(bytes32(signature[32:])) > HALF_ORDER) return false;

        address recovered = ecrecover(digest, uint8(signature[64]), bytes32(signature), bytes32(signature[32:]));
        return recovered == signer && recovered != address(0);
    }
}
