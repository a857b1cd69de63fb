// mppx, which knows nothing of us, reads and writes the Payment scheme here: the Go test gives it payloads to send and
// headers to read, and judges what it prints.
//
//   node mppx.mjs <<< '{"url", "source", "payloads", "minted": {"header", "secret"}}'
import { Challenge, Credential, PaymentRequest, Receipt } from "mppx";
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";

const input = JSON.parse(readFileSync(0, "utf8"));

// same asserts that mppx writes a challenge's JSON in our bytes: only then does the id that we computed still fit.
function same(challenge, header) {
  const request = header.match(/request="([^"]*)"/)[1];
  assert.equal(PaymentRequest.serialize(challenge.request), request, "canonical request");
  const opaque = header.match(/opaque="([^"]*)"/)[1];
  assert.equal(PaymentRequest.serialize(PaymentRequest.deserialize(opaque)), opaque, "canonical opaque");
}

// pay answers a fresh challenge with a payload and returns the receipt.
async function pay(payload) {
  const refusal = await fetch(`${input.url}/lease`);
  const challenge = Challenge.fromResponse(refusal);
  assert.equal(`${challenge.method}/${challenge.intent}`, "evm/session");
  same(challenge, refusal.headers.get("www-authenticate"));
  assert.deepEqual(Challenge.fromResponseList(refusal), [challenge]);
  assert.deepEqual(Challenge.deserialize(Challenge.serialize(challenge)), challenge);
  const credential = Credential.from({ challenge, payload, source: input.source });
  const response = await fetch(`${input.url}/lease`, { method: "POST", headers: { Authorization: Credential.serialize(credential) } });
  if (response.status !== 200) throw new Error(`${payload.action}: ${response.status} ${await response.text()}`);
  const receipt = Receipt.fromResponse(response);
  assert.equal(receipt.challengeId, challenge.id);
  return { challenge, receipt };
}

// A challenge that Go minted with a secret that mppx is told, with every awkward character in its request.
const { header, secret } = input.minted;
const minted = Challenge.deserialize(header);
same(minted, header);
assert.ok(Challenge.verify(minted, { secretKey: secret }), "mppx computes another id");
assert.ok(!Challenge.verify({ ...minted, realm: "elsewhere" }, { secretKey: secret }), "mppx takes any id");

// The other way round: a challenge and a credential that mppx made, for Go to read.
const { id, ...parameters } = minted;
const own = Challenge.from({ ...parameters, secretKey: secret });
const paid = [];
for (const payload of input.payloads) paid.push(await pay(payload));
console.log(JSON.stringify({
  request: paid[0].challenge.request,
  receipts: paid.map(({ receipt }) => receipt),
  minted: minted.request,
  challenge: Challenge.serialize(own),
  credential: Credential.serialize(Credential.from({ challenge: own, payload: input.payloads[0], source: input.source })),
}));
