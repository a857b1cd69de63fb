// The official x402 packages read and write the headers of scheme batch-settlement here, without a chain: the Go test
// gives headers that it wrote, and judges those that this prints. Clock and randomness stand still, so that what is
// printed is the same each time.
//
//   node x402wire.mjs <<< '{"key", "answers": {..}, "payments": {..}}'
import { x402Client, x402HTTPClient } from "@x402/core/client";
import * as codec from "@x402/core/http";
import { validatePaymentPayload, validatePaymentRequired } from "@x402/core/schemas";
import { x402ResourceServer } from "@x402/core/server";
import {
  BATCH_SETTLEMENT_ADDRESS, ERC3009_DEPOSIT_COLLECTOR_ADDRESS,
  isBatchSettlementDepositPayload, isBatchSettlementRefundPayload, isBatchSettlementVoucherPayload,
} from "@x402/evm";
import { BatchSettlementEvmScheme as ClientScheme, computeChannelId } from "@x402/evm/batch-settlement/client";
import { BatchSettlementEvmScheme as ServerScheme } from "@x402/evm/batch-settlement/server";
import { encodeAbiParameters, keccak256, verifyTypedData } from "viem";
import { privateKeyToAccount } from "viem/accounts";
import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";

const input = JSON.parse(readFileSync(0, "utf8"));
Date.now = () => 1_800_000_000_000;
Object.defineProperty(globalThis.crypto, "getRandomValues", { value: (array) => array.fill(7) });

const network = "eip155:31337";
const account = privateKeyToAccount(input.key);
const chain = { balance: 0n, claimed: 0n }; // of the one channel, as the client's endpoint says
const signer = { address: account.address, signTypedData: (data) => account.signTypedData(data), readContract: async () => [chain.balance, chain.claimed] };
const scheme = new ClientScheme(signer);
const client = new x402Client().register("eip155:*", scheme).setSpendControls(false);
const http = new x402HTTPClient(client);
const printed = {};

const only = (headers) => (name) => headers[name.toUpperCase()] ?? null;

// offer decodes an answer of ours and has the official schema judge it.
function offer(header) {
  const required = http.getPaymentRequiredResponse(only({ "PAYMENT-REQUIRED": header }));
  validatePaymentRequired(required);
  return required;
}

// pay answers an offer as the official client does.
async function pay(name, required) {
  const payload = await client.createPaymentPayload(required);
  assert.deepEqual(payload.accepted, required.accepts[0]);
  printed[name] = http.encodePaymentSignatureHeader(payload)["PAYMENT-SIGNATURE"];
  return payload;
}

async function answered(payload, headers, status) {
  return http.processPaymentResult(payload, only(headers), status);
}

// What the official client makes of our answers: it deposits, books the charge, repairs its state and goes on.
const required = offer(input.answers.required);
const first = await pay("deposit", required);
assert.equal(first.payload.voucher.maxClaimableAmount, "1000");
assert.equal(first.payload.deposit.amount, "10000");
let result = await answered(first, { "PAYMENT-RESPONSE": input.answers.charged }, 200);
assert.equal(result.settleResponse.extra.chargedAmount, "700");
chain.balance = 10_000n;
const second = await pay("voucher", required);
assert.equal(second.payload.type, "voucher");
assert.equal(second.payload.voucher.maxClaimableAmount, "1700");
offer(input.answers.corrective);
result = await answered(second, { "PAYMENT-REQUIRED": input.answers.corrective }, 402);
assert.equal(result.recovered, true);
assert.equal((await pay("corrected", required)).payload.voucher.maxClaimableAmount, "1900");

// Refunds, in part and whole. The last one finds the record that the corrective answer left.
for (const [name, amount] of [["refundPart", "500"], ["refundAll", undefined]]) {
  const fetch = async (url, { headers } = {}) => {
    const paid = headers?.["PAYMENT-SIGNATURE"];
    if (!paid) return new Response("{}", { status: 402, headers: { "PAYMENT-REQUIRED": input.answers.required } });
    printed[name] = paid;
    return new Response("{}", { headers: { "PAYMENT-RESPONSE": input.answers.refunded } });
  };
  const settled = await scheme.refund("http://provider.example/", { amount, fetch });
  assert.equal(settled.success, true);
  assert.equal(settled.amount, "500");
}

