// One answer on the page: as it is written, and then with its sources; how it came about is folded away.
import { count, draw, make, took } from "./format.js";
import { clean, outside, titleButton } from "./outside.js";
import { joined, timeNode } from "./times.js";

export const WAYS = {
  "cmt": ["Automatic", "Memory first; text where its answer does not stand in its articles, or takes two of them."],
  "cmt-memory": ["Memory", "Reads compressed memories of the best articles; their text is not in the prompt."],
  "cmt-rag": ["Text in prompt", "The same model with the text of the best articles pasted into the prompt."],
  "cmt-hybrid": ["Both", "The memories, and the best article's text in the prompt."],
  "cmt-closed": ["No memory", "The same model alone: what it learned before it was frozen."],
};
const READ = { memory: "memory", text: "text: the memory's answer did not stand in its articles, or it takes two of them", both: "memory and text" };
const LEAST_WEIGHT = 0.005; // less is shown as 0%

export class Card {
  // `open(source)` shows an article, `retry()` asks again
  constructor(model, { labelled, open, retry }) {
    this.open = open;
    this.retry = retry;
    this.node = make("div", "answer waiting");
    this.node.dataset.model = model;
    if (labelled) this.node.append(make("h4", "", WAYS[model][0]));
    this.said = outside("p", "said", "");
    this.rest = make("div", "rest");
    this.node.append(this.said, this.rest);
    this.text = "";
  }

  waits() { this.said.textContent = "Waiting for the answer before…"; }

  reads() {
    this.said.textContent = "Reading…";
    this.node.setAttribute("aria-busy", "true");
    this.began = performance.now();
    this.clock = setInterval(() => {
      if (!this.text) this.said.textContent = `Reading… ${Math.round((performance.now() - this.began) / 1000)} s`;
    }, 1000);
  }

  add(piece) {
    this.text += piece;
    this.said.textContent = clean(this.text);
    this.node.classList.add("writing");
  }

  halt() { clearInterval(this.clock); }

  // Shows an answer as it is kept.
  show(answer) {
    this.halt();
    this.node.removeAttribute("aria-busy");
    this.rest.replaceChildren();
    const state = answer.state === "done" ? (answer.known ? "" : " unknown") : ` ${answer.state}`;
    this.node.className = `answer${state}`;
    const text = clean(answer.state === "failed" ? answer.message : answer.text).trim();
    this.said.textContent = text || (answer.state === "done" ? "(no answer)" : "");
    this.said.hidden = !this.said.textContent;
    if (answer.state === "done") this.showDone(answer);
    else this.showRetry(answer.state);
  }

  showDone(answer) {
    for (const note of answer.notes) this.rest.append(outside("p", "note", note));
    if (answer.grounded === false) this.rest.append(make("p", "note", "This does not stand in its articles as it is said here: look it up in them."));
    this.showSources(answer.sources);
    if (answer.facts) this.rest.append(howNode(answer));
  }

  showSources(sources) {
    const weighed = sources.some((source) => source.weight >= LEAST_WEIGHT);
    const used = weighed ? sources.filter((source) => source.weight >= LEAST_WEIGHT) : sources;
    const others = sources.filter((source) => !used.includes(source));
    if (used.length) this.rest.append(this.list(used, "Sources of this answer"));
    if (!others.length) return;
    const box = make("details", "considered");
    box.append(make("summary", "", `Also considered (${others.length})`), this.list(others, "Articles that were found and not read from"));
    this.rest.append(box);
  }

  list(sources, name) {
    const list = make("ol", "sources");
    list.setAttribute("aria-label", name);
    list.append(...sources.map((source) => sourceNode(source, this.open)));
    return list;
  }

  showRetry(state) {
    const line = make("p", "note", state === "stopped" ? "Stopped. " : "");
    const again = make("button", "link", "Ask again");
    again.type = "button";
    again.addEventListener("click", this.retry);
    line.append(again);
    this.rest.append(line);
  }

  // Beside others: how long it took against the slowest of them.
  showTime(seconds, slowest) {
    this.rest.prepend(barNode("time", "time", seconds / slowest, took(seconds)));
  }
}

function howNode({ facts, sources }) {
  const box = make("details", "how");
  const list = make("dl");
  const fact = (name, value) => list.append(make("dt", "", name), make("dd", "", value));
  if (READ[facts.read]) fact("read from", READ[facts.read]);
  fact("in all", took(facts.total_s));
  if (facts.first_s !== null) fact("to the first word", took(facts.first_s));
  if (facts.find_s !== null) fact("to find", took(facts.find_s));
  fact("prompt tokens", count(facts.prompt_tokens));
  const scores = sources.map((source) => source.score.toFixed(2)).join(", ");
  if (scores) fact("match of the sources", scores);
  box.append(make("summary", "", "How this was answered"), list);
  return box;
}

function sourceNode(source, open) {
  const item = make("li");
  const about = make("div", "about");
  about.append(joined([
    source.source && outside("span", "", source.source), timeNode(source.published_at), source.chunk_no > 0 ? `part ${source.chunk_no + 1}` : null,
  ]));
  item.append(titleButton(source, open), about);
  if (source.weight >= LEAST_WEIGHT) {
    const bar = barNode("weight", "read", source.weight, `${Math.round(100 * source.weight)}%`);
    bar.title = "share of the model's attention to what it read";
    item.append(bar);
  }
  return item;
}

function barNode(kind, label, share, text) {
  const row = make("div", `bar ${kind}`);
  const svg = draw("svg", { "aria-hidden": "true" });
  svg.append(draw("rect", { height: "100%", width: `${Math.round(100 * Math.min(1, Math.max(0, share)))}%` }));
  row.append(make("span", "", label), svg, make("span", "", text));
  return row;
}
