// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Base, IChannelEscrow, Terms} from "./Base.sol";

/// @notice Everything that a channel goes through, on a chain that is not the one that tests run on. The id of the chain is
/// in ids and signatures, and is written into them in several places.
contract OtherChainTest is Base {
    function testFuzz_lifeOnAnotherChain(uint64 chain, bool deployedThere) public {
        vm.assume(chain != 0 && chain != block.chainid);
        vm.chainId(chain);
        if (deployedThere) {
            escrow = IChannelEscrow(_create(ESCROW, abi.encode(GRACE)));
            _fund(payer.addr);
        }
        Terms memory terms = _terms();
        bytes32 id = keccak256(abi.encode(terms, address(escrow), uint256(chain)));
        assertEq(_open(terms, 100), id);

        _settle(terms, 10);
        assertEq(escrow.settleBatch(payee.addr, address(token), _row(terms, 30, _voucher(terms, 30))), 20);
        vm.prank(payer.addr);
        escrow.topUp(terms, 50);
        _assertBooks(id, 150, 30);
        escrow.requestCloseWithAuthorization(
            terms, type(uint256).max, _sign(payer, _requestCloseDigest(id, 0, type(uint256).max))
        );
        escrow.cancelCloseWithAuthorization(
            terms, type(uint256).max, _sign(payer, _cancelCloseDigest(id, 1, type(uint256).max))
        );
        bytes memory permission = _sign(payee, _closeDigest(id, 70, type(uint256).max));
        escrow.closeWithAuthorization(terms, 70, _voucher(terms, 70), type(uint256).max, permission);
        _assertFinalized(id, 70);

        _openGasless();
    }

    function _openGasless() private {
        Terms memory terms = _terms();
        terms.salt = bytes32(uint256(8));
        bytes32 id = keccak256(abi.encode(terms, address(escrow), block.chainid));
        bytes memory signature = _authorization(payer, 100, _openNonce(terms));
        escrow.openWithAuthorization(
            terms.payee,
            terms.token,
            100,
            terms.salt,
            address(0),
            payer.addr,
            0,
            type(uint256).max,
            _openNonce(terms),
            signature
        );
        _assertBooks(id, 100, 0);
    }
}
