"use strict";
// Shows /health every two seconds while the page is visible, and streams /generate. Loads nothing from elsewhere.

const POLL_MS = 2000;
const byId = (id) => document.getElementById(id);
let abort = null;

function cell(content) {
  const td = document.createElement("td");
  td.append(content);
  return td;
}

function row(...cells) {
  const tr = document.createElement("tr");
  tr.append(...cells.map(cell));
  return tr;
}

function share(ratio) {
  const value = Math.min(1, Math.max(0, ratio || 0));
  const span = document.createElement("span");
  const meter = document.createElement("meter");
  meter.value = value;
  span.append(meter, `${Math.round(value * 100)} %`);
  return span;
}

const gib = (bytes) => bytes ? `${(bytes / 2 ** 30).toFixed(2)} GiB` : "–";
const layers = (rank) => rank.num_layers ? `${rank.first_layer}–${rank.first_layer + rank.num_layers - 1}` : "–";
const seconds = (value) => typeof value === "number" ? `${value.toFixed(value < 1 ? 3 : 1)} s` : "–";

function showHealth(health) {
  const ring = health.ring || {};
  byId("model").textContent = health.model || "mlx-ring";
  byId("status").textContent = health.status;
  byId("status").className = `pill ${health.status}`;
  byId("reason").textContent = health.reason || "";
  const ranks = [...(ring.ranks || [])].sort((a, b) => b.rank - a.rank);
  if (ranks.length) {
    byId("ring").tBodies[0].replaceChildren(...ranks.map((rank) => row(
      rank.rank, rank.host || "–", layers(rank), gib(rank.memory_bytes), health.status, share(rank.busy_ratio))));
  }
  const queue = ring.queue || {}, kv = ring.kv || {}, totals = ring.totals || {};
  byId("queue").textContent = `${queue.num_running || 0} running, ${queue.num_waiting || 0} waiting · KV cache ` +
    `${kv.num_tokens || 0} of ${kv.max_tokens || 0} tokens · ${totals.generation_tokens || 0} tokens generated`;
}

async function poll() {
  if (!document.hidden) {
    try {
      showHealth(await (await fetch("/health")).json());
    } catch {
      showHealth({ status: "unreachable", reason: "the front door does not answer" });
    }
  }
  setTimeout(poll, POLL_MS);
}

function showStages(done) {
  const usage = done.usage, times = done.performance || {};
  byId("figures").textContent = `${usage.prompt_tokens} + ${usage.completion_tokens} tokens · ` +
    `first token after ${seconds(times.ttft_s)} · ${(times.decode_tokens_per_s || 0).toFixed(1)} tokens/s · ` +
    `queue ${seconds(times.queue_s)} · ended by ${done.finish_reason}`;
  const ranks = [...(times.ranks || [])].sort((a, b) => b.rank - a.rank);
  const total = ranks.reduce((sum, rank) => sum + (rank.busy_s || 0), 0) || 1;
  byId("stages").hidden = ranks.length === 0;
  byId("stages").tBodies[0].replaceChildren(...ranks.map((rank) => row(
    rank.rank, layers(rank), rank.num_frames ?? "–", seconds(rank.busy_s), share((rank.busy_s || 0) / total))));
}

function showError(message) {
  byId("answer").classList.add("error");
  byId("answer").textContent += message;
}

function onEvent(frame) {
  const fields = {};
  for (const line of frame.split("\n")) {
    const at = line.indexOf(": ");
    if (at > 0) fields[line.slice(0, at)] = line.slice(at + 2);
  }
  if (!fields.data) return;
  const data = JSON.parse(fields.data);
  if (fields.event === "token") byId("answer").textContent += data.text;
  if (fields.event === "reset") byId("answer").textContent = "";
  if (fields.event === "done") showStages(data);
  if (fields.event === "error") showError(data.error.message);
}

async function readEvents(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const frames = (rest + value).split("\n\n");
    rest = frames.pop();
    frames.forEach(onEvent);
  }
}

async function ask() {
  const headers = { "Content-Type": "application/json" };
  if (byId("key").value) headers.Authorization = `Bearer ${byId("key").value}`;
  const body = { prompt: byId("prompt").value, stream: true, max_tokens: byId("max-tokens").valueAsNumber || 1,
    temperature: byId("temperature").valueAsNumber || 0 };
  const answer = await fetch("/generate",
    { method: "POST", headers, body: JSON.stringify(body), signal: abort.signal });
  if (answer.status === 401) byId("key-label").hidden = false;
  if (answer.ok) await readEvents(answer.body);
  else showError((await answer.json()).error.message);
}

byId("ask").addEventListener("submit", async (event) => {
  event.preventDefault();
  abort = new AbortController();
  byId("answer").textContent = byId("figures").textContent = "";
  byId("answer").classList.remove("error");
  byId("stages").hidden = byId("go").disabled = true;
  byId("stop").disabled = false;
  try {
    await ask();
  } catch (error) {
    if (error.name !== "AbortError") showError(String(error));
  }
  byId("go").disabled = false;
  byId("stop").disabled = true;
});
byId("stop").addEventListener("click", () => abort && abort.abort());
poll();