// judge has the official server decode a payment of ours, match it with the offer and check voucher and configuration.
async function judge(name, header, is) {
  const payment = codec.decodePaymentSignatureHeader(header);
  validatePaymentPayload(payment);
  const { channelConfig, voucher, deposit } = payment.payload;
  assert.ok(is(payment.payload), name);
  assert.equal(computeChannelId(channelConfig, network), voucher.channelId);
  const server = new ServerScheme(required.accepts[0].payTo, { receiverAuthorizerSigner: { address: required.accepts[0].extra.receiverAuthorizer } });
  const resources = new x402ResourceServer().register(network, server);
  assert.deepEqual(resources.findMatchingRequirements(required.accepts, payment), required.accepts[0]);
  await server.getStorage().updateChannel(voucher.channelId, () => ({
    channelId: voucher.channelId, channelConfig, chargedCumulativeAmount: "700", signedMaxClaimable: "1000", signature: voucher.signature,
    balance: "10000", totalClaimed: "0", withdrawRequestedAt: 0, refundNonce: 0, onchainSyncedAt: Date.now(), lastRequestTimestamp: Date.now(),
  }));
  const verdict = await server.schemeHooks.onBeforeVerify({ paymentPayload: payment, requirements: required.accepts[0] });
  if (name === "voucher") assert.deepEqual([verdict.skip, verdict.result.isValid], [true, true]);
  else assert.equal(verdict, undefined, `${name}: ${JSON.stringify(verdict)}`);
  const signed = {
    address: account.address, primaryType: "Voucher", signature: voucher.signature,
    domain: { name: "x402 Batch Settlement", version: "1", chainId: 31337, verifyingContract: BATCH_SETTLEMENT_ADDRESS },
    types: { Voucher: [{ name: "channelId", type: "bytes32" }, { name: "maxClaimableAmount", type: "uint128" }] },
    message: { channelId: voucher.channelId, maxClaimableAmount: BigInt(voucher.maxClaimableAmount) },
  };
  assert.ok(await verifyTypedData(signed), `${name}: voucher`);
  if (deposit) await judgeDeposit(deposit, voucher.channelId);
}

async function judgeDeposit({ amount, authorization: { erc3009Authorization: by } }, channelId) {
  const words = (types, values) => encodeAbiParameters(types.map((type) => ({ type })), values);
  const nonce = keccak256(words(["bytes32", "uint256"], [channelId, BigInt(by.salt)]));
  const { asset, extra } = required.accepts[0];
  const fields = ["address from", "address to", "uint256 value", "uint256 validAfter", "uint256 validBefore", "bytes32 nonce"];
  const types = { ReceiveWithAuthorization: fields.map((field) => field.split(" ")).map(([type, name]) => ({ name, type })) };
  assert.ok(await verifyTypedData({
    address: account.address, types, primaryType: "ReceiveWithAuthorization", signature: by.signature,
    domain: { name: extra.name, version: extra.version, chainId: 31337, verifyingContract: asset },
    message: {
      from: account.address, to: ERC3009_DEPOSIT_COLLECTOR_ADDRESS, value: BigInt(amount),
      validAfter: BigInt(by.validAfter), validBefore: BigInt(by.validBefore), nonce,
    },
  }), "deposit's authorization");
  printed.collectorData = words(["uint256", "uint256", "uint256", "bytes"], [BigInt(by.validAfter), BigInt(by.validBefore), BigInt(by.salt), by.signature]);
  printed.nonce = nonce;
}

await judge("deposit", input.payments.deposit, isBatchSettlementDepositPayload);
await judge("voucher", input.payments.voucher, isBatchSettlementVoucherPayload);
await judge("refund", input.payments.refund, isBatchSettlementRefundPayload);

// What the official server's code writes, with what a renter meets beside our kind of offer.
const accept = { ...required.accepts[0], payTo: required.accepts[0].payTo.toLowerCase(), extra: { ...required.accepts[0].extra, unknown: { b: [1, 2.5, null], a: "é<>" } } };
const others = [{ ...accept, scheme: "exact" }, { ...accept, network: "solana:mainnet" }, { ...accept, extra: { ...accept.extra, assetTransferMethod: "permit2" } }];
printed.required = codec.encodePaymentRequiredHeader({ ...required, accepts: [...others, accept], extensions: { "payment-identifier": { info: { required: false } } } });
printed.charged = codec.encodePaymentResponseHeader(codec.decodePaymentResponseHeader(input.answers.charged));
printed.refused = codec.encodePaymentResponseHeader({ success: false, errorReason: "settlement_pending", errorMessage: "later", transaction: "", network });

// Every error string that Go has must be one that the packages have.
const directory = new URL("../../node_modules/@x402/", import.meta.url);
const sources = ["evm/dist/esm", "core/dist/esm"].flatMap((at) => readdirSync(new URL(at, directory)).filter((name) => name.endsWith(".mjs")).map((name) => readFileSync(new URL(`${at}/${name}`, directory), "utf8"))).join("\n");
for (const code of input.codes) assert.ok(sources.includes(`"${code}"`), `no package knows ${code}`);

console.log(JSON.stringify(printed));
