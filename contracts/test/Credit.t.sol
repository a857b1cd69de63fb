// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Vm} from "forge-std/Vm.sol";

import {Base, Credit, IChannelEscrow, Terms} from "./Base.sol";
import {Wallet} from "./mock/Wallet.sol";
import {HungryToken, LooseToken, ReentrantToken, RefusingToken} from "./token/HostileTokens.sol";

/// @notice What was earned in time is not lost because the token refuses to move it at that moment.
contract CreditTest is Base {
    RefusingToken private _token;

    function setUp() public override {
        super.setUp();
        _token = new RefusingToken();
        _allow(address(_token));
    }

    function _allow(address loose) private {
        LooseToken(loose).mint(payer.addr, 4 * uint256(MAX));
        vm.prank(payer.addr);
        LooseToken(loose).approve(address(escrow), type(uint256).max);
    }

    function _with(address loose) private view returns (Terms memory terms) {
        terms = _terms();
        terms.token = loose;
    }

    function _refusing() private view returns (Terms memory) {
        return _with(address(_token));
    }

    /// @dev One of the ways to refuse.
    function _way(uint8 seed) private pure returns (RefusingToken.Way) {
        return RefusingToken.Way(1 + seed % 4);
    }

    function _assertCredit(address account, uint256 amount, uint256 withdrawals) private view {
        Credit memory c = escrow.credit(account, address(_token));
        assertEq(c.amount, amount, "credit");
        assertEq(c.withdrawals, withdrawals, "withdrawals");
    }

    /// @dev A payee with a credit of 60, of a token that pays again.
    function _credited() private returns (bytes32 id) {
        id = _open(_refusing(), 100);
        _token.refuse(payee.addr, RefusingToken.Way.Reverts);
        _settle(_refusing(), 60);
        _token.refuse(payee.addr, RefusingToken.Way.Pays);
        _assertCredit(payee.addr, 60, 0);
    }

    /*//////////////////////////////////////////////////////////////
                         PAYOUTS THAT ARE REFUSED
    //////////////////////////////////////////////////////////////*/

    /// @dev The token is paused from before the close request to long after the grace period. Voucher and refund are worth
    /// what they were worth.
    function testFuzz_pauseOutlastsTheGracePeriod(uint96 deposit, uint96 amount, uint32 pause) public {
        deposit = uint96(bound(deposit, 2, MAX));
        amount = uint96(bound(amount, 1, deposit - 1));
        Terms memory terms = _refusing();
        bytes32 id = _open(terms, deposit);
        bytes memory signature = _voucher(terms, amount);
        uint256 before = _token.balanceOf(payer.addr);

        _token.pause(true);
        _requestClose(terms);
        skip(GRACE - 1);
        _emits();
        emit IChannelEscrow.Settled(id, amount);
        _emits();
        emit IChannelEscrow.Credited(payee.addr, address(_token), amount);
        escrow.settle(terms, amount, signature);
        skip(1);
        _emits();
        emit IChannelEscrow.Closed(id, amount, deposit - amount);
        _emits();
        emit IChannelEscrow.Credited(payer.addr, address(_token), deposit - amount);
        escrow.withdraw(terms);
        _assertFinalized(id, amount);
        skip(pause);
        assertEq(_token.balanceOf(address(escrow)), deposit);

        _token.pause(false);
        _emits();
        emit IChannelEscrow.CreditWithdrawn(payee.addr, address(_token), payee.addr, amount);
        vm.prank(payee.addr);
        escrow.withdrawCredit(address(_token), payee.addr);
        vm.prank(payer.addr);
        escrow.withdrawCredit(address(_token), payer.addr);

        assertEq(_token.balanceOf(payee.addr), amount);
        assertEq(_token.balanceOf(payer.addr), before + deposit - amount);
        assertEq(_token.balanceOf(address(escrow)), 0);
    }

    /// @dev Every way to refuse, and every call that pays a payee.
    function testFuzz_refusedPayee(uint8 how, uint8 call, uint96 deposit, uint96 amount) public {
        deposit = uint96(bound(deposit, 2, MAX));
        amount = uint96(bound(amount, 1, deposit - 1));
        Terms memory terms = _refusing();
        bytes32 id = _open(terms, deposit);
        bytes memory signature = _voucher(terms, amount);
        uint256 before = _token.balanceOf(payer.addr);
        _token.refuse(payee.addr, _way(how));

        if (call % 3 == 0) escrow.settle(terms, amount, signature);
        if (call % 3 == 1) {
            uint256 paid = escrow.settleBatch(payee.addr, address(_token), _row(terms, amount, signature));
            assertEq(paid, amount);
        }
        if (call % 3 == 2) {
            vm.prank(payee.addr);
            escrow.close(terms, amount, signature);
            assertEq(_token.balanceOf(payer.addr), before + deposit - amount, "the payer waits for the payee's trouble");
        }

        _assertCredit(payee.addr, amount, 0);
        assertEq(escrow.channel(id).settled, amount);
        _expect(abi.encodeWithSelector(IChannelEscrow.TransferFailed.selector));
        escrow.withdrawCreditWithAuthorization(payee.addr, address(_token), payee.addr, 0, "");
        _assertCredit(payee.addr, amount, 0);

        vm.prank(payee.addr);
        escrow.withdrawCredit(address(_token), stranger.addr);
        assertEq(_token.balanceOf(stranger.addr), amount);
        _assertCredit(payee.addr, 0, 1);
    }

    /// @dev Every way to refuse, and every call that refunds a payer: the payee is paid, the channel is closed.
    function testFuzz_refusedPayer(uint8 how, bool forced, uint96 deposit, uint96 amount) public {
        deposit = uint96(bound(deposit, 2, MAX));
        amount = uint96(bound(amount, 1, deposit - 1));
        Terms memory terms = _refusing();
        bytes32 id = _open(terms, deposit);
        bytes memory signature = _voucher(terms, amount);
        uint256 before = _token.balanceOf(payer.addr);
        _token.refuse(payer.addr, _way(how));

        if (forced) {
            escrow.settle(terms, amount, signature);
            _requestClose(terms);
            skip(GRACE);
            escrow.withdraw(terms);
        } else {
            vm.prank(payee.addr);
            escrow.close(terms, amount, signature);
        }

        _assertFinalized(id, amount);
        assertEq(_token.balanceOf(payee.addr), amount);
        _assertCredit(payer.addr, deposit - amount, 0);
        _token.refuse(payer.addr, RefusingToken.Way.Pays);
        escrow.withdrawCreditWithAuthorization(payer.addr, address(_token), payer.addr, 0, "");
        assertEq(_token.balanceOf(payer.addr), before + deposit - amount);
        assertEq(_token.balanceOf(address(escrow)), 0);
    }

    /// @dev Credits add up, apart for each account and token, and a payment that the token takes again is no credit.
    function test_creditsAddUp() public {
        Terms memory terms = _refusing();
        _open(terms, 100);
        _token.refuse(payee.addr, RefusingToken.Way.Reverts);
        _settle(terms, 10);
        _settle(terms, 30);
        _assertCredit(payee.addr, 30, 0);
        _token.refuse(payee.addr, RefusingToken.Way.Pays);
        _settle(terms, 70);
        _assertCredit(payee.addr, 30, 0);
        assertEq(_token.balanceOf(payee.addr), 40);

        (Terms memory other,) = _open(100);
        _settle(other, 60);
        assertEq(escrow.credit(payee.addr, address(token)).amount, 0);
        _assertCredit(payer.addr, 0, 0);
        vm.prank(payee.addr);
        _expect(abi.encodeWithSelector(IChannelEscrow.NoCredit.selector, payee.addr, address(token)));
        escrow.withdrawCredit(address(token), payee.addr);
    }

    /// @dev There is no event of a credit, nor any more than before, where the token pays.
    function test_paidIsNotCredited() public {
        Terms memory terms = _refusing();
        _open(terms, 100);
        vm.recordLogs();
        _settle(terms, 10);
        escrow.settleBatch(payee.addr, address(_token), _row(terms, 20, _voucher(terms, 20)));
        _close(terms);
        Vm.Log[] memory logs = vm.getRecordedLogs();
        for (uint256 i; i < logs.length; ++i) {
            assertTrue(logs[i].topics[0] != IChannelEscrow.Credited.selector, "a credit of what was paid");
        }
        _assertCredit(payee.addr, 0, 0);
        _assertCredit(payer.addr, 0, 0);
    }

    /*//////////////////////////////////////////////////////////////
                          WHOEVER CHOOSES THE GAS
    //////////////////////////////////////////////////////////////*/

    /// @dev Nobody can turn a payment into a credit by the gas that it gives: whatever the limit, it pays or reverts. The
    /// dearest token that is safe needs half a million; a credit costs least where there was one before.
    function test_gasLimitForcesNoCredit() public {
        HungryToken hungry = new HungryToken();
        _allow(address(hungry));
        Terms memory terms = _with(address(hungry));
        bytes32 id = _open(terms, MAX);
        hungry.hunger(20_000_000);
        _trySettle(terms, 1, 16_000_000);
        assertEq(escrow.credit(payee.addr, address(hungry)).amount, 1, "no gas is enough for this one");

        uint96 amount = 1;
        for (uint256 i; i < 2; ++i) {
            hungry.hunger(i == 0 ? 0 : 500_000);
            for (uint256 gas = 40_000; gas < 1_500_000; gas += 3_000 + gas / 100) {
                uint256 before = hungry.balanceOf(payee.addr);
                bool ok = _trySettle(terms, amount + 1, gas);
                assertEq(hungry.balanceOf(payee.addr), ok ? before + 1 : before, "a credit for want of gas");
                assertEq(escrow.channel(id).settled, ok ? amount + 1 : amount);
                if (ok) ++amount;
            }
            assertGt(amount, 10 * (i + 1), "the limits are all too low");
        }
        assertEq(escrow.credit(payee.addr, address(hungry)).amount, 1);
    }

    function _trySettle(Terms memory terms, uint96 amount, uint256 gas) private returns (bool ok) {
        bytes memory data = abi.encodeCall(escrow.settle, (terms, amount, _voucher(terms, amount)));
        (ok,) = address(escrow).call{gas: gas}(data);
    }

    /*//////////////////////////////////////////////////////////////
                            FETCHING CREDIT
    //////////////////////////////////////////////////////////////*/

    function test_withdrawCredit_onceOnly() public {
        _credited();
        vm.prank(payee.addr);
        escrow.withdrawCredit(address(_token), payee.addr);
        assertEq(_token.balanceOf(payee.addr), 60);
        _assertCredit(payee.addr, 0, 1);

        vm.prank(payee.addr);
        _expect(abi.encodeWithSelector(IChannelEscrow.NoCredit.selector, payee.addr, address(_token)));
        escrow.withdrawCredit(address(_token), payee.addr);
    }

    function testFuzz_withdrawCredit_byAnotherReverts(address caller, address to) public {
        vm.assume(caller != payee.addr && to != address(0) && to != address(escrow));
        _credited();
        vm.prank(caller);
        _expect(abi.encodeWithSelector(IChannelEscrow.NoCredit.selector, caller, address(_token)));
        escrow.withdrawCredit(address(_token), to);
        _assertCredit(payee.addr, 60, 0);
    }

    /// @dev At these addresses it would be lost.
    function test_withdrawCredit_toNobodyReverts() public {
        _credited();
        address[2] memory nobody = [address(0), address(escrow)];
        for (uint256 i; i < 2; ++i) {
            vm.prank(payee.addr);
            _expect(abi.encodeWithSelector(IChannelEscrow.InvalidRecipient.selector, nobody[i]));
            escrow.withdrawCredit(address(_token), nobody[i]);
        }
        _assertCredit(payee.addr, 60, 0);
    }

    /// @dev To the account itself anyone may have it paid; that takes no signature.
    function testFuzz_withdrawCreditWithAuthorization_toTheAccount(address caller, uint256 deadline, bytes memory any)
        public
    {
        _credited();
        vm.prank(caller);
        escrow.withdrawCreditWithAuthorization(payee.addr, address(_token), payee.addr, deadline, any);
        assertEq(_token.balanceOf(payee.addr), 60);
        _assertCredit(payee.addr, 0, 1);
    }

    function testFuzz_withdrawCreditWithAuthorization(address caller, address to, uint32 wait) public {
        vm.assume(to != address(0) && to != address(escrow) && to != payee.addr);
        uint256 before = _token.balanceOf(to);
        _credited();
        uint256 deadline = vm.getBlockTimestamp() + wait;
        bytes memory permission = _sign(payee, _withdrawCreditDigest(payee.addr, address(_token), to, 0, deadline));
        skip(wait);

        _emits();
        emit IChannelEscrow.CreditWithdrawn(payee.addr, address(_token), to, 60);
        vm.prank(caller);
        escrow.withdrawCreditWithAuthorization(payee.addr, address(_token), to, deadline, permission);
        assertEq(_token.balanceOf(to), (to == payer.addr ? before - 100 : before) + 60);

        // A later credit is not the signature's.
        _token.refuse(payee.addr, RefusingToken.Way.Reverts);
        _settle(_refusing(), 90);
        _expect(abi.encodeWithSelector(IChannelEscrow.InvalidSignature.selector, bytes32(0), payee.addr));
        escrow.withdrawCreditWithAuthorization(payee.addr, address(_token), to, deadline, permission);
        _assertCredit(payee.addr, 30, 1);
    }

    function testFuzz_withdrawCreditWithAuthorization_bindsAll(uint8 which) public {
        bytes32 id = _credited();
        address to = stranger.addr;
        uint256 end = vm.getBlockTimestamp();
        bytes32 digest;
        if (which % 7 == 0) digest = _withdrawCreditDigest(payer.addr, address(_token), to, 0, end);
        if (which % 7 == 1) digest = _withdrawCreditDigest(payee.addr, address(token), to, 0, end);
        if (which % 7 == 2) digest = _withdrawCreditDigest(payee.addr, address(_token), payer.addr, 0, end);
        if (which % 7 == 3) digest = _withdrawCreditDigest(payee.addr, address(_token), to, 1, end);
        if (which % 7 == 4) digest = _withdrawCreditDigest(payee.addr, address(_token), to, 0, end + 1);
        if (which % 7 == 5) digest = _closeDigest(id, 60, end);
        if (which % 7 == 6) digest = escrow.voucherDigest(id, 60);
        bytes memory permission = _sign(payee, digest);

        _expect(abi.encodeWithSelector(IChannelEscrow.InvalidSignature.selector, bytes32(0), payee.addr));
        escrow.withdrawCreditWithAuthorization(payee.addr, address(_token), to, end, permission);
        _assertCredit(payee.addr, 60, 0);
    }

    function testFuzz_withdrawCreditWithAuthorization_lateReverts(uint32 late) public {
        vm.assume(late != 0);
        _credited();
        uint256 deadline = vm.getBlockTimestamp();
        bytes memory permission =
            _sign(payee, _withdrawCreditDigest(payee.addr, address(_token), stranger.addr, 0, deadline));
        skip(late);
        _expect(abi.encodeWithSelector(IChannelEscrow.DeadlinePassed.selector, deadline, deadline + late));
        escrow.withdrawCreditWithAuthorization(payee.addr, address(_token), stranger.addr, deadline, permission);
    }

    function test_withdrawCreditWithAuthorization_byWallet() public {
        Terms memory terms = _refusing();
        terms.payee = address(new Wallet(payee.addr));
        _open(terms, 100);
        _token.refuse(terms.payee, RefusingToken.Way.SaysFalse);
        _settle(terms, 60);
        bytes32 digest = _withdrawCreditDigest(terms.payee, address(_token), stranger.addr, 0, type(uint256).max);

        escrow.withdrawCreditWithAuthorization(
            terms.payee, address(_token), stranger.addr, type(uint256).max, bytes.concat(hex"01", _sign(payee, digest))
        );
        assertEq(_token.balanceOf(stranger.addr), 60);
    }

    /*//////////////////////////////////////////////////////////////
                              REENTRANCY
    //////////////////////////////////////////////////////////////*/

    /// @dev The token takes the call of a payout to make another, and then refuses the first: each voucher counts once.
    function testFuzz_reentrant_refusedPayout(uint8 inner) public {
        ReentrantToken hostile = new ReentrantToken();
        _allow(address(hostile));
        Terms memory terms = _with(address(hostile));
        terms.payee = address(hostile);
        Terms memory other = _with(address(hostile));
        other.salt = bytes32(uint256(8));
        _open(terms, 100);
        _open(other, 500);
        bytes memory first = _voucher(terms, 60);
        hostile.refuseOnce();
        if (inner % 3 == 0) hostile.arm(address(escrow), abi.encodeCall(escrow.settle, (terms, 60, first)));
        if (inner % 3 == 1) {
            hostile.arm(address(escrow), abi.encodeCall(escrow.settle, (other, 70, _voucher(other, 70))));
        }
        if (inner % 3 == 2) {
            hostile.arm(address(escrow), abi.encodeCall(escrow.withdrawCredit, (address(hostile), address(hostile))));
        }

        escrow.settle(terms, 60, first);

        assertEq(hostile.succeeded(), inner % 3 == 1);
        assertEq(escrow.credit(terms.payee, address(hostile)).amount, 60);
        assertEq(hostile.balanceOf(payee.addr), inner % 3 == 1 ? 70 : 0);
        assertEq(hostile.balanceOf(address(escrow)), inner % 3 == 1 ? 530 : 600);
    }

    /// @dev Credit is gone before the token is called to pay it.
    function test_reentrant_withdrawCreditTwice() public {
        ReentrantToken hostile = new ReentrantToken();
        _allow(address(hostile));
        Terms memory terms = _with(address(hostile));
        terms.payee = address(hostile);
        _open(terms, 100);
        hostile.refuseOnce();
        _settle(terms, 60);
        bytes memory again = abi.encodeCall(escrow.withdrawCredit, (address(hostile), address(hostile)));
        hostile.arm(address(escrow), again);

        escrow.withdrawCreditWithAuthorization(address(hostile), address(hostile), address(hostile), 0, "");

        assertFalse(hostile.succeeded());
        assertEq(hostile.balanceOf(address(escrow)), 40);
    }

    /// @dev What is paid out of credit while a deposit is measured makes the deposit arrive short.
    function test_reentrant_withdrawCreditInDeposit() public {
        ReentrantToken hostile = new ReentrantToken();
        _allow(address(hostile));
        Terms memory terms = _with(address(hostile));
        _open(terms, 100);
        hostile.refuseOnce();
        _settle(terms, 30);
        hostile.arm(
            address(escrow),
            abi.encodeCall(
                escrow.withdrawCreditWithAuthorization, (payee.addr, address(hostile), payee.addr, 0, bytes(""))
            )
        );

        vm.prank(payer.addr);
        _expect(abi.encodeWithSelector(IChannelEscrow.DepositMismatch.selector, 20, 50));
        escrow.topUp(terms, 50);
    }
}
