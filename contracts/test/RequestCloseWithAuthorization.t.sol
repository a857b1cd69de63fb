// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Base, Channel, IChannelEscrow, Terms} from "./Base.sol";
import {Wallet} from "./mock/Wallet.sol";

contract RequestCloseWithAuthorizationTest is Base {
    function testFuzz_requestCloseWithAuthorization(uint96 deposit, uint32 wait, address caller) public {
        deposit = uint96(bound(deposit, 1, MAX));
        (Terms memory terms, bytes32 id) = _open(deposit);
        uint256 deadline = vm.getBlockTimestamp() + wait;
        bytes memory permission = _sign(payer, _requestCloseDigest(id, 0, deadline));
        skip(wait);

        _emits();
        emit IChannelEscrow.CloseRequested(id, deadline + GRACE);
        vm.prank(caller);
        escrow.requestCloseWithAuthorization(terms, deadline, permission);

        Channel memory c = escrow.channel(id);
        assertEq(abi.encode(c), abi.encode(Channel(deposit, 0, uint40(deadline), 1, true, false)));
    }

    /// @dev The payer changed its mind by a top-up; the signature that is still around is worth nothing now.
    function testFuzz_requestCloseWithAuthorization_onceOnly(bool signedFirst) public {
        (Terms memory terms, bytes32 id) = _open(100);
        uint256 withdrawableAt = vm.getBlockTimestamp() + GRACE;
        bytes memory permission = _sign(payer, _requestCloseDigest(id, 0, type(uint256).max));
        if (signedFirst) escrow.requestCloseWithAuthorization(terms, type(uint256).max, permission);
        else _requestClose(terms);

        // While it is pending (the nonce differs already, so the signature fails first).
        _expect(abi.encodeWithSelector(IChannelEscrow.InvalidSignature.selector, id, payer.addr));
        escrow.requestCloseWithAuthorization(terms, type(uint256).max, permission);
        bytes memory next = _sign(payer, _requestCloseDigest(id, 1, type(uint256).max));
        _expect(abi.encodeWithSelector(IChannelEscrow.CloseAlreadyRequested.selector, id, withdrawableAt));
        escrow.requestCloseWithAuthorization(terms, type(uint256).max, next);

        // After it was taken back.
        vm.prank(payer.addr);
        escrow.topUp(terms, 1);
        _expect(abi.encodeWithSelector(IChannelEscrow.InvalidSignature.selector, id, payer.addr));
        escrow.requestCloseWithAuthorization(terms, type(uint256).max, permission);

        escrow.requestCloseWithAuthorization(terms, type(uint256).max, next);
        assertEq(escrow.channel(id).closeRequests, 2);
    }

    function testFuzz_requestCloseWithAuthorization_lateReverts(uint32 late) public {
        vm.assume(late != 0);
        (Terms memory terms, bytes32 id) = _open(100);
        uint256 deadline = vm.getBlockTimestamp();
        bytes memory permission = _sign(payer, _requestCloseDigest(id, 0, deadline));
        skip(late);

        _expect(abi.encodeWithSelector(IChannelEscrow.DeadlinePassed.selector, deadline, deadline + late));
        escrow.requestCloseWithAuthorization(terms, deadline, permission);
    }

    function testFuzz_requestCloseWithAuthorization_bindsAll(uint8 which) public {
        (Terms memory terms, bytes32 id) = _open(100);
        uint256 deadline = vm.getBlockTimestamp();
        bytes32 digest;
        if (which % 5 == 0) digest = _requestCloseDigest(keccak256("other"), 0, deadline);
        if (which % 5 == 1) digest = _requestCloseDigest(id, 1, deadline);
        if (which % 5 == 2) digest = _requestCloseDigest(id, 0, deadline + 1);
        if (which % 5 == 3) digest = _closeDigest(id, 0, deadline);
        if (which % 5 == 4) digest = escrow.voucherDigest(id, 0);
        bytes memory permission = _sign(payer, digest);

        _expect(abi.encodeWithSelector(IChannelEscrow.InvalidSignature.selector, id, payer.addr));
        escrow.requestCloseWithAuthorization(terms, deadline, permission);
    }

    /// @dev The authorized signer may spend, within the deposit. It may not leave.
    function test_requestCloseWithAuthorization_bySignerReverts() public {
        Terms memory terms = _termsSigned();
        bytes32 id = _open(terms, 100);
        bytes memory permission = _sign(signer, _requestCloseDigest(id, 0, type(uint256).max));

        _expect(abi.encodeWithSelector(IChannelEscrow.InvalidSignature.selector, id, payer.addr));
        escrow.requestCloseWithAuthorization(terms, type(uint256).max, permission);
    }

    function test_requestCloseWithAuthorization_byWallet() public {
        Terms memory terms = _terms();
        terms.payer = address(new Wallet(payer.addr));
        _fund(terms.payer);
        bytes32 id = _open(terms, 100);
        bytes memory permission = bytes.concat(hex"01", _sign(payer, _requestCloseDigest(id, 0, type(uint256).max)));

        escrow.requestCloseWithAuthorization(terms, type(uint256).max, permission);

        assertEq(escrow.channel(id).closeRequestedAt, vm.getBlockTimestamp());
    }

    function test_requestCloseWithAuthorization_statesRevert() public {
        Terms memory terms = _terms();
        bytes32 id = escrow.channelId(terms);
        bytes memory permission = _sign(payer, _requestCloseDigest(id, 0, type(uint256).max));
        _expect(abi.encodeWithSelector(IChannelEscrow.UnknownChannel.selector, id));
        escrow.requestCloseWithAuthorization(terms, type(uint256).max, permission);

        _open(terms, 100);
        _close(terms);
        _expect(abi.encodeWithSelector(IChannelEscrow.ChannelFinalized.selector, id));
        escrow.requestCloseWithAuthorization(terms, type(uint256).max, permission);
    }
}
