// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @notice The one call of ERC-3009 that the escrow makes, in the overload that also takes a smart wallet's signature.
interface IERC3009 {
    /// @notice Moves `value` from `from` to `to`, which must be the caller, by `from`'s signature.
    function receiveWithAuthorization(
        address from,
        address to,
        uint256 value,
        uint256 validAfter,
        uint256 validBefore,
        bytes32 nonce,
        bytes calldata signature
    ) external;
}
