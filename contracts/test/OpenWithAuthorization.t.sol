// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Base, Channel, IChannelEscrow, Terms} from "./Base.sol";
import {TestToken} from "./token/TestToken.sol";

contract OpenWithAuthorizationTest is Base {
    function _submit(Terms memory terms, uint128 deposit, bytes32 nonce, bytes memory signature)
        private
        returns (bytes32)
    {
        vm.prank(stranger.addr);
        return escrow.openWithAuthorization(
            terms.payee,
            terms.token,
            deposit,
            terms.salt,
            terms.authorizedSigner,
            terms.payer,
            0,
            type(uint256).max,
            nonce,
            signature
        );
    }

    function testFuzz_openWithAuthorization(uint96 deposit, bytes32 salt, address authorizedSigner) public {
        vm.assume(deposit != 0);
        Terms memory terms = Terms(payer.addr, payee.addr, address(token), salt, authorizedSigner);
        bytes32 id = escrow.channelId(terms);
        bytes32 nonce = _openNonce(terms);
        bytes memory signature = _authorization(payer, deposit, nonce);
        vm.prank(payer.addr);
        token.approve(address(escrow), 0);

        _emits();
        emit IChannelEscrow.Opened(id, payer.addr, payee.addr, address(token), salt, authorizedSigner, deposit);
        assertEq(_submit(terms, deposit, nonce, signature), id);

        _assertBooks(id, deposit, 0);
        assertEq(token.balanceOf(address(escrow)), deposit);
        assertTrue(token.authorizationState(payer.addr, nonce));
    }

    /// @dev Whoever submits it cannot change who is paid, in what, under which salt, or who signs.
    function testFuzz_openWithAuthorization_bindsTerms(uint8 which) public {
        Terms memory terms = _terms();
        bytes32 nonce = _openNonce(terms);
        bytes memory signature = _authorization(payer, 5, nonce);
        if (which % 4 == 0) terms.payee = stranger.addr;
        if (which % 4 == 1) terms.token = address(TestToken(_create(TOKEN, "")));
        if (which % 4 == 2) terms.salt = bytes32(uint256(8));
        if (which % 4 == 3) terms.authorizedSigner = stranger.addr;

        _expect(abi.encodeWithSelector(IChannelEscrow.NonceMismatch.selector, nonce, _openNonce(terms)));
        _submit(terms, 5, nonce, signature);

        // With the nonce made to fit, it is the token that refuses.
        if (which % 4 != 1) {
            _expect(abi.encodeWithSelector(TestToken.AuthorizationSignature.selector, payer.addr));
            _submit(terms, 5, _openNonce(terms), signature);
        }
    }

    function testFuzz_openWithAuthorization_bindsAmount(uint96 signed, uint96 deposit) public {
        vm.assume(deposit != 0 && signed != deposit);
        Terms memory terms = _terms();
        bytes32 nonce = _openNonce(terms);
        bytes memory signature = _authorization(payer, signed, nonce);

        _expect(abi.encodeWithSelector(TestToken.AuthorizationSignature.selector, payer.addr));
        _submit(terms, deposit, nonce, signature);
    }

    function test_openWithAuthorization_onceOnly() public {
        Terms memory terms = _terms();
        bytes32 nonce = _openNonce(terms);
        bytes memory signature = _authorization(payer, 5, nonce);
        bytes32 id = _submit(terms, 5, nonce, signature);

        _expect(abi.encodeWithSelector(IChannelEscrow.ChannelExists.selector, id));
        _submit(terms, 5, nonce, signature);

        _close(terms);
        _expect(abi.encodeWithSelector(IChannelEscrow.ChannelExists.selector, id));
        _submit(terms, 5, nonce, signature);
    }

    /// @dev An authorization to open is no authorization to top up.
    function test_openWithAuthorization_isNoTopUp() public {
        Terms memory terms = _terms();
        bytes32 nonce = _openNonce(terms);
        bytes memory signature = _authorization(payer, 5, nonce);
        bytes32 id = _open(terms, 1);

        _expect(
            abi.encodeWithSelector(IChannelEscrow.NonceMismatch.selector, nonce, _topUpNonce(id, 5, payer.addr, SALT))
        );
        escrow.topUpWithAuthorization(terms, 5, payer.addr, SALT, 0, type(uint256).max, nonce, signature);
    }

    function test_openWithAuthorization_expiredReverts() public {
        Terms memory terms = _terms();
        bytes32 nonce = _openNonce(terms);
        uint256 time = vm.getBlockTimestamp();

        _expect(abi.encodeWithSelector(TestToken.AuthorizationExpired.selector, time, time));
        escrow.openWithAuthorization(
            terms.payee, terms.token, 5, terms.salt, address(0), payer.addr, 0, time, nonce, ""
        );
        _expect(abi.encodeWithSelector(TestToken.AuthorizationNotYetValid.selector, time, time));
        escrow.openWithAuthorization(
            terms.payee, terms.token, 5, terms.salt, address(0), payer.addr, time, time + 1, nonce, ""
        );
    }

    function test_openWithAuthorization_noTokenReverts() public {
        Terms memory terms = _terms();
        terms.token = address(0xdead);

        _expect(abi.encodeWithSelector(IChannelEscrow.NoToken.selector, terms.token));
        _submit(terms, 5, _openNonce(terms), "");
    }

    function test_openWithAuthorization_boundsReverts() public {
        Terms memory terms = _terms();
        bytes32 nonce = _openNonce(terms);

        _expect(abi.encodeWithSelector(IChannelEscrow.ZeroAmount.selector));
        _submit(terms, 0, nonce, "");
        _expect(abi.encodeWithSelector(IChannelEscrow.AmountTooLarge.selector, uint256(MAX) + 1, MAX));
        _submit(terms, uint128(MAX) + 1, nonce, "");
        terms.payee = address(0);
        _expect(abi.encodeWithSelector(IChannelEscrow.InvalidPayee.selector, address(0)));
        _submit(terms, 5, _openNonce(terms), "");
    }
}
