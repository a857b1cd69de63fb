// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Base, Channel, IChannelEscrow, Terms} from "./Base.sol";
import {Wallet} from "./mock/Wallet.sol";

contract CancelCloseWithAuthorizationTest is Base {
    uint256 private constant EVER = type(uint256).max;

    /// @dev At any moment, also when the grace period is over; by anyone.
    function testFuzz_cancelCloseWithAuthorization(uint96 deposit, uint32 wait, address caller) public {
        deposit = uint96(bound(deposit, 1, MAX));
        (Terms memory terms, bytes32 id) = _open(deposit);
        _requestClose(terms);
        uint256 deadline = vm.getBlockTimestamp() + wait;
        bytes memory permission = _sign(payer, _cancelCloseDigest(id, 1, deadline));
        skip(wait);

        _emits();
        emit IChannelEscrow.CloseCancelled(id);
        vm.prank(caller);
        escrow.cancelCloseWithAuthorization(terms, deadline, permission);

        assertEq(abi.encode(escrow.channel(id)), abi.encode(Channel(deposit, 0, 0, 1, true, false)));
        _expect(abi.encodeWithSelector(IChannelEscrow.CloseNotRequested.selector, id));
        escrow.withdraw(terms);
    }

    /// @dev A signature is about one request: not about none, and not about the next.
    function test_cancelCloseWithAuthorization_onceOnly() public {
        (Terms memory terms, bytes32 id) = _open(100);
        bytes memory permission = _sign(payer, _cancelCloseDigest(id, 1, EVER));
        bytes memory early = _sign(payer, _cancelCloseDigest(id, 0, EVER));
        _expect(abi.encodeWithSelector(IChannelEscrow.CloseNotRequested.selector, id));
        escrow.cancelCloseWithAuthorization(terms, EVER, early);

        _requestClose(terms);
        escrow.cancelCloseWithAuthorization(terms, EVER, permission);
        _expect(abi.encodeWithSelector(IChannelEscrow.CloseNotRequested.selector, id));
        escrow.cancelCloseWithAuthorization(terms, EVER, permission);

        _requestClose(terms);
        _expect(abi.encodeWithSelector(IChannelEscrow.InvalidSignature.selector, id, payer.addr));
        escrow.cancelCloseWithAuthorization(terms, EVER, permission);
        assertEq(escrow.channel(id).closeRequestedAt, vm.getBlockTimestamp());
    }

    function testFuzz_cancelCloseWithAuthorization_lateReverts(uint32 late) public {
        vm.assume(late != 0);
        (Terms memory terms, bytes32 id) = _open(100);
        _requestClose(terms);
        uint256 deadline = vm.getBlockTimestamp();
        bytes memory permission = _sign(payer, _cancelCloseDigest(id, 1, deadline));
        skip(late);

        _expect(abi.encodeWithSelector(IChannelEscrow.DeadlinePassed.selector, deadline, deadline + late));
        escrow.cancelCloseWithAuthorization(terms, deadline, permission);
    }

    function testFuzz_cancelCloseWithAuthorization_bindsAll(uint8 which) public {
        (Terms memory terms, bytes32 id) = _open(100);
        _requestClose(terms);
        uint256 deadline = vm.getBlockTimestamp();
        bytes32 digest;
        if (which % 5 == 0) digest = _cancelCloseDigest(keccak256("other"), 1, deadline);
        if (which % 5 == 1) digest = _cancelCloseDigest(id, 0, deadline);
        if (which % 5 == 2) digest = _cancelCloseDigest(id, 1, deadline + 1);
        if (which % 5 == 3) digest = _requestCloseDigest(id, 1, deadline);
        if (which % 5 == 4) digest = escrow.voucherDigest(id, 1);
        bytes memory permission = _sign(payer, digest);

        _expect(abi.encodeWithSelector(IChannelEscrow.InvalidSignature.selector, id, payer.addr));
        escrow.cancelCloseWithAuthorization(terms, deadline, permission);
    }

    /// @dev Neither the payee nor who signs vouchers can keep a payer that wants out.
    function test_cancelCloseWithAuthorization_byOthersReverts() public {
        Terms memory terms = _termsSigned();
        bytes32 id = _open(terms, 100);
        _requestClose(terms);
        Account[2] memory others = [signer, payee];
        for (uint256 i; i < 2; ++i) {
            bytes memory permission = _sign(others[i], _cancelCloseDigest(id, 1, EVER));
            _expect(abi.encodeWithSelector(IChannelEscrow.InvalidSignature.selector, id, payer.addr));
            escrow.cancelCloseWithAuthorization(terms, EVER, permission);
        }
    }

    function test_cancelCloseWithAuthorization_byWallet() public {
        Terms memory terms = _terms();
        terms.payer = address(new Wallet(payer.addr));
        _fund(terms.payer);
        bytes32 id = _open(terms, 100);
        _requestClose(terms);

        bytes memory permission = bytes.concat(hex"01", _sign(payer, _cancelCloseDigest(id, 1, EVER)));
        escrow.cancelCloseWithAuthorization(terms, EVER, permission);
        assertEq(escrow.channel(id).closeRequestedAt, 0);
    }

    /// @dev The last request stays, as it does after a top-up: with the counter at its end a signature could work again.
    function test_cancelCloseWithAuthorization_lastRequestStays() public {
        (Terms memory terms, bytes32 id) = _open(100);
        vm.store(address(escrow), id, bytes32(uint256(vm.load(address(escrow), id)) | uint256(65_534) << 232));
        _requestClose(terms);
        bytes memory permission = _sign(payer, _cancelCloseDigest(id, 65_535, EVER));

        _expect(abi.encodeWithSelector(IChannelEscrow.CloseRequestsUsedUp.selector, id));
        escrow.cancelCloseWithAuthorization(terms, EVER, permission);
    }

    function test_cancelCloseWithAuthorization_statesRevert() public {
        Terms memory terms = _terms();
        bytes32 id = escrow.channelId(terms);
        bytes memory permission = _sign(payer, _cancelCloseDigest(id, 0, EVER));
        _expect(abi.encodeWithSelector(IChannelEscrow.UnknownChannel.selector, id));
        escrow.cancelCloseWithAuthorization(terms, EVER, permission);

        _open(terms, 100);
        _close(terms);
        _expect(abi.encodeWithSelector(IChannelEscrow.ChannelFinalized.selector, id));
        escrow.cancelCloseWithAuthorization(terms, EVER, permission);
    }
}
