// What npm's AI SDK sees of the local proxy before providers that are paid by the request, as it is. PROVIDERS are those behind the proxy.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, embed, generateText, isStepCount, jsonSchema, streamText, tool } from "ai";
import assert from "node:assert/strict";

const gpupay = createOpenAICompatible({ name: "gpupay", baseURL: process.env.OPENAI_BASE_URL, apiKey: process.env.OPENAI_API_KEY, includeUsage: true });
const providers = process.env.PROVIDERS.split(",");
const ask = { model: gpupay("test"), prompt: "Say Hello", maxOutputTokens: 500 };
const patient = { ...ask, maxRetries: 10 }; // where a first payment, or a slot that is about to be free, may take a moment
const once = { ...ask, maxRetries: 0 };
const only = (i) => ({ providerOptions: { gpupay: { provider: { only: [providers[i]] } } } });
const fails = async (promise, status, code) => {
  const err = await promise.then(() => assert.fail("it is answered"), (e) => e);
  assert(APICallError.isInstance(err), String(err));
  assert.deepEqual([err.statusCode, JSON.parse(err.responseBody).error.code], [status, code]);
  return err;
};

// Providers are asked for their offers at the start: until then nobody is known to serve a model.
for (const end = Date.now() + 60_000; ; await new Promise((r) => setTimeout(r, 100))) {
  const known = await fetch(`${process.env.OPENAI_BASE_URL}/models`, { headers: { authorization: `Bearer ${process.env.OPENAI_API_KEY}` } });
  if ((await known.json()).data.find((m) => m.id === "test")?.gpupay.length === providers.length || Date.now() > end) break;
}

for (const i of providers.keys()) { // each one by an option of its own, which the SDK sends on
  const whole = await generateText({ ...patient, ...only(i) });
  assert.deepEqual([whole.text, whole.finishReason, whole.usage.totalTokens], ["Hello", "stop", 2]);
  assert.equal(whole.finalStep.response.headers["x-gpupay-provider"], providers[i]);
  assert(Number(whole.finalStep.response.headers["x-gpupay-cost"]) > 0);
}

const stream = streamText(ask);
let text = "", parts = 0;
for await (const part of stream.textStream) { text += part; parts++; }
assert.deepEqual([text, parts, await stream.finishReason, (await stream.usage).totalTokens], ["Hello", 2, "stop", 2]);

// A tool is called, answers, and the model goes on by that: two requests, whole and streamed.
const weather = tool({
  inputSchema: jsonSchema({ type: "object", properties: { city: { type: "string" } }, required: ["city"] }),
  execute: async ({ city }) => `12 degrees in ${city}`,
});
const tooled = await generateText({ ...ask, tools: { weather }, stopWhen: isStepCount(2) });
assert.deepEqual([tooled.steps.length, tooled.text], [2, "Hello12 degrees in Oslo"]);
const called = streamText({ ...ask, tools: { weather }, stopWhen: isStepCount(2) });
assert.equal(await called.text, "Hello12 degrees in Oslo");
const [first] = await called.steps;
assert.deepEqual([first.toolCalls[0].toolName, first.toolCalls[0].input, first.finishReason], ["weather", { city: "Oslo" }, "tool-calls"]);

const { embedding } = await embed({ model: gpupay.embeddingModel("test"), value: "Hello" });
assert.deepEqual(embedding, [0.25, -0.5]);

await fails(generateText({ ...once, model: gpupay("none") }), 404, "model_not_found");
await fails(generateText({ ...once, model: gpupay("busy") }), 429, "providers_full");
const broken = await fails(generateText({ ...once, model: gpupay("broken") }), 503, "providers_failed");
assert.equal(broken.isRetryable, true);
const stranger = createOpenAICompatible({ name: "gpupay", baseURL: process.env.OPENAI_BASE_URL, apiKey: "of-elsewhere" });
await fails(generateText({ ...once, model: stranger("test") }), 401, "invalid_api_key");

// It leaves in the middle of an answer whose next piece does not come: after that the only slot is free for the next one, at the same provider.
const leave = new AbortController();
let aborted = false, seen = "";
const quiet = streamText({ ...patient, ...only(2), model: gpupay("quiet"), abortSignal: leave.signal, onAbort: () => { aborted = true; } });
for await (const part of quiet.textStream) { seen += part; setTimeout(() => leave.abort(), 500); }
assert.deepEqual([seen, aborted], ["Hel", true]);
assert.equal((await generateText({ ...patient, ...only(2) })).text, "Hello");

// An answer that breaks off says so.
let error, came = "";
const cut = streamText({ ...once, model: gpupay("cut"), onError: (e) => { error = e.error; } });
for await (const part of cut.textStream) came += part;
assert.deepEqual([came, await cut.finishReason], ["Hel", "error"]);
assert.equal(error.code, "answer_broken");
