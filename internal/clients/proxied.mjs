// What npm's openai sees of the local proxy before providers that are paid by the request, as it is: it finds the proxy and a local key in the
// environment. LEAVER is another key: what it spends is the answer that is left, and nothing else.
import OpenAI from "openai";
import assert from "node:assert/strict";

const client = new OpenAI({ maxRetries: 0 });
const patient = new OpenAI({ maxRetries: 10 }); // where a first payment, or a slot that is about to be free, may take a moment
const providers = process.env.PROVIDERS.split(",");
const messages = [{ role: "user", content: "Say Hello" }];
const fails = async (promise, type, status, code) => {
  const err = await promise.then(() => assert.fail("it is answered"), (e) => e);
  assert(err instanceof type, `${err?.constructor?.name}: ${err}`);
  assert.deepEqual([err.status, err.code], [status, code]);
  return err;
};

// Providers are asked for their offers at the start: until then nobody is known to serve a model.
for (const end = Date.now() + 60_000; ; await new Promise((r) => setTimeout(r, 100))) {
  const known = await client.models.list();
  if (known.data.find((m) => m.id === "test")?.gpupay.length === providers.length || Date.now() > end) break;
}
const models = [];
for await (const model of client.models.list()) models.push(model.id);
assert.deepEqual(models.sort(), ["broken", "busy", "cut", "quiet", "slow", "test"]);
assert.equal((await client.models.retrieve("test")).id, "test");

const { data: answer, response } = await patient.chat.completions.create({ model: "test", messages }).withResponse();
assert.equal(answer.choices[0].message.content, "Hello");
assert(providers.includes(response.headers.get("x-gpupay-provider")), response.headers.get("x-gpupay-provider"));
assert(Number(response.headers.get("x-gpupay-cost")) > 0, response.headers.get("x-gpupay-cost"));
assert(Number(response.headers.get("x-gpupay-budget-left")) > 0, response.headers.get("x-gpupay-budget-left"));

let text = "", finished;
for await (const piece of await client.chat.completions.create({ model: "test", messages, stream: true })) {
  text += piece.choices[0]?.delta?.content ?? "";
  finished = piece.choices[0]?.finish_reason;
}
assert.deepEqual([text, finished], ["Hello", "stop"]);

const tools = [{ type: "function", function: { name: "weather", parameters: { type: "object", properties: { city: { type: "string" } } } } }];
const called = await client.chat.completions.create({ model: "test", messages, tools });
assert.equal(called.choices[0].finish_reason, "tool_calls");
assert.deepEqual(JSON.parse(called.choices[0].message.tool_calls[0].function.arguments), { city: "Oslo" });
const streamed = await client.chat.completions.stream({ model: "test", messages, tools }).finalChatCompletion();
assert.equal(streamed.choices[0].message.tool_calls[0].function.name, "weather");
assert.deepEqual(JSON.parse(streamed.choices[0].message.tool_calls[0].function.arguments), { city: "Oslo" });

const embedded = await client.embeddings.create({ model: "test", input: "Hello" }); // asks for base64
assert.deepEqual([...embedded.data[0].embedding], [0.25, -0.5]);
const floats = await client.embeddings.create({ model: "test", input: "Hello", encoding_format: "float" });
assert.deepEqual(floats.data[0].embedding, [0.25, -0.5]);

// One provider that it names, by an option that the API does not have; the client sends it on.
const named = await patient.chat.completions.create({ model: "test", messages, provider: { only: [providers[1]] } }).withResponse();
assert.equal(named.response.headers.get("x-gpupay-provider"), providers[1]);

await fails(client.chat.completions.create({ model: "none", messages }), OpenAI.NotFoundError, 404, "model_not_found");
await fails(new OpenAI({ apiKey: "of-elsewhere" }).chat.completions.create({ model: "test", messages }), OpenAI.AuthenticationError, 401, "invalid_api_key");
await fails(client.chat.completions.create({ model: "test", messages, provider: { sorted: "price" } }), OpenAI.BadRequestError, 400, "invalid_value");

// All slots of all providers are taken: the client is told to come back, and does.
const running = [];
for (const _ of providers) {
  const stream = await patient.chat.completions.create({ model: "slow", messages, stream: true });
  const pieces = stream[Symbol.asyncIterator]();
  await pieces.next();
  running.push(stream);
}
const busy = await fails(client.chat.completions.create({ model: "test", messages }), OpenAI.RateLimitError, 429, "providers_full");
assert(Number(busy.headers.get("retry-after")) > 0, busy.headers.get("retry-after"));
for (const stream of running) stream.controller.abort();
const again = await patient.chat.completions.create({ model: "test", messages });
assert.equal(again.choices[0].message.content, "Hello");

// It leaves in the middle of an answer whose next piece does not come: after that the slot is free for the next one, at the same provider.
const leaver = new OpenAI({ apiKey: process.env.LEAVER, maxRetries: 10 });
const leave = new AbortController();
const sent = performance.now();
const { data: quiet, response: from } = await leaver.chat.completions
  .create({ model: "quiet", messages, stream: true, provider: { only: [providers[2]] } }, { signal: leave.signal })
  .withResponse();
const begun = performance.now();
setTimeout(() => leave.abort(), 1500);
let seen = 0;
for await (const piece of quiet) seen++;
const left = performance.now();
assert(seen === 1 && from.headers.get("x-gpupay-provider") === providers[2], `${seen} pieces`);
const next = await patient.chat.completions.create({ model: "test", messages, provider: { only: [providers[2]] } });
assert.equal(next.choices[0].message.content, "Hello");

// What fails everywhere is the client's error for it, and costs nothing.
await fails(client.chat.completions.create({ model: "busy", messages }), OpenAI.RateLimitError, 429, "providers_full");
const broken = await fails(client.chat.completions.create({ model: "broken", messages }), OpenAI.InternalServerError, 503, "providers_failed");
assert.equal(broken.headers.get("x-gpupay-attempts"), "3");
let came = "";
const cut = await client.chat.completions.create({ model: "cut", messages, stream: true });
await assert.rejects(async () => { for await (const piece of cut) came += piece.choices[0]?.delta?.content ?? ""; }, { code: "answer_broken" });
assert.equal(came, "Hel");

console.log(JSON.stringify({ sent: left - sent, streamed: left - begun }));
