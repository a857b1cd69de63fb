// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Base, Channel, IChannelEscrow, Terms} from "./Base.sol";
import {TestToken} from "./token/TestToken.sol";

contract TopUpWithAuthorizationTest is Base {
    function _submit(Terms memory terms, uint128 more, address from, bytes32 salt, bytes32 nonce, bytes memory sig)
        private
    {
        escrow.topUpWithAuthorization(terms, more, from, salt, 0, type(uint256).max, nonce, sig);
    }

    function testFuzz_topUpWithAuthorization(uint96 deposit, uint96 more, bytes32 salt) public {
        deposit = uint96(bound(deposit, 1, MAX - 1));
        more = uint96(bound(more, 1, MAX - deposit));
        (Terms memory terms, bytes32 id) = _open(deposit);
        bytes32 nonce = _topUpNonce(id, more, payer.addr, salt);
        bytes memory signature = _authorization(payer, more, nonce);

        _emits();
        emit IChannelEscrow.ToppedUp(id, payer.addr, more, uint256(deposit) + more);
        vm.prank(stranger.addr);
        _submit(terms, more, payer.addr, salt, nonce, signature);

        _assertBooks(id, uint256(deposit) + more, 0);
        assertEq(token.balanceOf(address(escrow)), uint256(deposit) + more);
    }

    /// @dev Somebody else's authorization pays somebody else's money.
    function testFuzz_topUpWithAuthorization_bySponsor(uint96 more) public {
        more = uint96(bound(more, 1, MAX - 1));
        (Terms memory terms, bytes32 id) = _open(1);
        token.mint(stranger.addr, more);
        bytes32 nonce = _topUpNonce(id, more, stranger.addr, SALT);
        bytes memory signature = _authorization(stranger, more, nonce);
        uint256 before = token.balanceOf(payer.addr);

        _submit(terms, more, stranger.addr, SALT, nonce, signature);

        assertEq(token.balanceOf(stranger.addr), 0);
        assertEq(token.balanceOf(payer.addr), before);
        _assertBooks(id, uint256(more) + 1, 0);
    }

    /// @dev A payee that sat on an authorization cannot use it to keep a payer who wants to leave.
    function testFuzz_topUpWithAuthorization_neverCancelsClose(uint96 more) public {
        more = uint96(bound(more, 1, MAX - 1));
        (Terms memory terms, bytes32 id) = _open(1);
        bytes32 nonce = _topUpNonce(id, more, payer.addr, SALT);
        bytes memory signature = _authorization(payer, more, nonce);
        _requestClose(terms);

        vm.prank(payer.addr);
        _submit(terms, more, payer.addr, SALT, nonce, signature);

        assertEq(escrow.channel(id).closeRequestedAt, vm.getBlockTimestamp());
        skip(GRACE);
        uint256 before = token.balanceOf(payer.addr);
        escrow.withdraw(terms);
        assertEq(token.balanceOf(payer.addr), before + more + 1);
    }

    function test_topUpWithAuthorization_onceOnly() public {
        (Terms memory terms, bytes32 id) = _open(1);
        bytes32 nonce = _topUpNonce(id, 5, payer.addr, SALT);
        bytes memory signature = _authorization(payer, 5, nonce);
        _submit(terms, 5, payer.addr, SALT, nonce, signature);

        _expect(abi.encodeWithSelector(TestToken.AuthorizationUsedOrCanceled.selector, payer.addr, nonce));
        _submit(terms, 5, payer.addr, SALT, nonce, signature);
    }

    function testFuzz_topUpWithAuthorization_bindsNonce(uint8 which) public {
        (Terms memory terms, bytes32 id) = _open(1);
        Terms memory other = _termsSigned();
        bytes32 otherId = _open(other, 1);
        bytes32 nonce = _topUpNonce(id, 5, payer.addr, SALT);
        bytes memory signature = _authorization(payer, 5, nonce);
        uint128 more = which % 4 == 0 ? 6 : 5;
        address from = which % 4 == 1 ? stranger.addr : payer.addr;
        bytes32 salt = which % 4 == 2 ? bytes32(0) : SALT;
        if (which % 4 == 3) (terms, id) = (other, otherId);
        bytes32 expected = _topUpNonce(id, more, from, salt);

        _expect(abi.encodeWithSelector(IChannelEscrow.NonceMismatch.selector, nonce, expected));
        _submit(terms, more, from, salt, nonce, signature);

        _expect(abi.encodeWithSelector(TestToken.AuthorizationSignature.selector, from));
        _submit(terms, more, from, salt, expected, signature);
    }

    /// @dev An authorization to top up is no authorization to open.
    function test_topUpWithAuthorization_isNoOpen() public {
        (Terms memory terms, bytes32 id) = _open(1);
        bytes32 nonce = _topUpNonce(id, 5, payer.addr, SALT);
        bytes memory signature = _authorization(payer, 5, nonce);
        terms.salt = bytes32(uint256(8));

        _expect(abi.encodeWithSelector(IChannelEscrow.NonceMismatch.selector, nonce, _openNonce(terms)));
        escrow.openWithAuthorization(
            terms.payee, terms.token, 5, terms.salt, address(0), payer.addr, 0, type(uint256).max, nonce, signature
        );
    }

    function test_topUpWithAuthorization_statesRevert() public {
        Terms memory terms = _terms();
        bytes32 id = escrow.channelId(terms);
        bytes32 nonce = _topUpNonce(id, 5, payer.addr, SALT);
        _expect(abi.encodeWithSelector(IChannelEscrow.UnknownChannel.selector, id));
        _submit(terms, 5, payer.addr, SALT, nonce, "");

        _open(terms, 1);
        bytes32 none = _topUpNonce(id, 0, payer.addr, SALT);
        _expect(abi.encodeWithSelector(IChannelEscrow.ZeroAmount.selector));
        _submit(terms, 0, payer.addr, SALT, none, "");
        bytes32 big = _topUpNonce(id, MAX, payer.addr, SALT);
        _expect(abi.encodeWithSelector(IChannelEscrow.AmountTooLarge.selector, uint256(MAX) + 1, MAX));
        _submit(terms, MAX, payer.addr, SALT, big, "");

        _close(terms);
        _expect(abi.encodeWithSelector(IChannelEscrow.ChannelFinalized.selector, id));
        _submit(terms, 5, payer.addr, SALT, nonce, "");
    }
}
