// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @notice What the two sides of a channel agreed on. It is never stored: callers pass it and the escrow re-derives the
/// channel's id from it, so a channel costs one storage slot.
/// @param payer Whose money it is: gets back whatever was not settled.
/// @param payee Who is paid, and the only other address that money can ever go to.
/// @param token The ERC-20 token of the channel.
/// @param salt Tells channels between the same two apart. Short numbers are cheaper to settle in a batch.
/// @param authorizedSigner Who signs vouchers for the payer; zero means the payer itself.
struct Terms {
    address payer;
    address payee;
    address token;
    bytes32 salt;
    address authorizedSigner;
}

/// @notice A channel as the escrow sees it.
/// @param deposit All that was ever paid in, in base units of the token.
/// @param settled The part of it that was paid to the payee.
/// @param closeRequestedAt Unix seconds of the payer's pending close request, 0 if there is none.
/// @param closeRequests How many close requests the channel has seen: the nonce of the next signed one.
/// @param open Whether the channel can pay. A finalized channel is not open.
/// @param finalized Whether the channel was closed. Nothing changes it any more, and its id never opens again.
struct Channel {
    uint96 deposit;
    uint96 settled;
    uint40 closeRequestedAt;
    uint16 closeRequests;
    bool open;
    bool finalized;
}

/// @notice What the escrow owes an account in one token, because the token refused to pay it out when it was due.
/// @param amount Base units.
/// @param withdrawals How often credit was withdrawn: the nonce of the next signed withdrawal.
struct Credit {
    uint128 amount;
    uint128 withdrawals;
}

/// @notice Why a row of a batch was not paid. A row is checked in this order.
enum SkipReason {
    Unknown,
    Finalized,
    Stale,
    ExceedsDeposit,
    BadSignature
}

/// @title IChannelEscrow
/// @notice Holds the deposits of unidirectional payment channels. A payer deposits and signs cumulative vouchers off-chain;
/// the newest voucher moves that much, in total, to the payee. There is no owner, no upgrade and no fee, and every path
/// out of the escrow leads to the payer or the payee of the channel that the money came in with.
///
/// Signatures are EIP-712 with the domain {name "EVM Payment Channel", version "1", chainId, verifyingContract} over
///
///     Voucher(bytes32 channelId,uint128 cumulativeAmount)                     signed by the authorized signer, or the payer
///     RequestClose(bytes32 channelId,uint256 nonce,uint256 deadline)          signed by the payer
///     Close(bytes32 channelId,uint128 cumulativeAmount,uint256 deadline)      signed by the payee
///     CancelClose(bytes32 channelId,uint256 nonce,uint256 deadline)           signed by the payer
///     WithdrawCredit(address account,address token,address to,uint256 nonce,uint256 deadline)   signed by the account
///
/// A payout that the token refuses (it is paused, or has blocked the receiver) is credited instead: to the payee what was
/// settled, to the payer what was refunded. Credit has no deadline.
///
/// A signature is 65 bytes (r, s, v) with v 27 or 28 and s in the lower half. If that does not recover the signer and the
/// signer has code, the escrow asks the signer (ERC-1271), to whom it passes bytes of any length; never in a batch. Batches
/// carry the same signatures in 64 bytes.
interface IChannelEscrow {
    /*//////////////////////////////////////////////////////////////
                                 EVENTS
    //////////////////////////////////////////////////////////////*/

    /// @notice A channel was opened and its first deposit arrived.
    event Opened(
        bytes32 indexed channelId,
        address indexed payer,
        address indexed payee,
        address token,
        bytes32 salt,
        address authorizedSigner,
        uint256 deposit
    );

    /// @notice `amount` more arrived from `from`; `deposit` is the new total.
    event ToppedUp(bytes32 indexed channelId, address indexed from, uint256 amount, uint256 deposit);

    /// @notice The payee was paid up to `settled`, in total since the channel opened.
    event Settled(bytes32 indexed channelId, uint256 settled);

    /// @notice Row number `row` (from 0) of a batch was not paid. For `Unknown`, the id is what the row's terms hash to.
    event SettlementSkipped(bytes32 indexed channelId, uint256 row, SkipReason reason);

    /// @notice The payer wants out; `withdraw` works from `withdrawableAt` (unix seconds).
    event CloseRequested(bytes32 indexed channelId, uint256 withdrawableAt);

    /// @notice The payer took its close request back, by a top-up or by its signature.
    event CloseCancelled(bytes32 indexed channelId);

    /// @notice The channel is final: the payee got `settled` in total, the payer got `refunded` back now.
    event Closed(bytes32 indexed channelId, uint256 settled, uint256 refunded);

    /// @notice The token refused to pay `amount` to `account`, which can withdraw it later.
    event Credited(address indexed account, address indexed token, uint256 amount);

    /// @notice All credit of `account` in a token was paid to `to`.
    event CreditWithdrawn(address indexed account, address indexed token, address to, uint256 amount);

    /*//////////////////////////////////////////////////////////////
                                 ERRORS
    //////////////////////////////////////////////////////////////*/

