// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Test} from "forge-std/Test.sol";

import {FINALIZED, OPEN, Slot, SlotLib} from "../src/Slot.sol";

/// @notice The packing of a channel's one slot: every writer moves its own part and no other.
contract SlotTest is Test {
    uint96 private constant MAX = type(uint96).max;

    function _slot(uint96 deposit, uint96 settled, uint40 time, uint16 requests) private pure returns (Slot) {
        return
            Slot.wrap(OPEN << 248 | uint256(requests) << 232 | uint256(time) << 192 | uint256(deposit) << 96 | settled);
    }

    function _assert(Slot slot, uint256 status, uint96 deposit, uint96 settled, uint40 time, uint16 requests)
        private
        pure
    {
        assertEq(slot.status(), status, "status");
        assertEq(slot.deposit(), deposit, "deposit");
        assertEq(slot.settled(), settled, "settled");
        assertEq(slot.closeRequestedAt(), time, "closeRequestedAt");
        assertEq(slot.closeRequests(), requests, "closeRequests");
    }

    function testFuzz_create(uint96 amount) public pure {
        _assert(SlotLib.create(amount), OPEN, amount, 0, 0, 0);
    }

    function testFuzz_pay(uint96 deposit, uint96 settled, uint40 time, uint16 requests, uint96 amount) public pure {
        settled = uint96(bound(settled, 0, deposit));
        amount = uint96(bound(amount, 0, deposit - settled));
        Slot slot = _slot(deposit, settled, time, requests).pay(amount);
        _assert(slot, OPEN, deposit, settled + amount, time, requests);
    }

    function testFuzz_fund(uint96 deposit, uint96 settled, uint40 time, uint16 requests, uint96 amount) public pure {
        amount = uint96(bound(amount, 0, MAX - deposit));
        Slot slot = _slot(deposit, settled, time, requests).fund(amount);
        _assert(slot, OPEN, deposit + amount, settled, time, requests);
    }

    function testFuzz_requestAndCancel(uint96 deposit, uint96 settled, uint40 time, uint16 requests) public pure {
        requests = uint16(bound(requests, 0, type(uint16).max - 1));
        Slot slot = _slot(deposit, settled, 0, requests).request(time);
        _assert(slot, OPEN, deposit, settled, time, requests + 1);
        _assert(slot.cancel(), OPEN, deposit, settled, 0, requests + 1);
    }

    function testFuzz_finalize(uint96 deposit, uint96 settled, uint40 time, uint16 requests) public pure {
        Slot slot = _slot(deposit, settled, time, requests).finalize();
        _assert(slot, FINALIZED, deposit, settled, 0, requests);
    }

    function testFuzz_covers(uint96 deposit, uint96 settled, uint256 amount, uint8 status) public pure {
        status = uint8(bound(status, 0, FINALIZED));
        Slot slot = Slot.wrap(Slot.unwrap(_slot(deposit, settled, 0, 0)) ^ (OPEN ^ status) << 248);
        if (status == 0) slot = Slot.wrap(0); // a channel that is not known has nothing else either
        assertEq(slot.covers(amount), status == OPEN && amount > settled && amount <= deposit);
        assertEq(slot.covers(deposit), status == OPEN && deposit > settled);
    }
}
