// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ECDSA} from "solady/utils/ECDSA.sol";

/// @notice A smart wallet (ERC-1271) of one owner. Its signatures carry one byte in front of the owner's 65, so that
/// none of them is a plain ECDSA signature.
contract Wallet {
    address private immutable _owner;

    constructor(address owner) {
        _owner = owner;
    }

    function isValidSignature(bytes32 hash, bytes calldata signature) external view returns (bytes4) {
        if (signature.length != 66 || signature[0] != 0x01) return 0xffffffff;
        return ECDSA.tryRecover(hash, signature[1:]) == _owner ? this.isValidSignature.selector : bytes4(0xffffffff);
    }

    function execute(address target, bytes calldata data) external returns (bytes memory) {
        (bool ok, bytes memory result) = target.call(data);
        require(ok, string(result));
        return result;
    }
}

/// @notice A wallet that says yes to everything, but in a way that the standard does not know.
contract AgreeableWallet {
    function isValidSignature(bytes32, bytes calldata) external pure returns (bool) {
        return true;
    }
}
