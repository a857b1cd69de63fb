// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Base, Channel, IChannelEscrow, SkipReason, Terms} from "./Base.sol";

/// @notice Does random but allowed things to a few channels, and keeps its own books to compare the escrow's with. It also
/// tries forbidden things, all of which must revert. No call of its public functions may revert: fail_on_revert is on.
contract Handler is Base {
    uint256 private constant PAYERS = 3;
    uint256 private constant PAYEES = 2;
    uint256 private constant SALTS = 3;
    uint96 private constant LARGE = 1e24;

    /// @dev What the handler knows of a channel that it opened.
    struct Book {
        Terms terms;
        uint256 deposited;
        uint256 settled;
        uint256 refunded;
        uint96 vouchered; // the newest voucher that the payee holds
        uint40 requestedAt;
        uint16 requests;
        bool closed;
    }

    Account[] private _payers;
    Account[] private _payees;
    bytes32[] public ids;
    mapping(bytes32 => Book) private _books;
    mapping(address => uint256) public paidIn;
    mapping(address => uint256) public paidOut;
    mapping(bytes32 => bytes32) private _tombstones;
    uint256 private _authorizations;

    function setUp() public override {
        super.setUp();
        for (uint256 i; i < PAYERS; ++i) {
            _payers.push(makeAccount(string.concat("payer", vm.toString(i))));
            _fund(_payers[i].addr);
        }
        for (uint256 i; i < PAYEES; ++i) {
            _payees.push(makeAccount(string.concat("payee", vm.toString(i))));
        }
        _fund(stranger.addr);
    }

    /*//////////////////////////////////////////////////////////////
                             ALLOWED CALLS
    //////////////////////////////////////////////////////////////*/

    function open(uint256 seed, uint96 deposit, bool authorized) external {
        Terms memory terms = _someTerms(seed);
        bytes32 id = escrow.channelId(terms);
        if (_books[id].deposited != 0) return;
        deposit = uint96(bound(deposit, 1, LARGE));

        if (authorized) _openWithAuthorization(terms, deposit);
        else _open(terms, deposit);

        ids.push(id);
        _books[id].terms = terms;
        _books[id].deposited = deposit;
        paidIn[terms.payer] += deposit;
    }

    function topUp(uint256 seed, uint96 amount) external {
        (bool found, bytes32 id) = _someOpen(seed);
        if (!found) return;
        Book storage book = _books[id];
        amount = uint96(bound(amount, 1, LARGE));

        vm.prank(book.terms.payer);
        escrow.topUp(book.terms, amount);

        book.deposited += amount;
        book.requestedAt = 0;
        paidIn[book.terms.payer] += amount;
    }

    function gift(uint256 seed, uint96 amount) external {
        (bool found, bytes32 id) = _someOpen(seed);
        if (!found) return;
        amount = uint96(bound(amount, 1, LARGE));

        vm.prank(stranger.addr);
        escrow.topUp(_books[id].terms, amount);

        _books[id].deposited += amount;
        paidIn[stranger.addr] += amount;
    }

    function topUpWithAuthorization(uint256 seed, uint96 amount) external {
        (bool found, bytes32 id) = _someOpen(seed);
        if (!found) return;
        Book storage book = _books[id];
        amount = uint96(bound(amount, 1, LARGE));
        bytes32 salt = bytes32(++_authorizations);
        bytes32 nonce = _topUpNonce(id, amount, book.terms.payer, salt);
        bytes memory signature = _authorization(_payerOf(book.terms), amount, nonce);

        vm.prank(stranger.addr);
        escrow.topUpWithAuthorization(
            book.terms, amount, book.terms.payer, salt, 0, type(uint256).max, nonce, signature
        );

        book.deposited += amount;
        paidIn[book.terms.payer] += amount;
    }

    /// @dev Off-chain: the payee now holds a voucher, with which it must be able to get paid.
    function voucher(uint256 seed, uint96 amount) external {
        (bool found, bytes32 id) = _someOpen(seed);
        if (!found) return;
        Book storage book = _books[id];
        book.vouchered = uint96(bound(amount, book.vouchered, book.deposited));
    }

    function settle(uint256 seed, uint96 part) external {
        (bool found, bytes32 id) = _someOpen(seed);
        Book storage book = _books[id];
        if (!found || book.vouchered <= book.settled) return;
        uint96 amount = uint96(bound(part, book.settled + 1, book.vouchered));
        bytes memory signature = _signed(id, amount);

        vm.prank(stranger.addr);
        escrow.settle(book.terms, amount, signature);

        _paid(id, amount);
    }

    /// @dev All channels of a payee in one batch: those with nothing new, and the closed ones, are skipped.
    function settleBatch(uint256 seed) external {
        address to = _payees[seed % PAYEES].addr;
        bytes memory rows;
        uint256 expected;
        for (uint256 i; i < ids.length; ++i) {
            Book storage book = _books[ids[i]];
            if (book.terms.payee != to) continue;
            rows = bytes.concat(rows, _row(book.terms, book.vouchered, _signed(ids[i], book.vouchered)));
            if (book.closed || book.vouchered <= book.settled) continue;
            expected += book.vouchered - book.settled;
            _paid(ids[i], book.vouchered);
        }

        vm.prank(stranger.addr);
        assertEq(escrow.settleBatch(to, address(token), rows), expected);
    }

    function close(uint256 seed, bool authorized) external {
        (bool found, bytes32 id) = _someOpen(seed);
        if (!found) return;
        Book storage book = _books[id];
        uint96 amount = uint96(book.vouchered > book.settled ? book.vouchered : book.settled);
        bytes memory signature = _signed(id, amount);
        bytes memory permission = _sign(_payeeOf(book.terms), _closeDigest(id, amount, type(uint256).max));

        vm.prank(authorized ? stranger.addr : book.terms.payee);
        if (authorized) escrow.closeWithAuthorization(book.terms, amount, signature, type(uint256).max, permission);
        else escrow.close(book.terms, amount, signature);

        _paid(id, amount);
        _closed(id);
    }

    function requestClose(uint256 seed, bool authorized) external {
        (bool found, bytes32 id) = _someOpen(seed);
        Book storage book = _books[id];
        if (!found || book.requestedAt != 0) return;
        bytes memory permission = _sign(_payerOf(book.terms), _requestCloseDigest(id, book.requests, type(uint256).max));

        vm.prank(authorized ? stranger.addr : book.terms.payer);
        if (authorized) escrow.requestCloseWithAuthorization(book.terms, type(uint256).max, permission);
        else escrow.requestClose(book.terms);

        book.requestedAt = uint40(vm.getBlockTimestamp());
        ++book.requests;
    }

    function withdraw(uint256 seed) external {
        (bool found, bytes32 id) = _someOpen(seed);
        Book storage book = _books[id];
        if (!found || book.requestedAt == 0) return;
        if (vm.getBlockTimestamp() < book.requestedAt + GRACE) skip(GRACE);

        vm.prank(stranger.addr);
        escrow.withdraw(book.terms);

        _closed(id);
    }

    function wait(uint256 time) external {
        skip(bound(time, 1, GRACE / 2));
    }

    /*//////////////////////////////////////////////////////////////
                            FORBIDDEN CALLS
    //////////////////////////////////////////////////////////////*/

    /// @dev Everything that was ever signed or submitted for a channel, once more.
    function replay(uint256 seed) external {
        if (ids.length == 0) return;
        bytes32 id = ids[seed % ids.length];
        Book storage book = _books[id];
        Terms memory terms = book.terms;
        bytes memory newest = _signed(id, book.vouchered);
        bytes memory old = _sign(_payerOf(terms), _requestCloseDigest(id, _before(book.requests), type(uint256).max));

        _forbid(
            terms.payer, abi.encodeCall(escrow.open, (terms.payee, terms.token, 1, terms.salt, terms.authorizedSigner))
        );
        _forbid(stranger.addr, abi.encodeCall(escrow.requestCloseWithAuthorization, (terms, type(uint256).max, old)));
        _forbid(stranger.addr, abi.encodeCall(escrow.requestClose, (terms)));
        _forbid(stranger.addr, abi.encodeCall(escrow.close, (terms, book.vouchered, newest)));
        if (book.closed || book.vouchered <= book.settled) {
            _forbid(stranger.addr, abi.encodeCall(escrow.settle, (terms, book.vouchered, newest)));
        }
        if (book.closed || vm.getBlockTimestamp() < uint256(book.requestedAt) + GRACE || book.requestedAt == 0) {
            _forbid(terms.payer, abi.encodeCall(escrow.withdraw, (terms)));
        }
    }

    /// @dev More than was vouchered, by anyone but the signer.
    function forge(uint256 seed, uint96 amount) external {
        if (ids.length == 0) return;
        bytes32 id = ids[seed % ids.length];
        Terms memory terms = _books[id].terms;
        amount = uint96(bound(amount, uint256(_books[id].vouchered) + 1, MAX));
        bytes memory signature = _voucher(terms, amount, _payeeOf(terms));

        _forbid(terms.payee, abi.encodeCall(escrow.settle, (terms, amount, signature)));
        _forbid(terms.payee, abi.encodeCall(escrow.close, (terms, amount, signature)));
        assertEq(escrow.settleBatch(terms.payee, terms.token, _row(terms, amount, signature)), 0);
    }

    function _forbid(address caller, bytes memory data) private {
        vm.prank(caller);
        (bool ok,) = address(escrow).call(data);
        assertFalse(ok, "a forbidden call went through");
    }

    /// @dev The nonce of the last signed close request; of none, one that was never reached.
    function _before(uint16 requests) private pure returns (uint256) {
        return requests == 0 ? 1 : requests - 1;
    }

    /*//////////////////////////////////////////////////////////////
                                 BOOKS
    //////////////////////////////////////////////////////////////*/

    function _paid(bytes32 id, uint256 settled) private {
        paidOut[_books[id].terms.payee] += settled - _books[id].settled;
        _books[id].settled = settled;
    }

    function _closed(bytes32 id) private {
        Book storage book = _books[id];
        book.closed = true;
        book.requestedAt = 0;
        book.refunded = book.deposited - book.settled;
        paidOut[book.terms.payer] += book.refunded;
        _tombstones[id] = keccak256(abi.encode(escrow.channel(id)));
    }

    function _openWithAuthorization(Terms memory terms, uint96 deposit) private {
        bytes32 nonce = _openNonce(terms);
        bytes memory signature = _authorization(_payerOf(terms), deposit, nonce);
        vm.prank(stranger.addr);
        escrow.openWithAuthorization(
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

    function _someTerms(uint256 seed) private view returns (Terms memory) {
        return Terms({
            payer: _payers[seed % PAYERS].addr,
            payee: _payees[seed / 7 % PAYEES].addr,
            token: address(token),
            salt: bytes32(seed / 31 % SALTS),
            authorizedSigner: seed / 101 % 2 == 0 ? address(0) : signer.addr
        });
    }

    function _someOpen(uint256 seed) private view returns (bool, bytes32) {
        if (ids.length == 0) return (false, 0);
        for (uint256 i; i < ids.length; ++i) {
            bytes32 id = ids[(seed % ids.length + i) % ids.length];
            if (!_books[id].closed) return (true, id);
        }
        return (false, 0);
    }

    function _signed(bytes32 id, uint96 amount) private view returns (bytes memory) {
        Terms memory terms = _books[id].terms;
        return _voucher(terms, amount, terms.authorizedSigner == address(0) ? _payerOf(terms) : signer);
    }

    function _payerOf(Terms memory terms) private view returns (Account memory) {
        return _find(_payers, terms.payer);
    }

    function _payeeOf(Terms memory terms) private view returns (Account memory) {
        return _find(_payees, terms.payee);
    }

    function _find(Account[] storage accounts, address account) private view returns (Account memory) {
        for (uint256 i;; ++i) {
            if (accounts[i].addr == account) return accounts[i];
        }
        revert("no such account");
    }

    /*//////////////////////////////////////////////////////////////
                              INVARIANTS
    //////////////////////////////////////////////////////////////*/

    /// @dev 1. What the escrow holds is what its open channels hold.
    function checkBalance() external view {
        uint256 sum;
        for (uint256 i; i < ids.length; ++i) {
            Channel memory c = escrow.channel(ids[i]);
            if (c.open) sum += c.deposit - c.settled;
        }
        assertEq(token.balanceOf(address(escrow)), sum, "the escrow's balance is not the sum of open remainders");
    }

    /// @dev 2. and 3. The escrow's books are the handler's, whose `settled` only ever grew.
    function checkBooks() external view {
        for (uint256 i; i < ids.length; ++i) {
            Channel memory c = escrow.channel(ids[i]);
            Book storage book = _books[ids[i]];
            assertLe(c.settled, c.deposit, "settled exceeds the deposit");
            assertLe(c.settled, book.vouchered, "settled exceeds what was vouchered");
            assertEq(c.settled, book.settled, "settled");
            assertEq(c.deposit, book.deposited, "deposit");
            assertEq(c.closeRequestedAt, book.requestedAt, "close request");
            assertEq(c.closeRequests, book.requests, "close requests");
            assertEq(c.open, !book.closed, "open");
        }
    }

    /// @dev 4. Every unit that left the escrow reached the payer or the payee of the channel that it came in with.
    function checkPayouts() external view {
        uint256 inEscrow = token.balanceOf(address(escrow));
        uint256 sum = inEscrow;
        for (uint256 i; i < PAYERS; ++i) {
            address account = _payers[i].addr;
            assertEq(token.balanceOf(account), 1e12 * uint256(MAX) + paidOut[account] - paidIn[account], "payer");
            sum += token.balanceOf(account);
        }
        for (uint256 i; i < PAYEES; ++i) {
            assertEq(token.balanceOf(_payees[i].addr), paidOut[_payees[i].addr], "payee");
            sum += token.balanceOf(_payees[i].addr);
        }
        assertEq(token.balanceOf(stranger.addr), 1e12 * uint256(MAX) - paidIn[stranger.addr], "stranger");
        sum += token.balanceOf(stranger.addr) + token.balanceOf(payer.addr);
        assertEq(sum, token.totalSupply(), "money went somewhere else");
    }

    /// @dev 5. A closed channel never changes again.
    function checkTombstones() external view {
        for (uint256 i; i < ids.length; ++i) {
            if (!_books[ids[i]].closed) continue;
            assertEq(keccak256(abi.encode(escrow.channel(ids[i]))), _tombstones[ids[i]], "a tombstone changed");
        }
    }

    /// @dev 6. and 7. From any state, a payee with a voucher is paid it, and then the payer gets all the rest.
    function checkExit() external {
        for (uint256 i; i < ids.length; ++i) {
            if (_books[ids[i]].closed) continue;
            _exit(ids[i]);
        }
        assertEq(token.balanceOf(address(escrow)), 0, "money stayed behind");
    }

    function _exit(bytes32 id) private {
        Book storage book = _books[id];
        Terms memory terms = book.terms;
        if (book.requestedAt == 0) _requestClose(terms);
        skip(GRACE);
        uint256 payeeBefore = token.balanceOf(terms.payee);
        if (book.vouchered > book.settled) escrow.settle(terms, book.vouchered, _signed(id, book.vouchered));
        uint256 total = book.vouchered > book.settled ? book.vouchered : book.settled;
        assertEq(token.balanceOf(terms.payee), payeeBefore + total - book.settled, "the payee is not paid");

        uint256 payerBefore = token.balanceOf(terms.payer);
        escrow.withdraw(terms);
        assertEq(token.balanceOf(terms.payer), payerBefore + book.deposited - total, "the payer does not get out");
    }
}
