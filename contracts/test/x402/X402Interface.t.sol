// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ChannelConfig, IDepositCollector, IX402BatchSettlement, VoucherClaim} from "./IX402BatchSettlement.sol";
import {X402Base} from "./X402Base.sol";
import {X402BatchSettlement} from "./X402BatchSettlement.sol";

/// @notice What others compute without asking the contract: selectors, topics, type hashes and digests.
contract X402InterfaceTest is X402Base {
    function test_selectors() public pure {
        assertEq(IX402BatchSettlement.deposit.selector, bytes4(0x140f1e75));
        assertEq(IX402BatchSettlement.claim.selector, bytes4(0x29237b0c));
        assertEq(IX402BatchSettlement.claimWithSignature.selector, bytes4(0xe43ce1f2));
        assertEq(IX402BatchSettlement.settle.selector, bytes4(0x9db32a8f));
        assertEq(IX402BatchSettlement.refund.selector, bytes4(0xdce4bfae));
        assertEq(IX402BatchSettlement.refundWithSignature.selector, bytes4(0xb77433e9));
        assertEq(IX402BatchSettlement.initiateWithdraw.selector, bytes4(0xcf5cf3dc));
        assertEq(IX402BatchSettlement.finalizeWithdraw.selector, bytes4(0xe88377b1));
        assertEq(
            IDepositCollector.collect.selector, bytes4(keccak256("collect(address,address,uint256,bytes32,bytes)"))
        );
        assertEq(
            IX402BatchSettlement.WithdrawInitiated.selector, keccak256("WithdrawInitiated(bytes32,uint128,uint40)")
        );
    }

    function test_typehashes() public view {
        assertEq(
            SETTLEMENT.CHANNEL_CONFIG_TYPEHASH(), 0x1c9a06ceab9b0ebbd3301dc56c9111bb6d9af421356dc9ccb3b7084c755db308
        );
        assertEq(SETTLEMENT.VOUCHER_TYPEHASH(), 0x1e1bd6ff84c3e0d9029a292b212e039c0ca97ec497c55191a4a5874294609a69);
        assertEq(SETTLEMENT.REFUND_TYPEHASH(), 0xbe23ad087435072cd69b49cc5b92de10ee610fce7ae0ab428307972d764bb216);
    }

    /// @dev The domain from the specification, for the address that the code is at.
    function _typed(address at, bytes32 structHash) private view returns (bytes32) {
        bytes32 domain = keccak256(
            abi.encode(
                keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"),
                keccak256("x402 Batch Settlement"),
                keccak256("1"),
                block.chainid,
                at
            )
        );
        return keccak256(abi.encodePacked("\x19\x01", domain, structHash));
    }

    function testFuzz_digests(ChannelConfig memory config, uint128 amount, uint256 nonce, uint64 chain) public {
        vm.chainId(bound(chain, 1, type(uint64).max - 1));
        bytes32 id = _typed(address(SETTLEMENT), keccak256(abi.encode(SETTLEMENT.CHANNEL_CONFIG_TYPEHASH(), config)));
        assertEq(SETTLEMENT.getChannelId(config), id);
        assertEq(
            SETTLEMENT.getVoucherDigest(id, amount),
            _typed(address(SETTLEMENT), keccak256(abi.encode(SETTLEMENT.VOUCHER_TYPEHASH(), id, amount)))
        );
        assertEq(
            SETTLEMENT.getRefundDigest(id, nonce, amount),
            _typed(address(SETTLEMENT), keccak256(abi.encode(SETTLEMENT.REFUND_TYPEHASH(), id, nonce, amount)))
        );
    }

    /// @dev The same code elsewhere is another domain: the code is placed, not deployed.
    function test_domain_isThatOfTheAddress() public {
        X402BatchSettlement other = X402BatchSettlement(address(0xbeef));
        vm.etch(address(other), address(SETTLEMENT).code);
        assertTrue(other.getChannelId(_config()) != SETTLEMENT.getChannelId(_config()));
        (, string memory name, string memory version, uint256 chain, address verifying,,) = other.eip712Domain();
        assertEq(name, "x402 Batch Settlement");
        assertEq(version, "1");
        assertEq(chain, block.chainid);
        assertEq(verifying, address(other));
    }

    function test_claimBatchDigest() public view {
        VoucherClaim[] memory rows = _rows(_row(_config(), 5, 4, signer), _row(_plain(), 7, 7, payer));
        bytes32[2] memory entries;
        for (uint256 i; i < 2; ++i) {
            entries[i] = keccak256(
                abi.encode(
                    keccak256("ClaimEntry(bytes32 channelId,uint128 maxClaimableAmount,uint128 totalClaimed)"),
                    SETTLEMENT.getChannelId(rows[i].voucher.channel),
                    rows[i].voucher.maxClaimableAmount,
                    rows[i].totalClaimed
                )
            );
        }
        bytes32 batch = keccak256(
            abi.encode(SETTLEMENT.CLAIM_BATCH_TYPEHASH(), keccak256(abi.encodePacked(entries[0], entries[1])))
        );
        assertEq(SETTLEMENT.getClaimBatchDigest(rows), _typed(address(SETTLEMENT), batch));
    }

    function test_multicall_readsManyChannels() public {
        bytes32 first = _deposit(_config(), 10);
        bytes32 second = _deposit(_plain(), 20);
        bytes[] memory calls = new bytes[](2);
        calls[0] = abi.encodeCall(IX402BatchSettlement.channels, (first));
        calls[1] = abi.encodeCall(IX402BatchSettlement.channels, (second));
        bytes[] memory results = SETTLEMENT.multicall(calls);
        assertEq(results[0], abi.encode(uint128(10), uint128(0)));
        assertEq(results[1], abi.encode(uint128(20), uint128(0)));
    }

    function test_multicall_allOrNothing() public {
        ChannelConfig memory config = _config();
        bytes32 id = _deposit(config, 100);
        bytes[] memory calls = new bytes[](2);
        calls[0] = abi.encodeCall(IX402BatchSettlement.claim, (_rows(_row(config, 60, 60, signer))));
        calls[1] = abi.encodeCall(IX402BatchSettlement.refund, (config, 0));

        vm.prank(payee.addr);
        _refuses(IX402BatchSettlement.ZeroRefund.selector);
        SETTLEMENT.multicall(calls);
        _assertChannel(id, 100, 0);

        calls[1] = abi.encodeCall(IX402BatchSettlement.refund, (config, 100));
        vm.prank(payee.addr);
        SETTLEMENT.multicall(calls);
        _assertChannel(id, 60, 60);
    }

    function test_multicall_lendsNobodyItsRights() public {
        ChannelConfig memory config = _config();
        _deposit(config, 100);
        bytes[] memory calls = new bytes[](1);
        calls[0] = abi.encodeCall(IX402BatchSettlement.refund, (config, 100));
        vm.prank(stranger.addr);
        _refuses(IX402BatchSettlement.NotAuthorizedToRefund.selector);
        SETTLEMENT.multicall(calls);
    }
}
