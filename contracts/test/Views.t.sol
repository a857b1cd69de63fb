// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {EIP712} from "solady/utils/EIP712.sol";

import {Base, Channel, Terms} from "./Base.sol";

contract ViewsTest is Base {
    function testFuzz_channelId(Terms memory terms) public view {
        bytes32 expected = keccak256(
            abi.encode(
                terms.payer,
                terms.payee,
                terms.token,
                terms.salt,
                terms.authorizedSigner,
                address(escrow),
                block.chainid
            )
        );
        assertEq(escrow.channelId(terms), expected);
    }

    /// @dev An address with anything before it is in the terms of no channel.
    function testFuzz_channelId_dirtyAddress(Terms memory terms, uint8 field, uint96 dirt) public view {
        vm.assume(dirt != 0);
        bytes memory data = abi.encodeCall(escrow.channelId, (terms));
        uint256 at = uint256(field % 4 == 3 ? 4 : field % 4) * 32 + 36;
        assembly ("memory-safe") {
            let word := add(data, at)
            mstore(word, or(mload(word), shl(160, dirt)))
        }
        (bool ok, bytes memory id) = address(escrow).staticcall(data);
        assertTrue(!ok || abi.decode(id, (bytes32)) != escrow.channelId(terms), "two terms have one id");
    }

    function testFuzz_voucherDigest(bytes32 id, uint128 amount) public view {
        bytes32 typehash = 0xe97c93f01d3ef8eaba1586553df13308f236815bf4ea49c7b696895d8f5ea68a;
        assertEq(escrow.voucherDigest(id, amount), _digest(keccak256(abi.encode(typehash, id, amount))));
    }

    /// @dev The cached domain separator follows the chain id, so that a fork's vouchers are its own.
    function testFuzz_voucherDigest_followsChain(uint64 chain, bytes32 id, uint128 amount) public {
        vm.assume(chain != 0);
        vm.chainId(chain);
        bytes32 typehash = 0xe97c93f01d3ef8eaba1586553df13308f236815bf4ea49c7b696895d8f5ea68a;
        assertEq(escrow.voucherDigest(id, amount), _digest(keccak256(abi.encode(typehash, id, amount))));
    }

    function test_eip712Domain() public view {
        (
            bytes1 fields,
            string memory name,
            string memory version,
            uint256 chainId,
            address verifyingContract,
            bytes32 salt,
            uint256[] memory extensions
        ) = EIP712(address(escrow)).eip712Domain();
        assertEq(fields, hex"0f");
        assertEq(name, "EVM Payment Channel");
        assertEq(version, "1");
        assertEq(chainId, block.chainid);
        assertEq(verifyingContract, address(escrow));
        assertEq(salt, bytes32(0));
        assertEq(extensions.length, 0);
    }

    function testFuzz_channel_unknownIsZero(bytes32 id) public view {
        assertEq(abi.encode(escrow.channel(id)), abi.encode(Channel(0, 0, 0, 0, false, false)));
    }

    function testFuzz_channels(uint8 n) public {
        n = uint8(bound(n, 0, 20));
        bytes32[] memory ids = new bytes32[](n);
        for (uint256 i; i < n; ++i) {
            Terms memory terms = _terms();
            terms.salt = bytes32(i);
            ids[i] = i % 3 == 2 ? keccak256(abi.encode(i)) : _open(terms, uint128(i + 1));
            if (i % 3 == 1) _requestClose(terms);
        }

        Channel[] memory all = escrow.channels(ids);

        assertEq(all.length, n);
        for (uint256 i; i < n; ++i) {
            assertEq(abi.encode(all[i]), abi.encode(escrow.channel(ids[i])));
            assertEq(all[i].deposit, i % 3 == 2 ? 0 : i + 1);
        }
    }

    function test_gracePeriod() public view {
        assertEq(escrow.gracePeriod(), GRACE);
    }
}
