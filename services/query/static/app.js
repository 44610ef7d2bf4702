// The query page: polls /v1/stats, asks /v1/chat/completions. No framework; every text from outside goes in as textContent.
"use strict";

const POLL_MS = 1000;
const KEPT_ANSWERS = 12;
const GENERAL_QUESTIONS = ["What happened today?", "Who was elected?", "Where was the storm?"];
const MODELS = {
  "cmt": ["Memory", "Reads compressed memories of the best articles; their text is not in the prompt."],
  "cmt-rag": ["Text in prompt", "The same model with the text of the best articles pasted into the prompt."],
  "cmt-closed": ["No memory", "The same model alone: what it learned before it was frozen."],
};

const $ = (id) => document.getElementById(id);
const number = new Intl.NumberFormat("en");
const relative = new Intl.RelativeTimeFormat("en", { numeric: "auto" });
const state = { chipsAt: 0, firstLoad: true, busy: false };

function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined && text !== null) node.textContent = String(text);
  return node;
}

function setText(id, text) {
  const node = $(id);
  if (node.textContent !== text) node.textContent = text;
}

/* Times, sizes and links */

function ago(iso) {
  if (!iso) return "";
  const seconds = (Date.parse(iso) - Date.now()) / 1000;
  if (Number.isNaN(seconds)) return "";
  const size = Math.abs(seconds);
  if (size < 5) return "just now";
  if (size < 60) return relative.format(Math.round(seconds), "second");
  if (size < 3600) return relative.format(Math.round(seconds / 60), "minute");
  if (size < 86400) return relative.format(Math.round(seconds / 3600), "hour");
  if (size < 30 * 86400) return relative.format(Math.round(seconds / 86400), "day");
  return new Date(iso).toLocaleDateString("en", { year: "numeric", month: "short", day: "numeric" });
}

function duration(seconds) {
  if (seconds < 10) return [seconds.toFixed(1), "s"];
  if (seconds < 120) return [seconds.toFixed(0), "s"];
  if (seconds < 7200) return [(seconds / 60).toFixed(0), "min"];
  return [(seconds / 3600).toFixed(0), "h"];
}

function bytes(count) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let i = 0;
  while (count >= 1000 && i < units.length - 1) { count /= 1000; i += 1; }
  return `${count < 10 && i > 0 ? count.toFixed(1) : count.toFixed(0)} ${units[i]}`;
}

function titleNode(entry) {
  const text = entry.title || entry.doc_id;
  let url = null;
  try { url = entry.url ? new URL(entry.url) : null; } catch { url = null; }
  if (!url || !["http:", "https:"].includes(url.protocol)) return make("span", "title", text);
  const link = make("a", "title", text);
  link.href = url.href;
  link.target = "_blank";
  link.rel = "noopener noreferrer";
  return link;
}

/* Asking the server */

function headers() {
  const key = sessionStorage.getItem("cmt-key");
  return key ? { "Authorization": `Bearer ${key}` } : {};
}

class Refused extends Error {
  constructor(status, message, retryAfter) { super(message); this.status = status; this.retryAfter = retryAfter; }
}

async function request(path, options = {}, timeoutMs = 5000) {
  const stop = new AbortController();
  const timer = setTimeout(() => stop.abort(), timeoutMs);
  try {
    const answer = await fetch(path, { ...options, headers: { ...headers(), ...options.headers }, signal: stop.signal });
    const body = await answer.json().catch(() => ({}));
    if (answer.ok) return body;
    throw new Refused(answer.status, body.error?.message || `HTTP ${answer.status}`, answer.headers.get("Retry-After"));
  } catch (error) {
    if (error instanceof Refused) throw error;
    throw new Refused(0, stop.signal.aborted ? "The server did not answer in time." : "The server can't be reached.");
  } finally {
    clearTimeout(timer);
  }
}

function explain(error) {
  if (error.status === 0) return `${error.message} Is it running? The page keeps trying.`;
  if (error.status === 401) return "An API key is needed: enter it below the question.";
  if (error.status === 429) return `Too many questions are waiting. Try again in ${error.retryAfter || "a few"} s.`;
  if (error.status === 503) return `Not ready: ${error.message}.`;
  return error.message;
}

/* Live numbers */

function showStatus(kind, text) {
  $("status").dataset.state = kind;
  setText("status-text", text);
}

function counter(id, value, unit) {
  const node = $(id);
  const wanted = unit ? `${value}${unit}` : value;
  if (node.textContent === wanted) return;
  node.textContent = value;
  if (unit) node.append(make("small", "", unit));
}

