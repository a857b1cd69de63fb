// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ERC20} from "solady/tokens/ERC20.sol";

import {Base} from "./Base.sol";
import {Wallet} from "./mock/Wallet.sol";
import {TestToken} from "./token/TestToken.sol";

/// @notice The test token stands in for a dollar stablecoin, so it must check what one would check.
contract TestTokenTest is Base {
    bytes32 private constant NONCE = keccak256("nonce");

    function _hash(bytes32 data) private view returns (bytes32) {
        return keccak256(abi.encodePacked("\x19\x01", token.DOMAIN_SEPARATOR(), data));
    }

    function _transferDigest(bytes32 typehash, address from, address to, uint256 value) private view returns (bytes32) {
        return _hash(keccak256(abi.encode(typehash, from, to, value, 0, type(uint256).max, NONCE)));
    }

    function test_metadata() public view {
        assertEq(token.name(), "Test USD");
        assertEq(token.symbol(), "TUSD");
        assertEq(token.decimals(), 6);
        bytes32 typehash =
            keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)");
        bytes32 separator = keccak256(
            abi.encode(typehash, keccak256("Test USD"), keccak256(bytes(token.version())), block.chainid, token)
        );
        assertEq(token.DOMAIN_SEPARATOR(), separator);
    }

    function testFuzz_transferWithAuthorization(uint96 value, bool split) public {
        bytes32 digest = _transferDigest(token.TRANSFER_WITH_AUTHORIZATION_TYPEHASH(), payer.addr, payee.addr, value);
        bytes memory signature = _sign(payer, digest);
        (bytes32 r, bytes32 s, uint8 v) = _split(signature);

        if (split) {
            token.transferWithAuthorization(payer.addr, payee.addr, value, 0, type(uint256).max, NONCE, v, r, s);
        } else {
            token.transferWithAuthorization(payer.addr, payee.addr, value, 0, type(uint256).max, NONCE, signature);
        }
        assertEq(token.balanceOf(payee.addr), value);

        _expect(abi.encodeWithSelector(TestToken.AuthorizationUsedOrCanceled.selector, payer.addr, NONCE));
        token.transferWithAuthorization(payer.addr, payee.addr, value, 0, type(uint256).max, NONCE, signature);
    }

    function testFuzz_receiveWithAuthorization(uint96 value, bool split) public {
        bytes32 digest = _transferDigest(token.RECEIVE_WITH_AUTHORIZATION_TYPEHASH(), payer.addr, payee.addr, value);
        bytes memory signature = _sign(payer, digest);
        (bytes32 r, bytes32 s, uint8 v) = _split(signature);

        vm.prank(stranger.addr);
        _expect(abi.encodeWithSelector(TestToken.CallerNotPayee.selector, stranger.addr, payee.addr));
        token.receiveWithAuthorization(payer.addr, payee.addr, value, 0, type(uint256).max, NONCE, signature);

        vm.prank(payee.addr);
        if (split) token.receiveWithAuthorization(payer.addr, payee.addr, value, 0, type(uint256).max, NONCE, v, r, s);
        else token.receiveWithAuthorization(payer.addr, payee.addr, value, 0, type(uint256).max, NONCE, signature);
        assertEq(token.balanceOf(payee.addr), value);
    }

    function test_receiveWithAuthorization_byWallet() public {
        address wallet = address(new Wallet(payer.addr));
        token.mint(wallet, 100);
        bytes32 digest = _transferDigest(token.RECEIVE_WITH_AUTHORIZATION_TYPEHASH(), wallet, payee.addr, 100);
        bytes memory signature = bytes.concat(hex"01", _sign(payer, digest));

        vm.prank(payee.addr);
        token.receiveWithAuthorization(wallet, payee.addr, 100, 0, type(uint256).max, NONCE, signature);

        assertEq(token.balanceOf(payee.addr), 100);
    }

    function test_authorization_highSReverts() public {
        bytes32 digest = _transferDigest(token.TRANSFER_WITH_AUTHORIZATION_TYPEHASH(), payer.addr, payee.addr, 100);
        bytes memory signature = _twin(_sign(payer, digest));

        _expect(abi.encodeWithSelector(TestToken.AuthorizationSignature.selector, payer.addr));
        token.transferWithAuthorization(payer.addr, payee.addr, 100, 0, type(uint256).max, NONCE, signature);
    }

    function testFuzz_cancelAuthorization(bool split) public {
        bytes32 data = keccak256(abi.encode(token.CANCEL_AUTHORIZATION_TYPEHASH(), payer.addr, NONCE));
        bytes memory signature = _sign(payer, _hash(data));
        (bytes32 r, bytes32 s, uint8 v) = _split(signature);

        _expect(abi.encodeWithSelector(TestToken.AuthorizationSignature.selector, stranger.addr));
        token.cancelAuthorization(stranger.addr, NONCE, signature);
        if (split) token.cancelAuthorization(payer.addr, NONCE, v, r, s);
        else token.cancelAuthorization(payer.addr, NONCE, signature);

        assertTrue(token.authorizationState(payer.addr, NONCE));
        _expect(abi.encodeWithSelector(TestToken.AuthorizationUsedOrCanceled.selector, payer.addr, NONCE));
        token.cancelAuthorization(payer.addr, NONCE, signature);
    }

    function testFuzz_permit(uint256 value) public {
        bytes32 typehash =
            keccak256("Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)");
        uint256 deadline = vm.getBlockTimestamp();
        bytes32 data = keccak256(abi.encode(typehash, payer.addr, payee.addr, value, 0, deadline));
        (bytes32 r, bytes32 s, uint8 v) = _split(_sign(payer, _hash(data)));

        token.permit(payer.addr, payee.addr, value, deadline, v, r, s);

        assertEq(token.allowance(payer.addr, payee.addr), value);
        _expect(abi.encodeWithSelector(ERC20.InvalidPermit.selector));
        token.permit(payer.addr, payee.addr, value, deadline, v, r, s);
    }
}
