// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Base, IChannelEscrow, Terms} from "./Base.sol";
import {Wallet} from "./mock/Wallet.sol";

contract CloseWithAuthorizationTest is Base {
    function testFuzz_closeWithAuthorization(uint96 deposit, uint96 amount, uint32 wait, address caller) public {
        deposit = uint96(bound(deposit, 1, MAX));
        amount = uint96(bound(amount, 1, deposit));
        (Terms memory terms, bytes32 id) = _open(deposit);
        uint256 deadline = vm.getBlockTimestamp() + wait;
        bytes memory signature = _voucher(terms, amount);
        bytes memory permission = _sign(payee, _closeDigest(id, amount, deadline));
        uint256 before = token.balanceOf(payer.addr);
        skip(wait);

        _emits();
        emit IChannelEscrow.Closed(id, amount, deposit - amount);
        vm.prank(caller);
        escrow.closeWithAuthorization(terms, amount, signature, deadline, permission);

        _assertFinalized(id, amount);
        assertEq(token.balanceOf(payee.addr), amount);
        assertEq(token.balanceOf(payer.addr), before + deposit - amount);
    }

    function test_closeWithAuthorization_withoutVoucher() public {
        (Terms memory terms, bytes32 id) = _open(100);
        bytes memory permission = _sign(payee, _closeDigest(id, 0, type(uint256).max));

        escrow.closeWithAuthorization(terms, 0, "", type(uint256).max, permission);

        _assertFinalized(id, 0);
    }

    function testFuzz_closeWithAuthorization_lateReverts(uint32 late) public {
        vm.assume(late != 0);
        (Terms memory terms, bytes32 id) = _open(100);
        uint256 deadline = vm.getBlockTimestamp();
        bytes memory permission = _sign(payee, _closeDigest(id, 0, deadline));
        skip(late);

        _expect(abi.encodeWithSelector(IChannelEscrow.DeadlinePassed.selector, deadline, deadline + late));
        escrow.closeWithAuthorization(terms, 0, "", deadline, permission);
    }

    /// @dev What the payee signed for one amount, deadline or channel is good for no other.
    function testFuzz_closeWithAuthorization_bindsAll(uint8 which) public {
        (Terms memory terms, bytes32 id) = _open(100);
        uint256 deadline = vm.getBlockTimestamp();
        bytes32 other = keccak256("other");
        bytes32 digest;
        if (which % 5 == 0) digest = _closeDigest(other, 60, deadline);
        if (which % 5 == 1) digest = _closeDigest(id, 61, deadline);
        if (which % 5 == 2) digest = _closeDigest(id, 60, deadline + 1);
        if (which % 5 == 3) digest = _requestCloseDigest(id, 60, deadline);
        if (which % 5 == 4) digest = escrow.voucherDigest(id, 60);
        bytes memory permission = _sign(payee, digest);
        bytes memory signature = _voucher(terms, 60);

        _expect(abi.encodeWithSelector(IChannelEscrow.InvalidSignature.selector, id, payee.addr));
        escrow.closeWithAuthorization(terms, 60, signature, deadline, permission);
    }

    function test_closeWithAuthorization_byPayerReverts() public {
        (Terms memory terms, bytes32 id) = _open(100);
        bytes memory permission = _sign(payer, _closeDigest(id, 0, type(uint256).max));

        vm.prank(payer.addr);
        _expect(abi.encodeWithSelector(IChannelEscrow.InvalidSignature.selector, id, payee.addr));
        escrow.closeWithAuthorization(terms, 0, "", type(uint256).max, permission);
    }

    /// @dev The payee's word moves the payee's side only: the amount still takes the payer's voucher.
    function test_closeWithAuthorization_needsVoucher() public {
        (Terms memory terms, bytes32 id) = _open(100);
        bytes memory permission = _sign(payee, _closeDigest(id, 60, type(uint256).max));

        _expect(abi.encodeWithSelector(IChannelEscrow.InvalidSignature.selector, id, payer.addr));
        escrow.closeWithAuthorization(terms, 60, permission, type(uint256).max, permission);
    }

    /// @dev An old permission cannot take back what was settled since.
    function test_closeWithAuthorization_belowSettledReverts() public {
        (Terms memory terms, bytes32 id) = _open(100);
        bytes memory permission = _sign(payee, _closeDigest(id, 50, type(uint256).max));
        bytes memory signature = _voucher(terms, 50);
        _settle(terms, 60);

        _expect(abi.encodeWithSelector(IChannelEscrow.Stale.selector, id, 50, 60));
        escrow.closeWithAuthorization(terms, 50, signature, type(uint256).max, permission);
    }

    function test_closeWithAuthorization_twiceReverts() public {
        (Terms memory terms, bytes32 id) = _open(100);
        bytes memory permission = _sign(payee, _closeDigest(id, 0, type(uint256).max));
        escrow.closeWithAuthorization(terms, 0, "", type(uint256).max, permission);

        _expect(abi.encodeWithSelector(IChannelEscrow.ChannelFinalized.selector, id));
        escrow.closeWithAuthorization(terms, 0, "", type(uint256).max, permission);
    }

    function test_closeWithAuthorization_byWallet() public {
        Terms memory terms = _terms();
        terms.payee = address(new Wallet(payee.addr));
        bytes32 id = _open(terms, 100);
        bytes memory permission = bytes.concat(hex"01", _sign(payee, _closeDigest(id, 60, type(uint256).max)));

        escrow.closeWithAuthorization(terms, 60, _voucher(terms, 60), type(uint256).max, permission);

        _assertFinalized(id, 60);
        assertEq(token.balanceOf(terms.payee), 60);
    }
}
