// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Base, Terms} from "./Base.sol";

/// @notice What each operation costs, transaction and calldata included, in the state that it normally meets: distinct
/// payers, every channel claimed once before, every balance above zero before and after. The figures are committed in
/// contracts/snapshots and checked by every run; `FORGE_SNAPSHOT_CHECK=false forge test --mc Gas` writes them anew.
/// forge-config: default.isolate = true
contract GasTest is Base {
    uint128 private constant DEPOSIT = 1_000_000_000;
    uint96 private constant FIRST = 1_234_567;
    uint96 private constant SECOND = 2 * FIRST;

    function setUp() public override {
        super.setUp();
        token.mint(payee.addr, 1);
        Terms memory reserve = _terms();
        reserve.salt = bytes32(uint256(1));
        _open(reserve, DEPOSIT);
    }

    function _snapshot(string memory name, uint256 limit) private {
        uint256 gas = vm.snapshotGasLastCall("ChannelEscrow", name);
        assertLe(gas, limit, name);
    }

    /// @dev A row's payer, with an allowance that this test does not use up.
    function _payer(uint256 i) private returns (Account memory account) {
        account = makeAccount(string.concat("row", vm.toString(i)));
        token.mint(account.addr, 10 * DEPOSIT);
        vm.prank(account.addr);
        token.approve(address(escrow), 9 * DEPOSIT);
    }

    function _claimed(uint256 i) private returns (Terms memory terms, Account memory account) {
        account = _payer(i);
        terms = _terms();
        terms.payer = account.addr;
        terms.salt = bytes32(0x80000000 + i);
        _open(terms, DEPOSIT);
        bytes memory signature = _voucher(terms, FIRST, account);
        escrow.settle(terms, FIRST, signature);
    }

    function test_gas_open() public {
        Account memory account = _payer(0);
        vm.prank(account.addr);
        escrow.open(payee.addr, address(token), DEPOSIT, bytes32(uint256(0x80000000)), address(0));
        _snapshot("open", 72_000);
    }

    function test_gas_openWithAuthorization() public {
        Account memory account = _payer(0);
        Terms memory terms = _terms();
        terms.payer = account.addr;
        bytes32 nonce = _openNonce(terms);
        bytes memory signature = _authorization(account, DEPOSIT, nonce);
        escrow.openWithAuthorization(
            terms.payee,
            terms.token,
            DEPOSIT,
            terms.salt,
            address(0),
            terms.payer,
            0,
            type(uint256).max,
            nonce,
            signature
        );
        _snapshot("openWithAuthorization", 105_000);
    }

    function test_gas_topUp() public {
        (Terms memory terms,) = _claimed(0);
        vm.prank(terms.payer);
        escrow.topUp(terms, DEPOSIT);
        _snapshot("topUp", 55_000);
    }

    function test_gas_topUpWithAuthorization() public {
        (Terms memory terms, Account memory account) = _claimed(0);
        bytes32 nonce = _topUpNonce(escrow.channelId(terms), DEPOSIT, terms.payer, SALT);
        bytes memory signature = _authorization(account, DEPOSIT, nonce);
        escrow.topUpWithAuthorization(terms, DEPOSIT, terms.payer, SALT, 0, type(uint256).max, nonce, signature);
        _snapshot("topUpWithAuthorization", 90_000);
    }

    function test_gas_settle() public {
        (Terms memory terms, Account memory account) = _claimed(0);
        bytes memory signature = _voucher(terms, SECOND, account);
        escrow.settle(terms, SECOND, signature);
        _snapshot("settle", 60_000);
    }

    function test_gas_settleBatch() public {
        uint256 ten = _batch(0, 10, "settleBatch of 10", 170_000);
        uint256 hundred = _batch(10, 100, "settleBatch of 100", 1_300_000);
        assertLe((hundred - ten) / 90, 11_500, "marginal");
    }

    function _batch(uint256 from, uint256 n, string memory name, uint256 limit) private returns (uint256 gas) {
        bytes memory rows = _header(4, false, 3, uint16(n));
        for (uint256 i = from; i < from + n; ++i) {
            (Terms memory terms, Account memory account) = _claimed(i);
            rows = bytes.concat(rows, _body(terms, SECOND, _voucher(terms, SECOND, account), 4, 3));
        }
        uint256 paid = escrow.settleBatch(payee.addr, address(token), rows);
        gas = vm.snapshotGasLastCall("ChannelEscrow", name);
        assertEq(paid, n * (SECOND - FIRST));
        assertLe(gas, limit, name);
    }

    function test_gas_close() public {
        (Terms memory terms, Account memory account) = _claimed(0);
        bytes memory signature = _voucher(terms, SECOND, account);
        vm.prank(payee.addr);
        escrow.close(terms, SECOND, signature);
        _snapshot("close", 65_000);
    }

    function test_gas_requestCloseAndWithdraw() public {
        (Terms memory terms,) = _claimed(0);
        vm.prank(terms.payer);
        escrow.requestClose(terms);
        _snapshot("requestClose", 32_000);
        skip(GRACE);
        escrow.withdraw(terms);
        _snapshot("withdraw", 48_000);
    }
}
