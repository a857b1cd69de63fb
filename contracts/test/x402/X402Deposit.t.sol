// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {TestToken} from "../token/TestToken.sol";
import {ERC3009DepositCollector} from "./ERC3009DepositCollector.sol";
import {ChannelConfig, IDepositCollector, IX402BatchSettlement} from "./IX402BatchSettlement.sol";
import {X402Base} from "./X402Base.sol";

/// @notice Brings a part of what it should, or makes the contract deposit again meanwhile.
contract CrookedCollector is IDepositCollector {
    uint256 private immutable _brings;
    bytes private _again;

    constructor(uint256 brings, bytes memory again) {
        (_brings, _again) = (brings, again);
    }

    function collect(address, address token, uint256, bytes32, bytes calldata) external {
        TestToken(token).mint(msg.sender, _brings);
        if (_again.length == 0) return;
        (bool ok, bytes memory result) = msg.sender.call(_again);
        assembly ("memory-safe") {
            if iszero(ok) { revert(add(result, 0x20), mload(result)) }
        }
    }
}

contract X402DepositTest is X402Base {
    function test_deposit() public {
        ChannelConfig memory config = _config();
        bytes32 id = SETTLEMENT.getChannelId(config);
        _says();
        emit IX402BatchSettlement.ChannelCreated(id, config);
        _says();
        emit IX402BatchSettlement.Deposited(id, address(this), 100, 100);
        _deposit(config, 100);
        _assertChannel(id, 100, 0);
        assertEq(token.balanceOf(address(SETTLEMENT)), 100);

        vm.recordLogs();
        _deposit(config, 50);
        assertEq(vm.getRecordedLogs().length, 4); // nonce used, two transfers, Deposited: it is created only once
        _assertChannel(id, 150, 0);
    }

    function test_deposit_leavesAWithdrawalPending() public {
        ChannelConfig memory config = _config();
        bytes32 id = _deposit(config, 100);
        vm.prank(payer.addr);
        SETTLEMENT.initiateWithdraw(config, 100);
        _deposit(config, 50);
        _assertWithdrawal(id, 100, block.timestamp);
    }

    function test_deposit_refusesTerms() public {
        ChannelConfig memory config = _config();
        config.payer = address(0);
        _refusesDeposit(config, 1, address(COLLECTOR), IX402BatchSettlement.InvalidChannel.selector);
        config = _config();
        config.receiver = address(0);
        _refusesDeposit(config, 1, address(COLLECTOR), IX402BatchSettlement.InvalidChannel.selector);
        config = _config();
        config.receiverAuthorizer = address(0);
        _refusesDeposit(config, 1, address(COLLECTOR), IX402BatchSettlement.InvalidChannel.selector);
        config = _config();
        config.token = address(0);
        _refusesDeposit(config, 1, address(COLLECTOR), IX402BatchSettlement.InvalidChannel.selector);
        config = _config();
        config.withdrawDelay = 15 minutes - 1;
        _refusesDeposit(config, 1, address(COLLECTOR), IX402BatchSettlement.WithdrawDelayOutOfRange.selector);
        config.withdrawDelay = 30 days + 1;
        _refusesDeposit(config, 1, address(COLLECTOR), IX402BatchSettlement.WithdrawDelayOutOfRange.selector);
        _refusesDeposit(_config(), 0, address(COLLECTOR), IX402BatchSettlement.ZeroDeposit.selector);
        _refusesDeposit(_config(), 1, address(0), IX402BatchSettlement.InvalidCollector.selector);
    }

    function _refusesDeposit(ChannelConfig memory config, uint128 amount, address collector, bytes4 reason) private {
        _refuses(reason);
        SETTLEMENT.deposit(config, amount, collector, "");
    }

    function test_deposit_takesTheLongestDelay() public {
        ChannelConfig memory config = _config();
        config.withdrawDelay = 30 days;
        _assertChannel(_deposit(config, 1), 1, 0);
    }

    function test_deposit_overflow() public {
        ChannelConfig memory config = _config();
        _deposit(config, 1);
        _refusesDeposit(config, type(uint128).max, address(COLLECTOR), IX402BatchSettlement.DepositOverflow.selector);
    }

    function testFuzz_deposit_countsWhatArrived(uint64 amount, uint64 brings) public {
        vm.assume(amount != brings && amount != 0);
        CrookedCollector collector = new CrookedCollector(brings, "");
        _refusesDeposit(_config(), amount, address(collector), IX402BatchSettlement.DepositCollectionFailed.selector);
    }

    /// @dev Otherwise what one deposit brings would count for both.
    function test_deposit_notWithinADeposit() public {
        CrookedCollector inner = new CrookedCollector(100, "");
        bytes memory again = abi.encodeCall(IX402BatchSettlement.deposit, (_plain(), 100, address(inner), ""));
        CrookedCollector outer = new CrookedCollector(0, again);
        vm.expectRevert(bytes4(keccak256("Reentrancy()")));
        SETTLEMENT.deposit(_config(), 100, address(outer), "");
    }

    function test_collect_onlyForTheContract() public {
        bytes32 id = SETTLEMENT.getChannelId(_config());
        bytes memory data = _collectorData(payer, id, 100, 1);
        _refuses(ERC3009DepositCollector.OnlyX402BatchSettlement.selector);
        COLLECTOR.collect(payer.addr, address(token), 100, id, data);
    }

    /// @dev An authorization is good for one channel, one amount, and once.
    function test_collect_onlyWhatWasSigned() public {
        ChannelConfig memory config = _config();
        bytes memory data = _collectorData(payer, SETTLEMENT.getChannelId(config), 100, 1);

        bytes memory unsigned = abi.encodeWithSelector(TestToken.AuthorizationSignature.selector, payer.addr);
        _expect(unsigned);
        SETTLEMENT.deposit(_plain(), 100, address(COLLECTOR), data);
        _expect(unsigned);
        SETTLEMENT.deposit(config, 101, address(COLLECTOR), data);

        SETTLEMENT.deposit(config, 100, address(COLLECTOR), data);
        bytes32 nonce = keccak256(abi.encode(SETTLEMENT.getChannelId(config), uint256(1)));
        _expect(abi.encodeWithSelector(TestToken.AuthorizationUsedOrCanceled.selector, payer.addr, nonce));
        SETTLEMENT.deposit(config, 100, address(COLLECTOR), data);
    }
}
