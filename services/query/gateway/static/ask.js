// Questions and answers: one answer as it is written, the same question in three ways side by side, or the same in the past.
import { Refused, explain, streamAnswer } from "./api.js";
import { ago, count, draw, make, took, titleNode } from "./format.js";

const KEPT_ANSWERS = 12;
const $ = (id) => document.getElementById(id);

export const WAYS = {
  "cmt": ["Memory", "Reads compressed memories of the best articles; their text is not in the prompt."],
  "cmt-rag": ["Text in prompt", "The same model with the text of the best articles pasted into the prompt."],
  "cmt-hybrid": ["Both", "The memories, and the best article's text in the prompt."],
  "cmt-closed": ["No memory", "The same model alone: what it learned before it was frozen."],
};
const COMPARED = ["cmt", "cmt-rag", "cmt-closed"];

export class Asker {
  constructor(past) {
    this.past = past; // gives {as_of, label}, or null for now
    this.running = null;
    this.last = null;
  }

  stop() { this.running?.abort(); }

  // Asks the last question again, in the same way: the slider has moved.
  again() { if (this.last) this.ask(this.last.question, this.last.models); }

  compare(question) { return this.ask(question, COMPARED); }

  async ask(question, models) {
    if (!question) { $("question").focus(); return; }
    this.stop();
    const run = new AbortController();
    this.running = run;
    this.last = { question, models };
    $("stop").hidden = false;
    const when = this.past();
    const cards = cardsFor(question, models, when);
    // one after the other: at the same time they would wait for each other, and the times would say nothing
    for (const [i, model] of models.entries()) {
      if (!run.signal.aborted) await answer(cards[i], question, model, when, run.signal);
      else cards[i].fail("Stopped.");
    }
    if (models.length > 1) compareTimes(cards);
    if (this.running === run) { this.running = null; $("stop").hidden = true; }
  }
}

async function answer(card, question, model, when, signal) {
  const cmt = options(when);
  const body = { model, messages: [{ role: "user", content: question }], cmt };
  card.start();
  try {
    const reply = await streamAnswer(body, signal, (piece) => card.add(piece));
    card.finish(reply, model);
  } catch (error) {
    if (error.name === "AbortError") { card.fail("Stopped."); return; }
    card.fail(error instanceof Refused ? explain(error) : "The answer can't be shown.");
    if (!(error instanceof Refused)) console.error(error);
  }
}

function options(when) {
  const cmt = {};
  if ($("top-k").value) cmt.top_k = Number($("top-k").value);
  if (when) cmt.as_of = when.as_of;
  if ($("namespace").value.trim()) cmt.namespace = $("namespace").value.trim();
  return cmt;
}

function cardsFor(question, models, when) {
  const group = make("article", models.length > 1 ? "group side" : "group");
  const head = make("p", "asked", question);
  if (when) head.append(make("span", "tag past", `as of ${when.label}`));
  const row = make("div", "row-of-answers");
  const cards = models.map((model) => new Card(model, models.length > 1));
  row.append(...cards.map((card) => card.node));
  group.append(head, row);
  $("answers").prepend(group);
  while ($("answers").children.length > KEPT_ANSWERS) $("answers").lastChild.remove();
  return cards;
}

class Card {
  constructor(model, labelled) {
    this.node = make("div", "answer waiting");
    if (labelled) this.node.append(make("h3", "", WAYS[model][0]));
    this.said = make("p", "said", "…");
    this.facts = make("p", "facts");
    this.node.append(this.said, this.facts);
    this.text = "";
    this.seconds = null;
  }

  start() {
    this.began = performance.now();
    this.said.textContent = "Reading…";
    this.clock = setInterval(() => { this.facts.textContent = took(this.elapsed()); }, 100);
  }

  elapsed() { return (performance.now() - this.began) / 1000; }

  add(piece) {
    this.firstText ??= this.elapsed();
    this.text += piece;
    this.said.textContent = this.text;
    this.node.classList.add("writing");
  }

  finish(reply, model) {
    clearInterval(this.clock);
    this.seconds = this.elapsed();
    this.node.className = reply.cmt.known ? "answer" : "answer unknown";
    this.said.textContent = this.text.trim() || "(no answer)";
    this.facts.replaceChildren();
    fact(this.facts, "in all", took(this.seconds));
    if (this.firstText !== undefined) fact(this.facts, "to the first word", took(this.firstText));
    if (model !== "cmt-closed") fact(this.facts, "to find", took(reply.cmt.retrieve_ms / 1000));
    fact(this.facts, "prompt tokens", count(reply.usage?.prompt_tokens ?? 0));
    for (const note of reply.cmt.notes) this.node.append(make("p", "note", note));
    if (!reply.sources.length) return;
    const list = make("ol", "sources");
    list.setAttribute("aria-label", "Sources of this answer");
    list.append(...reply.sources.map(sourceNode));
    this.node.append(list);
  }

  fail(message) {
    clearInterval(this.clock);
    this.node.className = "answer failed";
    this.said.textContent = message;
    this.facts.replaceChildren();
  }
}

function fact(box, text, value) {
  const item = make("span");
  item.append(make("b", "", value), ` ${text}`);
  box.append(item);
}

function bar(kind, label, share, text) {
  const row = make("div", `bar ${kind}`);
  const svg = draw("svg", { "aria-hidden": "true" });
  svg.append(draw("rect", { height: "100%", width: `${Math.round(100 * Math.min(1, Math.max(0, share)))}%` }));
  row.append(make("span", "", label), svg, make("span", "", text));
  return row;
}

function compareTimes(cards) {
  const slowest = Math.max(...cards.map((card) => card.seconds ?? 0));
  for (const card of cards) {
    if (card.seconds !== null) card.facts.before(bar("time", "time", card.seconds / slowest, took(card.seconds)));
  }
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
