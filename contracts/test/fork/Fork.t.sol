// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {EIP712} from "solady/utils/EIP712.sol";

import {Base, IChannelEscrow, Terms} from "../Base.sol";
import {RefusingToken} from "../token/HostileTokens.sol";

/// @notice A channel's life against the escrow that the deploy program put onto a chain, which is none of forge's: the code,
/// the immutables and the chain id are what a deployment really has. test.sh starts the chain and runs
///
///     FORK_ESCROW=0x.. FORK_CHAIN=.. forge test --match-contract ForkTest --fork-url ..
///
/// Without an escrow to look at, the tests are skipped.
contract ForkTest is Base {
    function setUp() public override {
        address deployed = vm.envOr("FORK_ESCROW", address(0));
        vm.skip(deployed == address(0));
        assertEq(block.chainid, vm.envUint("FORK_CHAIN"), "another chain");
        assertTrue(block.chainid != 31_337, "forge's own chain");
        super.setUp();
        escrow = IChannelEscrow(deployed);
        _fund(payer.addr);
    }

    function test_fork_constants() public view {
        (, string memory name, string memory version, uint256 chain, address at,,) =
            EIP712(address(escrow)).eip712Domain();
        assertEq(name, "EVM Payment Channel");
        assertEq(version, "1");
        assertEq(chain, block.chainid);
        assertEq(at, address(escrow));
        assertEq(escrow.gracePeriod(), 1 days);
    }

    function test_fork_life() public {
        Terms memory terms = _terms();
        bytes32 id = keccak256(abi.encode(terms, address(escrow), block.chainid));
        assertEq(_open(terms, 100), id);
        _settle(terms, 10);
        assertEq(escrow.settleBatch(payee.addr, address(token), _row(terms, 30, _voucher(terms, 30))), 20);
        escrow.requestCloseWithAuthorization(
            terms, type(uint256).max, _sign(payer, _requestCloseDigest(id, 0, type(uint256).max))
        );
        escrow.cancelCloseWithAuthorization(
            terms, type(uint256).max, _sign(payer, _cancelCloseDigest(id, 1, type(uint256).max))
        );
        _requestClose(terms);
        skip(escrow.gracePeriod());
        escrow.withdraw(terms);
        _assertFinalized(id, 30);
        assertEq(token.balanceOf(payee.addr), 30);
        assertEq(token.balanceOf(address(escrow)), 0);
    }

    function test_fork_credit() public {
        RefusingToken refusing = new RefusingToken();
        refusing.mint(payer.addr, 100);
        vm.prank(payer.addr);
        refusing.approve(address(escrow), 100);
        Terms memory terms = _terms();
        terms.token = address(refusing);
        _open(terms, 100);
        refusing.refuse(payee.addr, RefusingToken.Way.Reverts);
        _settle(terms, 60);
        bytes32 digest = _withdrawCreditDigest(payee.addr, address(refusing), stranger.addr, 0, type(uint256).max);
        escrow.withdrawCreditWithAuthorization(
            payee.addr, address(refusing), stranger.addr, type(uint256).max, _sign(payee, digest)
        );
        assertEq(refusing.balanceOf(stranger.addr), 60);
    }
}