    /// @notice The grace period must leave a payee time to settle: `actual` is under `minimum` seconds.
    error GracePeriodTooShort(uint256 actual, uint256 minimum);
    /// @notice The chain's clock counts something finer than seconds: `timestamp` is after the year 2286.
    error NotInSeconds(uint256 timestamp);
    /// @notice Nobody could ever be paid: the payee is zero or the escrow itself.
    error InvalidPayee(address payee);
    /// @notice There is no contract at the token's address.
    error NoToken(address token);
    /// @notice A deposit of nothing.
    error ZeroAmount();
    /// @notice A channel holds at most `maximum` base units, and would hold `actual`.
    error AmountTooLarge(uint256 actual, uint256 maximum);
    /// @notice The token moved `received` of the `expected` base units: it takes a fee, rebases or lies.
    error DepositMismatch(uint256 received, uint256 expected);
    /// @notice The ERC-3009 nonce does not commit to these terms.
    error NonceMismatch(bytes32 actual, bytes32 expected);
    /// @notice The terms' id was opened before; choose another salt.
    error ChannelExists(bytes32 channelId);
    /// @notice No channel was ever opened with these terms.
    error UnknownChannel(bytes32 channelId);
    /// @notice The channel was closed, for ever.
    error ChannelFinalized(bytes32 channelId);
    /// @notice The amount is not above what is settled already (below, for a close).
    error Stale(bytes32 channelId, uint256 cumulativeAmount, uint256 settled);
    /// @notice The amount is above everything that was deposited.
    error ExceedsDeposit(bytes32 channelId, uint256 cumulativeAmount, uint256 deposit);
    /// @notice The signature is not `signer`'s over what it is given for; the channel is zero for a withdrawal of credit.
    error InvalidSignature(bytes32 channelId, address signer);
    /// @notice The signed permission was good until `deadline` and the time is `timestamp`.
    error DeadlinePassed(uint256 deadline, uint256 timestamp);
    /// @notice Only the payee may close at once.
    error NotPayee(address caller, address payee);
    /// @notice Only the payer may request a close.
    error NotPayer(address caller, address payer);
    /// @notice A close request is pending already.
    error CloseAlreadyRequested(bytes32 channelId, uint256 withdrawableAt);
    /// @notice Nobody requested a close, so there is nothing to wait for.
    error CloseNotRequested(bytes32 channelId);
    /// @notice The channel has seen 65,535 close requests: the last of them stays.
    error CloseRequestsUsedUp(bytes32 channelId);
    /// @notice The payee still has until `withdrawableAt` to settle.
    error GracePeriodActive(bytes32 channelId, uint256 timestamp, uint256 withdrawableAt);
    /// @notice The bytes of a batch do not parse: the group that begins with row number `row` is malformed or cut short.
    error MalformedRow(uint256 row);
    /// @notice Credit cannot be paid to zero or to the escrow itself.
    error InvalidRecipient(address to);
    /// @notice The account has no credit in this token.
    error NoCredit(address account, address token);
    /// @notice A token called back into a deposit while a deposit was being measured.
    error Reentered();
    /// @notice The token refused to pay out credit, or a payout failed that was given too little gas to tell why.
    error TransferFailed();
    /// @notice The token refused to be pulled: balance or allowance is too low, or an address is blocked.
    error TransferFromFailed();

    /*//////////////////////////////////////////////////////////////
                                DEPOSITS
    //////////////////////////////////////////////////////////////*/

    /// @notice Opens a channel that the caller pays from, and pulls `deposit` from the caller's allowance.
    /// @param payee Who is paid.
    /// @param token The ERC-20 token. A token that takes a fee on transfer is refused.
    /// @param deposit Base units, 1 to 2^96-1.
    /// @param salt Anything; an id that was used once can never be used again.
    /// @param authorizedSigner Who signs vouchers; zero means the caller.
    /// @return id The channel's id.
    function open(address payee, address token, uint128 deposit, bytes32 salt, address authorizedSigner)
        external
        returns (bytes32 id);

