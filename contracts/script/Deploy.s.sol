// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Script} from "forge-std/Script.sol";
import {console2} from "forge-std/console2.sol";

import {ChannelEscrow} from "../src/ChannelEscrow.sol";

/// @notice Deploys the escrow through the deterministic deployer that every public chain has, so that one grace period
/// gives one address everywhere. Running it again on a chain that has the escrow changes nothing and costs nothing.
///
///     GRACE_PERIOD=86400 forge script contracts/script/Deploy.s.sol --rpc-url $RPC_URL --broadcast --interactive
contract Deploy is Script {
    /// @notice A day: long enough for a payee whose watcher is down to hear of it, short enough for a payer to wait.
    uint40 public constant DEFAULT_GRACE_PERIOD = 1 days;

    function run() external returns (ChannelEscrow escrow) {
        uint256 grace = vm.envOr("GRACE_PERIOD", uint256(DEFAULT_GRACE_PERIOD));
        require(grace <= type(uint40).max, "GRACE_PERIOD: must be a number of seconds");
        bytes memory code = creationCode(uint40(grace));
        bytes32 salt = vm.envOr("SALT", bytes32(0));
        escrow = ChannelEscrow(predict(uint40(grace), salt));
        if (address(escrow).code.length != 0) {
            console2.log("ChannelEscrow is deployed already, at", address(escrow));
            return escrow;
        }
        require(CREATE2_FACTORY.code.length != 0, "no deterministic deployer on this chain: deploy 0x4e59..956C first");

        vm.broadcast();
        (bool ok,) = CREATE2_FACTORY.call(bytes.concat(salt, code));

        require(ok && address(escrow).code.length != 0, "deployment failed: is GRACE_PERIOD under 600?");
        console2.log("ChannelEscrow deployed at", address(escrow));
    }

    /// @notice Where the escrow with this grace period is, or will be, on every chain. The salt is 0 but for an instance
    /// apart from the one that all share.
    function predict(uint40 grace, bytes32 salt) public pure returns (address) {
        return vm.computeCreate2Address(salt, keccak256(creationCode(grace)), CREATE2_FACTORY);
    }

    function creationCode(uint40 grace) public pure returns (bytes memory) {
        return bytes.concat(type(ChannelEscrow).creationCode, abi.encode(grace));
    }
}
