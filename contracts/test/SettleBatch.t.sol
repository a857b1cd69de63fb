// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Vm} from "forge-std/Vm.sol";

import {Base, Channel, IChannelEscrow, SkipReason, Terms} from "./Base.sol";
import {Wallet} from "./mock/Wallet.sol";

contract SettleBatchTest is Base {
    uint96 private constant DEPOSIT = 1_000;
    uint256 private constant ROWS = 5;

    /// @dev The signer of row `i` of a batch. Odd rows have an authorized signer.
    function _account(uint256 i) private returns (Account memory) {
        return makeAccount(string.concat("row", vm.toString(i)));
    }

    /// @dev Opens the channel of row `i`: payers, salts and who signs all differ.
    function _channel(uint256 i, bytes32 salt) private returns (Terms memory terms) {
        Account memory account = _account(i);
        terms = _terms();
        terms.salt = salt;
        if (i % 2 == 0) {
            terms.payer = account.addr;
            _fund(terms.payer);
        } else {
            terms.authorizedSigner = account.addr;
        }
        _open(terms, DEPOSIT);
    }

    function _signed(uint256 i, Terms memory terms, uint96 amount) private returns (bytes memory) {
        return _row(terms, amount, _voucher(terms, amount, _account(i)));
    }

    /// @dev A row that must be skipped for `reason`, which `kind` makes happen in one of several ways.
    function _badRow(uint256 i, uint256 kind) private returns (bytes memory row, bytes32 id, SkipReason reason) {
        Terms memory terms = _channel(i, bytes32(1_000 + i));
        id = escrow.channelId(terms);
        bytes memory good = _voucher(terms, 50, _account(i));

        if (kind == 0) {
            terms.salt = bytes32(uint256(77));
            return (_row(terms, 50, good), escrow.channelId(terms), SkipReason.Unknown);
        }
        if (kind == 1) {
            _close(terms);
            return (_row(terms, 50, good), id, SkipReason.Finalized);
        }
        if (kind == 2) {
            escrow.settle(terms, 50, good);
            return (_row(terms, 50, good), id, SkipReason.Stale);
        }
        if (kind == 3) return (_signed(i, terms, 0), id, SkipReason.Stale);
        if (kind == 4) return (_signed(i, terms, DEPOSIT + 1), id, SkipReason.ExceedsDeposit);
        if (kind == 5) return (_row(terms, 51, good), id, SkipReason.BadSignature);
        if (kind == 6) return (_row(terms, 50, _voucher(terms, 50, stranger)), id, SkipReason.BadSignature);
        if (kind == 7) return (_row(terms, 50, _twin(good)), id, SkipReason.BadSignature);
        if (kind == 8) return (_row(terms, 50, new bytes(65)), id, SkipReason.BadSignature);
        assertEq(kind, 9);
        return (_row(terms, 50, _withV(good, uint8(good[64]) ^ 7)), id, SkipReason.BadSignature);
    }

    uint256 private constant KINDS = 10;

    function _withV(bytes memory signature, uint8 v) private pure returns (bytes memory) {
        (bytes32 r, bytes32 s,) = _split(signature);
        return abi.encodePacked(r, s, v);
    }

    /// @dev Every reason at every position: that row is reported, and every other one is paid.
    function test_settleBatch_badRowAtEveryPositionForEveryReason() public {
        for (uint256 kind; kind < KINDS; ++kind) {
            for (uint256 position; position < ROWS; ++position) {
                uint256 snapshot = vm.snapshotState();
                _oneBadRow(kind, position);
                vm.revertToState(snapshot);
            }
        }
    }

    function _oneBadRow(uint256 kind, uint256 position) private {
        bytes memory rows;
        bytes32[] memory ids = new bytes32[](ROWS);
        SkipReason reason;
        bytes memory row;
        for (uint256 i; i < ROWS; ++i) {
            if (i == position) {
                (row, ids[i], reason) = _badRow(i, kind);
            } else {
                Terms memory terms = _channel(i, bytes32(1_000 + i));
                ids[i] = escrow.channelId(terms);
                row = _signed(i, terms, uint96(10 + i));
            }
            rows = bytes.concat(rows, row);
        }
        Channel memory bad = escrow.channel(ids[position]);
        uint256 before = token.balanceOf(payee.addr);

        for (uint256 i; i < ROWS; ++i) {
            _emits();
            if (i == position) emit IChannelEscrow.SettlementSkipped(ids[i], i, reason);
            else emit IChannelEscrow.Settled(ids[i], 10 + i);
        }
        uint256 paid = escrow.settleBatch(payee.addr, address(token), rows);

        assertEq(paid, 10 + 11 + 12 + 13 + 14 - (10 + position));
        assertEq(token.balanceOf(payee.addr), before + paid);
        assertEq(abi.encode(escrow.channel(ids[position])), abi.encode(bad), "the bad row changed something");
        for (uint256 i; i < ROWS; ++i) {
            if (i != position) _assertBooks(ids[i], DEPOSIT, 10 + i);
        }
    }

    /// @dev Any mixture of good and bad rows pays exactly the good ones.
    function testFuzz_settleBatch_mixture(uint8[6] memory kinds) public {
        bytes memory rows;
        bytes32[] memory ids = new bytes32[](6);
        uint256 expected;
        for (uint256 i; i < 6; ++i) {
            uint256 kind = kinds[i] % (2 * KINDS);
            bytes memory row;
            if (kind < KINDS) {
                (row, ids[i],) = _badRow(i, kind);
            } else {
                Terms memory terms = _channel(i, bytes32(1_000 + i));
                row = _signed(i, terms, uint96(10 + i));
                expected += 10 + i;
            }
            rows = bytes.concat(rows, row);
        }
        uint256 before = token.balanceOf(payee.addr);

        assertEq(escrow.settleBatch(payee.addr, address(token), rows), expected);

        assertEq(token.balanceOf(payee.addr), before + expected);
    }

    /// @dev A batch of one does what settle does, whatever the salt's length and whoever signs.
    function testFuzz_settleBatch_equalsSettle(uint96 deposit, uint96 first, uint96 second, bytes32 salt, bool own)
        public
    {
        deposit = uint96(bound(deposit, 2, MAX));
        first = uint96(bound(first, 1, deposit - 1));
        second = uint96(bound(second, first + 1, deposit));
        Terms memory terms = own ? _terms() : _termsSigned();
        terms.salt = salt;
        bytes32 id = _open(terms, deposit);
        Account memory by = own ? payer : signer;
        escrow.settle(terms, first, _voucher(terms, first, by));
        bytes memory row = _row(terms, second, _voucher(terms, second, by));

        _emits();
        emit IChannelEscrow.Settled(id, second);
        vm.prank(stranger.addr);
        assertEq(escrow.settleBatch(payee.addr, address(token), row), second - first);

        _assertBooks(id, deposit, second);
        assertEq(token.balanceOf(payee.addr), second);
    }

    /// @dev Salts of every length, by their significant bytes.
    function test_settleBatch_everySaltLength() public {
        bytes memory rows;
        for (uint256 length; length <= 32; ++length) {
            bytes32 salt = bytes32(length == 0 ? 0 : type(uint256).max >> (256 - 8 * length));
            rows = bytes.concat(rows, _signed(1, _channel(1, salt), 7));
        }

        assertEq(escrow.settleBatch(payee.addr, address(token), rows), 33 * 7);
    }

    /// @dev Salt and amount may also be written with their zeros: they are the same numbers.
    function test_settleBatch_paddedSalt() public {
        Terms memory terms = _terms();
        bytes32 id = _open(terms, 100);
        bytes memory row = bytes.concat(_header(32, false, 12, 1), _body(terms, 60, _voucher(terms, 60), 32, 12));

        assertEq(escrow.settleBatch(payee.addr, address(token), row), 60);
        _assertBooks(id, 100, 60);
    }

    function test_settleBatch_everyAmountLength() public {
        bytes memory rows;
        uint256 expected;
        for (uint256 length = 1; length <= 12; ++length) {
            uint96 amount = uint96(1 << (8 * length - 1));
            Terms memory terms = _terms();
            terms.salt = bytes32(length);
            _open(terms, amount);
            rows = bytes.concat(rows, _row(terms, amount, _voucher(terms, amount)));
            expected += amount;
        }

        assertEq(escrow.settleBatch(payee.addr, address(token), rows), expected);
    }

    /// @dev Rows that nobody can tell apart by their shape are one group: the same rows, alone and together.
    function testFuzz_settleBatch_groups(uint8 first, uint8 second, bool named, uint256 bad) public {
        first = uint8(bound(first, 0, 6));
        second = uint8(bound(second, 1, 6));
        bad = bound(bad, 0, 2 * (first + second)); // above the rows there is none
        (bytes memory short, uint256 paidFirst) = _group(0, first, named, bad);
        (bytes memory long, uint256 paidSecond) = _group(first, second, !named, bad);
        uint256 before = token.balanceOf(payee.addr);

        if (bad < first + second) {
            _emits();
            emit IChannelEscrow.SettlementSkipped(_idOf(bad, named == (bad < first)), bad, SkipReason.BadSignature);
        }
        uint256 paid = escrow.settleBatch(payee.addr, address(token), bytes.concat(short, long));

        assertEq(paid, paidFirst + paidSecond);
        assertEq(token.balanceOf(payee.addr), before + paid);
        for (uint256 i; i < first + second; ++i) {
            _assertBooks(_idOf(i, named == (i < first)), DEPOSIT, i == bad ? 0 : 10 + i);
        }
    }

    function _termsOf(uint256 i, bool named) private returns (Terms memory terms) {
        terms = _terms();
        terms.salt = bytes32(1_000 + i);
        if (named) terms.authorizedSigner = _account(i).addr;
        else terms.payer = _account(i).addr;
    }

    function _idOf(uint256 i, bool named) private returns (bytes32) {
        return escrow.channelId(_termsOf(i, named));
    }

    /// @dev Rows from number `from` on, of which row `bad` is signed by somebody else. Lengths are longer than they need.
    function _group(uint256 from, uint256 n, bool named, uint256 bad)
        private
        returns (bytes memory rows, uint256 paid)
    {
        rows = _header(5, named, 2, uint16(n));
        for (uint256 i = from; i < from + n; ++i) {
            Terms memory terms = _termsOf(i, named);
            if (!named) _fund(terms.payer);
            _open(terms, DEPOSIT);
            uint96 amount = uint96(10 + i);
            bytes memory signature = _voucher(terms, amount, i == bad ? stranger : _account(i));
            rows = bytes.concat(rows, _body(terms, amount, signature, 5, 2));
            if (i != bad) paid += amount;
        }
    }

    /// @dev A row that names nobody, in a group that names, is nobody's; so is one whose signer is no address.
    function test_settleBatch_namesNobody() public {
        Terms memory terms = _terms();
        bytes32 id = _open(terms, 100);
        bytes memory row = _body(terms, 60, _voucher(terms, 60), 1, 1);
        bytes memory named = bytes.concat(_header(1, true, 1, 2), row, bytes32(0), row, bytes32(uint256(1) << 160));

        _emits();
        emit IChannelEscrow.SettlementSkipped(id, 0, SkipReason.BadSignature);
        assertEq(escrow.settleBatch(payee.addr, address(token), named), 0);
        _assertBooks(id, 100, 0);
    }

    function testFuzz_settleBatch_manyRows(uint8 n, uint256 seed) public {
        n = uint8(bound(n, 1, 40));
        bytes memory rows;
        uint256 expected;
        for (uint256 i; i < n; ++i) {
            Terms memory terms = _terms();
            terms.salt = keccak256(abi.encode(seed, i)) >> (8 * (i % 32));
            uint96 amount = uint96(1 + uint256(keccak256(abi.encode(i, seed))) % DEPOSIT);
            _open(terms, DEPOSIT);
            rows = bytes.concat(rows, _row(terms, amount, _voucher(terms, amount)));
            expected += amount;
        }

        assertEq(escrow.settleBatch(payee.addr, address(token), rows), expected);
        assertEq(token.balanceOf(payee.addr), expected);
        assertEq(token.balanceOf(address(escrow)), n * uint256(DEPOSIT) - expected);
    }

    function test_settleBatch_makesOneTransfer() public {
        bytes memory rows;
        for (uint256 i; i < 3; ++i) {
            rows = bytes.concat(rows, _signed(i, _channel(i, bytes32(i)), 7));
        }

        vm.expectCall(address(token), abi.encodeCall(token.transfer, (payee.addr, 21)), 1);
        vm.recordLogs();
        escrow.settleBatch(payee.addr, address(token), rows);

        Vm.Log[] memory logs = vm.getRecordedLogs();
        assertEq(logs.length, 4);
        assertEq(logs[3].emitter, address(token));
    }

    /// @dev The same channel twice: the rows count one after the other, so the order decides.
    function test_settleBatch_sameChannelTwice() public {
        Terms memory terms = _channel(0, SALT);
        bytes32 id = escrow.channelId(terms);
        bytes memory low = _signed(0, terms, 10);
        bytes memory high = _signed(0, terms, 30);
        uint256 snapshot = vm.snapshotState();

        assertEq(escrow.settleBatch(payee.addr, address(token), bytes.concat(low, high)), 30);
        vm.revertToState(snapshot);
        assertEq(escrow.settleBatch(payee.addr, address(token), bytes.concat(high, low)), 30);
        assertEq(escrow.settleBatch(payee.addr, address(token), bytes.concat(high, low)), 0);
        _assertBooks(id, DEPOSIT, 30);
    }

    /// @dev With another payee or token, the ids are others, and nobody is paid.
    function testFuzz_settleBatch_bindsPayeeAndToken(address to, address other) public {
        vm.assume(to != payee.addr || other != address(token));
        bytes memory row = _signed(0, _channel(0, SALT), 10);

        assertEq(escrow.settleBatch(to, other, row), 0);
        assertEq(token.balanceOf(address(escrow)), DEPOSIT);
    }

    /// @dev What ecrecover answered for one row must not answer for the next, of the same signer, when it says nothing.
    function test_settleBatch_badRowAfterGoodOfSameSigner() public {
        Terms memory terms = _terms();
        _open(terms, 100);
        bytes memory good = _row(terms, 10, _voucher(terms, 10));
        terms.salt = bytes32(uint256(8));
        bytes32 id = _open(terms, 100);
        bytes memory bad = _row(terms, 20, new bytes(65));

        assertEq(escrow.settleBatch(payee.addr, address(token), bytes.concat(good, bad)), 10);

        _assertBooks(id, 100, 0);
    }

    function test_settleBatch_empty() public {
        vm.recordLogs();
        assertEq(escrow.settleBatch(payee.addr, address(token), ""), 0);
        assertEq(vm.getRecordedLogs().length, 0);
    }

    /// @dev A wallet's contract gets no say (and no gas) in a batch; `settle` asks it.
    function test_settleBatch_asksNoWallet() public {
        Terms memory terms = _terms();
        terms.authorizedSigner = address(new Wallet(signer.addr));
        bytes32 id = _open(terms, 100);
        bytes memory signature = _voucher(terms, 50, signer);

        vm.expectCall(terms.authorizedSigner, "", 0);
        _emits();
        emit IChannelEscrow.SettlementSkipped(id, 0, SkipReason.BadSignature);
        assertEq(escrow.settleBatch(payee.addr, address(token), _row(terms, 50, signature)), 0);
    }

    function test_settleBatch_whileClosing() public {
        Terms memory terms = _channel(0, SALT);
        bytes memory row = _signed(0, terms, 10);
        _requestClose(terms);
        skip(GRACE);

        assertEq(escrow.settleBatch(payee.addr, address(token), row), 10);
    }

    /// @dev Cut anywhere but between groups, the whole batch reverts and names the row from which on it does not parse.
    function testFuzz_settleBatch_cutReverts(uint256 length) public {
        bytes memory first = _signed(0, _channel(0, bytes32(uint256(0x0102))), 10);
        bytes memory second = _signed(1, _channel(1, bytes32(uint256(0x010203))), 10);
        bytes memory rows = bytes.concat(first, second);
        length = bound(length, 1, rows.length - 1);
        vm.assume(length != first.length);
        uint256 row = length < first.length ? 0 : 1;
        assembly ("memory-safe") {
            mstore(rows, length)
        }

        _expect(abi.encodeWithSelector(IChannelEscrow.MalformedRow.selector, row));
        escrow.settleBatch(payee.addr, address(token), rows);
    }

    function testFuzz_settleBatch_trailingBytesRevert(bytes memory rest) public {
        vm.assume(rest.length != 0 && rest.length < 4 + 84);
        if (rest.length > 2) rest[2] = 0x01; // at least 256 rows
        bytes memory rows = bytes.concat(_signed(0, _channel(0, SALT), 10), rest);

        _expect(abi.encodeWithSelector(IChannelEscrow.MalformedRow.selector, 1));
        escrow.settleBatch(payee.addr, address(token), rows);
    }

    /// @dev A group that is cut short, by a byte or a row, is malformed from its first row on.
    function testFuzz_settleBatch_cutGroupReverts(uint256 length) public {
        (bytes memory rows,) = _group(0, 4, true, 0);
        length = bound(length, 1, rows.length - 1);
        bytes memory first = _signed(0, _channel(0, SALT), 10);
        assembly ("memory-safe") {
            mstore(rows, length)
        }

        _expect(abi.encodeWithSelector(IChannelEscrow.MalformedRow.selector, 1));
        escrow.settleBatch(payee.addr, address(token), bytes.concat(first, rows));
    }

    /// @dev All headers: a salt over 32 bytes, an amount over 12 or the reserved bit are malformed, whatever follows.
    function testFuzz_settleBatch_badHeaderReverts(uint8 shape, uint8 amountLength, uint16 count) public {
        bool bad = shape & 0x7f > 32 || amountLength > 12;
        count = uint16(bound(count, 0, 3));
        uint256 stride = uint256(84) + amountLength + (shape & 0x7f) + (shape >= 0x80 ? 32 : 0);
        bytes memory rows = new bytes(count * stride);

        if (bad) _expect(abi.encodeWithSelector(IChannelEscrow.MalformedRow.selector, 0));
        uint256 paid =
            escrow.settleBatch(payee.addr, address(token), abi.encodePacked(shape, amountLength, count, rows));
        if (!bad) assertEq(paid, 0);
    }

    /// @dev The lengths next to the longest that there are: each group would be in place, and worth its row, but for them.
    function test_settleBatch_headersAtTheirBounds() public {
        Terms memory terms = _terms();
        terms.salt = bytes32(type(uint256).max);
        _open(terms, 1_000);
        bytes memory signature = _voucher(terms, 60);
        bytes[2] memory groups = [
            bytes.concat(_header(33, false, 12, 1), _body(terms, 60, signature, 32, 12), hex"ff"),
            bytes.concat(_header(32, false, 13, 1), _body(terms, 60, signature, 32, 12), hex"ff")
        ];
        for (uint256 i; i < groups.length; ++i) {
            _expect(abi.encodeWithSelector(IChannelEscrow.MalformedRow.selector, 0));
            escrow.settleBatch(payee.addr, address(token), groups[i]);
        }
        bytes memory good = bytes.concat(_header(32, false, 12, 1), _body(terms, 60, signature, 32, 12));
        assertEq(escrow.settleBatch(payee.addr, address(token), good), 60);
    }

    /// @dev A group of 256 rows, whose count has both bytes: all count, and are numbered, and the group after them too.
    function test_settleBatch_groupOf256() public {
        Terms memory terms = _terms();
        bytes32 id = _open(terms, 1_000);
        bytes memory signature = _voucher(terms, 1);
        bytes memory rows = _header(1, false, 1, 257);
        for (uint256 i; i < 257; ++i) {
            rows = bytes.concat(
                rows, _body(terms, uint96(i == 256 ? 2 : 1), i == 256 ? _voucher(terms, 2) : signature, 1, 1)
            );
        }
        rows = bytes.concat(rows, _row(terms, 2, signature));

        _emits();
        emit IChannelEscrow.Settled(id, 1);
        for (uint256 i = 1; i < 256; ++i) {
            _emits();
            emit IChannelEscrow.SettlementSkipped(id, i, SkipReason.Stale);
        }
        _emits();
        emit IChannelEscrow.Settled(id, 2);
        _emits();
        emit IChannelEscrow.SettlementSkipped(id, 257, SkipReason.Stale);
        assertEq(escrow.settleBatch(payee.addr, address(token), rows), 2);
    }

    /// @dev All of the deposit is not above it: what is wrong with such a row is its signature.
    function test_settleBatch_reasonAtTheDeposit() public {
        Terms memory terms = _terms();
        bytes32 id = _open(terms, 100);
        bytes memory forged = _row(terms, 100, _voucher(terms, 100, stranger));
        _emits();
        emit IChannelEscrow.SettlementSkipped(id, 0, SkipReason.BadSignature);
        assertEq(escrow.settleBatch(payee.addr, address(token), forged), 0);

        assertEq(escrow.settleBatch(payee.addr, address(token), _row(terms, 100, _voucher(terms, 100))), 100);
    }

    /// @dev No bytes whatsoever move money that was not vouchered.
    function testFuzz_settleBatch_noise(bytes memory rows) public {
        _open(1_000);

        try escrow.settleBatch(payee.addr, address(token), rows) returns (uint256 paid) {
            assertEq(paid, 0);
        } catch {}

        assertEq(token.balanceOf(address(escrow)), 1_000);
    }
}
