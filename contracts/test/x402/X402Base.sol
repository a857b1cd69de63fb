// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Base} from "../Base.sol";
import {ERC3009DepositCollector} from "./ERC3009DepositCollector.sol";
import {ChannelConfig, IX402BatchSettlement, Voucher, VoucherClaim} from "./IX402BatchSettlement.sol";
import {X402BatchSettlement} from "./X402BatchSettlement.sol";

/// @notice The two stand-ins at their canonical addresses, and the accounts of the escrow's tests: `signer` is the payer's
/// authorizer and `operator` the receiver's.
abstract contract X402Base is Base {
    uint40 internal constant DELAY = 15 minutes;
    uint256 internal constant FOREVER = type(uint256).max;

    X402BatchSettlement internal constant SETTLEMENT = X402BatchSettlement(0x4020074e9dF2ce1deE5A9C1b5c3f541D02a10003);
    ERC3009DepositCollector internal constant COLLECTOR =
        ERC3009DepositCollector(0x4020806089470a89826cB9fB1f4059150b550004);

    Account internal operator;

    function setUp() public virtual override {
        super.setUp();
        operator = makeAccount("operator");
        vm.etch(address(SETTLEMENT), vm.getDeployedCode("out/X402BatchSettlement.sol/X402BatchSettlement.json"));
        vm.etch(address(COLLECTOR), vm.getDeployedCode("out/ERC3009DepositCollector.sol/ERC3009DepositCollector.json"));
    }

    /// @dev A channel whose vouchers the payer's authorizer signs.
    function _config() internal view returns (ChannelConfig memory) {
        return ChannelConfig(payer.addr, signer.addr, payee.addr, operator.addr, address(token), DELAY, SALT);
    }

    /// @dev A channel whose vouchers the payer itself signs.
    function _plain() internal view returns (ChannelConfig memory config) {
        config = _config();
        config.payerAuthorizer = address(0);
    }

    function _deposit(ChannelConfig memory config, uint128 amount) internal returns (bytes32 id) {
        id = SETTLEMENT.getChannelId(config);
        bytes32 salt = keccak256(abi.encode(id, amount, token.balanceOf(address(SETTLEMENT)), block.timestamp));
        SETTLEMENT.deposit(config, amount, address(COLLECTOR), _collectorData(payer, id, amount, uint256(salt)));
    }

    function _collectorData(Account memory from, bytes32 id, uint128 amount, uint256 salt)
        internal
        view
        returns (bytes memory)
    {
        return abi.encode(0, FOREVER, salt, _authorize(from, amount, keccak256(abi.encode(id, salt))));
    }

    /// @dev An ERC-3009 authorization to the collector.
    function _authorize(Account memory from, uint128 amount, bytes32 nonce) internal view returns (bytes memory) {
        bytes32 typehash = token.RECEIVE_WITH_AUTHORIZATION_TYPEHASH();
        bytes32 data =
            keccak256(abi.encode(typehash, from.addr, address(COLLECTOR), uint256(amount), 0, FOREVER, nonce));
        return _sign(from, keccak256(abi.encodePacked("\x19\x01", token.DOMAIN_SEPARATOR(), data)));
    }

    /// @dev A row that claims `total` with a voucher for `ceiling`.
    function _row(ChannelConfig memory config, uint128 ceiling, uint128 total, Account memory by)
        internal
        view
        returns (VoucherClaim memory)
    {
        bytes32 id = SETTLEMENT.getChannelId(config);
        return VoucherClaim(Voucher(config, ceiling), _sign(by, SETTLEMENT.getVoucherDigest(id, ceiling)), total);
    }

    function _rows(VoucherClaim memory row) internal pure returns (VoucherClaim[] memory rows) {
        rows = new VoucherClaim[](1);
        rows[0] = row;
    }

    function _rows(VoucherClaim memory a, VoucherClaim memory b) internal pure returns (VoucherClaim[] memory rows) {
        rows = new VoucherClaim[](2);
        (rows[0], rows[1]) = (a, b);
    }

    function _claim(ChannelConfig memory config, uint128 total) internal {
        VoucherClaim[] memory rows = _rows(_row(config, total, total, signer));
        vm.prank(payee.addr);
        SETTLEMENT.claim(rows);
    }

    function _refuses(bytes4 reason) internal {
        vm.expectRevert(abi.encodeWithSelector(reason));
    }

    function _says() internal {
        vm.expectEmit(address(SETTLEMENT));
    }

    function _assertChannel(bytes32 id, uint128 balance, uint128 claimed) internal view {
        (uint128 gotBalance, uint128 gotClaimed) = SETTLEMENT.channels(id);
        assertEq(gotBalance, balance, "balance");
        assertEq(gotClaimed, claimed, "claimed");
    }

    function _assertWithdrawal(bytes32 id, uint128 amount, uint256 initiatedAt) internal view {
        (uint128 gotAmount, uint40 gotAt) = SETTLEMENT.pendingWithdrawals(id);
        assertEq(gotAmount, amount, "withdrawal");
        assertEq(gotAt, initiatedAt, "initiated at");
    }

    function _assertIncome(uint128 claimed, uint128 settled) internal view {
        (uint128 gotClaimed, uint128 gotSettled) = SETTLEMENT.receivers(payee.addr, address(token));
        assertEq(gotClaimed, claimed, "claimed for the receiver");
        assertEq(gotSettled, settled, "paid to the receiver");
    }
}
