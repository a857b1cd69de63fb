// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Base, Channel, IChannelEscrow, Terms} from "./Base.sol";

contract OpenTest is Base {
    function testFuzz_open(address to, uint96 deposit, bytes32 salt, address authorizedSigner) public {
        vm.assume(to != address(0) && to != address(escrow) && deposit != 0);
        Terms memory terms = Terms(payer.addr, to, address(token), salt, authorizedSigner);
        bytes32 id = keccak256(abi.encode(terms, address(escrow), block.chainid));
        uint256 before = token.balanceOf(payer.addr);

        _emits();
        emit IChannelEscrow.Opened(id, payer.addr, to, address(token), salt, authorizedSigner, deposit);
        assertEq(_open(terms, deposit), id);

        Channel memory c = escrow.channel(id);
        assertEq(abi.encode(c), abi.encode(Channel(deposit, 0, 0, 0, true, false)));
        assertEq(token.balanceOf(address(escrow)), deposit);
        assertEq(token.balanceOf(payer.addr), before - deposit);
    }

    /// @dev The id is the storage slot, and nothing else of the contract is stored.
    function testFuzz_open_takesOneSlot(uint96 deposit, bytes32 salt) public {
        vm.assume(deposit != 0);
        Terms memory terms = _terms();
        terms.salt = salt;

        vm.record();
        bytes32 id = _open(terms, deposit);
        (, bytes32[] memory writes) = vm.accesses(address(escrow));

        assertEq(writes.length, 1);
        assertEq(writes[0], id);
        assertEq(uint256(vm.load(address(escrow), id)), uint256(1) << 248 | uint256(deposit) << 96);
    }

    function testFuzz_open_isDistinctPerTerm(uint8 which) public {
        (, bytes32 id) = _open(10);
        Terms memory terms = _terms();
        if (which % 4 == 0) terms.payee = stranger.addr;
        if (which % 4 == 1) terms.salt = bytes32(uint256(8));
        if (which % 4 == 2) terms.authorizedSigner = signer.addr;
        // Naming the payer itself as the signer means the same, and is another channel all the same.
        if (which % 4 == 3) terms.authorizedSigner = payer.addr;

        assertTrue(_open(terms, 20) != id);

        _assertBooks(id, 10, 0);
        _assertBooks(escrow.channelId(terms), 20, 0);
    }

    function testFuzz_open_twiceReverts(uint96 first, uint96 second) public {
        vm.assume(first != 0 && second != 0);
        (Terms memory terms, bytes32 id) = _open(first);

        vm.prank(payer.addr);
        _expect(abi.encodeWithSelector(IChannelEscrow.ChannelExists.selector, id));
        escrow.open(terms.payee, terms.token, second, terms.salt, terms.authorizedSigner);
    }

    function test_open_afterCloseReverts() public {
        (Terms memory terms, bytes32 id) = _open(100);
        _settle(terms, 40);
        _close(terms);

        vm.prank(payer.addr);
        _expect(abi.encodeWithSelector(IChannelEscrow.ChannelExists.selector, id));
        escrow.open(terms.payee, terms.token, 100, terms.salt, terms.authorizedSigner);
    }

    function testFuzz_open_tooLargeReverts(uint128 deposit) public {
        deposit = uint128(bound(deposit, uint256(MAX) + 1, type(uint128).max));

        vm.prank(payer.addr);
        _expect(abi.encodeWithSelector(IChannelEscrow.AmountTooLarge.selector, deposit, MAX));
        escrow.open(payee.addr, address(token), deposit, SALT, address(0));
    }

    /// @dev A clock in milliseconds, or in anything finer than seconds: a grace period would be over at once.
    function testFuzz_constructor_clockNotInSecondsReverts(uint64 timestamp) public {
        timestamp = uint64(bound(timestamp, 1e10 + 1, type(uint64).max));
        vm.warp(timestamp);
        _expect(abi.encodeWithSelector(IChannelEscrow.NotInSeconds.selector, timestamp));
        this.create(GRACE);
        vm.warp(vm.unixTime()); // milliseconds, today
        _expect(abi.encodeWithSelector(IChannelEscrow.NotInSeconds.selector, vm.getBlockTimestamp()));
        this.create(GRACE);

        vm.warp(1e10);
        assertEq(IChannelEscrow(this.create(GRACE)).gracePeriod(), GRACE);
    }

    function test_open_zeroReverts() public {
        vm.prank(payer.addr);
        _expect(abi.encodeWithSelector(IChannelEscrow.ZeroAmount.selector));
        escrow.open(payee.addr, address(token), 0, SALT, address(0));
    }

    function test_open_payeeZeroReverts() public {
        vm.prank(payer.addr);
        _expect(abi.encodeWithSelector(IChannelEscrow.InvalidPayee.selector, address(0)));
        escrow.open(address(0), address(token), 1, SALT, address(0));
    }

    function test_open_payeeEscrowReverts() public {
        vm.prank(payer.addr);
        _expect(abi.encodeWithSelector(IChannelEscrow.InvalidPayee.selector, address(escrow)));
        escrow.open(address(escrow), address(token), 1, SALT, address(0));
    }

    function testFuzz_open_noTokenReverts(address nothing) public {
        vm.assume(nothing.code.length == 0 && uint160(nothing) > 0xffff);

        vm.prank(payer.addr);
        _expect(abi.encodeWithSelector(IChannelEscrow.NoToken.selector, nothing));
        escrow.open(payee.addr, nothing, 1, SALT, address(0));
    }

    function testFuzz_open_withoutAllowanceReverts(uint96 allowance, uint96 deposit) public {
        deposit = uint96(bound(deposit, 1, MAX));
        allowance = uint96(bound(allowance, 0, deposit - 1));
        vm.prank(payer.addr);
        token.approve(address(escrow), allowance);

        vm.prank(payer.addr);
        _expect(abi.encodeWithSelector(IChannelEscrow.TransferFromFailed.selector));
        escrow.open(payee.addr, address(token), deposit, SALT, address(0));
    }

    function test_open_withoutBalanceReverts() public {
        vm.prank(stranger.addr);
        token.approve(address(escrow), type(uint256).max);

        vm.prank(stranger.addr);
        _expect(abi.encodeWithSelector(IChannelEscrow.TransferFromFailed.selector));
        escrow.open(payee.addr, address(token), 1, SALT, address(0));
    }

    function testFuzz_constructor(uint40 grace) public {
        if (grace < 10 minutes) {
            _expect(abi.encodeWithSelector(IChannelEscrow.GracePeriodTooShort.selector, grace, 10 minutes));
            this.create(grace);
            return;
        }
        assertEq(_escrow(grace).gracePeriod(), grace);
    }

    function test_constructor_bound() public {
        assertEq(_escrow(600).gracePeriod(), 600);
        _expect(abi.encodeWithSelector(IChannelEscrow.GracePeriodTooShort.selector, 599, 600));
        this.create(599);
    }

    function _escrow(uint40 grace) private returns (IChannelEscrow) {
        return IChannelEscrow(create(grace));
    }

    /// @dev A call of its own, so that a test can expect it to revert.
    function create(uint40 grace) public returns (address) {
        return _create(ESCROW, abi.encode(grace));
    }
}
