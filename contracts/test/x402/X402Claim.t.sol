// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {AgreeableWallet, Wallet} from "../mock/Wallet.sol";
import {ChannelConfig, IX402BatchSettlement, VoucherClaim} from "./IX402BatchSettlement.sol";
import {X402Base} from "./X402Base.sol";

contract X402ClaimTest is X402Base {
    function _refusesClaim(VoucherClaim[] memory rows, bytes4 reason) private {
        vm.prank(payee.addr);
        _refuses(reason);
        SETTLEMENT.claim(rows);
    }

    function _refusesClaim(VoucherClaim memory row, bytes4 reason) private {
        _refusesClaim(_rows(row), reason);
    }

    function test_claim_andSettle() public {
        ChannelConfig memory config = _config();
        bytes32 id = _deposit(config, 100);
        VoucherClaim[] memory rows = _rows(_row(config, 60, 40, signer));
        _says();
        emit IX402BatchSettlement.Claimed(id, operator.addr, 40, 40);
        vm.prank(operator.addr);
        SETTLEMENT.claim(rows);
        _assertChannel(id, 100, 40);
        _assertIncome(40, 0);

        rows[0].totalClaimed = 60; // the rest of the same voucher
        vm.prank(payee.addr);
        SETTLEMENT.claim(rows);
        _assertChannel(id, 100, 60);

        _says();
        emit IX402BatchSettlement.Settled(payee.addr, address(token), stranger.addr, 60);
        vm.prank(stranger.addr);
        SETTLEMENT.settle(payee.addr, address(token));
        _assertIncome(60, 60);
        assertEq(token.balanceOf(payee.addr), 60);

        SETTLEMENT.settle(payee.addr, address(token)); // nothing is due
        assertEq(token.balanceOf(payee.addr), 60);
    }

    function test_claim_ofTwoChannels() public {
        bytes32 first = _deposit(_config(), 100);
        bytes32 second = _deposit(_plain(), 100);
        VoucherClaim[] memory rows = _rows(_row(_config(), 60, 60, signer), _row(_plain(), 30, 30, payer));
        vm.prank(payee.addr);
        SETTLEMENT.claim(rows);
        _assertChannel(first, 100, 60);
        _assertChannel(second, 100, 30);
        _assertIncome(90, 0);
    }

    function test_claim_allOrNothing() public {
        bytes32 first = _deposit(_config(), 100);
        _deposit(_plain(), 100);
        VoucherClaim memory good = _row(_config(), 60, 60, signer);
        _refusesClaim(_rows(good, _row(_plain(), 101, 101, payer)), IX402BatchSettlement.ClaimExceedsBalance.selector);
        _assertChannel(first, 100, 0);
        _refusesClaim(new VoucherClaim[](0), IX402BatchSettlement.EmptyBatch.selector);
    }

    function test_claim_onlyByTheReceiver() public {
        ChannelConfig memory config = _config();
        _deposit(config, 100);
        VoucherClaim[] memory rows = _rows(_row(config, 60, 60, signer));
        address[3] memory others = [payer.addr, signer.addr, stranger.addr];
        for (uint256 i; i < 3; ++i) {
            vm.prank(others[i]);
            _refuses(IX402BatchSettlement.NotAuthorizedToClaim.selector);
            SETTLEMENT.claim(rows);
        }
    }

    function test_claim_bounds() public {
        ChannelConfig memory config = _config();
        bytes32 id = _deposit(config, 100);
        _refusesClaim(_row(config, 60, 61, signer), IX402BatchSettlement.ClaimExceedsCeiling.selector);
        _refusesClaim(_row(config, 101, 101, signer), IX402BatchSettlement.ClaimExceedsBalance.selector);
        _claim(config, 100);
        _assertChannel(id, 100, 100);
    }

    /// @dev What was claimed already is passed over, whatever else the row says.
    function testFuzz_claim_passesOverWhatIsStale(uint64 claimed, uint64 again, bytes memory signature) public {
        claimed = uint64(bound(claimed, 1, type(uint64).max));
        again = uint64(bound(again, 0, claimed));
        ChannelConfig memory config = _config();
        bytes32 id = _deposit(config, type(uint64).max);
        _claim(config, claimed);
        VoucherClaim memory row = _row(config, again, again, signer);
        row.signature = signature;
        vm.recordLogs();
        vm.prank(payee.addr);
        SETTLEMENT.claim(_rows(row));
        assertEq(vm.getRecordedLogs().length, 0);
        _assertChannel(id, type(uint64).max, claimed);
        _assertIncome(claimed, 0);
    }

    function test_claim_signedByTheAuthorizerOnly() public {
        ChannelConfig memory config = _config();
        _deposit(config, 100);
        _refusesClaim(_row(config, 60, 60, payer), IX402BatchSettlement.InvalidSignature.selector);
        VoucherClaim memory row = _row(config, 60, 60, signer);
        row.voucher.maxClaimableAmount = 61;
        _refusesClaim(row, IX402BatchSettlement.InvalidSignature.selector);
        // A voucher for another channel of the same parties.
        row = _row(_plain(), 60, 60, signer);
        row.voucher.channel = config;
        _refusesClaim(row, IX402BatchSettlement.InvalidSignature.selector);
    }

    function test_claim_signedByThePayerOnly() public {
        _deposit(_plain(), 100);
        _refusesClaim(_row(_plain(), 60, 60, stranger), IX402BatchSettlement.InvalidSignature.selector);
        VoucherClaim memory row = _row(_plain(), 60, 60, payer);
        row.signature = _twin(row.signature);
        _refusesClaim(row, IX402BatchSettlement.InvalidSignature.selector);
        row.signature = "";
        _refusesClaim(row, IX402BatchSettlement.InvalidSignature.selector);
    }

    function test_claim_refusesOtherFormsOfASignature() public {
        ChannelConfig memory config = _config();
        _deposit(config, 100);
        VoucherClaim memory row = _row(config, 60, 60, signer);
        bytes memory good = row.signature;
        (bytes32 r, bytes32 s, uint8 v) = _split(good);

        row.signature = _twin(good);
        (, bytes32 high,) = _split(row.signature);
        vm.prank(payee.addr);
        _expect(abi.encodeWithSelector(IX402BatchSettlement.ECDSAInvalidSignatureS.selector, high));
        SETTLEMENT.claim(_rows(row));

        row.signature = abi.encodePacked(r, bytes32(uint256(s) | (uint256(v - 27) << 255))); // ERC-2098
        vm.prank(payee.addr);
        _expect(abi.encodeWithSelector(IX402BatchSettlement.ECDSAInvalidSignatureLength.selector, 64));
        SETTLEMENT.claim(_rows(row));

        row.signature = abi.encodePacked(r, s, v - 27);
        _refusesClaim(row, IX402BatchSettlement.ECDSAInvalidSignature.selector);
    }

    /// @dev The payer is a contract account: it is asked, and its owner's plain signature is not enough.
    function test_claim_signedByAWallet() public {
        ChannelConfig memory config = _plain();
        bytes32 id = _deposit(config, 100);
        vm.etch(payer.addr, address(new Wallet(stranger.addr)).code);
        VoucherClaim memory row = _row(config, 60, 60, stranger);
        _refusesClaim(row, IX402BatchSettlement.InvalidSignature.selector);
        _refusesClaim(_row(config, 60, 60, payer), IX402BatchSettlement.InvalidSignature.selector);
        row.signature = abi.encodePacked(bytes1(0x01), row.signature);
        vm.prank(payee.addr);
        SETTLEMENT.claim(_rows(row));
        _assertChannel(id, 100, 60);
    }

    function test_claim_refusesWhatIsNoWallet() public {
        _deposit(_plain(), 100);
        vm.etch(payer.addr, type(AgreeableWallet).runtimeCode);
        _refusesClaim(_row(_plain(), 60, 60, payer), IX402BatchSettlement.InvalidSignature.selector);
    }

    function test_claim_neverAsksAnAuthorizersCode() public {
        ChannelConfig memory config = _config();
        bytes32 id = _deposit(config, 100);
        vm.etch(signer.addr, type(AgreeableWallet).runtimeCode);
        _claim(config, 60);
        _assertChannel(id, 100, 60);
    }

    function test_claimWithSignature() public {
        bytes32 first = _deposit(_config(), 100);
        bytes32 second = _deposit(_plain(), 100);
        VoucherClaim[] memory rows = _rows(_row(_config(), 60, 60, signer), _row(_plain(), 30, 30, payer));
        bytes memory signature = _sign(operator, SETTLEMENT.getClaimBatchDigest(rows));
        vm.prank(stranger.addr);
        SETTLEMENT.claimWithSignature(rows, signature);
        _assertChannel(first, 100, 60);
        _assertChannel(second, 100, 30);
    }

    function test_claimWithSignature_refuses() public {
        _deposit(_config(), 100);
        VoucherClaim[] memory rows = _rows(_row(_config(), 60, 60, signer));
        bytes memory signature = _sign(payee, SETTLEMENT.getClaimBatchDigest(rows));
        _refuses(IX402BatchSettlement.InvalidSignature.selector);
        SETTLEMENT.claimWithSignature(rows, signature);

        signature = _sign(operator, SETTLEMENT.getClaimBatchDigest(rows));
        rows[0].totalClaimed = 59;
        _refuses(IX402BatchSettlement.InvalidSignature.selector);
        SETTLEMENT.claimWithSignature(rows, signature);

        _refuses(IX402BatchSettlement.EmptyBatch.selector);
        SETTLEMENT.claimWithSignature(new VoucherClaim[](0), signature);

        ChannelConfig memory foreign = _plain();
        foreign.receiverAuthorizer = stranger.addr;
        _deposit(foreign, 100);
        rows = _rows(_row(_config(), 60, 60, signer), _row(foreign, 30, 30, payer));
        signature = _sign(operator, SETTLEMENT.getClaimBatchDigest(rows));
        _refuses(IX402BatchSettlement.NotReceiverAuthorizer.selector);
        SETTLEMENT.claimWithSignature(rows, signature);
    }
}
