// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {SafeTransferLib} from "solady/utils/SafeTransferLib.sol";

import {IERC3009} from "../../src/IERC3009.sol";
import {IDepositCollector} from "./IX402BatchSettlement.sol";

/// @title ERC3009DepositCollector, a stand-in
/// @notice FOR TESTS AND LOCAL CHAINS ONLY. The real one is live at 0x4020806089470a89826cB9fB1f4059150b550004 and its
/// code is not ours: this follows its published interface. It holds no state and no immutables, so that its runtime code
/// can be placed at that address.
contract ERC3009DepositCollector is IDepositCollector {
    /// @notice The only contract that may collect, and the only one that is paid.
    address public constant x402BatchSettlement = 0x4020074e9dF2ce1deE5A9C1b5c3f541D02a10003;

    error OnlyX402BatchSettlement();

    /// @param collectorData `abi.encode(validAfter, validBefore, salt, signature)`. The authorization's nonce commits to
    /// the channel, so that it can be deposited nowhere else.
    function collect(address payer, address token, uint256 amount, bytes32 channelId, bytes calldata collectorData)
        external
    {
        require(msg.sender == x402BatchSettlement, OnlyX402BatchSettlement());
        (uint256 validAfter, uint256 validBefore, uint256 salt, bytes memory signature) =
            abi.decode(collectorData, (uint256, uint256, uint256, bytes));
        bytes32 nonce = keccak256(abi.encode(channelId, salt));
        IERC3009(token)
            .receiveWithAuthorization(payer, address(this), amount, validAfter, validBefore, nonce, signature);
        SafeTransferLib.safeTransfer(token, x402BatchSettlement, amount);
    }
}
