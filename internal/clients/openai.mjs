// What npm's openai sees, as it is: it finds the server and a key in the environment.
import OpenAI from "openai";
import assert from "node:assert/strict";

const client = new OpenAI({ maxRetries: 0 });
const messages = [{ role: "user", content: "Say Hello" }];
const fails = async (promise, type, status, says) => {
  const err = await promise.then(() => assert.fail("it is answered"), (e) => e);
  assert(err instanceof type, `${err?.constructor?.name}: ${err}`);
  assert.equal(err.status, status);
  assert(err.message.includes(says), err.message);
  return err;
};

const answer = await client.chat.completions.create({ model: "test", messages });
assert.equal(answer.choices[0].message.content, "Hello");

let text = "";
for await (const piece of await client.chat.completions.create({ model: "test", messages, stream: true })) {
  text += piece.choices[0]?.delta?.content ?? "";
}
assert.equal(text, "Hello");

const tools = [{ type: "function", function: { name: "weather", parameters: { type: "object", properties: { city: { type: "string" } } } } }];
const called = await client.chat.completions.create({ model: "test", messages, tools });
assert.equal(called.choices[0].finish_reason, "tool_calls");
assert.deepEqual(JSON.parse(called.choices[0].message.tool_calls[0].function.arguments), { city: "Oslo" });

const embedded = await client.embeddings.create({ model: "test", input: "Hello" }); // asks for base64
assert.deepEqual([...embedded.data[0].embedding], [0.25, -0.5]);
const floats = await client.embeddings.create({ model: "test", input: "Hello", encoding_format: "float" });
assert.deepEqual(floats.data[0].embedding, [0.25, -0.5]);

const models = [];
for await (const model of client.models.list()) models.push(model.id);
assert.deepEqual(models, ["test", "slow"]);

await fails(client.chat.completions.create({ model: "none", messages }), OpenAI.NotFoundError, 404, "model is none");
await fails(client.chat.completions.create({ model: "busy", messages }), OpenAI.RateLimitError, 429, "model is busy");
await fails(client.chat.completions.create({ model: "broken", messages }), OpenAI.InternalServerError, 500, "model is broken");

// All slots are taken: the provider's own refusal is the client's error, too, and it is told when to ask again.
const running = [];
for (let i = 0; i < Number(process.env.SLOTS); i++) {
  const stream = await client.chat.completions.create({ model: "slow", messages, stream: true });
  const pieces = stream[Symbol.asyncIterator]();
  await pieces.next();
  running.push(stream);
}
const busy = await fails(client.chat.completions.create({ model: "test", messages }), OpenAI.RateLimitError, 429, "run, and no more may");
assert.equal(busy.headers.get("retry-after"), "1");
for (const stream of running) stream.controller.abort();
const again = await new OpenAI().chat.completions.create({ model: "test", messages }); // which tries again by itself
assert.equal(again.choices[0].message.content, "Hello");

const leave = new AbortController();
const slow = await client.chat.completions.create({ model: "slow", messages, stream: true }, { signal: leave.signal });
let seen = 0;
for await (const piece of slow) if (++seen === 3) leave.abort();
assert(seen >= 3 && seen < 100, `${seen} pieces`);

console.log("done");
