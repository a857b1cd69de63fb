// A renter that uses viem and nothing of ours: terms, ERC-3009 authorizations, vouchers, proofs and transactions are
// built from the public types alone. It prints what it did as one JSON object, which the Go test checks on the chain.
//
//   node viem.mjs gasless|hash <<< '{"url", "rpc", "key", "deposit"}'
import {
  createPublicClient, createWalletClient, defineChain, encodeAbiParameters, getAddress, hashTypedData, http, keccak256,
  parseAbi, recoverTypedDataAddress, stringToHex, toHex, zeroAddress,
} from "viem";
import { privateKeyToAccount } from "viem/accounts";
import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";

const escrowABI = parseAbi([
  "function open(address payee, address token, uint128 deposit, bytes32 salt, address authorizedSigner) returns (bytes32)",
  "function channelId((address payer, address payee, address token, bytes32 salt, address authorizedSigner) terms) view returns (bytes32)",
  "function voucherDigest(bytes32 channelId, uint128 cumulativeAmount) view returns (bytes32)",
  "function eip712Domain() view returns (bytes1 fields, string name, string version, uint256 chainId, address verifyingContract, bytes32 salt, uint256[] extensions)",
]);
const tokenABI = parseAbi([
  "function name() view returns (string)",
  "function version() view returns (string)",
  "function approve(address spender, uint256 amount) returns (bool)",
]);
const types = {
  Voucher: [{ name: "channelId", type: "bytes32" }, { name: "cumulativeAmount", type: "uint128" }],
  ReceiveWithAuthorization: [
    { name: "from", type: "address" }, { name: "to", type: "address" }, { name: "value", type: "uint256" },
    { name: "validAfter", type: "uint256" }, { name: "validBefore", type: "uint256" }, { name: "nonce", type: "bytes32" },
  ],
  LeaseAccess: [{ name: "channelId", type: "bytes32" }, { name: "challenge", type: "bytes32" }, { name: "action", type: "string" }],
  UsageRecord: [
    { name: "leaseId", type: "bytes32" }, { name: "channelId", type: "bytes32" }, { name: "offerHash", type: "bytes32" },
    { name: "sequence", type: "uint64" }, { name: "previous", type: "bytes32" }, { name: "nanos", type: "uint64" },
    { name: "devices", type: "uint32" }, { name: "owedBefore", type: "uint128" }, { name: "owed", type: "uint128" },
    { name: "from", type: "uint64" }, { name: "to", type: "uint64" }, { name: "final", type: "bool" },
    { name: "evidenceHash", type: "bytes32" },
  ],
};

const input = JSON.parse(readFileSync(0, "utf8"));
const account = privateKeyToAccount(input.key);
const deposit = BigInt(input.deposit);
let client, wallet, session; // session: what the first challenge asks for

// challenge fetches a 402 and parses its header: every parameter is echoed in the credential.
async function challenge() {
  const response = await fetch(`${input.url}/lease`);
  assert.equal(response.status, 402);
  assert.equal(response.headers.get("cache-control"), "no-store");
  assert.match(response.headers.get("content-type"), /^application\/problem\+json/);
  const header = response.headers.get("www-authenticate");
  assert.match(header, /^Payment /);
  const found = Object.fromEntries([...header.matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)].map(([, name, value]) => [name, value.replace(/\\(.)/g, "$1")]));
  assert.equal(`${found.method}/${found.intent}`, "evm/session");
  return found;
}

function base64(value) {
  return Buffer.from(JSON.stringify(value)).toString("base64url");
}

function unbase64(text) {
  return JSON.parse(Buffer.from(text, "base64url").toString("utf8"));
}

async function send(method, fresh, payload) {
  const credential = base64({ challenge: fresh, source: `did:pkh:eip155:${session.chainId}:${account.address}`, payload });
  const response = await fetch(`${input.url}/lease`, { method, headers: { Authorization: `Payment ${credential}` } });
  if (response.status !== 200) throw new Error(`${method} ${payload.action}: ${response.status} ${await response.text()}`);
  return response;
}