    /// @notice Opens a channel for `from`, which needs no native coin: it signed an ERC-3009 `ReceiveWithAuthorization` to
    /// the escrow. Anyone may submit it; the nonce binds it to exactly these terms.
    /// @param from The payer.
    /// @param validAfter Unix seconds after which the token takes the authorization.
    /// @param validBefore Unix seconds before which the token takes the authorization.
    /// @param nonce Must be keccak256(abi.encode(from, payee, token, salt, authorizedSigner)).
    /// @param signature What the token accepts for `from`.
    /// @return id The channel's id.
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
    ) external returns (bytes32 id);

    /// @notice Adds to a channel's deposit from the caller's allowance. Anyone may; if it is the payer, a pending close
    /// request is taken back, unless the channel has seen 65,535 of them.
    function topUp(Terms calldata terms, uint128 additionalDeposit) external;

    /// @notice Adds to a channel's deposit from `from`, by its ERC-3009 authorization. It never takes a close request
    /// back: an authorization that somebody sat on must not trap a payer who wants out.
    /// @param nonce Must be keccak256(abi.encode(channelId, additionalDeposit, from, topUpSalt)).
    function topUpWithAuthorization(
        Terms calldata terms,
        uint128 additionalDeposit,
        address from,
        bytes32 topUpSalt,
        uint256 validAfter,
        uint256 validBefore,
        bytes32 nonce,
        bytes calldata signature
    ) external;

    /*//////////////////////////////////////////////////////////////
                               SETTLEMENT
    //////////////////////////////////////////////////////////////*/

    /// @notice Pays the payee what a voucher is worth above what was settled before. Anyone may call it: the money can go
    /// nowhere else, so a watchtower needs no key. It works until the channel is final, during and after the grace period.
    function settle(Terms calldata terms, uint128 cumulativeAmount, bytes calldata signature) external;

    /// @notice Settles many channels of one payee and one token with one transfer. A row that cannot be paid is skipped
    /// and reported by an event; bytes that do not parse revert the whole batch. ERC-1271 signers need `settle`.
    /// @param rows Groups of rows that look alike, without separators. A group begins with 4 bytes: bits 0-6 of the first
    /// are S, the length of its salts (0 to 32), and bit 7 says whether its rows name authorized signers; then A, the
    /// length of its amounts (0 to 12); then the number of its rows (2 bytes, big-endian). Each row is: signature
    /// (64 bytes, the compact form of EIP-2098), payer (20), the last A bytes of the cumulative amount, the last S bytes
    /// of the salt, [authorized signer (32, as a word)].
    /// @return paid Base units that the payee received, or was credited.
    function settleBatch(address payee, address token, bytes calldata rows) external returns (uint256 paid);

    /*//////////////////////////////////////////////////////////////
                                CLOSING
    //////////////////////////////////////////////////////////////*/

    /// @notice Settles the last voucher and refunds the rest at once. Payee only.
    /// @param cumulativeAmount What the payee gets in total. If that is what is settled already, no voucher is needed and
    /// `signature` may be empty.
    function close(Terms calldata terms, uint128 cumulativeAmount, bytes calldata signature) external;

    /// @notice `close` by anyone who holds the payee's signature over {channel, amount, deadline}.
    /// @param deadline Unix seconds, inclusive.
    function closeWithAuthorization(
        Terms calldata terms,
        uint128 cumulativeAmount,
        bytes calldata signature,
        uint256 deadline,
        bytes calldata payeeSignature
    ) external;

    /// @notice Starts the grace period, in which the payee can still settle. Payer only.
    function requestClose(Terms calldata terms) external;

    /// @notice `requestClose` by anyone who holds the payer's signature, so a payer with no native coin can leave. The
    /// signed nonce is the channel's `closeRequests`, so a signature works once.
    /// @param deadline Unix seconds, inclusive.
    function requestCloseWithAuthorization(Terms calldata terms, uint256 deadline, bytes calldata payerSignature)
        external;

    /// @notice Takes a pending close request back, by anyone who holds the payer's signature. The signed nonce is the
    /// channel's `closeRequests`, so it is about one request. Not once the channel has seen 65,535 of them.
    /// @param deadline Unix seconds, inclusive.
    function cancelCloseWithAuthorization(Terms calldata terms, uint256 deadline, bytes calldata payerSignature)
        external;

    /// @notice Pays the payer all that was not settled, once the grace period is over. Anyone may call it.
    function withdraw(Terms calldata terms) external;

    /*//////////////////////////////////////////////////////////////
                                CREDIT
    //////////////////////////////////////////////////////////////*/

    /// @notice Pays the caller's credit in a token to `to`, all of it; reverts if the token still refuses.
    function withdrawCredit(address token, address to) external;

    /// @notice `withdrawCredit` by anyone who holds the account's signature. The signed nonce is the credit's `withdrawals`,
    /// so a signature works once. To the account itself it needs none: the money can go nowhere else.
    /// @param deadline Unix seconds, inclusive.
    function withdrawCreditWithAuthorization(
        address account,
        address token,
        address to,
        uint256 deadline,
        bytes calldata signature
    ) external;

    /*//////////////////////////////////////////////////////////////
                                 VIEWS
    //////////////////////////////////////////////////////////////*/

    /// @notice Seconds between a close request and the first moment of `withdraw`. Set at deployment, at least 600.
    function gracePeriod() external view returns (uint40);

    /// @notice The state of a channel; all zero if it was never opened.
    function channel(bytes32 id) external view returns (Channel memory);

    /// @notice The states of many channels, in the order asked for.
    function channels(bytes32[] calldata ids) external view returns (Channel[] memory);

    /// @notice What an account can withdraw of a token.
    function credit(address account, address token) external view returns (Credit memory);

    /// @notice The id of these terms on this escrow and chain:
    /// keccak256(abi.encode(payer, payee, token, salt, authorizedSigner, escrow, chainid)).
    function channelId(Terms calldata terms) external view returns (bytes32);

    /// @notice What a voucher's signer signs.
    function voucherDigest(bytes32 id, uint128 cumulativeAmount) external view returns (bytes32);
}
