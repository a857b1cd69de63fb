// Stock clients of x402 that pay as the Go test tells them: a command a line comes in, answers a line go out, each with the
// command's number, here or in a browser's page (x402page.html). Commands run side by side. What a client keeps, signs, believes and asks again is the packages' own.
//
//   client {name, rpc?, key, salt?, spend?}      a client with empty storage; without rpc it cannot read the chain
//   pay {name, url, method?, body?, stream?, times?, key?}    one paid call, or several at once, an answer for each
//   refund {name, url, amount?}
import { x402Client } from "@x402/core/client";
import { decodePaymentRequiredHeader, decodePaymentResponseHeader } from "@x402/core/http";
import { toClientEvmSigner } from "@x402/evm";
import { BatchSettlementEvmScheme, InMemoryClientChannelStorage } from "@x402/evm/batch-settlement/client";
import { wrapFetchWithPayment } from "@x402/fetch";
import { createPublicClient, http } from "viem";
import { privateKeyToAccount } from "viem/accounts";

const clients = new Map();

function open({ name, rpc, key, salt, spend }) {
  const chain = rpc && createPublicClient({ transport: http(rpc) });
  const storage = new InMemoryClientChannelStorage();
  const account = privateKeyToAccount(key);
  const made = { storage, signed: 0 };
  const signTypedData = (data) => (made.signed++, account.signTypedData(data));
  made.scheme = new BatchSettlementEvmScheme(toClientEvmSigner({ address: account.address, signTypedData }, chain), { storage, ...(salt && { salt }) });
  made.client = x402Client.fromConfig({ schemes: [{ network: "eip155:*", client: made.scheme }], spendControls: spend });
  clients.set(name, made);
  return {};
}

// watched is fetch, and what went over the wire by it.
function watched() {
  const requests = [];
  const send = async (input, init) => {
    const request = new Request(input, init);
    const seen = { payment: request.headers.get("PAYMENT-SIGNATURE") ?? "" };
    requests.push(seen);
    const response = await fetch(request);
    const required = response.headers.get("PAYMENT-REQUIRED");
    seen.status = response.status;
    if (required) seen.reason = decodePaymentRequiredHeader(required).error;
    return response;
  };
  return { requests, send };
}

// now is what a client has come to: its signatures, and the one channel that it knows of as it stands in its storage.
function now({ storage, signed }) {
  const [channel] = [...storage.channels].map(([id, record]) => ({ id, ...record }));
  return { signed, channel };
}

async function pay(say, { name, url, method, body, stream, key }) {
  const made = clients.get(name);
  const { requests, send } = watched();
  const headers = { ...(body !== undefined && { "Content-Type": "application/json" }), ...(key && { "Idempotency-Key": key }) };
  const response = await wrapFetchWithPayment(send, made.client)(url, { method, body, headers }).catch((error) => ({ error }));
  if (response.error) return { error: response.error.message, requests, ...now(made) };
  const settled = response.headers.get("PAYMENT-RESPONSE");
  const head = { status: response.status, requests, settled: settled ? decodePaymentResponseHeader(settled) : undefined, ...now(made) };
  if (!stream) return { ...head, body: await response.text() };
  say({ ...head, more: true });
  const decoder = new TextDecoder();
  for await (const part of response.body) say({ body: decoder.decode(part, { stream: true }), more: true });
  return head;
}

async function refund({ name, url, amount }) {
  const made = clients.get(name);
  const { requests, send } = watched();
  try {
    return { settled: await made.scheme.refund(url, { amount, fetch: send }), requests, ...now(made) };
  } catch (error) {
    return { error: error.message, requests, ...now(made) };
  }
}

export async function run({ id, op, ...command }, tell = console.log) {
  const say = (answer) => tell(JSON.stringify({ id, ...answer }));
  const once = { client: () => open(command), pay: () => pay(say, command), refund: () => refund(command) }[op];
  await Promise.all(Array.from({ length: command.times ?? 1 }, async () => {
    try {
      say(await once());
    } catch (error) {
      say({ broken: error.stack });
    }
  }));
}

if (globalThis.process) {
  const { createInterface } = await import("node:readline");
  createInterface({ input: process.stdin }).on("line", (line) => run(JSON.parse(line)));
}