// connect reads the terms out of a challenge and builds the channel's id from them.
async function connect() {
  const first = await challenge();
  const asked = unbase64(first.request);
  const { chainId, escrowContract: escrow } = asked.methodDetails;
  const chain = defineChain({ id: chainId, name: "local", nativeCurrency: { name: "coin", symbol: "C", decimals: 18 }, rpcUrls: { default: { http: [input.rpc] } } });
  client = createPublicClient({ chain, transport: http(), pollingInterval: 50 });
  wallet = createWalletClient({ chain, transport: http(), account });
  const terms = { payer: account.address, payee: asked.recipient, token: asked.currency, salt: toHex(randomBytes(32)), authorizedSigner: zeroAddress };
  for (const address of [terms.payee, terms.token, escrow]) assert.equal(address, getAddress(address), "addresses are EIP-55");
  const id = keccak256(encodeAbiParameters(
    ["address", "address", "address", "bytes32", "address", "address", "uint256"].map((type) => ({ type })),
    [terms.payer, terms.payee, terms.token, terms.salt, terms.authorizedSigner, escrow, BigInt(chainId)],
  ));
  assert.equal(await client.readContract({ address: escrow, abi: escrowABI, functionName: "channelId", args: [terms] }), id);
  const [, name, version] = await client.readContract({ address: escrow, abi: escrowABI, functionName: "eip712Domain" });
  session = { chainId, escrow, terms, id, domain: { name, version, chainId, verifyingContract: escrow } };
  const digest = await client.readContract({ address: escrow, abi: escrowABI, functionName: "voucherDigest", args: [id, 1n] });
  assert.equal(digest, hashTypedData(typedVoucher(1)), "contract and viem hash a voucher alike");
  const offer = await (await fetch(`${input.url}/offer/${asked.externalId}`)).json();
  assert.equal(offer.payee, asked.recipient);
  session.meter = offer.meter;
  return first;
}

function typedVoucher(cumulativeAmount) {
  return { domain: session.domain, types, primaryType: "Voucher", message: { channelId: session.id, cumulativeAmount: BigInt(cumulativeAmount) } };
}

function voucher(cumulativeAmount) {
  return account.signTypedData(typedVoucher(cumulativeAmount));
}

function prove(fresh, action) {
  const domain = { name: "gpupay lease", version: "1", chainId: session.chainId, verifyingContract: session.escrow };
  return account.signTypedData({ domain, types, primaryType: "LeaseAccess", message: { channelId: session.id, challenge: keccak256(stringToHex(fresh.id)), action } });
}

// openGasless signs the deposit away without a transaction: the provider sends it.
async function openGasless(fresh) {
  const { terms, id, escrow, chainId } = session;
  const read = (functionName) => client.readContract({ address: terms.token, abi: tokenABI, functionName });
  const domain = { name: await read("name"), version: await read("version"), chainId, verifyingContract: terms.token };
  const nonce = keccak256(encodeAbiParameters(
    ["address", "address", "address", "bytes32", "address"].map((type) => ({ type })),
    [terms.payer, terms.payee, terms.token, terms.salt, terms.authorizedSigner],
  ));
  const message = { from: terms.payer, to: escrow, value: deposit, validAfter: 0n, validBefore: BigInt(Math.floor(Date.now() / 1000) + 3600), nonce };
  const signature = await account.signTypedData({ domain, types, primaryType: "ReceiveWithAuthorization", message });
  const authorization = { ...message, value: `${message.value}`, validAfter: "0", validBefore: `${message.validBefore}` };
  return send("GET", fresh, {
    action: "open", type: "authorization", channelId: id, authorization, signature, cumulativeAmount: "0", voucherSignature: await voucher(0), salt: terms.salt,
  });
}

