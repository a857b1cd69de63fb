// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Base, IChannelEscrow, SkipReason, Terms} from "./Base.sol";
import {TestToken} from "./token/TestToken.sol";

/// @notice Replays channel/testdata/vectors.json, which Go writes and replays too: what the payee's program accepts, the
/// contract must pay, and what it refuses, the contract must refuse.
contract VectorsTest is Base {
    string private _json;

    function setUp() public override {
        super.setUp();
        _json = vm.readFile("channel/testdata/vectors.json");
        vm.chainId(vm.parseJsonUint(_json, ".chainId"));
        address at = vm.parseJsonAddress(_json, ".escrow");
        deployCodeTo(ESCROW, abi.encode(GRACE), at);
        escrow = IChannelEscrow(at);
    }

    function test_domainSeparator() public view {
        assertEq(_separator(), vm.parseJsonBytes32(_json, ".domainSeparator"));
    }

    function test_vouchers() public {
        uint256 n;
        for (; vm.keyExistsJson(_json, _path("vectors", n, "name")); ++n) {
            uint256 snapshot = vm.snapshotState();
            _replay(n);
            vm.revertToState(snapshot);
        }
        assertGt(n, 20, "vectors are missing");
    }

    function _replay(uint256 n) private {
        string memory name = vm.parseJsonString(_json, _path("vectors", n, "name"));
        Terms memory terms = _termsAt("vectors", n, "payer");
        bytes32 id = vm.parseJsonBytes32(_json, _path("vectors", n, "channelId"));
        uint128 amount = uint128(_number("vectors", n, "cumulativeAmount"));
        bytes memory signature = vm.parseJsonBytes(_json, _path("vectors", n, "signature"));
        bool valid = vm.parseJsonBool(_json, _path("vectors", n, "valid"));
        address expected = terms.authorizedSigner == address(0) ? terms.payer : terms.authorizedSigner;

        assertEq(escrow.channelId(terms), id, name);
        assertEq(escrow.voucherDigest(id, amount), vm.parseJsonBytes32(_json, _path("vectors", n, "digest")), name);
        assertEq(vm.parseJsonAddress(_json, _path("vectors", n, "signer")), expected, name);

        _openAt(terms);
        uint256 snapshot = vm.snapshotState();
        _settleOne(name, terms, id, amount, signature, valid);
        vm.revertToState(snapshot);
        if (_packable(signature)) _settleRow(name, terms, id, uint96(amount), signature, valid);
    }

    function _settleOne(
        string memory name,
        Terms memory terms,
        bytes32 id,
        uint128 amount,
        bytes memory signature,
        bool valid
    ) private {
        if (amount == 0) {
            _expect(abi.encodeWithSelector(IChannelEscrow.Stale.selector, id, 0, 0));
        } else if (!valid) {
            _expectInvalid(id, terms);
        }
        escrow.settle(terms, amount, signature);

        assertEq(escrow.channel(id).settled, valid ? amount : 0, name);
    }

    /// @dev A row has room for no other signature.
    function _packable(bytes memory signature) private pure returns (bool) {
        return signature.length == 65 && (signature[64] == 0x1b || signature[64] == 0x1c);
    }

    function _settleRow(
        string memory name,
        Terms memory terms,
        bytes32 id,
        uint96 amount,
        bytes memory signature,
        bool valid
    ) private {
        SkipReason reason = amount == 0 ? SkipReason.Stale : SkipReason.BadSignature;
        _emits();
        if (valid && amount != 0) emit IChannelEscrow.Settled(id, amount);
        else emit IChannelEscrow.SettlementSkipped(id, 0, reason);

        uint256 paid = escrow.settleBatch(terms.payee, terms.token, _row(terms, amount, signature));
        assertEq(paid, valid ? amount : 0, name);
    }

    function _expectInvalid(bytes32 id, Terms memory terms) private {
        address expected = terms.authorizedSigner == address(0) ? terms.payer : terms.authorizedSigner;
        _expect(abi.encodeWithSelector(IChannelEscrow.InvalidSignature.selector, id, expected));
    }

    function test_closeRequests() public {
        uint256 n;
        for (; vm.keyExistsJson(_json, _path("closeRequests", n, "channelId")); ++n) {
            bytes32 id = vm.parseJsonBytes32(_json, _path("closeRequests", n, "channelId"));
            uint256 nonce = _number("closeRequests", n, "nonce");
            uint256 deadline = _number("closeRequests", n, "deadline");
            bytes memory signature = vm.parseJsonBytes(_json, _path("closeRequests", n, "signature"));
            bytes32 digest = _requestCloseDigest(id, nonce, deadline);

            assertEq(digest, vm.parseJsonBytes32(_json, _path("closeRequests", n, "digest")));
            _assertSigned(digest, signature, vm.parseJsonAddress(_json, _path("closeRequests", n, "signer")));
            // A counter at its end cannot be reached without a pending request, and then no more can be made.
            if (nonce == type(uint16).max) continue;

            uint256 snapshot = vm.snapshotState();
            Terms memory terms = _termsOf(id);
            _openAt(terms);
            vm.store(address(escrow), id, bytes32(uint256(vm.load(address(escrow), id)) | nonce << 232));
            vm.warp(deadline);
            escrow.requestCloseWithAuthorization(terms, deadline, signature);
            assertEq(escrow.channel(id).closeRequests, nonce + 1);
            vm.revertToState(snapshot);
        }
        assertGt(n, 0, "vectors are missing");
    }

    function test_closeCancellations() public {
        uint256 n;
        for (; vm.keyExistsJson(_json, _path("closeCancellations", n, "channelId")); ++n) {
            bytes32 id = vm.parseJsonBytes32(_json, _path("closeCancellations", n, "channelId"));
            uint256 nonce = _number("closeCancellations", n, "nonce");
            uint256 deadline = _number("closeCancellations", n, "deadline");
            bytes memory signature = vm.parseJsonBytes(_json, _path("closeCancellations", n, "signature"));
            bytes32 digest = _cancelCloseDigest(id, nonce, deadline);

            assertEq(digest, vm.parseJsonBytes32(_json, _path("closeCancellations", n, "digest")));
            _assertSigned(digest, signature, vm.parseJsonAddress(_json, _path("closeCancellations", n, "signer")));

            uint256 snapshot = vm.snapshotState();
            Terms memory terms = _termsOf(id);
            _openAt(terms);
            vm.store(address(escrow), id, bytes32(uint256(vm.load(address(escrow), id)) | (nonce - 1) << 232));
            vm.warp(deadline);
            _requestClose(terms);
            escrow.cancelCloseWithAuthorization(terms, deadline, signature);
            assertEq(escrow.channel(id).closeRequestedAt, 0);
            vm.revertToState(snapshot);
        }
        assertGt(n, 0, "vectors are missing");
    }

    function test_creditWithdrawals() public {
        uint256 n;
        for (; vm.keyExistsJson(_json, _path("creditWithdrawals", n, "account")); ++n) {
            address account = vm.parseJsonAddress(_json, _path("creditWithdrawals", n, "account"));
            address of_ = vm.parseJsonAddress(_json, _path("creditWithdrawals", n, "token"));
            address to = vm.parseJsonAddress(_json, _path("creditWithdrawals", n, "to"));
            uint256 nonce = _number("creditWithdrawals", n, "nonce");
            uint256 deadline = _number("creditWithdrawals", n, "deadline");
            bytes memory signature = vm.parseJsonBytes(_json, _path("creditWithdrawals", n, "signature"));
            bytes32 digest = _withdrawCreditDigest(account, of_, to, nonce, deadline);

            assertEq(digest, vm.parseJsonBytes32(_json, _path("creditWithdrawals", n, "digest")));
            _assertSigned(digest, signature, vm.parseJsonAddress(_json, _path("creditWithdrawals", n, "signer")));

            uint256 snapshot = vm.snapshotState();
            deployCodeTo(TOKEN, of_);
            TestToken(of_).mint(address(escrow), 70);
            _owe(account, of_, 70, nonce);
            vm.warp(deadline);
            escrow.withdrawCreditWithAuthorization(account, of_, to, deadline, signature);
            assertEq(TestToken(of_).balanceOf(to), 70);
            vm.revertToState(snapshot);
        }
        assertGt(n, 0, "vectors are missing");
    }

    /// @dev Writes a credit where the contract keeps it: the mapping is its first slot.
    function _owe(address account, address of_, uint128 amount, uint256 withdrawals) private {
        bytes32 slot = keccak256(abi.encode(of_, keccak256(abi.encode(account, 0))));
        vm.store(address(escrow), slot, bytes32(withdrawals << 128 | amount));
        assertEq(escrow.credit(account, of_).amount, amount);
        assertEq(escrow.credit(account, of_).withdrawals, withdrawals);
    }

    function test_closes() public {
        uint256 n;
        for (; vm.keyExistsJson(_json, _path("closes", n, "channelId")); ++n) {
            bytes32 id = vm.parseJsonBytes32(_json, _path("closes", n, "channelId"));
            uint128 amount = uint128(_number("closes", n, "cumulativeAmount"));
            uint256 deadline = _number("closes", n, "deadline");
            bytes memory signature = vm.parseJsonBytes(_json, _path("closes", n, "signature"));
            bytes32 digest = _closeDigest(id, amount, deadline);

            assertEq(digest, vm.parseJsonBytes32(_json, _path("closes", n, "digest")));
            _assertSigned(digest, signature, vm.parseJsonAddress(_json, _path("closes", n, "signer")));

            uint256 snapshot = vm.snapshotState();
            Terms memory terms = _termsOf(id);
            _openAt(terms);
            // As if `amount` had been settled: then closing takes the payee's word alone.
            vm.store(address(escrow), id, bytes32(uint256(vm.load(address(escrow), id)) | amount));
            vm.warp(deadline);
            escrow.closeWithAuthorization(terms, amount, "", deadline, signature);
            _assertFinalized(id, amount);
            vm.revertToState(snapshot);
        }
        assertGt(n, 0, "vectors are missing");
    }

    function test_authorizationNonces() public {
        uint256 n;
        for (; vm.keyExistsJson(_json, _path("authorizationNonces", n, "kind")); ++n) {
            Terms memory terms = _termsAt("authorizationNonces", n, "from");
            bytes32 nonce = vm.parseJsonBytes32(_json, _path("authorizationNonces", n, "nonce"));
            bytes32 kind = keccak256(bytes(vm.parseJsonString(_json, _path("authorizationNonces", n, "kind"))));
            uint256 snapshot = vm.snapshotState();
            if (kind == keccak256("open")) _openNonceAt(terms, nonce);
            else _topUpNonceAt(n, terms, nonce);
            vm.revertToState(snapshot);
        }
        assertGt(n, 1, "vectors are missing");
    }

    /// @dev A wrong nonce would revert with NonceMismatch; the right one gets as far as the token.
    function _openNonceAt(Terms memory terms, bytes32 nonce) private {
        assertEq(nonce, _openNonce(terms));
        deployCodeTo(TOKEN, terms.token);
        _expect(abi.encodeWithSelector(TestToken.AuthorizationSignature.selector, terms.payer));
        escrow.openWithAuthorization(
            terms.payee,
            terms.token,
            1,
            terms.salt,
            terms.authorizedSigner,
            terms.payer,
            0,
            type(uint256).max,
            nonce,
            ""
        );
    }

    function _topUpNonceAt(uint256 n, Terms memory terms, bytes32 nonce) private {
        uint128 amount = uint128(_number("authorizationNonces", n, "additionalDeposit"));
        bytes32 salt = vm.parseJsonBytes32(_json, _path("authorizationNonces", n, "topUpSalt"));
        bytes32 id = vm.parseJsonBytes32(_json, _path("authorizationNonces", n, "channelId"));
        assertEq(nonce, _topUpNonce(id, amount, terms.payer, salt));
        _openAt(terms);
        bool fits = amount != MAX;
        if (fits) _shrink(id);
        _expect(
            fits
                ? abi.encodeWithSelector(TestToken.AuthorizationSignature.selector, terms.payer)
                : abi.encodeWithSelector(IChannelEscrow.AmountTooLarge.selector, uint256(MAX) + MAX, MAX)
        );
        escrow.topUpWithAuthorization(terms, amount, terms.payer, salt, 0, type(uint256).max, nonce, "");
    }

    /// @dev Makes room for a top-up of a channel that `_openAt` filled.
    function _shrink(bytes32 id) private {
        vm.store(address(escrow), id, bytes32(uint256(1) << 248 | uint256(1) << 96));
    }

    function _assertSigned(bytes32 digest, bytes memory signature, address expected) private pure {
        (bytes32 r, bytes32 s, uint8 v) = _split(signature);
        assertEq(ecrecover(digest, v, r, s), expected);
    }

    /// @dev Opens the channel with all that it can hold, of a token put where the vectors say it is.
    function _openAt(Terms memory terms) private {
        deployCodeTo(TOKEN, terms.token);
        TestToken(terms.token).mint(terms.payer, MAX);
        vm.prank(terms.payer);
        TestToken(terms.token).approve(address(escrow), MAX);
        _open(terms, MAX);
    }

    /// @dev The terms of a channel that is among the vouchers' vectors.
    function _termsOf(bytes32 id) private view returns (Terms memory) {
        for (uint256 i;; ++i) {
            if (vm.parseJsonBytes32(_json, _path("vectors", i, "channelId")) == id) {
                return _termsAt("vectors", i, "payer");
            }
        }
        revert("no terms for the id");
    }

    function _termsAt(string memory list, uint256 n, string memory payerKey) private view returns (Terms memory) {
        return Terms({
            payer: vm.parseJsonAddress(_json, _path(list, n, payerKey)),
            payee: vm.parseJsonAddress(_json, _path(list, n, "payee")),
            token: vm.parseJsonAddress(_json, _path(list, n, "token")),
            salt: vm.parseJsonBytes32(_json, _path(list, n, "salt")),
            authorizedSigner: vm.parseJsonAddress(_json, _path(list, n, "authorizedSigner"))
        });
    }

    function _number(string memory list, uint256 n, string memory key) private view returns (uint256) {
        return vm.parseUint(vm.parseJsonString(_json, _path(list, n, key)));
    }

    function _path(string memory list, uint256 n, string memory key) private pure returns (string memory) {
        return string.concat(".", list, "[", vm.toString(n), "].", key);
    }
}
