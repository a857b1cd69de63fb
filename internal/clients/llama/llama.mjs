// llama.cpp behind the routes of OpenAI's API that its own server has, by node-llama-cpp: chats, streamed or not, a list of models, and health. A chat is continued
// where continue_final_message says so. Its first argument is where the model is to be written, its second how many milliseconds a token takes
// at least. It prints where it listens.
import { getLlama } from "node-llama-cpp";
import { createServer } from "node:http";
import { write } from "./gguf.mjs";

const [file, pace] = [process.argv[2], Number(process.argv[3] ?? 0)];
write(file);
const llama = await getLlama({ gpu: false, build: "never", progressLogs: false, maxThreads: 1 });
const model = await llama.loadModel({ modelPath: file, gpuLayers: 0 });
const size = 2048;
const context = await model.createContext({ contextSize: size, sequences: 8, threads: 1, batchSize: 64 });
let running = 0;

// prompt is a chat as the model reads it; what is continued has no end.
function prompt({ messages, continue_final_message }) {
  const text = messages.map(({ role, content }) => `${role}: ${content}`).join("\n");
  return continue_final_message ? text : `${text}\nassistant: `;
}

// answer hands on pieces of text until the model is done, its caller has left, or there are as many tokens as were asked for.
async function answer(body, gone, hand) {
  const read = [model.tokens.bos, ...model.tokenize(prompt(body))];
  const most = Math.min(body.max_tokens ?? body.max_completion_tokens ?? 64, size - read.length);
  if (most <= 0) return { error: { message: `the prompt has ${read.length} tokens, and ${size} are all`, type: "invalid_request_error", code: "context_length_exceeded" } };
  const sequence = context.getSequence();
  let made = 0, reason = "length";
  try {
    for await (const token of sequence.evaluate(read, { temperature: 0 })) {
      if (gone()) break;
      if (model.isEogToken(token)) {
        reason = "stop";
        break;
      }
      hand(model.detokenize([token]));
      if (++made >= most) break;
      await new Promise((next) => setTimeout(next, pace));
    }
  } finally {
    sequence.dispose();
  }
  return { reason, usage: { prompt_tokens: read.length, completion_tokens: made, total_tokens: read.length + made } };
}

async function chat(body, res) {
  const gone = () => res.destroyed;
  const head = { id: "chatcmpl-1", created: 1, model: body.model };
  if (!body.stream) {
    let text = "";
    const { error, reason, usage } = await answer(body, gone, (piece) => (text += piece));
    res.writeHead(error ? 400 : 200, { "content-type": "application/json" });
    return res.end(JSON.stringify(error ? { error } : { ...head, object: "chat.completion", choices: [{ index: 0, message: { role: "assistant", content: text }, finish_reason: reason }], usage }));
  }
  const event = (choices, more) => res.write(`data: ${JSON.stringify({ ...head, object: "chat.completion.chunk", choices, ...more })}\n\n`);
  res.writeHead(200, { "content-type": "text/event-stream" });
  event([{ index: 0, delta: { role: "assistant" }, finish_reason: null }]);
  const { error, reason, usage } = await answer(body, gone, (content) => event([{ index: 0, delta: { content }, finish_reason: null }]));
  if (error) res.write(`data: ${JSON.stringify({ error })}\n\n`);
  else event([{ index: 0, delta: {}, finish_reason: reason }]);
  if (!error && body.stream_options?.include_usage) event([], { usage });
  res.end("data: [DONE]\n\n");
}

const server = createServer(async (req, res) => {
  const say = (value) => res.writeHead(200, { "content-type": "application/json" }).end(JSON.stringify(value));
  if (req.url === "/health") return say({ status: "ok", running });
  if (req.url === "/v1/models") return say({ object: "list", data: [{ id: "random", object: "model", created: 1, owned_by: "nobody" }] });
  if (req.method !== "POST" || req.url !== "/v1/chat/completions") return res.writeHead(404).end();
  running++;
  try {
    let text = "";
    for await (const part of req) text += part;
    await chat(JSON.parse(text), res);
  } catch (error) {
    if (!res.headersSent) res.writeHead(500, { "content-type": "application/json" });
    res.end(JSON.stringify({ error: { message: String(error) } }));
  }
  running--;
});
server.listen(0, "127.0.0.1", () => console.log(`http://127.0.0.1:${server.address().port}`));
