// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ChannelConfig} from "./IX402BatchSettlement.sol";
import {X402Base} from "./X402Base.sol";

/// @notice Whatever happens in whatever order, the contract holds exactly what it owes.
contract X402BooksTest is X402Base {
    uint256 private constant CHANNELS = 3;

    ChannelConfig[CHANNELS] private _configs;
    uint256 private _deposited;
    uint256 private _wealth;

    function setUp() public override {
        super.setUp();
        for (uint256 i; i < CHANNELS; ++i) {
            _configs[i] = _config();
            _configs[i].salt = bytes32(i);
        }
        _wealth = token.balanceOf(payer.addr);
    }

    function testFuzz_books(uint256[24] memory steps) public {
        for (uint256 i; i < steps.length; ++i) {
            _step(_configs[uint8(steps[i]) % CHANNELS], uint8(steps[i] >> 8) % 6, uint64(steps[i] >> 16));
            _check();
        }
    }

    /// @dev Each does what it can: what the contract refuses, others test.
    function _step(ChannelConfig memory config, uint256 what, uint64 amount) private {
        bytes32 id = SETTLEMENT.getChannelId(config);
        (uint128 balance, uint128 claimed) = SETTLEMENT.channels(id);
        (, uint40 initiatedAt) = SETTLEMENT.pendingWithdrawals(id);
        vm.warp(block.timestamp + 1);
        if (what == 0) {
            if (amount == 0) return;
            _deposit(config, amount);
            _deposited += amount;
        } else if (what == 1) {
            _claim(config, uint128(bound(amount, 0, balance)));
        } else if (what == 2) {
            SETTLEMENT.settle(payee.addr, address(token));
        } else if (what == 3) {
            if (amount == 0) return;
            vm.prank(payee.addr);
            SETTLEMENT.refund(config, amount);
        } else if (what == 4) {
            if (initiatedAt != 0 || balance == claimed) return;
            vm.prank(payer.addr);
            SETTLEMENT.initiateWithdraw(config, uint128(bound(amount, 1, balance - claimed)));
        } else {
            if (initiatedAt == 0) return;
            vm.warp(block.timestamp + DELAY);
            vm.prank(payer.addr);
            SETTLEMENT.finalizeWithdraw(config);
        }
    }

    function _check() private view {
        uint256 balances;
        uint256 claimed;
        for (uint256 i; i < CHANNELS; ++i) {
            (uint128 b, uint128 c) = SETTLEMENT.channels(SETTLEMENT.getChannelId(_configs[i]));
            assertLe(c, b, "claimed beyond the balance");
            balances += b;
            claimed += c;
        }
        (uint128 income, uint128 paid) = SETTLEMENT.receivers(payee.addr, address(token));
        assertEq(income, claimed, "the receiver's income");
        assertEq(token.balanceOf(address(SETTLEMENT)), balances - paid, "held");
        assertEq(token.balanceOf(payee.addr), paid, "paid");
        assertEq(token.balanceOf(payer.addr) + balances, _wealth, "the payer's");
        assertEq(token.balanceOf(address(COLLECTOR)), 0, "stuck");
        assertLe(balances, _deposited, "deposited");
    }
}
