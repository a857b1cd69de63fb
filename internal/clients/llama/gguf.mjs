// A language model of random weights, of llama.cpp's format GGUF: llama's architecture, 40,000 weights, printable ASCII and bytes as its words.
// It has nothing to say, and says it: the same text each time, of which each letter follows from all before it.
import { writeFileSync } from "node:fs";

const width = 32, layers = 2, heads = 2, inner = 64, context = 2048;
const letters = Array.from({ length: 95 }, (_, i) => String.fromCharCode(32 + i)).map((c) => (c === " " ? "\u2581" : c));
const bytes = Array.from({ length: 256 }, (_, i) => `<0x${i.toString(16).toUpperCase().padStart(2, "0")}>`);
const tokens = ["<unk>", "<s>", "</s>", ...bytes, ...letters];
const types = [2, 3, 3, ...bytes.map(() => 6), ...letters.map(() => 1)];

let seed = 12345;
const random = () => ((seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0) / 2 ** 31 - 1);

// The first component of what a layer passes on is 1 for every token: by it the head says no to all that is no letter.
function tensor(name, cols, rows, fill) {
  const data = new Float32Array(cols * rows);
  for (let r = 0; r < rows; r++) for (let c = 0; c < cols; c++) data[r * cols + c] = fill(r, c);
  return { name, dims: rows === 1 ? [cols] : [cols, rows], data };
}
const noise = (scale) => () => random() * scale;
const keepFirst = (scale) => (r) => (r === 0 ? 0 : random() * scale);
const tensors = [tensor("token_embd.weight", width, tokens.length, (r, c) => (c === 0 ? 1 : random()))];
for (let i = 0; i < layers; i++) {
  tensors.push(
    tensor(`blk.${i}.attn_norm.weight`, width, 1, () => 1), tensor(`blk.${i}.attn_q.weight`, width, width, noise(1)), tensor(`blk.${i}.attn_k.weight`, width, width, noise(1)),
    tensor(`blk.${i}.attn_v.weight`, width, width, noise(1)), tensor(`blk.${i}.attn_output.weight`, width, width, keepFirst(1)),
    tensor(`blk.${i}.ffn_norm.weight`, width, 1, () => 1), tensor(`blk.${i}.ffn_gate.weight`, width, inner, noise(1)), tensor(`blk.${i}.ffn_up.weight`, width, inner, noise(1)),
    tensor(`blk.${i}.ffn_down.weight`, inner, width, keepFirst(1)));
}
tensors.push(tensor("output_norm.weight", width, 1, () => 1), tensor("output.weight", width, tokens.length, (r, c) => (c === 0 && types[r] !== 1 ? -1000 : random())));

const parts = [];
const u32 = (n) => { const b = Buffer.alloc(4); b.writeUInt32LE(n); parts.push(b); };
const u64 = (n) => { const b = Buffer.alloc(8); b.writeBigUInt64LE(BigInt(n)); parts.push(b); };
const f32 = (n) => { const b = Buffer.alloc(4); b.writeFloatLE(n); parts.push(b); };
const text = (s) => { const b = Buffer.from(s); u64(b.length); parts.push(b); };
const kinds = { u32: [4, u32], i32: [5, u32], f32: [6, f32], bool: [7, (v) => parts.push(Buffer.from([v ? 1 : 0]))], text: [8, text] };
const list = (of) => [9, (values) => { u32(kinds[of][0]); u64(values.length); values.forEach(kinds[of][1]); }];
const entries = [
  ["general.architecture", kinds.text, "llama"], ["llama.context_length", kinds.u32, context], ["llama.embedding_length", kinds.u32, width], ["llama.block_count", kinds.u32, layers],
  ["llama.feed_forward_length", kinds.u32, inner], ["llama.attention.head_count", kinds.u32, heads], ["llama.attention.layer_norm_rms_epsilon", kinds.f32, 1e-5],
  ["llama.rope.dimension_count", kinds.u32, width / heads], ["llama.vocab_size", kinds.u32, tokens.length],
  ["tokenizer.ggml.model", kinds.text, "llama"], ["tokenizer.ggml.tokens", list("text"), tokens], ["tokenizer.ggml.scores", list("f32"), tokens.map(() => 0)],
  ["tokenizer.ggml.token_type", list("i32"), types], ["tokenizer.ggml.bos_token_id", kinds.u32, 1], ["tokenizer.ggml.eos_token_id", kinds.u32, 2], ["tokenizer.ggml.unknown_token_id", kinds.u32, 0],
  ["tokenizer.ggml.add_space_prefix", kinds.bool, false],
];

// write writes the model.
export function write(file) {
  parts.length = 0;
  parts.push(Buffer.from("GGUF"));
  u32(3); u64(tensors.length); u64(entries.length);
  for (const [key, [kind, put], value] of entries) { text(key); u32(kind); put(value); }
  let at = 0;
  for (const t of tensors) {
    text(t.name); u32(t.dims.length); t.dims.forEach(u64); u32(0); u64(at);
    at += Math.ceil(t.data.byteLength / 32) * 32;
  }
  const head = Buffer.concat(parts);
  const body = tensors.map((t) => Buffer.concat([Buffer.from(t.data.buffer), Buffer.alloc((32 - (t.data.byteLength % 32)) % 32)]));
  writeFileSync(file, Buffer.concat([head, Buffer.alloc((32 - (head.length % 32)) % 32), ...body]));
}
