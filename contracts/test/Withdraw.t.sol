// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Base, IChannelEscrow, Terms} from "./Base.sol";

contract WithdrawTest is Base {
    function testFuzz_withdraw(uint96 deposit, uint96 settled, uint32 later, address caller) public {
        deposit = uint96(bound(deposit, 1, MAX));
        settled = uint96(bound(settled, 0, deposit));
        (Terms memory terms, bytes32 id) = _open(deposit);
        if (settled != 0) _settle(terms, settled);
        _requestClose(terms);
        skip(uint256(GRACE) + later);
        uint256 before = token.balanceOf(payer.addr);

        _emits();
        emit IChannelEscrow.Closed(id, settled, deposit - settled);
        vm.prank(caller);
        escrow.withdraw(terms);

        _assertFinalized(id, settled);
        assertEq(token.balanceOf(payer.addr), before + deposit - settled);
        assertEq(token.balanceOf(payee.addr), settled);
        assertEq(token.balanceOf(address(escrow)), 0);
    }

    function testFuzz_withdraw_earlyReverts(uint40 early) public {
        early = uint40(bound(early, 1, GRACE));
        (Terms memory terms, bytes32 id) = _open(100);
        _requestClose(terms);
        uint256 withdrawableAt = vm.getBlockTimestamp() + GRACE;
        skip(GRACE - early);

        _expect(
            abi.encodeWithSelector(
                IChannelEscrow.GracePeriodActive.selector, id, withdrawableAt - early, withdrawableAt
            )
        );
        escrow.withdraw(terms);
    }

    /// @dev A settlement in the grace period comes off what the payer gets.
    function testFuzz_withdraw_afterLateSettle(uint96 amount, uint32 later) public {
        amount = uint96(bound(amount, 1, MAX));
        (Terms memory terms, bytes32 id) = _open(MAX);
        _requestClose(terms);
        skip(later);
        _settle(terms, amount);
        skip(GRACE);

        escrow.withdraw(terms);

        _assertFinalized(id, amount);
        assertEq(token.balanceOf(payee.addr), amount);
        assertEq(token.balanceOf(address(escrow)), 0);
    }

    function test_withdraw_notRequestedReverts() public {
        (Terms memory terms, bytes32 id) = _open(100);

        vm.prank(payer.addr);
        _expect(abi.encodeWithSelector(IChannelEscrow.CloseNotRequested.selector, id));
        escrow.withdraw(terms);
    }

    function test_withdraw_twiceReverts() public {
        (Terms memory terms, bytes32 id) = _open(100);
        _requestClose(terms);
        skip(GRACE);
        escrow.withdraw(terms);

        _expect(abi.encodeWithSelector(IChannelEscrow.ChannelFinalized.selector, id));
        escrow.withdraw(terms);
    }

    function test_withdraw_unknownReverts() public {
        Terms memory terms = _terms();
        bytes32 id = escrow.channelId(terms);

        _expect(abi.encodeWithSelector(IChannelEscrow.UnknownChannel.selector, id));
        escrow.withdraw(terms);
    }
}
