// A server of the official packages that sells answers for x402's batch-settlement, with the official facilitator in the
// same process. It prints {"url"} and serves until its standard input ends.
//
//   GET|POST /paid?use=N      an answer that costs N of at most 1000 base units; its body says how often it was served
//   GET      /control/claim   claims all that was charged and has it paid out
//   GET      /control/break   cuts the connection of the next paid answer after it was charged
//   GET      /control/forget  loses all that the server knew of its channels
//
// Input, one line: {"rpc", "operatorKey", "receiver", "token", "tokenName", "minDeposit"}
import { x402ResourceServer, x402HTTPResourceServer } from "@x402/core/server";
import { x402Facilitator } from "@x402/core/facilitator";
import { BatchSettlementEvmScheme as Facilitator } from "@x402/evm/batch-settlement/facilitator";
import { BatchSettlementEvmScheme as Server } from "@x402/evm/batch-settlement/server";
import { createPublicClient, createWalletClient, defineChain, http } from "viem";
import { privateKeyToAccount } from "viem/accounts";
import { createServer } from "node:http";
import { createInterface } from "node:readline";

const lines = createInterface({ input: process.stdin });
const input = JSON.parse((await lines[Symbol.asyncIterator]().next()).value);
lines.on("close", () => process.exit(0));

const network = "eip155:31337";
const chain = defineChain({ id: 31337, name: "local", nativeCurrency: { name: "coin", symbol: "C", decimals: 18 }, rpcUrls: { default: { http: [input.rpc] } } });
const client = createPublicClient({ chain, transport: http(), pollingInterval: 50, cacheTime: 0 });
const operator = privateKeyToAccount(input.operatorKey);
const wallet = createWalletClient({ chain, transport: http(), account: operator });

const facilitator = new x402Facilitator().register(network, new Facilitator({
  getAddresses: () => [operator.address],
  getCode: (call) => client.getCode(call),
  verifyTypedData: (call) => client.verifyTypedData(call),
  // It reads through the multicall contract of public chains, which a local one does not have.
  readContract: async (call) => call.functionName !== "tryAggregate"
    ? (await client.simulateContract({ ...call, account: operator })).result
    : Promise.all(call.args[1].map(async ({ target, callData }) => ({ success: true, returnData: (await client.call({ to: target, data: callData })).data }))),
  writeContract: (call) => wallet.writeContract(call),
  waitForTransactionReceipt: (call) => client.waitForTransactionReceipt(call),
}, operator));
const local = {
  verify: (payload, requirements) => facilitator.verify(payload, requirements),
  settle: (payload, requirements) => facilitator.settle(payload, requirements),
  getSupported: async () => facilitator.getSupported(),
};

const scheme = new Server(input.receiver, { receiverAuthorizerSigner: operator, withdrawDelay: 900, enforceMinDeposit: true });
const manager = scheme.createChannelManager(local, network, input.token);
const paid = new x402HTTPResourceServer(new x402ResourceServer(local).register(network, scheme), {
  "/paid": {
    accepts: {
      scheme: "batch-settlement", network, payTo: input.receiver, maxTimeoutSeconds: 300,
      price: { amount: "1000", asset: input.token, extra: { name: input.tokenName, version: "1" } },
      extra: { minDeposit: input.minDeposit },
    },
    description: "an answer", mimeType: "application/json",
  },
});
await paid.initialize();

let served = 0, cut = false;
const controls = {
  "/control/claim": () => manager.claimAndSettle(),
  "/control/break": async () => { cut = true; return {}; },
  "/control/forget": async () => {
    for (const channel of await scheme.getStorage().list()) await scheme.getStorage().updateChannel(channel.channelId, () => undefined);
    return {};
  },
};

const send = (res, status, headers, body) => { res.writeHead(status, { "content-type": "application/json", ...headers }); res.end(JSON.stringify(body)); };

async function sell(req, res, url) {
  const body = [];
  for await (const part of req) body.push(part);
  const adapter = {
    getHeader: (name) => req.headers[name.toLowerCase()], getMethod: () => req.method, getPath: () => url.pathname, getUrl: () => url.href,
    getAcceptHeader: () => req.headers.accept ?? "", getUserAgent: () => req.headers["user-agent"] ?? "",
  };
  const context = { adapter, path: url.pathname, method: req.method };
  const result = await paid.processHTTPRequest(context);
  if (result.type !== "payment-verified") {
    const { status, headers, body } = result.response;
    return send(res, status, headers, body);
  }
  const answer = { served: ++served, echo: Buffer.concat(body).toString() };
  const settled = await paid.processSettlement(result.paymentPayload, result.paymentRequirements, result.declaredExtensions,
    { request: context }, { amount: url.searchParams.get("use") ?? "1000" });
  if (!settled.success) return send(res, settled.response.status, settled.response.headers, settled.response.body);
  if (cut) { cut = false; return req.socket.destroy(); }
  send(res, 200, settled.headers, answer);
}

const server = createServer(async (req, res) => {
  const url = new URL(req.url, `http://${req.headers.host}`);
  try {
    const control = controls[url.pathname];
    if (control) send(res, 200, {}, await control());
    else await sell(req, res, url);
  } catch (err) {
    send(res, 500, {}, { error: String(err?.stack ?? err) });
  }
});
server.listen(0, "127.0.0.1", () => console.log(JSON.stringify({ url: `http://127.0.0.1:${server.address().port}` })));
