// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Base, Channel, Credit, Terms} from "./Base.sol";
import {RefusingToken} from "./token/HostileTokens.sol";
import {TestToken} from "./token/TestToken.sol";

/// @notice Does random but allowed things to a few channels of two tokens, of which one refuses to pay whom it likes, and keeps its own books to compare the escrow's with. It also
/// tries forbidden things, all of which must revert. No call of its public functions may revert: fail_on_revert is on.
contract Handler is Base {
    uint256 private constant PAYERS = 3;
    uint256 private constant PAYEES = 2;
    uint256 private constant SALTS = 3;
    uint256 private constant TOKENS = 2;
    uint256 private constant FUNDS = 1e12 * uint256(MAX);
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
    TestToken[] private _tokens;
    RefusingToken private _refusing;
    // By token and account: what went in, what came out, what came out in somebody else's name, and what waits.
    mapping(address => mapping(address => uint256)) private _paidIn;
    mapping(address => mapping(address => uint256)) private _paidOut;
    mapping(address => mapping(address => uint256)) private _owed;
    mapping(address => mapping(address => uint256)) private _withdrawals;
    mapping(bytes32 => bytes32) private _tombstones;
    uint256 private _authorizations;

    function setUp() public override {
        super.setUp();
        _refusing = new RefusingToken();
        _tokens.push(token);
        _tokens.push(TestToken(address(_refusing)));
        for (uint256 i; i < PAYERS; ++i) {
            _payers.push(makeAccount(string.concat("payer", vm.toString(i))));
            _fundAll(_payers[i].addr);
        }
        for (uint256 i; i < PAYEES; ++i) {
            _payees.push(makeAccount(string.concat("payee", vm.toString(i))));
        }
        _fundAll(stranger.addr);
    }

    function _fundAll(address account) private {
        for (uint256 i; i < TOKENS; ++i) {
            _tokens[i].mint(account, FUNDS);
            vm.prank(account);
            _tokens[i].approve(address(escrow), type(uint256).max);
        }
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
        _paidIn[terms.token][terms.payer] += deposit;
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
        _paidIn[book.terms.token][book.terms.payer] += amount;
    }

    function gift(uint256 seed, uint96 amount) external {
        (bool found, bytes32 id) = _someOpen(seed);
        if (!found) return;
        amount = uint96(bound(amount, 1, LARGE));

        vm.prank(stranger.addr);
        escrow.topUp(_books[id].terms, amount);

        _books[id].deposited += amount;
        _paidIn[_books[id].terms.token][stranger.addr] += amount;
    }

    function topUpWithAuthorization(uint256 seed, uint96 amount) external {
        (bool found, bytes32 id) = _someOpen(seed);
        if (!found) return;
        Book storage book = _books[id];
        amount = uint96(bound(amount, 1, LARGE));
        bytes32 salt = bytes32(++_authorizations);
        bytes32 nonce = _topUpNonce(id, amount, book.terms.payer, salt);
        bytes memory signature = _authorized(book.terms, amount, nonce);

        vm.prank(stranger.addr);
        escrow.topUpWithAuthorization(
            book.terms, amount, book.terms.payer, salt, 0, type(uint256).max, nonce, signature
        );

        book.deposited += amount;
        _paidIn[book.terms.token][book.terms.payer] += amount;
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

        _settled(id, amount);
    }

    /// @dev All channels of a payee and token in one batch: those with nothing new, and the closed ones, are skipped. Every
    /// other channel has a bad row besides, before or after its good one.
    function settleBatch(uint256 seed, uint256 bad) external {
        address to = _payees[seed % PAYEES].addr;
        address of_ = address(_tokens[seed / 7 % TOKENS]);
        bytes memory rows;
        uint256 expected;
        for (uint256 i; i < ids.length; ++i) {
            Book storage book = _books[ids[i]];
            if (book.terms.payee != to || book.terms.token != of_) continue;
            bytes memory row = _row(book.terms, book.vouchered, _signed(ids[i], book.vouchered));
            bad = uint256(keccak256(abi.encode(bad)));
            if (bad % 4 == 0) row = bytes.concat(_badRow(ids[i], bad / 4), row);
            if (bad % 4 == 1) row = bytes.concat(row, _badRow(ids[i], bad / 4));
            rows = bytes.concat(rows, row);
            if (book.closed || book.vouchered <= book.settled) continue;
            expected += book.vouchered - book.settled;
            book.settled = book.vouchered;
        }

        vm.prank(stranger.addr);
        assertEq(escrow.settleBatch(to, of_, rows), expected);

        _paid(of_, to, expected);
    }

    /// @dev A row that nobody must be paid for.
    function _badRow(bytes32 id, uint256 kind) private view returns (bytes memory) {
        Book storage book = _books[id];
        Terms memory terms = book.terms;
        if (kind % 5 == 0) return _row(terms, uint96(book.deposited) + 1, _signed(id, uint96(book.deposited) + 1));
        if (kind % 5 == 1) return _row(terms, book.vouchered + 1, _signed(id, book.vouchered));
        if (kind % 5 == 2) return _row(terms, uint96(book.settled), _signed(id, uint96(book.settled)));
        if (kind % 5 == 3) return _row(terms, book.vouchered + 1, _voucher(terms, book.vouchered + 1, stranger));
        terms.salt = bytes32(SALTS);
        return _row(terms, book.vouchered, _signed(id, book.vouchered));
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

        _settled(id, amount);
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

    function cancelClose(uint256 seed) external {
        (bool found, bytes32 id) = _someOpen(seed);
        Book storage book = _books[id];
        if (!found || book.requestedAt == 0) return;
        bytes memory permission = _sign(_payerOf(book.terms), _cancelCloseDigest(id, book.requests, type(uint256).max));

        vm.prank(stranger.addr);
        escrow.cancelCloseWithAuthorization(book.terms, type(uint256).max, permission);

        book.requestedAt = 0;
    }

    /// @dev From now on the second token pays somebody in this way, or not.
    function refuse(uint256 seed, uint8 how) external {
        RefusingToken.Way[4] memory ways = [
            RefusingToken.Way.Pays, RefusingToken.Way.Reverts, RefusingToken.Way.SaysFalse, RefusingToken.Way.SaysALot
        ];
        _refusing.refuse(_someone(seed).addr, ways[how % 4]);
    }

    /// @dev To itself, by anyone or in its own transaction; or by its signature to the stranger, whom every token pays.
    function withdrawCredit(uint256 seed, uint8 how) external {
        Account memory account = _someone(seed);
        address of_ = address(_refusing);
        uint256 amount = _owed[of_][account.addr];
        if (amount == 0) return;
        address to = _refuses(of_, account.addr) ? stranger.addr : account.addr;
        uint256 nonce = _withdrawals[of_][account.addr]++;
        bytes memory permission = _sign(account, _withdrawCreditDigest(account.addr, of_, to, nonce, type(uint256).max));

        vm.prank(how % 2 == 0 ? account.addr : stranger.addr);
        if (how % 2 == 0) escrow.withdrawCredit(of_, to);
        else escrow.withdrawCreditWithAuthorization(account.addr, of_, to, type(uint256).max, permission);

        _owed[of_][account.addr] = 0;
        _paidOut[of_][to] += amount;
    }

    function _someone(uint256 seed) private view returns (Account memory) {
        seed %= PAYERS + PAYEES;
        return seed < PAYERS ? _payers[seed] : _payees[seed - PAYERS];
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
        old = _sign(_payerOf(terms), _cancelCloseDigest(id, _before(book.requests), type(uint256).max));
        _forbid(stranger.addr, abi.encodeCall(escrow.cancelCloseWithAuthorization, (terms, type(uint256).max, old)));
        _forbidCredit(terms);
        _forbid(stranger.addr, abi.encodeCall(escrow.close, (terms, book.vouchered, newest)));
        if (book.closed || book.vouchered <= book.settled) {
            _forbid(stranger.addr, abi.encodeCall(escrow.settle, (terms, book.vouchered, newest)));
        }
        if (book.closed || vm.getBlockTimestamp() < uint256(book.requestedAt) + GRACE || book.requestedAt == 0) {
            _forbid(terms.payer, abi.encodeCall(escrow.withdraw, (terms)));
        }
    }

    /// @dev The last signature that the payee's credit was withdrawn by; and by somebody else, to itself.
    function _forbidCredit(Terms memory terms) private {
        address of_ = terms.token;
        uint256 nonce = _withdrawals[of_][terms.payee];
        bytes32 old =
            _withdrawCreditDigest(terms.payee, of_, stranger.addr, nonce == 0 ? 1 : nonce - 1, type(uint256).max);
        bytes memory permission = _sign(_payeeOf(terms), old);
        _forbid(
            stranger.addr,
            abi.encodeCall(
                escrow.withdrawCreditWithAuthorization, (terms.payee, of_, stranger.addr, type(uint256).max, permission)
            )
        );
        _forbid(stranger.addr, abi.encodeCall(escrow.withdrawCredit, (of_, stranger.addr)));
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

    function _settled(bytes32 id, uint256 settled) private {
        Book storage book = _books[id];
        _paid(book.terms.token, book.terms.payee, settled - book.settled);
        book.settled = settled;
    }

    /// @dev What the escrow pays: it arrives, or it is owed.
    function _paid(address of_, address to, uint256 amount) private {
        if (_refuses(of_, to)) _owed[of_][to] += amount;
        else _paidOut[of_][to] += amount;
    }

    function _refuses(address of_, address to) private view returns (bool) {
        return of_ == address(_refusing) && _refusing.way(to) != RefusingToken.Way.Pays;
    }

    function _closed(bytes32 id) private {
        Book storage book = _books[id];
        book.closed = true;
        book.requestedAt = 0;
        book.refunded = book.deposited - book.settled;
        _paid(book.terms.token, book.terms.payer, book.refunded);
        _tombstones[id] = keccak256(abi.encode(escrow.channel(id)));
    }

    function _openWithAuthorization(Terms memory terms, uint96 deposit) private {
        bytes32 nonce = _openNonce(terms);
        bytes memory signature = _authorized(terms, deposit, nonce);
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

    /// @dev The second token asks for no signature.
    function _authorized(Terms memory terms, uint96 amount, bytes32 nonce) private view returns (bytes memory) {
        return terms.token == address(token) ? _authorization(_payerOf(terms), amount, nonce) : bytes("");
    }

    function _someTerms(uint256 seed) private view returns (Terms memory) {
        return Terms({
            payer: _payers[seed % PAYERS].addr,
            payee: _payees[seed / 7 % PAYEES].addr,
            token: address(_tokens[seed / 211 % TOKENS]),
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

    /// @dev 1. What the escrow holds of a token is what its open channels hold and what it owes.
    function checkBalance() external view {
        for (uint256 t; t < TOKENS; ++t) {
            address of_ = address(_tokens[t]);
            uint256 sum;
            for (uint256 i; i < ids.length; ++i) {
                Channel memory c = escrow.channel(ids[i]);
                if (_books[ids[i]].terms.token == of_ && c.open) sum += c.deposit - c.settled;
            }
            for (uint256 i; i < PAYERS + PAYEES; ++i) {
                sum += escrow.credit(_someone(i).addr, of_).amount;
            }
            assertEq(_tokens[t].balanceOf(address(escrow)), sum, "the balance is not what is open and what is owed");
        }
    }

    /// @dev 2. and 3. No channel settles more than was deposited, or than was vouchered.
    function checkBounds() external view {
        for (uint256 i; i < ids.length; ++i) {
            Channel memory c = escrow.channel(ids[i]);
            assertLe(c.settled, c.deposit, "settled exceeds the deposit");
            assertLe(c.settled, _books[ids[i]].vouchered, "settled exceeds what was vouchered");
        }
    }

    /// @dev 2. The escrow's books are the handler's, whose `settled` only ever grew.
    function checkBooks() external view {
        for (uint256 i; i < ids.length; ++i) {
            Channel memory c = escrow.channel(ids[i]);
            Book storage book = _books[ids[i]];
            assertEq(c.settled, book.settled, "settled");
            assertEq(c.deposit, book.deposited, "deposit");
            assertEq(c.closeRequestedAt, book.requestedAt, "close request");
            assertEq(c.closeRequests, book.requests, "close requests");
            assertEq(c.open, !book.closed, "open");
        }
    }

    /// @dev 4. Every unit that left the escrow reached the payer or the payee of the channel that it came in with, or who
    /// these named.
    function checkPayouts() external view {
        for (uint256 t; t < TOKENS; ++t) {
            for (uint256 i; i < PAYERS + PAYEES; ++i) {
                _checkPayout(_tokens[t], _someone(i).addr, i < PAYERS ? FUNDS : 0);
            }
            _checkPayout(_tokens[t], stranger.addr, FUNDS);
        }
    }

    function _checkPayout(TestToken of_, address account, uint256 funds) private view {
        uint256 expected = funds + _paidOut[address(of_)][account] - _paidIn[address(of_)][account];
        assertEq(of_.balanceOf(account), expected, "balance");
    }

    /// @dev 5. Nothing of a token is anywhere else.
    function checkSupply() external view {
        for (uint256 t; t < TOKENS; ++t) {
            TestToken of_ = _tokens[t];
            uint256 sum = of_.balanceOf(address(escrow)) + of_.balanceOf(stranger.addr) + of_.balanceOf(payer.addr);
            for (uint256 i; i < PAYERS + PAYEES; ++i) {
                sum += of_.balanceOf(_someone(i).addr);
            }
            assertEq(sum, of_.totalSupply(), "money went somewhere else");
        }
    }

    /// @dev 6. A closed channel never changes again.
    function checkTombstones() external view {
        for (uint256 i; i < ids.length; ++i) {
            if (!_books[ids[i]].closed) continue;
            assertEq(keccak256(abi.encode(escrow.channel(ids[i]))), _tombstones[ids[i]], "a tombstone changed");
        }
    }

    /// @dev 7. What is owed is what was refused and not yet withdrawn.
    function checkCredits() external view {
        for (uint256 t; t < TOKENS; ++t) {
            for (uint256 i; i < PAYERS + PAYEES; ++i) {
                (address of_, address account) = (address(_tokens[t]), _someone(i).addr);
                Credit memory c = escrow.credit(account, of_);
                assertEq(c.amount, _owed[of_][account], "credit");
                assertEq(c.withdrawals, _withdrawals[of_][account], "withdrawals");
            }
        }
    }

    /// @dev 8. and 9. From any state, a payee with a voucher is paid it, then the payer gets all the rest, and both what
    /// they are owed.
    function checkExit() external {
        for (uint256 i; i < ids.length; ++i) {
            if (!_books[ids[i]].closed) _exit(ids[i]);
        }
        for (uint256 i; i < PAYERS + PAYEES; ++i) {
            address account = _someone(i).addr;
            _refusing.refuse(account, RefusingToken.Way.Pays);
            if (escrow.credit(account, address(_refusing)).amount == 0) continue;
            escrow.withdrawCreditWithAuthorization(account, address(_refusing), account, 0, "");
        }
        for (uint256 t; t < TOKENS; ++t) {
            assertEq(_tokens[t].balanceOf(address(escrow)), 0, "money stayed behind");
        }
    }

    function _exit(bytes32 id) private {
        Book storage book = _books[id];
        Terms memory terms = book.terms;
        if (book.requestedAt == 0) _requestClose(terms);
        skip(GRACE);
        uint256 payeeBefore = _wealth(terms.payee, terms.token);
        if (book.vouchered > book.settled) escrow.settle(terms, book.vouchered, _signed(id, book.vouchered));
        uint256 total = book.vouchered > book.settled ? book.vouchered : book.settled;
        assertEq(_wealth(terms.payee, terms.token), payeeBefore + total - book.settled, "the payee is not paid");

        uint256 payerBefore = _wealth(terms.payer, terms.token);
        escrow.withdraw(terms);
        assertEq(_wealth(terms.payer, terms.token), payerBefore + book.deposited - total, "the payer does not get out");
    }

    /// @dev What an account has and is owed.
    function _wealth(address account, address of_) private view returns (uint256) {
        return TestToken(of_).balanceOf(account) + escrow.credit(account, of_).amount;
    }
}