function showCounters(stats) {
  const ingest = stats.ingest;
  counter("c-documents", number.format(stats.documents));
  setText("n-documents", stats.latest_ingested_at ? `latest ${ago(stats.latest_ingested_at)}` : "none yet");
  counter("c-rows", number.format(stats.rows));
  setText("n-rows", `${stats.bytes ? `${bytes(stats.bytes)}, ` : ""}version ${number.format(stats.version)}`);
  counter("c-questions", number.format(stats.questions_answered));
  counter("c-rate", ingest.running ? number.format(ingest.records_per_s) : "–", ingest.running ? "records/s" : "");
  const lag = ingest.lag_records;
  setText("n-rate", !ingest.running ? "no ingest is running" : lag ? `${number.format(lag)} waiting` : "up to date");
  if (ingest.freshness_s === null) counter("c-fresh", "–");
  else counter("c-fresh", ...duration(ingest.freshness_s));
  counter("c-dead", number.format(ingest.dead_letters));
  setText("n-dead", ingest.dead_letters ? "unreadable, kept aside" : "every record was read");
  $("dead").classList.toggle("alarm", ingest.dead_letters > 0);
  setText("foot", `Checkpoint ${stats.model_id}`);
}

function articleNode(article) {
  const item = make("li");
  const head = make("div");
  head.append(titleNode(article));
  if (article.updated) head.append(make("span", "tag", "updated"));
  item.append(head, make("div", "about"));
  return item;
}

function showArticles(latest) {
  const list = $("articles");
  const keyOf = (article) => JSON.stringify([article.doc_id, article.ingested_at]);
  const known = new Map([...list.children].map((item) => [item.dataset.key, item]));
  const items = latest.map((article) => {
    const key = keyOf(article);
    let item = known.get(key);
    if (!item) {
      item = articleNode(article);
      item.dataset.key = key;
      if (!state.firstLoad) {
        item.classList.add("new");
        setTimeout(() => item.classList.remove("new"), 6000);
      }
    }
    const about = [article.source, ago(article.published_at || article.ingested_at)].filter(Boolean).join(" · ");
    if (item.lastChild.textContent !== about) item.lastChild.textContent = about;
    return item;
  });
  const same = items.length === list.children.length && items.every((item, i) => item === list.children[i]);
  if (!same) list.replaceChildren(...items);
  $("stream-empty").hidden = latest.length > 0;
  setText("stream-empty", "The memory is empty. Articles appear here seconds after they are published to Kafka.");
  state.firstLoad = false;
}

function showChips(latest) {
  const box = $("chips");
  const held = box.matches(":hover") || box.contains(document.activeElement);
  if (box.children.length && (held || Date.now() - state.chipsAt < 30000)) return;
  const titles = latest.map((article) => article.title).filter((title) => title && title.length < 80).slice(0, 3);
  const questions = titles.length ? titles.map((title) => `What do we know about this: ${title}?`) : GENERAL_QUESTIONS;
  box.replaceChildren(...questions.map((question, i) => {
    const chip = make("button", "", titles[i] || question);
    chip.type = "button";
    chip.setAttribute("aria-label", `Ask: ${question}`);
    chip.addEventListener("click", () => { $("question").value = question; ask(); });
    return chip;
  }));
  state.chipsAt = titles.length ? Date.now() : 0;
}

async function poll() {
  try {
    const namespace = $("namespace").value.trim() || "default";
    const stats = await request(`v1/stats?latest=12&namespace=${encodeURIComponent(namespace)}`);
    showStatus("live", "Live");
    document.body.classList.remove("stale");
    $("problem").hidden = true;
    $("key-box").hidden = true;
    showCounters(stats);
    showArticles(stats.latest);
    showChips(stats.latest);
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    showProblem(error);
  }
}

function showProblem(error) {
  document.body.classList.add("stale");
  $("problem").hidden = error.status === 401;
  setText("problem", explain(error));
  if (error.status === 401) {
    showStatus("wait", "API key needed");
    $("key-box").hidden = false;
  } else if (error.status === 503 || error.status === 429) {
    showStatus("wait", error.message.includes("loading") ? "Loading the model" : "Not ready");
  } else {
    showStatus("down", error.status === 0 ? "Server not reachable" : "Server error");
  }
}

async function pollForEver() {
  for (;;) {
    if (!document.hidden) await poll().catch((error) => console.error(error));
    await new Promise((resume) => setTimeout(resume, POLL_MS));
  }
}

/* Questions and answers */