// openByHash sends approve and open from the renter's own account and names the transaction.
async function openByHash(fresh) {
  const { terms, id, escrow } = session;
  const write = async (request) => {
    const hash = await wallet.writeContract(request);
    assert.equal((await client.waitForTransactionReceipt({ hash })).status, "success");
    return hash;
  };
  await write({ address: terms.token, abi: tokenABI, functionName: "approve", args: [escrow, deposit] });
  const hash = await write({ address: escrow, abi: escrowABI, functionName: "open", args: [terms.payee, terms.token, deposit, terms.salt, terms.authorizedSigner] });
  return send("GET", fresh, { action: "open", type: "hash", channelId: id, hash, cumulativeAmount: "1", signature: await voucher(1), salt: terms.salt });
}

// events yields the server-sent events of a response.
async function* events(response) {
  assert.equal(response.headers.get("content-type"), "text/event-stream");
  let text = "";
  const decoder = new TextDecoder();
  for await (const part of response.body) {
    text += decoder.decode(part, { stream: true });
    for (let end; (end = text.indexOf("\n\n")) >= 0; text = text.slice(end + 2)) {
      const event = { data: "" };
      for (const line of text.slice(0, end).split("\n")) {
        const [, field, value] = line.match(/^(\w*): ?(.*)$/);
        if (field === "data") event.data += value;
        else if (field !== "") event[field] = value;
      }
      if (event.event) yield { ...event, data: JSON.parse(event.data) };
    }
  }
}

async function next(stream, name) {
  for (;;) {
    const { value, done } = await stream.next();
    if (done) throw new Error(`the stream ended before its ${name} event`);
    if (value.event === name) return value.data;
  }
}

// check recovers a usage record's signer with viem.
async function check(record) {
  const domain = { name: "gpupay usage record", version: "1", chainId: session.chainId, verifyingContract: session.escrow };
  assert.equal(await recoverTypedDataAddress({ domain, types, primaryType: "UsageRecord", message: record, signature: record.signature }), session.meter);
  assert.equal(record.channelId, session.id);
}

// pay sends a voucher over what a record says is owed, and returns its signature.
async function pay(owed) {
  const signature = await voucher(owed);
  const response = await send("POST", await challenge(), { action: "voucher", channelId: session.id, cumulativeAmount: owed, signature });
  assert.equal(receipt(response).acceptedCumulative, owed);
  return signature;
}

function receipt(response) {
  const found = unbase64(response.headers.get("payment-receipt"));
  assert.equal(found.status, "success");
  assert.equal(found.reference, session.id);
  return found;
}

// rent reads and pays three records, releases with a proof, and pays the rest to the base unit.
async function rent(response) {
  const stream = events(response);
  const lease = await next(stream, "lease");
  for (let n = 0; n < 3; n++) {
    const record = await next(stream, "usage");
    await check(record);
    if (record.owed !== "0") await pay(record.owed);
  }
  const fresh = await challenge();
  const released = await send("POST", fresh, { action: "release", channelId: session.id, proof: await prove(fresh, "release") });
  const { record } = await released.json();
  await check(record);
  assert.equal(record.final, true);
  const last = await next(stream, "payment-receipt");
  assert.equal(last.channelId, session.id);
  return { secret: lease.secret, owed: record.owed, records: Number(record.sequence), signature: await pay(record.owed) };
}

async function close({ secret, owed, signature }) {
  const response = await send("POST", await challenge(), { action: "close", channelId: session.id, cumulativeAmount: owed, signature, leaseSecret: secret });
  const { txHash } = receipt(response);
  assert.equal((await client.waitForTransactionReceipt({ hash: txHash })).status, "success");
  return txHash;
}

const mode = process.argv[2];
const first = await connect();
const lease = await rent(mode === "gasless" ? await openGasless(first) : await openByHash(first));
const report = { channelId: session.id, payer: account.address, owed: lease.owed, records: lease.records, signature: lease.signature };
if (mode === "gasless") report.txHash = await close(lease);
console.log(JSON.stringify(report));
