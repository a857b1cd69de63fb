// The official client and facilitator of x402 on a local chain: deposit, claim, payout and refund, each a transaction of
// the facilitator's. It prints what the facilitator answered to each.
//
//   node x402vectorslive.mjs <<< '{"rpc", "payerKey", "operatorKey", "receiver", "token", "tokenName"}'
import { computeChannelId, createBatchSettlementEIP3009DepositPayload, signVoucher } from "@x402/evm/batch-settlement/client";
import { BatchSettlementEvmScheme } from "@x402/evm/batch-settlement/facilitator";
import { createPublicClient, createWalletClient, defineChain, http } from "viem";
import { privateKeyToAccount } from "viem/accounts";
import { readFileSync } from "node:fs";

const input = JSON.parse(readFileSync(0, "utf8"));
const chain = defineChain({ id: 31337, name: "local", nativeCurrency: { name: "coin", symbol: "C", decimals: 18 }, rpcUrls: { default: { http: [input.rpc] } } });
const client = createPublicClient({ chain, transport: http(), pollingInterval: 50 });
const operator = privateKeyToAccount(input.operatorKey);
const payer = privateKeyToAccount(input.payerKey);
const wallet = createWalletClient({ chain, transport: http(), account: operator });

const facilitator = new BatchSettlementEvmScheme({
  getAddresses: () => [operator.address],
  getCode: (call) => client.getCode(call),
  // It reads through the multicall contract of public chains, which a local one does not have.
  readContract: async (call) => call.functionName !== "tryAggregate"
    ? (await client.simulateContract({ ...call, account: operator })).result
    : Promise.all(call.args[1].map(async ({ target, callData }) => ({ success: true, returnData: (await client.call({ to: target, data: callData })).data }))),
  writeContract: (call) => wallet.writeContract(call),
  waitForTransactionReceipt: (call) => client.waitForTransactionReceipt(call),
}, operator);

const network = "eip155:31337";
const requirements = {
  scheme: "batch-settlement", network, asset: input.token, payTo: input.receiver, amount: "1000", maxTimeoutSeconds: 3600,
  extra: { name: input.tokenName, version: "1", receiverAuthorizer: operator.address, withdrawDelay: 900, assetTransferMethod: "eip3009" },
};
const config = {
  payer: payer.address, payerAuthorizer: payer.address, receiver: input.receiver, receiverAuthorizer: operator.address,
  token: input.token, withdrawDelay: 900, salt: `0x${"5a".repeat(32)}`,
};
const id = computeChannelId(config, network);
const settle = (payload) => facilitator.settle({ x402Version: 2, accepted: requirements, payload }, requirements);

const { payload } = await createBatchSettlementEIP3009DepositPayload(payer, 2, requirements, config, "10000", "1000");
const deposit = await settle(payload);
const voucher = await signVoucher(payer, id, "2000", network);
const verified = await facilitator.verify({ x402Version: 2, accepted: requirements, payload: { type: "voucher", channelConfig: config, voucher } }, requirements);
const rows = (totalClaimed) => [{ voucher: { channel: config, maxClaimableAmount: "2000" }, signature: voucher.signature, totalClaimed }];
const claim = await settle({ type: "claim", claims: rows("1400") });
const payout = await settle({ type: "settle", receiver: input.receiver, token: input.token });
const refund = await settle({ type: "refund", channelConfig: config, voucher, amount: "10000", refundNonce: "0", claims: rows("1700") });
console.log(JSON.stringify({ id, verified, deposit, claim, payout, refund }));
