// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Base, Channel, IChannelEscrow, Terms} from "./Base.sol";
import {AgreeableWallet, Wallet} from "./mock/Wallet.sol";

contract SettleTest is Base {
    function testFuzz_settle(uint96 deposit, uint96 amount, address caller) public {
        deposit = uint96(bound(deposit, 1, MAX));
        amount = uint96(bound(amount, 1, deposit));
        (Terms memory terms, bytes32 id) = _open(deposit);
        bytes memory signature = _voucher(terms, amount);

        _emits();
        emit IChannelEscrow.Settled(id, amount);
        vm.prank(caller);
        escrow.settle(terms, amount, signature);

        _assertBooks(id, deposit, amount);
        assertEq(token.balanceOf(payee.addr), amount);
        assertEq(token.balanceOf(address(escrow)), deposit - amount);
    }

    function testFuzz_settle_paysTheDifference(uint96 deposit, uint96 first, uint96 second) public {
        deposit = uint96(bound(deposit, 2, MAX));
        first = uint96(bound(first, 1, deposit - 1));
        second = uint96(bound(second, first + 1, deposit));
        (Terms memory terms, bytes32 id) = _open(deposit);
        _settle(terms, first);
        bytes memory signature = _voucher(terms, second);

        _emits();
        emit IChannelEscrow.Settled(id, second); // the total, not what is paid now
        escrow.settle(terms, second, signature);

        _assertBooks(id, deposit, second);
        assertEq(token.balanceOf(payee.addr), second);
    }

    function testFuzz_settle_byAuthorizedSigner(uint96 amount) public {
        amount = uint96(bound(amount, 1, MAX));
        Terms memory terms = _termsSigned();
        bytes32 id = _open(terms, MAX);
        bytes memory byPayer = _voucher(terms, amount, payer);
        bytes memory bySigner = _voucher(terms, amount, signer);

        _expect(abi.encodeWithSelector(IChannelEscrow.InvalidSignature.selector, id, signer.addr));
        escrow.settle(terms, amount, byPayer);
        escrow.settle(terms, amount, bySigner);

        _assertBooks(id, MAX, amount);
    }

    /// @dev Equal is stale as well: a voucher is worth its money once.
    function testFuzz_settle_staleReverts(uint96 settled, uint96 amount) public {
        settled = uint96(bound(settled, 1, MAX));
        amount = uint96(bound(amount, 0, settled));
        (Terms memory terms, bytes32 id) = _open(MAX);
        _settle(terms, settled);
        bytes memory signature = _voucher(terms, amount);

        _expect(abi.encodeWithSelector(IChannelEscrow.Stale.selector, id, amount, settled));
        escrow.settle(terms, amount, signature);
    }

    function testFuzz_settle_aboveDepositReverts(uint96 deposit, uint128 amount) public {
        deposit = uint96(bound(deposit, 1, MAX));
        amount = uint128(bound(amount, uint256(deposit) + 1, type(uint128).max));
        (Terms memory terms, bytes32 id) = _open(deposit);
        bytes memory signature = _voucher(terms, amount);

        _expect(abi.encodeWithSelector(IChannelEscrow.ExceedsDeposit.selector, id, amount, deposit));
        escrow.settle(terms, amount, signature);
    }

    function testFuzz_settle_unknownReverts(uint8 which) public {
        (Terms memory terms,) = _open(100);
        bytes memory signature = _voucher(terms, 50);
        if (which % 5 == 0) terms.payer = stranger.addr;
        if (which % 5 == 1) terms.payee = stranger.addr;
        if (which % 5 == 2) terms.token = stranger.addr;
        if (which % 5 == 3) terms.salt = bytes32(0);
        if (which % 5 == 4) terms.authorizedSigner = stranger.addr;
        bytes32 id = escrow.channelId(terms);

        _expect(abi.encodeWithSelector(IChannelEscrow.UnknownChannel.selector, id));
        escrow.settle(terms, 50, signature);
    }

    function test_settle_finalizedReverts() public {
        (Terms memory terms, bytes32 id) = _open(100);
        bytes memory signature = _voucher(terms, 50);
        _close(terms);

        _expect(abi.encodeWithSelector(IChannelEscrow.ChannelFinalized.selector, id));
        escrow.settle(terms, 50, signature);
    }

    /// @dev Flipping any bit of a signature, or of the amount it is for, makes it worthless.
    function testFuzz_settle_flippedBitReverts(uint256 bit) public {
        (Terms memory terms, bytes32 id) = _open(100);
        bytes memory signature = _voucher(terms, 50);
        bit = bound(bit, 0, 65 * 8 - 1);
        signature[bit / 8] ^= bytes1(uint8(1 << (bit % 8)));

        _expect(abi.encodeWithSelector(IChannelEscrow.InvalidSignature.selector, id, payer.addr));
        escrow.settle(terms, 50, signature);
    }

    function testFuzz_settle_otherAmountReverts(uint96 signed, uint96 amount) public {
        signed = uint96(bound(signed, 0, MAX));
        amount = uint96(bound(amount, 1, MAX));
        vm.assume(signed != amount);
        (Terms memory terms, bytes32 id) = _open(MAX);
        bytes memory signature = _voucher(terms, signed);

        _expect(abi.encodeWithSelector(IChannelEscrow.InvalidSignature.selector, id, payer.addr));
        escrow.settle(terms, amount, signature);
    }

    function testFuzz_settle_highSReverts(uint96 amount) public {
        amount = uint96(bound(amount, 1, MAX));
        (Terms memory terms, bytes32 id) = _open(MAX);
        bytes memory signature = _twin(_voucher(terms, amount));
        (bytes32 r, bytes32 s, uint8 v) = _split(signature);
        assertEq(ecrecover(escrow.voucherDigest(id, amount), v, r, s), payer.addr, "the twin does recover");

        _expect(abi.encodeWithSelector(IChannelEscrow.InvalidSignature.selector, id, payer.addr));
        escrow.settle(terms, amount, signature);
    }

    function testFuzz_settle_badVReverts(uint8 v) public {
        (Terms memory terms, bytes32 id) = _open(100);
        bytes memory signature = _voucher(terms, 50);
        vm.assume(bytes1(v) != signature[64]);
        signature[64] = bytes1(v);

        _expect(abi.encodeWithSelector(IChannelEscrow.InvalidSignature.selector, id, payer.addr));
        escrow.settle(terms, 50, signature);
    }

    function testFuzz_settle_wrongLengthReverts(uint8 length) public {
        vm.assume(length != 65);
        (Terms memory terms, bytes32 id) = _open(100);
        bytes memory full = _voucher(terms, 50);
        bytes memory signature = new bytes(length);
        for (uint256 i; i < length && i < 65; ++i) {
            signature[i] = full[i];
        }

        _expect(abi.encodeWithSelector(IChannelEscrow.InvalidSignature.selector, id, payer.addr));
        escrow.settle(terms, 50, signature);
    }

    /// @dev A signature is good on one chain only, and so is the id.
    function testFuzz_settle_otherChainReverts(uint64 chain) public {
        vm.assume(chain != block.chainid && chain != 0);
        (Terms memory terms, bytes32 id) = _open(100);
        bytes memory signature = _voucher(terms, 50);

        vm.chainId(chain);
        bytes32 there = escrow.channelId(terms);

        assertTrue(there != id);
        _expect(abi.encodeWithSelector(IChannelEscrow.UnknownChannel.selector, there));
        escrow.settle(terms, 50, signature);
    }

    /// @dev The payee is paid at any moment before the withdrawal: in the grace period and after it.
    function testFuzz_settle_whileClosing(uint32 later) public {
        (Terms memory terms, bytes32 id) = _open(100);
        bytes memory signature = _voucher(terms, 60);
        _requestClose(terms);
        uint256 requestedAt = vm.getBlockTimestamp();
        skip(later);

        escrow.settle(terms, 60, signature);

        assertEq(token.balanceOf(payee.addr), 60);
        assertEq(escrow.channel(id).closeRequestedAt, requestedAt);
    }

    function testFuzz_settle_byWallet(uint96 amount) public {
        amount = uint96(bound(amount, 1, MAX));
        Terms memory terms = _terms();
        terms.authorizedSigner = address(new Wallet(signer.addr));
        bytes32 id = _open(terms, MAX);
        bytes memory signature = bytes.concat(hex"01", _voucher(terms, amount, signer));
        bytes memory wrong = bytes.concat(hex"01", _voucher(terms, amount, stranger));

        _expect(abi.encodeWithSelector(IChannelEscrow.InvalidSignature.selector, id, terms.authorizedSigner));
        escrow.settle(terms, amount, wrong);
        escrow.settle(terms, amount, signature);

        _assertBooks(id, MAX, amount);
    }

    function test_settle_walletMustKnowTheStandard() public {
        Terms memory terms = _terms();
        terms.authorizedSigner = address(new AgreeableWallet());
        bytes32 id = _open(terms, 100);

        _expect(abi.encodeWithSelector(IChannelEscrow.InvalidSignature.selector, id, terms.authorizedSigner));
        escrow.settle(terms, 50, "yes");
    }

    /// @dev A payer whose address gets code (EIP-7702) can go on signing with its key.
    function test_settle_keyOutlivesCode() public {
        (Terms memory terms, bytes32 id) = _open(100);
        bytes memory signature = _voucher(terms, 50);
        vm.etch(payer.addr, type(AgreeableWallet).runtimeCode);

        escrow.settle(terms, 50, signature);

        _assertBooks(id, 100, 50);
    }
}
