// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Test} from "forge-std/Test.sol";

import {Channel, Credit, IChannelEscrow, SkipReason, Terms} from "../src/IChannelEscrow.sol";
import {TestToken} from "./token/TestToken.sol";

/// @notice One escrow, one token, a payer with money, a payee, a signer of the payer's, and somebody else.
abstract contract Base is Test {
    uint40 internal constant GRACE = 1 hours;
    uint96 internal constant MAX = type(uint96).max;
    uint256 internal constant ORDER = 0xfffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141;
    bytes32 internal constant SALT = bytes32(uint256(7));

    /// @dev The artifacts of what gets deployed. Tests are compiled without via-IR, which takes a sixth of the time, and a
    /// `new` would carry a contract that was compiled the same way.
    string internal constant ESCROW = "out/ChannelEscrow.sol/ChannelEscrow.json";
    string internal constant TOKEN = "out/TestToken.sol/TestToken.json";

    IChannelEscrow internal escrow;
    TestToken internal token;
    Account internal payer;
    Account internal payee;
    Account internal signer;
    Account internal stranger;

    function setUp() public virtual {
        vm.warp(1_800_000_000);
        escrow = IChannelEscrow(_create(ESCROW, abi.encode(GRACE)));
        token = TestToken(_create(TOKEN, ""));
        payer = makeAccount("payer");
        payee = makeAccount("payee");
        signer = makeAccount("signer");
        stranger = makeAccount("stranger");
        _fund(payer.addr);
    }

    /// @dev Deploys an artifact, and reverts as its constructor does.
    function _create(string memory artifact, bytes memory arguments) internal returns (address created) {
        bytes memory code = bytes.concat(vm.getCode(artifact), arguments);
        assembly ("memory-safe") {
            created := create(0, add(code, 0x20), mload(code))
            if iszero(created) {
                returndatacopy(code, 0, returndatasize())
                revert(code, returndatasize())
            }
        }
    }

    /// @dev Enough for any number of channels that a test opens, with the allowance to open them.
    function _fund(address account) internal {
        token.mint(account, 1e12 * uint256(MAX));
        vm.prank(account);
        token.approve(address(escrow), type(uint256).max);
    }

    function _terms() internal view returns (Terms memory) {
        return Terms(payer.addr, payee.addr, address(token), SALT, address(0));
    }

    /// @dev Terms under which `signer` signs the vouchers.
    function _termsSigned() internal view returns (Terms memory terms) {
        terms = _terms();
        terms.authorizedSigner = signer.addr;
    }

    function _open(Terms memory terms, uint128 deposit) internal returns (bytes32) {
        vm.prank(terms.payer);
        return escrow.open(terms.payee, terms.token, deposit, terms.salt, terms.authorizedSigner);
    }

    function _open(uint128 deposit) internal returns (Terms memory terms, bytes32 id) {
        terms = _terms();
        id = _open(terms, deposit);
    }

    function _requestClose(Terms memory terms) internal {
        vm.prank(terms.payer);
        escrow.requestClose(terms);
    }

    function _close(Terms memory terms) internal {
        uint128 settled = escrow.channel(escrow.channelId(terms)).settled;
        vm.prank(terms.payee);
        escrow.close(terms, settled, "");
    }

    function _sign(Account memory account, bytes32 digest) internal pure returns (bytes memory) {
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(account.key, digest);
        return abi.encodePacked(r, s, v);
    }

    /// @dev The same signature with the other `s`: ecrecover takes it, nobody else should.
    function _twin(bytes memory signature) internal pure returns (bytes memory) {
        (bytes32 r, bytes32 s, uint8 v) = _split(signature);
        return abi.encodePacked(r, bytes32(ORDER - uint256(s)), v == 27 ? uint8(28) : uint8(27));
    }

    function _split(bytes memory signature) internal pure returns (bytes32 r, bytes32 s, uint8 v) {
        assembly ("memory-safe") {
            r := mload(add(signature, 0x20))
            s := mload(add(signature, 0x40))
            v := byte(0, mload(add(signature, 0x60)))
        }
    }

    function _voucher(Terms memory terms, uint128 amount, Account memory by) internal view returns (bytes memory) {
        return _sign(by, escrow.voucherDigest(escrow.channelId(terms), amount));
    }

    /// @dev The voucher of a channel whose payer signs.
    function _voucher(Terms memory terms, uint128 amount) internal view returns (bytes memory) {
        return _voucher(terms, amount, payer);
    }

    function _settle(Terms memory terms, uint128 amount) internal {
        bytes memory signature = _voucher(terms, amount);
        escrow.settle(terms, amount, signature);
    }

    /// @dev A batch of one row, as settleBatch reads it. Joined, such batches are one of as many groups.
    function _row(Terms memory terms, uint96 amount, bytes memory signature) internal pure returns (bytes memory) {
        uint8 saltLength = _length(terms.salt);
        uint8 amountLength = _length(bytes32(uint256(amount)));
        return bytes.concat(
            _header(saltLength, terms.authorizedSigner != address(0), amountLength, 1),
            _body(terms, amount, signature, saltLength, amountLength)
        );
    }

    /// @dev What a group of rows begins with.
    function _header(uint8 saltLength, bool named, uint8 amountLength, uint16 count)
        internal
        pure
        returns (bytes memory)
    {
        return abi.encodePacked(named ? saltLength | 0x80 : saltLength, amountLength, count);
    }

    /// @dev A row in a group of these lengths.
    function _body(Terms memory terms, uint96 amount, bytes memory signature, uint8 saltLength, uint8 amountLength)
        internal
        pure
        returns (bytes memory)
    {
        (bytes32 r, bytes32 s, uint8 v) = _split(signature);
        bytes32 vs = bytes32(uint256(s) | (v == 28 ? 1 << 255 : 0));
        bytes memory tail = _low(terms.salt, saltLength);
        if (terms.authorizedSigner != address(0)) tail = bytes.concat(tail, abi.encode(terms.authorizedSigner));
        return abi.encodePacked(r, vs, terms.payer, _low(bytes32(uint256(amount)), amountLength), tail);
    }

    /// @dev The lowest bytes of a word.
    function _low(bytes32 word, uint8 length) internal pure returns (bytes memory low) {
        low = new bytes(length);
        for (uint256 i; i < length; ++i) {
            low[i] = word[32 - length + i];
        }
    }

    /// @dev A word's length without its leading zero bytes.
    function _length(bytes32 word) internal pure returns (uint8 length) {
        for (uint256 rest = uint256(word); rest != 0; rest >>= 8) {
            ++length;
        }
    }

    function _closeDigest(bytes32 id, uint128 amount, uint256 deadline) internal view returns (bytes32) {
        bytes32 typehash = keccak256("Close(bytes32 channelId,uint128 cumulativeAmount,uint256 deadline)");
        return _digest(keccak256(abi.encode(typehash, id, amount, deadline)));
    }

    function _requestCloseDigest(bytes32 id, uint256 nonce, uint256 deadline) internal view returns (bytes32) {
        bytes32 typehash = keccak256("RequestClose(bytes32 channelId,uint256 nonce,uint256 deadline)");
        return _digest(keccak256(abi.encode(typehash, id, nonce, deadline)));
    }

    function _cancelCloseDigest(bytes32 id, uint256 nonce, uint256 deadline) internal view returns (bytes32) {
        bytes32 typehash = keccak256("CancelClose(bytes32 channelId,uint256 nonce,uint256 deadline)");
        return _digest(keccak256(abi.encode(typehash, id, nonce, deadline)));
    }

    function _withdrawCreditDigest(address account, address of_, address to, uint256 nonce, uint256 deadline)
        internal
        view
        returns (bytes32)
    {
        bytes32 typehash = keccak256(
            "WithdrawCredit(address account,address token,address to,uint256 nonce,uint256 deadline)"
        );
        return _digest(keccak256(abi.encode(typehash, account, of_, to, nonce, deadline)));
    }

    function _digest(bytes32 structHash) internal view returns (bytes32) {
        return keccak256(abi.encodePacked("\x19\x01", _separator(), structHash));
    }

    /// @dev The domain separator from the specification, not from the code under test.
    function _separator() internal view returns (bytes32) {
        return keccak256(
            abi.encode(
                keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"),
                keccak256("EVM Payment Channel"),
                keccak256("1"),
                block.chainid,
                address(escrow)
            )
        );
    }

    /// @dev An ERC-3009 authorization to the escrow, signed by `from` for the test token.
    function _authorization(Account memory from, uint256 value, bytes32 nonce) internal view returns (bytes memory) {
        bytes32 data = keccak256(
            abi.encode(
                token.RECEIVE_WITH_AUTHORIZATION_TYPEHASH(),
                from.addr,
                address(escrow),
                value,
                0,
                type(uint256).max,
                nonce
            )
        );
        return _sign(from, keccak256(abi.encodePacked("\x19\x01", token.DOMAIN_SEPARATOR(), data)));
    }

    function _openNonce(Terms memory terms) internal pure returns (bytes32) {
        return keccak256(abi.encode(terms.payer, terms.payee, terms.token, terms.salt, terms.authorizedSigner));
    }

    function _topUpNonce(bytes32 id, uint128 amount, address from, bytes32 salt) internal pure returns (bytes32) {
        return keccak256(abi.encode(id, amount, from, salt));
    }

    /// @dev What the channel holds, in both directions, and that nothing else about it moved.
    function _assertBooks(bytes32 id, uint256 deposit, uint256 settled) internal view {
        Channel memory c = escrow.channel(id);
        assertEq(c.deposit, deposit, "deposit");
        assertEq(c.settled, settled, "settled");
        assertTrue(c.open, "open");
        assertFalse(c.finalized, "finalized");
    }

    function _assertFinalized(bytes32 id, uint256 settled) internal view {
        Channel memory c = escrow.channel(id);
        assertEq(c.settled, settled, "settled");
        assertEq(c.closeRequestedAt, 0, "close request");
        assertFalse(c.open, "open");
        assertTrue(c.finalized, "finalized");
    }

    function _expect(bytes memory revertData) internal {
        vm.expectRevert(revertData);
    }

    function _emits() internal {
        vm.expectEmit(address(escrow));
    }
}
