// The official x402 package at work on what the Go test made up: its client signs, its facilitator makes transactions,
// which are recorded instead of sent, and the contract calls that it never makes itself are encoded with its ABI.
//
//   node x402vectors.mjs <<< '[{"chainId", "payerKey", "signerKey", "operatorKey", "config", "deposit", ..}, ..]'
import { computeChannelId, createBatchSettlementEIP3009DepositPayload } from "@x402/evm/batch-settlement/client";
import { BatchSettlementEvmScheme } from "@x402/evm/batch-settlement/facilitator";
import { encodeFunctionData, toFunctionSelector, toHex } from "viem";
import { privateKeyToAccount } from "viem/accounts";
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";

let abi; // the package's own, which it hands to whoever sends its transactions

const views = ["channels(bytes32)", "balanceOf(address)", "pendingWithdrawals(bytes32)", "refundNonce(bytes32)"];
const word = (n) => toHex(BigInt(n), { size: 32 }).slice(2);

// recorder is a chain on which a channel holds what was deposited and every call succeeds.
function recorder(made) {
  const sent = [];
  const state = { balance: 0n };
  const answer = (data) => {
    const name = views.find((view) => toFunctionSelector(view) === data.slice(0, 10))?.match(/\w+/)[0];
    if (name === "channels") return `0x${word(state.balance)}${word(0)}`;
    if (name === "balanceOf") return `0x${word(made.deposit)}`;
    if (name === "pendingWithdrawals") return `0x${word(0)}${word(0)}`;
    assert.equal(name, "refundNonce");
    return `0x${word(made.refundNonce)}`;
  };
  return {
    sent,
    getAddresses: () => [],
    getCode: async () => "0x",
    readContract: async (call) => {
      if (call.functionName === "tryAggregate") return call.args[1].map((c) => ({ success: true, returnData: answer(c.callData) }));
      if (call.functionName === "receivers") return [1n, 0n];
      abi = call.abi;
    },
    writeContract: async (call) => {
      sent.push({ to: call.address, name: call.functionName, args: call.args, data: encodeFunctionData(call) });
      if (call.functionName === "deposit") state.balance += call.args[1];
      return `0x${"11".repeat(32)}`;
    },
    waitForTransactionReceipt: async () => ({ status: "success", logs: [] }),
  };
}

async function vector(made) {
  const network = `eip155:${made.chainId}`;
  const { config } = made;
  const account = privateKeyToAccount(made.payerKey);
  const operator = privateKeyToAccount(made.operatorKey);
  const requirements = {
    scheme: "batch-settlement", network, asset: config.token, payTo: config.receiver, amount: made.ceiling, maxTimeoutSeconds: 3600,
    extra: { name: made.tokenName, version: "1", receiverAuthorizer: config.receiverAuthorizer, withdrawDelay: config.withdrawDelay, assetTransferMethod: "eip3009" },
  };
  const chain = recorder(made);
  const facilitator = new BatchSettlementEvmScheme(chain, operator);
  const settle = async (payload) => {
    const result = await facilitator.settle({ x402Version: 2, accepted: requirements, payload }, requirements);
    assert.equal(result.success, true, `${payload.type}: ${result.errorReason} ${result.errorMessage}`);
    return chain.sent.pop();
  };

  const { payload } = await createBatchSettlementEIP3009DepositPayload(account, 2, requirements, config, made.deposit, made.ceiling, privateKeyToAccount(made.signerKey));
  const deposited = await settle(payload);
  const claim = { voucher: { channel: config, maxClaimableAmount: made.ceiling }, signature: payload.voucher.signature, totalClaimed: made.claimed };
  const claimed = await settle({ type: "claim", claims: [claim] });
  const settled = await settle({ type: "settle", receiver: config.receiver, token: config.token });
  const refunded = await settle({ type: "refund", channelConfig: config, voucher: payload.voucher, amount: made.refund, refundNonce: made.refundNonce, claims: [] });
  for (const call of [deposited, claimed, settled, refunded]) assert.equal(call.to, "0x4020074e9dF2ce1deE5A9C1b5c3f541D02a10003");

  const rows = claimed.args[0];
  const contractConfig = rows[0].voucher.channel;
  const encode = (functionName, ...args) => encodeFunctionData({ abi, functionName, args });
  const refund = encode("refund", contractConfig, BigInt(made.refund));
  const plain = encode("claim", rows);
  return {
    rows,
    vector: {
      id: computeChannelId(config, network), voucherId: payload.voucher.channelId, voucherSignature: payload.voucher.signature,
      authorization: payload.deposit.authorization.erc3009Authorization,
      deposit: deposited.data, claim: plain, settle: settled.data, refundSigned: refunded.data, refund,
      claimAndRefund: encode("multicall", [plain, refund]),
      initiateWithdraw: encode("initiateWithdraw", contractConfig, BigInt(made.refund)),
      finalizeWithdraw: encode("finalizeWithdraw", contractConfig),
    },
  };
}

const done = [];
for (const made of JSON.parse(readFileSync(0, "utf8"))) done.push(await vector(made));
console.log(JSON.stringify({
  vectors: done.map((d) => d.vector),
  claimAll: encodeFunctionData({ abi, functionName: "claim", args: [done.flatMap((d) => d.rows)] }),
}));
