// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Vm} from "forge-std/Vm.sol";

import {Base, IChannelEscrow, Terms} from "./Base.sol";

/// @notice What the escrow must not say, and calls that it must not make: whoever follows its events believes all of them.
contract EventsTest is Base {
    /// @dev How often the escrow has said something since the logs were recorded.
    function _count(Vm.Log[] memory logs, bytes32 topic) private view returns (uint256 n) {
        for (uint256 i; i < logs.length; ++i) {
            if (logs[i].emitter == address(escrow) && logs[i].topics[0] == topic) ++n;
        }
    }

    function _said(bytes32 topic) private returns (uint256) {
        return _count(vm.getRecordedLogs(), topic);
    }

    /// @dev A request is taken back where there is one, by the payer's own top-up and by no other.
    function test_closeCancelledOnlyWhenItIs() public {
        (Terms memory terms,) = _open(100);
        bytes32 topic = IChannelEscrow.CloseCancelled.selector;
        vm.recordLogs();
        vm.prank(payer.addr);
        escrow.topUp(terms, 1);
        assertEq(_said(topic), 0, "nothing was pending");

        _requestClose(terms);
        _fund(stranger.addr);
        vm.prank(stranger.addr);
        escrow.topUp(terms, 1);
        assertEq(_said(topic), 0, "another's top-up");
        vm.prank(payer.addr);
        escrow.topUp(terms, 1);
        assertEq(_said(topic), 1);
        vm.prank(payer.addr);
        escrow.topUp(terms, 1);
        assertEq(_said(topic), 0, "a second time");

        _requestClose(terms);
        skip(GRACE);
        escrow.withdraw(terms);
        assertEq(_said(topic), 0, "the end is no cancellation");
    }

    /// @dev `Settled` is said once for each payment, and by a close only if it pays.
    function test_settledOnlyWhenItIs() public {
        (Terms memory terms,) = _open(100);
        bytes32 topic = IChannelEscrow.Settled.selector;
        vm.recordLogs();
        _settle(terms, 40);
        assertEq(_said(topic), 1);
        assertEq(escrow.settleBatch(payee.addr, address(token), _row(terms, 40, _voucher(terms, 40))), 0);
        assertEq(_said(topic), 0, "a row that was skipped");
        uint256 snapshot = vm.snapshotState();
        _close(terms);
        assertEq(_said(topic), 0, "a close that pays nothing");
        vm.revertToState(snapshot);
        _requestClose(terms);
        skip(GRACE);
        escrow.withdraw(terms);
        assertEq(_said(topic), 0, "a withdrawal");
    }

    /// @dev Nothing is transferred where nothing is due: tokens that refuse to move nothing must not get in the way.
    function test_noTransferOfNothing() public {
        (Terms memory terms,) = _open(100);
        _settle(terms, 100);
        bytes memory toPayer = abi.encodeCall(token.transfer, (payer.addr, 0));
        bytes memory toPayee = abi.encodeCall(token.transfer, (payee.addr, 0));
        uint256 snapshot = vm.snapshotState();
        vm.expectCall(address(token), toPayer, 0);
        vm.expectCall(address(token), toPayee, 0);
        _close(terms);
        vm.revertToState(snapshot);
        _requestClose(terms);
        skip(GRACE);
        escrow.withdraw(terms);
    }
}