function chosenModel() {
  return document.querySelector('input[name="model"]:checked').value;
}

function options() {
  const cmt = {};
  if ($("top-k").value) cmt.top_k = Number($("top-k").value);
  if ($("as-of").value) cmt.as_of = new Date($("as-of").value).toISOString();
  if ($("namespace").value.trim()) cmt.namespace = $("namespace").value.trim();
  return cmt;
}

function bar(kind, label, share, text) {
  const row = make("div", `bar ${kind}`);
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const rect = document.createElementNS("http://www.w3.org/2000/svg", "rect");
  svg.setAttribute("aria-hidden", "true");
  rect.setAttribute("height", "100%");
  rect.setAttribute("width", `${Math.round(100 * Math.min(1, Math.max(0, share)))}%`);
  svg.append(rect);
  row.append(make("span", "", label), svg, make("span", "", text));
  return row;
}

function sourceNode(source) {
  const item = make("li");
  const about = [source.source, ago(source.published_at), source.chunk_no > 0 ? `part ${source.chunk_no + 1}` : ""];
  const bars = make("div", "bars");
  if (typeof source.weight === "number") bars.append(bar("weight", "weight", source.weight, `${Math.round(100 * source.weight)}%`));
  bars.append(bar("score", "match", source.score, source.score.toFixed(2)));
  item.append(titleNode(source), make("div", "about", about.filter(Boolean).join(" · ")), bars);
  return item;
}

function fact(box, text, value) {
  const item = make("span");
  if (value !== undefined) item.append(make("b", "", value), " ");
  item.append(text);
  box.append(item);
}

function showAnswer(card, reply, model, seconds) {
  card.className = "answer";
  card.querySelector(".said").textContent = reply.choices[0].message.content.trim() || "(no answer)";
  const facts = card.querySelector(".facts");
  facts.replaceChildren();
  fact(facts, MODELS[model][0]);
  fact(facts, "in all", `${seconds.toFixed(2)} s`);
  if (model !== "cmt-closed") fact(facts, "to find", `${Math.round(reply.cmt.retrieve_ms)} ms`);
  fact(facts, "to answer", `${Math.round(reply.cmt.generate_ms)} ms`);
  fact(facts, "prompt tokens", number.format(reply.usage.prompt_tokens));
  for (const note of reply.cmt.notes) card.append(make("p", "note", note));
  if (!reply.sources.length) return;
  const list = make("ol", "sources");
  list.setAttribute("aria-label", "Sources of this answer");
  list.append(...reply.sources.map(sourceNode));
  card.append(list);
}

function waitingCard(question) {
  const card = make("article", "answer waiting");
  card.append(make("p", "asked", question), make("p", "said", "Reading"), make("p", "facts"));
  $("answers").prepend(card);
  while ($("answers").children.length > KEPT_ANSWERS) $("answers").lastChild.remove();
  return card;
}

async function ask() {
  const question = $("question").value.trim();
  if (state.busy) return;
  if (!question) { $("question").focus(); return; }
  state.busy = true;
  $("send").disabled = true;
  const model = chosenModel();
  const card = waitingCard(question);
  const started = performance.now();
  const elapsed = () => (performance.now() - started) / 1000;
  const clock = setInterval(() => { card.querySelector(".facts").textContent = `${elapsed().toFixed(1)} s`; }, 100);
  const body = { model, messages: [{ role: "user", content: question }], cmt: options() };
  try {
    const post = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
    const reply = await request("v1/chat/completions", post, 180000);
    clearInterval(clock);
    showAnswer(card, reply, model, elapsed());
    setText("n-questions", `last one took ${elapsed().toFixed(2)} s`);
  } catch (error) {
    card.className = "answer failed";
    card.querySelector(".said").textContent = error instanceof Refused ? explain(error) : "The answer can't be shown.";
    card.querySelector(".facts").replaceChildren();
    if (!(error instanceof Refused)) console.error(error);
  } finally {
    clearInterval(clock);
    state.busy = false;
    $("send").disabled = false;
  }
}

function showHint() {
  setText("hint", MODELS[chosenModel()][1]);
}

$("form").addEventListener("submit", (event) => { event.preventDefault(); ask(); });
$("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); ask(); }
});
for (const choice of document.querySelectorAll('input[name="model"]')) choice.addEventListener("change", showHint);
$("key-save").addEventListener("click", () => { sessionStorage.setItem("cmt-key", $("key").value.trim()); poll(); });
document.addEventListener("visibilitychange", () => { if (!document.hidden) poll(); });
showHint();
showChips([]);
pollForEver();
