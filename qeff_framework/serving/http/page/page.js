"use strict";
const at = (id) => document.getElementById(id);
let model = null, messages = [], running = null;

function headers() {
  const key = at("key").value;
  return { "content-type": "application/json", ...(key ? { authorization: `Bearer ${key}` } : {}) };
}

async function failure(response) {
  try { return (await response.json()).error.message; } catch { return `status ${response.status}`; }
}

async function loadModel() {
  try {
    const response = await fetch("v1/models", { headers: headers() });
    if (!response.ok) throw new Error(await failure(response));
    model = (await response.json()).data[0].id;
    at("model").textContent = model;
    at("status").textContent = "";
  } catch (error) {
    at("status").textContent = error.message;
  }
}

function show(role, text) {
  const box = document.createElement("div");
  box.className = `message ${role}`;
  box.textContent = text;
  at("messages").append(box);
  box.scrollIntoView({ block: "end" });
  return box;
}

function request(text) {
  const number = (id) => (at(id).value === "" ? undefined : Number(at(id).value));
  const body = { model, stream: true, stream_options: { include_usage: true }, max_tokens: number("max_tokens"),
                 temperature: number("temperature"), top_p: number("top_p"), seed: number("seed") };
  if (body.temperature === 0) { delete body.top_p; }
  if (at("plain").checked) return ["v1/completions", { ...body, prompt: text }];
  const system = at("system").value;
  return ["v1/chat/completions", { ...body, messages: [...(system ? [{ role: "system", content: system }] : []), ...messages] }];
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    const parts = rest.split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

async function send(text) {
  if (model === null) await loadModel();
  show("user", text);
  messages.push({ role: "user", content: text });
  const box = show("assistant", "");
  running = new AbortController();
  at("send").disabled = true;
  at("stop").disabled = false;
  let answer = "", first = null;
  const started = performance.now();
  try {
    const [page, body] = request(text);
    const response = await fetch(page, { method: "POST", headers: headers(), body: JSON.stringify(body), signal: running.signal });
    if (!response.ok) throw new Error(await failure(response));
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      if (event.usage) {
        const seconds = (performance.now() - (first ?? started)) / 1000;
        const rate = event.usage.completion_tokens / Math.max(seconds, 1e-6);
        at("status").textContent = `${event.usage.completion_tokens} tokens, ${rate.toFixed(1)} tokens/s`;
      }
      const choice = event.choices[0];
      const piece = choice && (choice.delta ? choice.delta.content : choice.text);
      if (!piece) continue;
      first ??= performance.now();
      answer += piece;
      box.textContent = answer;
    }
    messages.push({ role: "assistant", content: answer });
  } catch (error) {
    if (error.name === "AbortError") { messages.push({ role: "assistant", content: answer }); }
    else { messages.pop(); if (!answer) box.remove(); show("error", error.message); }
  } finally {
    running = null;
    at("send").disabled = false;
    at("stop").disabled = true;
  }
}

at("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = at("prompt").value;
  if (running === null && text) { at("prompt").value = ""; send(text); }
});
at("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); at("form").requestSubmit(); }
});
at("stop").addEventListener("click", () => running?.abort());
at("clear").addEventListener("click", () => { messages = []; at("messages").replaceChildren(); at("status").textContent = ""; });
at("key").addEventListener("change", loadModel);
loadModel();
