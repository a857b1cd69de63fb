// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Base, Channel, IChannelEscrow, Terms} from "./Base.sol";

contract RequestCloseTest is Base {
    function testFuzz_requestClose(uint96 deposit, uint96 settled, uint32 later) public {
        deposit = uint96(bound(deposit, 1, MAX));
        settled = uint96(bound(settled, 0, deposit));
        (Terms memory terms, bytes32 id) = _open(deposit);
        if (settled != 0) _settle(terms, settled);
        skip(later);
        uint256 time = vm.getBlockTimestamp();

        _emits();
        emit IChannelEscrow.CloseRequested(id, time + GRACE);
        _requestClose(terms);

        Channel memory c = escrow.channel(id);
        assertEq(abi.encode(c), abi.encode(Channel(deposit, settled, uint40(time), 1, true, false)));
        assertEq(token.balanceOf(address(escrow)), deposit - settled);
    }

    function testFuzz_requestClose_byOtherReverts(address caller) public {
        vm.assume(caller != payer.addr);
        Terms memory terms = _termsSigned();
        _open(terms, 100);

        vm.prank(caller);
        _expect(abi.encodeWithSelector(IChannelEscrow.NotPayer.selector, caller, payer.addr));
        escrow.requestClose(terms);
    }

    /// @dev Asking again must not start the grace period again.
    function testFuzz_requestClose_twiceReverts(uint32 later) public {
        (Terms memory terms, bytes32 id) = _open(100);
        uint256 withdrawableAt = vm.getBlockTimestamp() + GRACE;
        _requestClose(terms);
        skip(later);

        vm.prank(payer.addr);
        _expect(abi.encodeWithSelector(IChannelEscrow.CloseAlreadyRequested.selector, id, withdrawableAt));
        escrow.requestClose(terms);
    }

    /// @dev Cancelled and asked for again, the grace period runs anew and the counter goes on.
    function testFuzz_requestClose_again(uint8 times) public {
        (Terms memory terms, bytes32 id) = _open(100);
        for (uint256 i = 1; i <= times; ++i) {
            _requestClose(terms);
            assertEq(escrow.channel(id).closeRequests, i);
            assertEq(escrow.channel(id).closeRequestedAt, vm.getBlockTimestamp());
            vm.prank(payer.addr);
            escrow.topUp(terms, 1);
            skip(1 days);
        }
        _assertBooks(id, 100 + uint256(times), 0);
    }

    function test_requestClose_unknownReverts() public {
        Terms memory terms = _terms();
        bytes32 id = escrow.channelId(terms);

        vm.prank(payer.addr);
        _expect(abi.encodeWithSelector(IChannelEscrow.UnknownChannel.selector, id));
        escrow.requestClose(terms);
    }

    function test_requestClose_finalizedReverts() public {
        (Terms memory terms, bytes32 id) = _open(100);
        _close(terms);

        vm.prank(payer.addr);
        _expect(abi.encodeWithSelector(IChannelEscrow.ChannelFinalized.selector, id));
        escrow.requestClose(terms);
    }
}
