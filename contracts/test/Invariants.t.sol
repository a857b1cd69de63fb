// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Test} from "forge-std/Test.sol";

import {Handler} from "./Handler.sol";

/// @notice What holds whatever anyone does:
///
/// 1. The escrow's balance of a token is the sum of what its open channels of that token have left.
/// 2. A channel's settled amount never decreases, and never exceeds its deposit.
/// 3. A channel never settles more than its signer vouchered.
/// 4. Every unit that leaves the escrow reaches the payer or the payee of the channel that it came in with.
/// 5. A closed channel never changes again: its id never opens, pays or refunds a second time.
/// 6. A payee with a valid voucher is paid it at any moment before the withdrawal.
/// 7. A payer gets all the rest once the grace period is over, from any state and without anybody's help.
/// 8. No signature works twice, and nobody's call works that is not allowed (the handler's `replay` and `forge`).
contract InvariantsTest is Test {
    Handler private _handler;

    function setUp() public {
        _handler = new Handler();
        _handler.setUp();
        bytes4[] memory selectors = new bytes4[](13);
        selectors[0] = Handler.open.selector;
        selectors[1] = Handler.topUp.selector;
        selectors[2] = Handler.gift.selector;
        selectors[3] = Handler.topUpWithAuthorization.selector;
        selectors[4] = Handler.voucher.selector;
        selectors[5] = Handler.settle.selector;
        selectors[6] = Handler.settleBatch.selector;
        selectors[7] = Handler.close.selector;
        selectors[8] = Handler.requestClose.selector;
        selectors[9] = Handler.withdraw.selector;
        selectors[10] = Handler.wait.selector;
        selectors[11] = Handler.replay.selector;
        selectors[12] = Handler.forge.selector;
        targetContract(address(_handler));
        targetSelector(FuzzSelector({addr: address(_handler), selectors: selectors}));
    }

    function invariant_balance() public view {
        _handler.checkBalance();
    }

    function invariant_books() public view {
        _handler.checkBooks();
    }

    function invariant_payouts() public view {
        _handler.checkPayouts();
    }

    function invariant_tombstones() public view {
        _handler.checkTombstones();
    }

    /// @dev At the end of a run the channels are wherever chance left them, and everybody must get out from there.
    function afterInvariant() public {
        _handler.checkExit();
    }
}
