// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ReentrancyGuardTransient} from "solady/utils/ReentrancyGuardTransient.sol";
import {SafeTransferLib} from "solady/utils/SafeTransferLib.sol";
import {SignatureCheckerLib} from "solady/utils/SignatureCheckerLib.sol";

import {ChannelConfig, IDepositCollector, IX402BatchSettlement, VoucherClaim} from "./IX402BatchSettlement.sol";

/// @title X402BatchSettlement, a stand-in
/// @notice FOR TESTS AND LOCAL CHAINS ONLY. The real contract is live at 0x4020074e9dF2ce1deE5A9C1b5c3f541D02a10003 and
/// its code is not ours: this one follows its published interface and behaviour, so that what we build against it on a
/// local chain holds against the real one. It is never deployed by what we ship.
/// @dev It has neither a constructor nor immutables and derives its EIP-712 domain from its address at every call, so
/// that its runtime code can be placed at that address.
contract X402BatchSettlement is IX402BatchSettlement, ReentrancyGuardTransient {
    uint40 public constant MIN_WITHDRAW_DELAY = 15 minutes;
    uint40 public constant MAX_WITHDRAW_DELAY = 30 days;

    bytes32 public constant CHANNEL_CONFIG_TYPEHASH = keccak256(
        "ChannelConfig(address payer,address payerAuthorizer,address receiver,address receiverAuthorizer,address token,uint40 withdrawDelay,bytes32 salt)"
    );
    bytes32 public constant VOUCHER_TYPEHASH = keccak256("Voucher(bytes32 channelId,uint128 maxClaimableAmount)");
    bytes32 public constant REFUND_TYPEHASH = keccak256("Refund(bytes32 channelId,uint256 nonce,uint128 amount)");
    bytes32 public constant CLAIM_ENTRY_TYPEHASH =
        keccak256("ClaimEntry(bytes32 channelId,uint128 maxClaimableAmount,uint128 totalClaimed)");
    bytes32 public constant CLAIM_BATCH_TYPEHASH = keccak256(
        "ClaimBatch(ClaimEntry[] claims)ClaimEntry(bytes32 channelId,uint128 maxClaimableAmount,uint128 totalClaimed)"
    );

    string private constant NAME = "x402 Batch Settlement";
    string private constant VERSION = "1";
    uint256 private constant HALF_ORDER = 0x7fffffffffffffffffffffffffffffff5d576e7357a4501ddfe92f46681b20a0;

    struct Balance {
        uint128 balance; // deposited, less refunds and withdrawals; what was claimed is still in it
        uint128 totalClaimed;
    }

    struct Withdrawal {
        uint128 amount;
        uint40 initiatedAt; // zero: none is pending
    }

    struct Income {
        uint128 totalClaimed;
        uint128 totalSettled;
    }

    mapping(bytes32 channelId => Balance) public channels;
    mapping(bytes32 channelId => Withdrawal) public pendingWithdrawals;
    mapping(bytes32 channelId => uint256) public refundNonce;
    mapping(address receiver => mapping(address token => Income)) public receivers;

    /// @notice Adds to a channel what a collector brings. It leaves a pending withdrawal as it is.
    function deposit(ChannelConfig calldata config, uint128 amount, address collector, bytes calldata collectorData)
        external
        nonReentrant
    {
        require(
            config.payer != address(0) && config.receiver != address(0) && config.receiverAuthorizer != address(0)
                && config.token != address(0),
            InvalidChannel()
        );
        require(
            config.withdrawDelay >= MIN_WITHDRAW_DELAY && config.withdrawDelay <= MAX_WITHDRAW_DELAY,
            WithdrawDelayOutOfRange()
        );
        require(amount != 0, ZeroDeposit());
        require(collector != address(0), InvalidCollector());

        bytes32 id = getChannelId(config);
        Balance storage channel = channels[id];
        uint128 held = channel.balance;
        require(amount <= type(uint128).max - held, DepositOverflow());
        channel.balance = held + amount;
        _collect(config, amount, id, collector, collectorData);
        if (held == 0 && channel.totalClaimed == 0) emit ChannelCreated(id, config);
        emit Deposited(id, msg.sender, amount, held + amount);
    }

    function claim(VoucherClaim[] calldata voucherClaims) external nonReentrant {
        require(voucherClaims.length != 0, EmptyBatch());
        for (uint256 i; i < voucherClaims.length; ++i) {
            require(_receives(voucherClaims[i].voucher.channel), NotAuthorizedToClaim());
            _claim(voucherClaims[i]);
        }
    }

    /// @notice `claim` by anyone who holds the signature of the one receiverAuthorizer of all rows.
    function claimWithSignature(VoucherClaim[] calldata voucherClaims, bytes calldata authorizerSignature)
        external
        nonReentrant
    {
        require(voucherClaims.length != 0, EmptyBatch());
        address authorizer = voucherClaims[0].voucher.channel.receiverAuthorizer;
        _verify(authorizer, getClaimBatchDigest(voucherClaims), authorizerSignature);
        for (uint256 i; i < voucherClaims.length; ++i) {
            require(voucherClaims[i].voucher.channel.receiverAuthorizer == authorizer, NotReceiverAuthorizer());
            _claim(voucherClaims[i]);
        }
    }

    /// @notice Pays a receiver what was claimed for it and not yet paid out; nothing of it is no error.
    function settle(address receiver, address token) external nonReentrant {
        Income storage income = receivers[receiver][token];
        uint128 due = income.totalClaimed - income.totalSettled;
        if (due == 0) return;
        income.totalSettled += due;
        emit Settled(receiver, token, msg.sender, due);
        SafeTransferLib.safeTransfer(token, receiver, due);
    }

    function initiateWithdraw(ChannelConfig calldata config, uint128 amount) external nonReentrant {
        require(_pays(config), InvalidChannel());
        require(amount != 0, NothingToWithdraw());
        bytes32 id = getChannelId(config);
        Withdrawal storage withdrawal = pendingWithdrawals[id];
        require(withdrawal.initiatedAt == 0, WithdrawalAlreadyPending());
        require(amount <= _free(id), WithdrawAmountExceedsAvailable());
        withdrawal.amount = amount;
        withdrawal.initiatedAt = uint40(block.timestamp);
        emit WithdrawInitiated(id, amount, uint40(block.timestamp) + config.withdrawDelay);
    }

    function finalizeWithdraw(ChannelConfig calldata config) external nonReentrant {
        require(_pays(config), NotAuthorizedToFinalizeWithdraw());
        bytes32 id = getChannelId(config);
        Withdrawal memory withdrawal = pendingWithdrawals[id];
        require(withdrawal.initiatedAt != 0, WithdrawalNotPending());
        require(block.timestamp >= uint256(withdrawal.initiatedAt) + config.withdrawDelay, WithdrawDelayNotElapsed());
        delete pendingWithdrawals[id];
        uint128 amount = _least(withdrawal.amount, _free(id));
        channels[id].balance -= amount;
        emit WithdrawFinalized(id, msg.sender, amount);
        _payBack(config, id, amount);
    }

    function refund(ChannelConfig calldata config, uint128 amount) external nonReentrant {
        require(_receives(config), NotAuthorizedToRefund());
        _refund(config, getChannelId(config), amount);
    }

    /// @notice `refund` by anyone who holds the receiverAuthorizer's signature for this nonce.
    function refundWithSignature(
        ChannelConfig calldata config,
        uint128 amount,
        uint256 nonce,
        bytes calldata receiverAuthorizerSignature
    ) external nonReentrant {
        bytes32 id = getChannelId(config);
        require(nonce == refundNonce[id], InvalidRefundNonce());
        _verify(config.receiverAuthorizer, getRefundDigest(id, nonce, amount), receiverAuthorizerSignature);
        _refund(config, id, amount);
    }

    /// @notice Several calls in one, for the same sender: all of them happen or none.
    function multicall(bytes[] calldata data) external returns (bytes[] memory results) {
        results = new bytes[](data.length);
        for (uint256 i; i < data.length; ++i) {
            (bool ok, bytes memory result) = address(this).delegatecall(data[i]);
            if (!ok) {
                assembly ("memory-safe") {
                    revert(add(result, 0x20), mload(result))
                }
            }
            results[i] = result;
        }
    }

    function getChannelId(ChannelConfig calldata config) public view returns (bytes32) {
        return _digest(keccak256(abi.encode(CHANNEL_CONFIG_TYPEHASH, config)));
    }

    function getVoucherDigest(bytes32 channelId, uint128 maxClaimableAmount) public view returns (bytes32) {
        return _digest(keccak256(abi.encode(VOUCHER_TYPEHASH, channelId, maxClaimableAmount)));
    }

    function getRefundDigest(bytes32 channelId, uint256 nonce, uint128 amount) public view returns (bytes32) {
        return _digest(keccak256(abi.encode(REFUND_TYPEHASH, channelId, nonce, amount)));
    }

    function getClaimBatchDigest(VoucherClaim[] calldata voucherClaims) public view returns (bytes32) {
        bytes memory entries;
        for (uint256 i; i < voucherClaims.length; ++i) {
            VoucherClaim calldata row = voucherClaims[i];
            bytes32 id = getChannelId(row.voucher.channel);
            bytes memory entry = abi.encode(CLAIM_ENTRY_TYPEHASH, id, row.voucher.maxClaimableAmount, row.totalClaimed);
            entries = bytes.concat(entries, keccak256(entry));
        }
        return _digest(keccak256(abi.encode(CLAIM_BATCH_TYPEHASH, keccak256(entries))));
    }

    /// @notice ERC-5267.
    function eip712Domain()
        external
        view
        returns (bytes1, string memory, string memory, uint256, address, bytes32, uint256[] memory)
    {
        return (hex"0f", NAME, VERSION, block.chainid, address(this), 0, new uint256[](0));
    }

    /// @dev The tokens must be here afterwards, all of them and no more.
    function _collect(
        ChannelConfig calldata config,
        uint128 amount,
        bytes32 id,
        address collector,
        bytes calldata collectorData
    ) private {
        uint256 before = SafeTransferLib.balanceOf(config.token, address(this));
        IDepositCollector(collector).collect(config.payer, config.token, amount, id, collectorData);
        require(SafeTransferLib.balanceOf(config.token, address(this)) == before + amount, DepositCollectionFailed());
    }

    /// @dev A row that claims no more than was claimed already changes nothing and is not looked at any further.
    function _claim(VoucherClaim calldata row) private {
        ChannelConfig calldata config = row.voucher.channel;
        bytes32 id = getChannelId(config);
        Balance storage channel = channels[id];
        uint128 claimed = channel.totalClaimed;
        if (row.totalClaimed <= claimed) return;
        require(row.totalClaimed <= row.voucher.maxClaimableAmount, ClaimExceedsCeiling());
        require(row.totalClaimed <= channel.balance, ClaimExceedsBalance());

        bytes32 digest = getVoucherDigest(id, row.voucher.maxClaimableAmount);
        if (config.payerAuthorizer == address(0)) _verify(config.payer, digest, row.signature);
        else require(_recover(digest, row.signature) == config.payerAuthorizer, InvalidSignature());

        channel.totalClaimed = row.totalClaimed;
        receivers[config.receiver][config.token].totalClaimed += row.totalClaimed - claimed;
        emit Claimed(id, msg.sender, row.totalClaimed - claimed, row.totalClaimed);
    }

    /// @dev Every refund uses up its nonce, also one that finds nothing to give back. What is given back is no longer
    /// there to be withdrawn.
    function _refund(ChannelConfig calldata config, bytes32 id, uint128 wanted) private {
        require(wanted != 0, ZeroRefund());
        ++refundNonce[id];
        uint128 amount = _least(wanted, _free(id));
        if (amount == 0) return;
        channels[id].balance -= amount;
        Withdrawal storage withdrawal = pendingWithdrawals[id];
        if (amount >= withdrawal.amount) delete pendingWithdrawals[id];
        else withdrawal.amount -= amount;
        emit Refunded(id, msg.sender, amount);
        _payBack(config, id, amount);
    }

    function _payBack(ChannelConfig calldata config, bytes32 id, uint128 amount) private {
        Balance memory channel = channels[id];
        if (channel.balance == 0 && channel.totalClaimed == 0) emit ChannelClosed(id, config);
        if (amount != 0) SafeTransferLib.safeTransfer(config.token, config.payer, amount);
    }

    function _free(bytes32 id) private view returns (uint128) {
        Balance memory channel = channels[id];
        return channel.balance - channel.totalClaimed;
    }

    function _least(uint128 a, uint128 b) private pure returns (uint128) {
        return a < b ? a : b;
    }

    function _receives(ChannelConfig calldata config) private view returns (bool) {
        return msg.sender == config.receiver || msg.sender == config.receiverAuthorizer;
    }

    function _pays(ChannelConfig calldata config) private view returns (bool) {
        return msg.sender == config.payer || msg.sender == config.payerAuthorizer;
    }

    /// @dev An account with code is asked (ERC-1271) and nothing else counts; one without must have signed.
    function _verify(address signer, bytes32 digest, bytes calldata signature) private view {
        bool valid;
        if (signer.code.length != 0) {
            valid = SignatureCheckerLib.isValidERC1271SignatureNowCalldata(signer, digest, signature);
        } else if (signature.length == 65 && uint256(bytes32(signature[32:64])) <= HALF_ORDER) {
            address recovered = _ecrecover(digest, signature);
            valid = recovered != address(0) && recovered == signer;
        }
        require(valid, InvalidSignature());
    }

    function _recover(bytes32 digest, bytes calldata signature) private pure returns (address recovered) {
        require(signature.length == 65, ECDSAInvalidSignatureLength(signature.length));
        bytes32 s = bytes32(signature[32:64]);
        require(uint256(s) <= HALF_ORDER, ECDSAInvalidSignatureS(s));
        recovered = _ecrecover(digest, signature);
        require(recovered != address(0), ECDSAInvalidSignature());
    }

    function _ecrecover(bytes32 digest, bytes calldata signature) private pure returns (address) {
        return ecrecover(digest, uint8(signature[64]), bytes32(signature[:32]), bytes32(signature[32:64]));
    }

    function _digest(bytes32 structHash) private view returns (bytes32) {
        bytes32 separator = keccak256(
            abi.encode(
                keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"),
                keccak256(bytes(NAME)),
                keccak256(bytes(VERSION)),
                block.chainid,
                address(this)
            )
        );
        return keccak256(abi.encodePacked("\x19\x01", separator, structHash));
    }

    function _useTransientReentrancyGuardOnlyOnMainnet() internal pure override returns (bool) {
        return false;
    }
}
