// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ChannelConfig, IX402BatchSettlement, VoucherClaim} from "./IX402BatchSettlement.sol";
import {X402Base} from "./X402Base.sol";

/// @notice Refunds and withdrawals: the ways in which money goes back to the payer.
contract X402LeaveTest is X402Base {
    uint256 private _before;

    function _start(uint128 amount) private returns (ChannelConfig memory config, bytes32 id) {
        config = _config();
        id = _deposit(config, amount);
        _before = token.balanceOf(payer.addr);
    }

    function _initiate(ChannelConfig memory config, uint128 amount) private {
        vm.prank(payer.addr);
        SETTLEMENT.initiateWithdraw(config, amount);
    }

    function _finalize(ChannelConfig memory config) private {
        vm.prank(payer.addr);
        SETTLEMENT.finalizeWithdraw(config);
    }

    function _refund(ChannelConfig memory config, uint128 amount) private {
        vm.prank(payee.addr);
        SETTLEMENT.refund(config, amount);
    }

    function _assertPaidBack(uint256 amount) private view {
        assertEq(token.balanceOf(payer.addr) - _before, amount, "paid back");
    }

    function test_withdraw() public {
        (ChannelConfig memory config, bytes32 id) = _start(100);
        _claim(config, 30);
        _says();
        emit IX402BatchSettlement.WithdrawInitiated(id, 70, uint40(block.timestamp) + DELAY);
        _initiate(config, 70);
        _assertWithdrawal(id, 70, block.timestamp);
        _claim(config, 60); // within the delay the receiver still can

        vm.warp(block.timestamp + DELAY);
        _says();
        emit IX402BatchSettlement.WithdrawFinalized(id, signer.addr, 40);
        vm.prank(signer.addr);
        SETTLEMENT.finalizeWithdraw(config);
        _assertPaidBack(40);
        _assertChannel(id, 60, 60);
        _assertWithdrawal(id, 0, 0);
    }

    function test_withdraw_ofAllClosesTheChannel_andADepositOpensItAgain() public {
        (ChannelConfig memory config, bytes32 id) = _start(100);
        _initiate(config, 100);
        vm.warp(block.timestamp + DELAY);
        _says();
        emit IX402BatchSettlement.ChannelClosed(id, config);
        _finalize(config);
        _assertChannel(id, 0, 0);
        _says();
        emit IX402BatchSettlement.ChannelCreated(id, config);
        _deposit(config, 100);
    }

    /// @dev This is why a payee must claim before the delay is over.
    function test_withdraw_takesWhatWasNotClaimed() public {
        (ChannelConfig memory config,) = _start(100);
        _initiate(config, 100);
        vm.warp(block.timestamp + DELAY);
        _finalize(config);
        VoucherClaim[] memory rows = _rows(_row(config, 60, 60, signer));
        vm.prank(payee.addr);
        _refuses(IX402BatchSettlement.ClaimExceedsBalance.selector);
        SETTLEMENT.claim(rows);
    }

    function test_initiate_refuses() public {
        (ChannelConfig memory config,) = _start(100);
        _claim(config, 30);
        address[3] memory others = [payee.addr, operator.addr, stranger.addr];
        for (uint256 i; i < 3; ++i) {
            vm.prank(others[i]);
            _refuses(IX402BatchSettlement.InvalidChannel.selector);
            SETTLEMENT.initiateWithdraw(config, 1);
        }
        _refuses(IX402BatchSettlement.NothingToWithdraw.selector);
        _initiate(config, 0);
        _refuses(IX402BatchSettlement.WithdrawAmountExceedsAvailable.selector);
        _initiate(config, 71);
        _initiate(config, 1);
        _refuses(IX402BatchSettlement.WithdrawalAlreadyPending.selector);
        _initiate(config, 1);
    }

    function test_finalize_refuses() public {
        (ChannelConfig memory config,) = _start(100);
        _refuses(IX402BatchSettlement.WithdrawalNotPending.selector);
        _finalize(config);
        _initiate(config, 100);
        vm.warp(block.timestamp + DELAY - 1);
        _refuses(IX402BatchSettlement.WithdrawDelayNotElapsed.selector);
        _finalize(config);
        vm.warp(block.timestamp + 1);
        vm.prank(stranger.addr);
        _refuses(IX402BatchSettlement.NotAuthorizedToFinalizeWithdraw.selector);
        SETTLEMENT.finalizeWithdraw(config);
        _finalize(config);
        _refuses(IX402BatchSettlement.WithdrawalNotPending.selector);
        _finalize(config);
        _assertPaidBack(100);
    }

    function test_refund() public {
        (ChannelConfig memory config, bytes32 id) = _start(100);
        _claim(config, 30);
        _says();
        emit IX402BatchSettlement.Refunded(id, payee.addr, 10);
        _refund(config, 10);
        _assertChannel(id, 90, 30);
        vm.prank(operator.addr);
        SETTLEMENT.refund(config, 1000); // no more than is free
        _assertChannel(id, 30, 30);
        _assertPaidBack(70);
        assertEq(SETTLEMENT.refundNonce(id), 2);

        vm.recordLogs();
        _refund(config, 1); // nothing is left, and the nonce is used up all the same
        assertEq(vm.getRecordedLogs().length, 0);
        assertEq(SETTLEMENT.refundNonce(id), 3);
    }

    function test_refund_refuses() public {
        (ChannelConfig memory config, bytes32 id) = _start(100);
        address[3] memory others = [payer.addr, signer.addr, stranger.addr];
        for (uint256 i; i < 3; ++i) {
            vm.prank(others[i]);
            _refuses(IX402BatchSettlement.NotAuthorizedToRefund.selector);
            SETTLEMENT.refund(config, 1);
        }
        _refuses(IX402BatchSettlement.ZeroRefund.selector);
        _refund(config, 0);
        assertEq(SETTLEMENT.refundNonce(id), 0);
    }

    function test_refund_countsAgainstAWithdrawal() public {
        (ChannelConfig memory config, bytes32 id) = _start(100);
        _initiate(config, 60);
        uint256 at = block.timestamp;
        _refund(config, 20);
        _assertWithdrawal(id, 40, at);
        _refund(config, 40);
        _assertWithdrawal(id, 0, 0);
        _assertChannel(id, 40, 0);
    }

    function test_refundWithSignature() public {
        (ChannelConfig memory config, bytes32 id) = _start(100);
        bytes memory signature = _sign(operator, SETTLEMENT.getRefundDigest(id, 0, 40));

        _refuses(IX402BatchSettlement.InvalidSignature.selector);
        SETTLEMENT.refundWithSignature(config, 41, 0, signature);
        _refuses(IX402BatchSettlement.InvalidRefundNonce.selector);
        SETTLEMENT.refundWithSignature(config, 40, 1, signature);
        bytes memory receivers = _sign(payee, SETTLEMENT.getRefundDigest(id, 0, 40));
        _refuses(IX402BatchSettlement.InvalidSignature.selector);
        SETTLEMENT.refundWithSignature(config, 40, 0, receivers);

        vm.prank(stranger.addr);
        SETTLEMENT.refundWithSignature(config, 40, 0, signature);
        _assertPaidBack(40);
        _refuses(IX402BatchSettlement.InvalidRefundNonce.selector);
        SETTLEMENT.refundWithSignature(config, 40, 0, signature);
    }

    function test_refund_usesUpASignedOne() public {
        (ChannelConfig memory config, bytes32 id) = _start(100);
        bytes memory signature = _sign(operator, SETTLEMENT.getRefundDigest(id, 0, 40));
        _refund(config, 1);
        _refuses(IX402BatchSettlement.InvalidRefundNonce.selector);
        SETTLEMENT.refundWithSignature(config, 40, 0, signature);
    }
}
