// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @notice A channel's whole state in one word, because one storage slot is most of what a channel costs. Low to high:
/// settled (96 bits), deposit (96), closeRequestedAt (40), closeRequests (16), status (8: 0 unknown, 1 open, 2 finalized).
/// `settled` is lowest so that paying `x` more is adding `x` to the word.
type Slot is uint256;

using SlotLib for Slot global;

uint256 constant OPEN = 1;
uint256 constant FINALIZED = 2;

/// @notice Reads and writes the parts of a `Slot`. The writers trust their caller with the bounds, which are named.
library SlotLib {
    uint256 private constant DEPOSIT = 96;
    uint256 private constant CLOSE_REQUESTED_AT = 192;
    uint256 private constant CLOSE_REQUESTS = 232;
    uint256 private constant STATUS = 248;

    /// @dev A new open channel; `amount` is at most 2^96-1.
    function create(uint256 amount) internal pure returns (Slot) {
        return Slot.wrap(OPEN << STATUS | amount << DEPOSIT);
    }

    function settled(Slot slot) internal pure returns (uint96) {
        return uint96(Slot.unwrap(slot));
    }

    function deposit(Slot slot) internal pure returns (uint96) {
        return uint96(Slot.unwrap(slot) >> DEPOSIT);
    }

    function closeRequestedAt(Slot slot) internal pure returns (uint40) {
        return uint40(Slot.unwrap(slot) >> CLOSE_REQUESTED_AT);
    }

    function closeRequests(Slot slot) internal pure returns (uint16) {
        return uint16(Slot.unwrap(slot) >> CLOSE_REQUESTS);
    }

    function status(Slot slot) internal pure returns (uint256) {
        return Slot.unwrap(slot) >> STATUS;
    }

    /// @dev Whether a voucher over `cumulativeAmount` can be paid. Without branches: a batch asks it for every row. An
    /// unknown channel has no deposit, and so covers nothing.
    function covers(Slot slot, uint256 cumulativeAmount) internal pure returns (bool covered) {
        uint256 low = slot.settled();
        uint256 high = slot.deposit();
        assembly ("memory-safe") {
            let fresh := and(lt(slot, shl(STATUS, FINALIZED)), gt(cumulativeAmount, low))
            covered := gt(fresh, gt(cumulativeAmount, high)) // fresh, and not above the deposit
        }
    }

    /// @dev `settled + amount` is at most the deposit.
    function pay(Slot slot, uint256 amount) internal pure returns (Slot) {
        unchecked {
            return Slot.wrap(Slot.unwrap(slot) + amount);
        }
    }

    /// @dev `deposit + amount` is at most 2^96-1.
    function fund(Slot slot, uint256 amount) internal pure returns (Slot) {
        unchecked {
            return Slot.wrap(Slot.unwrap(slot) + (amount << DEPOSIT));
        }
    }

    /// @dev No request is pending, and `closeRequests` is under 65,535.
    function request(Slot slot, uint40 timestamp) internal pure returns (Slot) {
        unchecked {
            return Slot.wrap(Slot.unwrap(slot) + (uint256(timestamp) << CLOSE_REQUESTED_AT) + (1 << CLOSE_REQUESTS));
        }
    }

    function cancel(Slot slot) internal pure returns (Slot) {
        return Slot.wrap(Slot.unwrap(slot) & ~(uint256(type(uint40).max) << CLOSE_REQUESTED_AT));
    }

    /// @dev The tombstone: it keeps the amounts, so that anyone can see how the channel ended.
    function finalize(Slot slot) internal pure returns (Slot) {
        return Slot.wrap(Slot.unwrap(slot.cancel()) ^ ((OPEN ^ FINALIZED) << STATUS));
    }
}
