// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Test} from "forge-std/Test.sol";

import {Handler} from "./Handler.sol";

/// @notice What holds whatever anyone does, in several tokens at once, of which one refuses to pay whom it likes:
///
/// 1. The escrow's balance of a token is what its open channels of that token have left, and what it owes of it.
/// 2. A channel's settled amount never decreases, and never exceeds its deposit.
/// 3. A channel never settles more than its signer vouchered, whatever rows a batch has.
/// 4. Every unit that leaves the escrow reaches the payer or the payee of the channel that it came in with, or the address
///    that the one of them named who was owed it.
/// 5. Nothing of a token is anywhere else.
/// 6. A closed channel never changes again: its id never opens, pays or refunds a second time.
/// 7. What the token refused to pay is owed until it is withdrawn, and nothing else is.
/// 8. A payee with a valid voucher is paid it, or owed it, at any moment before the withdrawal.
/// 9. A payer gets all the rest once the grace period is over, from any state and without anybody's help.
/// 10. No signature works twice, and nobody's call works that is not allowed (the handler's `replay` and `forge`).
contract InvariantsTest is Test {
    Handler private _handler;

    function setUp() public {
        _handler = new Handler();
        _handler.setUp();
        bytes4[] memory selectors = new bytes4[](16);
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
        selectors[13] = Handler.cancelClose.selector;
        selectors[14] = Handler.refuse.selector;
        selectors[15] = Handler.withdrawCredit.selector;
        targetContract(address(_handler));
        targetSelector(FuzzSelector({addr: address(_handler), selectors: selectors}));
    }

    function invariant_balance() public view {
        _handler.checkBalance();
    }

    function invariant_bounds() public view {
        _handler.checkBounds();
    }

    function invariant_books() public view {
        _handler.checkBooks();
    }

    function invariant_payouts() public view {
        _handler.checkPayouts();
    }

    function invariant_supply() public view {
        _handler.checkSupply();
    }

    function invariant_tombstones() public view {
        _handler.checkTombstones();
    }

    function invariant_credits() public view {
        _handler.checkCredits();
    }

    /// @dev At the end of a run the channels are wherever chance left them, and everybody must get out from there.
    function afterInvariant() public {
        _handler.checkExit();
    }
}
