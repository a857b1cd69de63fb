// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Base, IChannelEscrow, Terms} from "./Base.sol";
import {
    BlockingToken,
    BonusToken,
    FalseToken,
    FeeToken,
    LooseToken,
    LyingToken,
    ReentrantToken,
    SeizingToken,
    SilentToken
} from "./token/HostileTokens.sol";

/// @notice Tokens that misbehave: each harms its own channels at most, and never the books.
contract HostileTokensTest is Base {
    function _with(address hostile) private returns (Terms memory terms) {
        terms = _terms();
        terms.token = hostile;
        // Called as a token that returns nothing, so that it does not matter what it returns.
        SilentToken(hostile).mint(payer.addr, uint256(MAX) * 4);
        vm.prank(payer.addr);
        SilentToken(hostile).approve(address(escrow), type(uint256).max);
    }

    function _expectOpenReverts(Terms memory terms, uint128 deposit, bytes memory revertData) private {
        vm.prank(payer.addr);
        _expect(revertData);
        escrow.open(terms.payee, terms.token, deposit, terms.salt, terms.authorizedSigner);
    }

    /*//////////////////////////////////////////////////////////////
                            SHORT DEPOSITS
    //////////////////////////////////////////////////////////////*/

    function testFuzz_feeToken_openReverts(uint96 deposit, uint8 percent) public {
        deposit = uint96(bound(deposit, 1, MAX));
        percent = uint8(bound(percent, 1, 100));
        FeeToken hostile = new FeeToken();
        hostile.setFee(percent);
        Terms memory terms = _with(address(hostile));
        uint256 received = deposit - (uint256(deposit) * percent + 99) / 100;
        bytes memory mismatch = abi.encodeWithSelector(IChannelEscrow.DepositMismatch.selector, received, deposit);

        _expectOpenReverts(terms, deposit, mismatch);
        _expect(mismatch);
        escrow.openWithAuthorization(
            terms.payee, terms.token, deposit, terms.salt, address(0), payer.addr, 0, 0, _openNonce(terms), ""
        );

        assertFalse(escrow.channel(escrow.channelId(terms)).open);
    }

    /// @dev The fee is switched on after the channel was opened.
    function testFuzz_feeToken_topUpReverts(uint96 more) public {
        more = uint96(bound(more, 1, MAX - 100));
        FeeToken hostile = new FeeToken();
        Terms memory terms = _with(address(hostile));
        bytes32 id = _open(terms, 100);
        hostile.setFee(100);
        bytes memory mismatch = abi.encodeWithSelector(IChannelEscrow.DepositMismatch.selector, 0, more);
        bytes32 nonce = _topUpNonce(id, more, payer.addr, SALT);

        vm.prank(payer.addr);
        _expect(mismatch);
        escrow.topUp(terms, more);
        _expect(mismatch);
        escrow.topUpWithAuthorization(terms, more, payer.addr, SALT, 0, 0, nonce, "");

        _assertBooks(id, 100, 0);
    }

    function testFuzz_bonusToken_openReverts(uint96 deposit) public {
        deposit = uint96(bound(deposit, 1, MAX));
        Terms memory terms = _with(address(new BonusToken()));

        _expectOpenReverts(
            terms,
            deposit,
            abi.encodeWithSelector(IChannelEscrow.DepositMismatch.selector, uint256(deposit) + 1, deposit)
        );
    }

    function testFuzz_lyingToken_openReverts(uint96 deposit) public {
        deposit = uint96(bound(deposit, 1, MAX));
        Terms memory terms = _with(address(new LyingToken()));

        _expectOpenReverts(terms, deposit, abi.encodeWithSelector(IChannelEscrow.DepositMismatch.selector, 0, deposit));
    }

    /*//////////////////////////////////////////////////////////////
                            RETURN VALUES
    //////////////////////////////////////////////////////////////*/

    function test_falseToken_refusesDeposits() public {
        FalseToken hostile = new FalseToken();
        Terms memory terms = _with(address(hostile));
        hostile.refuse(true);

        _expectOpenReverts(terms, 100, abi.encodeWithSelector(IChannelEscrow.TransferFromFailed.selector));
    }

    /// @dev A payout that the token refuses is credited: see Credit.t.sol. It pays once the token does.
    function testFuzz_falseToken_refusesPayouts(uint96 deposit, uint96 amount) public {
        deposit = uint96(bound(deposit, 2, MAX));
        amount = uint96(bound(amount, 1, deposit - 1));
        FalseToken hostile = new FalseToken();
        Terms memory terms = _with(address(hostile));
        bytes32 id = _open(terms, deposit);
        bytes memory signature = _voucher(terms, amount);
        _requestClose(terms);
        skip(GRACE);
        hostile.refuse(true);

        escrow.settle(terms, amount, signature);
        escrow.withdraw(terms);
        _assertFinalized(id, amount);
        assertEq(hostile.balanceOf(address(escrow)), deposit);
        vm.prank(payee.addr);
        _expect(abi.encodeWithSelector(IChannelEscrow.TransferFailed.selector));
        escrow.withdrawCredit(terms.token, payee.addr);

        hostile.refuse(false);
        vm.prank(payee.addr);
        escrow.withdrawCredit(terms.token, payee.addr);
        vm.prank(payer.addr);
        escrow.withdrawCredit(terms.token, payer.addr);
        assertEq(hostile.balanceOf(terms.payee), amount);
        assertEq(hostile.balanceOf(address(escrow)), 0);
    }

    /// @dev The oldest tokens return nothing and are as good as any.
    function testFuzz_silentToken_works(uint96 deposit, uint96 first, uint96 second) public {
        deposit = uint96(bound(deposit, 3, MAX));
        first = uint96(bound(first, 1, deposit - 2));
        second = uint96(bound(second, first + 1, deposit - 1));
        SilentToken silent = new SilentToken();
        Terms memory terms = _with(address(silent));
        bytes32 id = _open(terms, deposit - 1);
        vm.prank(payer.addr);
        escrow.topUp(terms, 1);
        uint256 before = silent.balanceOf(payer.addr);

        _settle(terms, first);
        escrow.settleBatch(terms.payee, terms.token, _row(terms, second, _voucher(terms, second)));
        _close(terms);

        _assertFinalized(id, second);
        assertEq(silent.balanceOf(terms.payee), second);
        assertEq(silent.balanceOf(payer.addr), before + deposit - second);
        assertEq(silent.balanceOf(address(escrow)), 0);
    }

    /*//////////////////////////////////////////////////////////////
                               BLOCKING
    //////////////////////////////////////////////////////////////*/

    /// @dev A payer that the token blocks cannot be refunded, but that is no reason not to pay the payee.
    function test_blockedPayer_doesNotBlockPayee() public {
        BlockingToken hostile = new BlockingToken();
        Terms memory terms = _with(address(hostile));
        bytes32 id = _open(terms, 100);
        bytes memory signature = _voucher(terms, 60);
        hostile.setBlocked(payer.addr, true);

        vm.prank(payee.addr);
        escrow.close(terms, 60, signature);

        assertEq(hostile.balanceOf(payee.addr), 60);
        _assertFinalized(id, 60);
        // The rest waits for the payer, for as long as it takes.
        hostile.setBlocked(payer.addr, false);
        vm.prank(payer.addr);
        escrow.withdrawCredit(terms.token, payer.addr);
        assertEq(hostile.balanceOf(address(escrow)), 0);
    }

    /// @dev A fully spent channel has nothing to refund, and so closes for a blocked payer as well.
    function test_blockedPayer_closesWhenSpent() public {
        BlockingToken hostile = new BlockingToken();
        Terms memory terms = _with(address(hostile));
        bytes32 id = _open(terms, 100);
        bytes memory signature = _voucher(terms, 100);
        hostile.setBlocked(payer.addr, true);

        vm.prank(payee.addr);
        escrow.close(terms, 100, signature);

        _assertFinalized(id, 100);
    }

    /// @dev And the other way round: a payee that the token blocks cannot hold the payer's money, and keeps its own.
    function test_blockedPayee_doesNotTrapPayer() public {
        BlockingToken hostile = new BlockingToken();
        Terms memory terms = _with(address(hostile));
        _open(terms, 100);
        bytes memory signature = _voucher(terms, 60);
        hostile.setBlocked(payee.addr, true);
        uint256 before = hostile.balanceOf(payer.addr);

        _requestClose(terms);
        skip(GRACE);
        escrow.settle(terms, 60, signature);
        escrow.withdraw(terms);

        assertEq(hostile.balanceOf(payer.addr), before + 40);
        assertEq(escrow.credit(payee.addr, terms.token).amount, 60);
    }

    /// @dev An issuer that blocks the escrow itself holds what is in it, and nothing is booked away meanwhile.
    function test_blockedEscrow_owesEverybody() public {
        BlockingToken hostile = new BlockingToken();
        Terms memory terms = _with(address(hostile));
        _open(terms, 100);
        hostile.setBlocked(address(escrow), true);

        _settle(terms, 60);
        _close(terms);

        assertEq(escrow.credit(payee.addr, terms.token).amount, 60);
        assertEq(escrow.credit(payer.addr, terms.token).amount, 40);
        assertEq(hostile.balanceOf(address(escrow)), 100);
    }

    /*//////////////////////////////////////////////////////////////
                              REENTRANCY
    //////////////////////////////////////////////////////////////*/

    function _reentrant() private returns (ReentrantToken hostile, Terms memory terms) {
        hostile = new ReentrantToken();
        terms = _with(address(hostile));
        hostile.mint(address(hostile), 1_000);
        hostile.approveAs(address(escrow), type(uint256).max);
    }

    /// @dev One payment, counted for two channels: what the lock is for.
    function testFuzz_reentrant_depositInDeposit(uint8 outer, uint8 inner) public {
        (ReentrantToken hostile, Terms memory terms) = _reentrant();
        bytes32 id = _open(terms, 100);
        hostile.arm(address(escrow), _deposit(inner, terms, id, "inner"));

        _call(terms.token, _deposit(outer, terms, id, "outer"));

        assertFalse(hostile.succeeded());
        assertEq(hostile.result(), abi.encodeWithSelector(IChannelEscrow.Reentered.selector));
        assertEq(hostile.balanceOf(address(escrow)), 150);
    }

    /// @dev The four ways to deposit, as the token itself would call them.
    function _deposit(uint8 way, Terms memory terms, bytes32 id, bytes32 salt) private view returns (bytes memory) {
        address self = terms.token;
        if (way % 4 == 0) return abi.encodeCall(escrow.open, (terms.payee, self, 50, salt, address(0)));
        if (way % 4 == 1) return abi.encodeCall(escrow.topUp, (terms, 50));
        if (way % 4 == 2) {
            Terms memory own = Terms(self, terms.payee, self, salt, address(0));
            return abi.encodeCall(
                escrow.openWithAuthorization, (own.payee, self, 50, salt, address(0), self, 0, 0, _openNonce(own), "")
            );
        }
        return abi.encodeCall(
            escrow.topUpWithAuthorization, (terms, 50, self, salt, 0, 0, _topUpNonce(id, 50, self, salt), "")
        );
    }

    function _call(address caller, bytes memory data) private {
        vm.prank(caller);
        (bool ok,) = address(escrow).call(data);
        assertTrue(ok, "the outer call fails");
    }

    /// @dev Paying out while a deposit is measured makes it arrive short, so the whole deposit reverts.
    function test_reentrant_settleInDeposit() public {
        (ReentrantToken hostile, Terms memory terms) = _reentrant();
        bytes32 id = _open(terms, 100);
        hostile.arm(address(escrow), abi.encodeCall(escrow.settle, (terms, 30, _voucher(terms, 30))));

        vm.prank(payer.addr);
        _expect(abi.encodeWithSelector(IChannelEscrow.DepositMismatch.selector, 20, 50));
        escrow.topUp(terms, 50);

        _assertBooks(id, 100, 0);
    }

    /// @dev One voucher, paid twice: the books are written before the token is called.
    function testFuzz_reentrant_payoutInPayout(uint8 outer, uint8 inner) public {
        (ReentrantToken hostile, Terms memory terms) = _reentrant();
        terms.payee = address(hostile);
        bytes32 id = _open(terms, 100);
        _open(_termsOf(address(hostile), stranger.addr), 500);
        _requestClose(terms);
        skip(GRACE);
        hostile.arm(address(escrow), _payout(inner, terms));
        uint256 before = hostile.balanceOf(payer.addr) + hostile.balanceOf(address(hostile));

        _call(address(hostile), _payout(outer, terms));

        uint256 paid = hostile.balanceOf(payer.addr) + hostile.balanceOf(address(hostile)) - before;
        assertEq(paid, 100 - _remainder(id));
        assertEq(hostile.balanceOf(address(escrow)), 500 + _remainder(id));
    }

    function _termsOf(address hostile, address to) private view returns (Terms memory) {
        return Terms(payer.addr, to, hostile, SALT, address(0));
    }

    function _remainder(bytes32 id) private view returns (uint256) {
        if (!escrow.channel(id).open) return 0;
        return escrow.channel(id).deposit - escrow.channel(id).settled;
    }

    function _payout(uint8 way, Terms memory terms) private view returns (bytes memory) {
        bytes memory signature = _voucher(terms, 60);
        if (way % 4 == 0) return abi.encodeCall(escrow.settle, (terms, 60, signature));
        if (way % 4 == 1) return abi.encodeCall(escrow.close, (terms, 60, signature));
        if (way % 4 == 2) return abi.encodeCall(escrow.withdraw, (terms));
        return abi.encodeCall(escrow.settleBatch, (terms.payee, terms.token, _row(terms, 60, signature)));
    }

    /*//////////////////////////////////////////////////////////////
                              NOBODY PAYS
    //////////////////////////////////////////////////////////////*/

    /// @dev A token that lets the zero address pay opens a channel whose signer is what ecrecover returns for nonsense.
    function testFuzz_looseToken_zeroPayerSignsNothing(bytes32 r, bytes32 s, uint8 v) public {
        vm.assume(v != 27 && v != 28);
        LooseToken hostile = new LooseToken();
        hostile.mint(address(0), 100);
        Terms memory terms = Terms(address(0), payee.addr, address(hostile), SALT, address(0));
        bytes32 nonce = _openNonce(terms);
        bytes32 id =
            escrow.openWithAuthorization(payee.addr, terms.token, 100, SALT, address(0), address(0), 0, 0, nonce, "");
        bytes memory signature = abi.encodePacked(r, s, v);

        _expect(abi.encodeWithSelector(IChannelEscrow.InvalidSignature.selector, id, address(0)));
        escrow.settle(terms, 60, signature);
        assertEq(escrow.settleBatch(payee.addr, terms.token, _row(terms, 60, signature)), 0);
    }

    /*//////////////////////////////////////////////////////////////
                              ISOLATION
    //////////////////////////////////////////////////////////////*/

    /// @dev A token that takes the escrow's balance away ruins its own channels. The other tokens' are untouched.
    function testFuzz_seizingToken_harmsOnlyItself(uint96 deposit) public {
        deposit = uint96(bound(deposit, 100, MAX));
        SeizingToken hostile = new SeizingToken();
        Terms memory bad = _with(address(hostile));
        _open(bad, deposit);
        (Terms memory good, bytes32 id) = _open(deposit);
        bytes memory signature = _voucher(bad, 60);

        hostile.seize(address(escrow), deposit);

        escrow.settle(bad, 60, signature);
        _expect(abi.encodeWithSelector(IChannelEscrow.TransferFailed.selector));
        escrow.withdrawCreditWithAuthorization(payee.addr, bad.token, payee.addr, 0, "");
        _settle(good, 60);
        _close(good);
        _assertFinalized(id, 60);
        assertEq(token.balanceOf(payee.addr), 60);
        assertEq(token.balanceOf(address(escrow)), 0);
    }
}
