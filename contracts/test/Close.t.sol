// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Base, IChannelEscrow, Terms} from "./Base.sol";

contract CloseTest is Base {
    function testFuzz_close(uint96 deposit, uint96 settled, uint96 amount) public {
        deposit = uint96(bound(deposit, 1, MAX));
        amount = uint96(bound(amount, 1, deposit));
        settled = uint96(bound(settled, 0, amount - 1));
        (Terms memory terms, bytes32 id) = _open(deposit);
        if (settled != 0) _settle(terms, settled);
        bytes memory signature = _voucher(terms, amount);
        uint256 before = token.balanceOf(payer.addr);

        _emits();
        emit IChannelEscrow.Settled(id, amount);
        _emits();
        emit IChannelEscrow.Closed(id, amount, deposit - amount);
        vm.prank(payee.addr);
        escrow.close(terms, amount, signature);

        _assertFinalized(id, amount);
        assertEq(token.balanceOf(payee.addr), amount);
        assertEq(token.balanceOf(payer.addr), before + deposit - amount);
        assertEq(token.balanceOf(address(escrow)), 0);
    }

    /// @dev A payee that claims nothing more needs no voucher: it only gives money back.
    function testFuzz_close_withoutVoucher(uint96 deposit, uint96 settled, bytes memory noise) public {
        deposit = uint96(bound(deposit, 1, MAX));
        settled = uint96(bound(settled, 0, deposit));
        (Terms memory terms, bytes32 id) = _open(deposit);
        if (settled != 0) _settle(terms, settled);

        _emits();
        emit IChannelEscrow.Closed(id, settled, deposit - settled);
        vm.prank(payee.addr);
        escrow.close(terms, settled, noise);

        _assertFinalized(id, settled);
        assertEq(token.balanceOf(payee.addr), settled);
        assertEq(token.balanceOf(address(escrow)), 0);
    }

    /// @dev A payee that loses the race against the grace period by no more than the withdrawal still gets its money.
    function testFuzz_close_whileClosing(uint32 later) public {
        (Terms memory terms, bytes32 id) = _open(100);
        bytes memory signature = _voucher(terms, 60);
        _requestClose(terms);
        skip(later);

        vm.prank(payee.addr);
        escrow.close(terms, 60, signature);

        _assertFinalized(id, 60);
        assertEq(token.balanceOf(payee.addr), 60);
    }

    function testFuzz_close_byOtherReverts(address caller) public {
        vm.assume(caller != payee.addr);
        (Terms memory terms,) = _open(100);
        bytes memory signature = _voucher(terms, 60);

        vm.prank(caller);
        _expect(abi.encodeWithSelector(IChannelEscrow.NotPayee.selector, caller, payee.addr));
        escrow.close(terms, 60, signature);
    }

    function testFuzz_close_belowSettledReverts(uint96 settled, uint96 amount) public {
        settled = uint96(bound(settled, 1, MAX));
        amount = uint96(bound(amount, 0, settled - 1));
        (Terms memory terms, bytes32 id) = _open(MAX);
        _settle(terms, settled);
        bytes memory signature = _voucher(terms, amount);

        vm.prank(payee.addr);
        _expect(abi.encodeWithSelector(IChannelEscrow.Stale.selector, id, amount, settled));
        escrow.close(terms, amount, signature);
    }

    function testFuzz_close_aboveDepositReverts(uint96 deposit, uint128 amount) public {
        deposit = uint96(bound(deposit, 1, MAX));
        amount = uint128(bound(amount, uint256(deposit) + 1, type(uint128).max));
        (Terms memory terms, bytes32 id) = _open(deposit);
        bytes memory signature = _voucher(terms, amount);

        vm.prank(payee.addr);
        _expect(abi.encodeWithSelector(IChannelEscrow.ExceedsDeposit.selector, id, amount, deposit));
        escrow.close(terms, amount, signature);
    }

    function testFuzz_close_badSignatureReverts(uint96 amount) public {
        amount = uint96(bound(amount, 1, MAX));
        (Terms memory terms, bytes32 id) = _open(MAX);
        bytes memory wrong = _voucher(terms, amount, payee);

        vm.prank(payee.addr);
        _expect(abi.encodeWithSelector(IChannelEscrow.InvalidSignature.selector, id, payer.addr));
        escrow.close(terms, amount, wrong);
        vm.prank(payee.addr);
        _expect(abi.encodeWithSelector(IChannelEscrow.InvalidSignature.selector, id, payer.addr));
        escrow.close(terms, amount, "");
    }

    function test_close_unknownReverts() public {
        Terms memory terms = _terms();
        bytes32 id = escrow.channelId(terms);

        vm.prank(payee.addr);
        _expect(abi.encodeWithSelector(IChannelEscrow.UnknownChannel.selector, id));
        escrow.close(terms, 0, "");
    }

    function test_close_twiceReverts() public {
        (Terms memory terms, bytes32 id) = _open(100);
        _close(terms);

        vm.prank(payee.addr);
        _expect(abi.encodeWithSelector(IChannelEscrow.ChannelFinalized.selector, id));
        escrow.close(terms, 0, "");
    }
}
