// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Base, Channel, IChannelEscrow, Terms} from "./Base.sol";

contract TopUpTest is Base {
    function testFuzz_topUp(uint96 deposit, uint96 more) public {
        deposit = uint96(bound(deposit, 1, MAX - 1));
        more = uint96(bound(more, 1, MAX - deposit));
        (Terms memory terms, bytes32 id) = _open(deposit);

        _emits();
        emit IChannelEscrow.ToppedUp(id, payer.addr, more, uint256(deposit) + more);
        vm.prank(payer.addr);
        escrow.topUp(terms, more);

        _assertBooks(id, uint256(deposit) + more, 0);
        assertEq(token.balanceOf(address(escrow)), uint256(deposit) + more);
    }

    function testFuzz_topUp_keepsSettled(uint96 deposit, uint96 settled, uint96 more) public {
        deposit = uint96(bound(deposit, 1, MAX - 1));
        settled = uint96(bound(settled, 1, deposit));
        more = uint96(bound(more, 1, MAX - deposit));
        (Terms memory terms, bytes32 id) = _open(deposit);
        _settle(terms, settled);

        vm.prank(payer.addr);
        escrow.topUp(terms, more);

        _assertBooks(id, uint256(deposit) + more, settled);
        assertEq(token.balanceOf(address(escrow)), uint256(deposit) + more - settled);
    }

    /// @dev A gift counts like any deposit, but does not take back what only the payer may take back.
    function testFuzz_topUp_byStrangerKeepsCloseRequest(uint96 more) public {
        more = uint96(bound(more, 1, MAX - 100));
        (Terms memory terms, bytes32 id) = _open(100);
        _requestClose(terms);
        _fund(stranger.addr);

        vm.recordLogs();
        vm.prank(stranger.addr);
        escrow.topUp(terms, more);

        assertEq(escrow.channel(id).closeRequestedAt, vm.getBlockTimestamp());
        assertEq(escrow.channel(id).deposit, uint256(more) + 100);
        skip(GRACE);
        uint256 before = token.balanceOf(payer.addr);
        escrow.withdraw(terms);
        assertEq(token.balanceOf(payer.addr), before + more + 100);
    }

    function testFuzz_topUp_byPayerCancelsClose(uint32 later) public {
        (Terms memory terms, bytes32 id) = _open(100);
        _requestClose(terms);
        skip(later);

        _emits();
        emit IChannelEscrow.CloseCancelled(id);
        _emits();
        emit IChannelEscrow.ToppedUp(id, payer.addr, 1, 101);
        vm.prank(payer.addr);
        escrow.topUp(terms, 1);

        Channel memory c = escrow.channel(id);
        assertEq(abi.encode(c), abi.encode(Channel(101, 0, 0, 1, true, false)));
        _expect(abi.encodeWithSelector(IChannelEscrow.CloseNotRequested.selector, id));
        escrow.withdraw(terms);
    }

    /// @dev When the counter that makes signed requests single-use can count no further, a close request stays.
    function test_topUp_saturatedCounterKeepsCloseRequest() public {
        (Terms memory terms, bytes32 id) = _open(100);
        uint256 slot = uint256(vm.load(address(escrow), id)) | uint256(type(uint16).max - 1) << 232;
        vm.store(address(escrow), id, bytes32(slot));
        _requestClose(terms);
        assertEq(escrow.channel(id).closeRequests, type(uint16).max);

        vm.prank(payer.addr);
        escrow.topUp(terms, 1);

        assertEq(escrow.channel(id).closeRequestedAt, vm.getBlockTimestamp());
        assertEq(escrow.channel(id).closeRequests, type(uint16).max);
        assertEq(escrow.channel(id).deposit, 101);
        skip(GRACE);
        escrow.withdraw(terms);
        _assertFinalized(id, 0);
    }

    function testFuzz_topUp_tooLargeReverts(uint96 deposit, uint128 more) public {
        deposit = uint96(bound(deposit, 1, MAX));
        more = uint128(bound(more, uint256(MAX) - deposit + 1, type(uint128).max));
        (Terms memory terms,) = _open(deposit);

        vm.prank(payer.addr);
        _expect(abi.encodeWithSelector(IChannelEscrow.AmountTooLarge.selector, uint256(deposit) + more, MAX));
        escrow.topUp(terms, more);
    }

    function test_topUp_zeroReverts() public {
        (Terms memory terms,) = _open(100);

        vm.prank(payer.addr);
        _expect(abi.encodeWithSelector(IChannelEscrow.ZeroAmount.selector));
        escrow.topUp(terms, 0);
    }

    function testFuzz_topUp_unknownReverts(bytes32 salt) public {
        Terms memory terms = _terms();
        terms.salt = salt;
        bytes32 id = escrow.channelId(terms);

        vm.prank(payer.addr);
        _expect(abi.encodeWithSelector(IChannelEscrow.UnknownChannel.selector, id));
        escrow.topUp(terms, 1);
    }

    function test_topUp_finalizedReverts() public {
        (Terms memory terms, bytes32 id) = _open(100);
        _close(terms);

        vm.prank(payer.addr);
        _expect(abi.encodeWithSelector(IChannelEscrow.ChannelFinalized.selector, id));
        escrow.topUp(terms, 1);
    }

    function test_topUp_withoutAllowanceReverts() public {
        (Terms memory terms,) = _open(100);

        vm.prank(stranger.addr);
        _expect(abi.encodeWithSelector(IChannelEscrow.TransferFromFailed.selector));
        escrow.topUp(terms, 1);
    }
}
