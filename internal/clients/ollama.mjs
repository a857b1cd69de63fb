// What npm's ollama sees, as it is.
import { Ollama } from "ollama";
import assert from "node:assert/strict";

const client = new Ollama({ host: process.env.OLLAMA_HOST });
const messages = [{ role: "user", content: "Say Hello" }];

const answer = await client.chat({ model: "test", messages });
assert.equal(answer.message.content, "Hello");

let text = "";
for await (const piece of await client.chat({ model: "test", messages, stream: true })) text += piece.message.content;
assert.equal(text, "Hello");

let generated = "";
for await (const piece of await client.generate({ model: "test", prompt: "Say Hello", stream: true })) generated += piece.response;
assert.equal(generated, "Hello");

const tools = [{ type: "function", function: { name: "weather", description: "", parameters: { type: "object", properties: { city: { type: "string", description: "" } } } } }];
const called = await client.chat({ model: "test", messages, tools });
assert.deepEqual(called.message.tool_calls[0].function.arguments, { city: "Oslo" });

assert.deepEqual((await client.embed({ model: "test", input: "Hello" })).embeddings, [[0.25, -0.5]]);
assert.deepEqual((await client.list()).models.map((m) => m.name), ["test:latest"]);

for (const [model, status] of [["none", 404], ["busy", 429], ["broken", 500]]) {
  const err = await client.chat({ model, messages }).then(() => assert.fail("it is answered"), (e) => e);
  assert.equal(err.name, "ResponseError");
  assert.equal(err.status_code, status);
  assert(err.message.includes(`model is ${model}`), err.message);
}

const slow = await client.chat({ model: "slow", messages, stream: true });
let seen = 0;
await assert.rejects(async () => { for await (const piece of slow) if (++seen === 3) slow.abort(); }, { name: "AbortError" });
assert(seen >= 3 && seen < 100, `${seen} pieces`);

// What pulls or deletes models is not for sale.
for (const refused of [() => client.pull({ model: "test" }), () => client.delete({ model: "test" })]) {
  const err = await refused().then(() => assert.fail("it is answered"), (e) => e);
  assert.equal(err.status_code, 404);
}

console.log("done");
