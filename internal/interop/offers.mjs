// viem signs each offer vector's document anew: the same hash, digest and signature, by a canonical form of its own.
//
//   node offers.mjs <<< '{"key"}'
import { hashTypedData, keccak256, stringToBytes } from "viem";
import { privateKeyToAccount } from "viem/accounts";
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";

const account = privateKeyToAccount(JSON.parse(readFileSync(0, "utf8")).key);
const { offers } = JSON.parse(readFileSync("../../sdk/wire/testdata/offers.json", "utf8"));

// canonical is RFC 8785 for what an offer holds.
function canonical(value) {
  if (Array.isArray(value)) return `[${value.map(canonical).join(",")}]`;
  if (value === null || typeof value !== "object") return JSON.stringify(value);
  return `{${Object.keys(value).sort().map((key) => `${JSON.stringify(key)}:${canonical(value[key])}`).join(",")}}`;
}

for (const { name, unsigned, hash, digest, signature, chainId, escrow, payee } of offers) {
  assert.equal(canonical(JSON.parse(unsigned)), unsigned, name);
  assert.equal(keccak256(stringToBytes(unsigned)), hash, name);
  const data = {
    domain: { name: "gpupay offer", version: "1", chainId, verifyingContract: escrow },
    types: { Offer: [{ name: "documentHash", type: "bytes32" }] }, primaryType: "Offer", message: { documentHash: hash },
  };
  assert.equal(hashTypedData(data), digest, name);
  assert.equal(await account.signTypedData(data), signature, name);
  assert.equal(account.address.toLowerCase(), payee.toLowerCase(), name);
}
console.log(JSON.stringify(offers.length));
