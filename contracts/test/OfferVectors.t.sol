// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Test} from "forge-std/Test.sol";

/// @notice Checks sdk/wire/testdata/offers.json, which Go writes: a contract can tell who signed an offer's document.
contract OfferVectorsTest is Test {
    function test_offers() public view {
        string memory json = vm.readFile("sdk/wire/testdata/offers.json");
        uint256 n;
        for (; vm.keyExistsJson(json, _path(n, "name")); ++n) {
            string memory name = vm.parseJsonString(json, _path(n, "name"));
            bytes32 hash = keccak256(bytes(vm.parseJsonString(json, _path(n, "unsigned"))));
            bytes32 separator = keccak256(
                abi.encode(
                    keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"),
                    keccak256("gpupay offer"),
                    keccak256("1"),
                    vm.parseJsonUint(json, _path(n, "chainId")),
                    vm.parseJsonAddress(json, _path(n, "escrow"))
                )
            );
            bytes32 digest = keccak256(
                abi.encodePacked(
                    hex"1901", separator, keccak256(abi.encode(keccak256("Offer(bytes32 documentHash)"), hash))
                )
            );
            assertEq(hash, vm.parseJsonBytes32(json, _path(n, "hash")), name);
            assertEq(digest, vm.parseJsonBytes32(json, _path(n, "digest")), name);
            bytes memory signature = vm.parseJsonBytes(json, _path(n, "signature"));
            assertEq(_signer(digest, signature), vm.parseJsonAddress(json, _path(n, "payee")), name);
        }
        assertGt(n, 30, "vectors are missing");
    }

    function _path(uint256 n, string memory key) private pure returns (string memory) {
        return string.concat(".offers[", vm.toString(n), "].", key);
    }

    function _signer(bytes32 digest, bytes memory signature) private pure returns (address) {
        assertEq(signature.length, 65);
        (bytes32 r, bytes32 s) = (bytes32(0), bytes32(0));
        assembly ("memory-safe") {
            r := mload(add(signature, 32))
            s := mload(add(signature, 64))
        }
        return ecrecover(digest, uint8(signature[64]), r, s);
    }
}
