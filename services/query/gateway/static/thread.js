// The conversation on the page: the latest turn on top, the ones before it below.
import { Card } from "./card.js";
import { make } from "./format.js";
import { clean, outside } from "./outside.js";

const $ = (id) => document.getElementById(id);

export class Thread {
  // `open(source, turn, model)` shows what an answer was read from, `retry(turn)` asks a turn again
  constructor({ open, retry }) {
    this.open = open;
    this.retry = retry;
    this.box = $("answers");
  }

  // Shows all turns of a conversation as they are kept.
  showAll(turns) {
    this.box.replaceChildren();
    for (const turn of turns) this.add(turn);
  }

  // Puts a turn on top, in place of the one there with `instead`, and gives its cards.
  add(turn, { instead = false } = {}) {
    const labelled = turn.models.length > 1;
    const group = make("article", labelled ? "turn side" : "turn");
    const row = make("div", "row-of-answers");
    const retry = () => this.retry(turn);
    const cards = turn.models.map((model) => new Card(model, { labelled, open: (source) => this.open(source, turn, model), retry }));
    for (const card of cards) {
      if (turn.answers[card.node.dataset.model]) card.show(turn.answers[card.node.dataset.model]);
      row.append(card.node);
    }
    group.append(headOf(turn), row);
    if (instead) this.box.firstElementChild?.remove();
    this.box.prepend(group);
    if (turn.models.every((model) => turn.answers[model])) compareTimes(turn, cards);
    return cards;
  }

  // Brings the latest turn into view where it is not.
  scrollToLatest() {
    const top = this.box.firstElementChild?.getBoundingClientRect().top ?? 0;
    if (top >= 0 && top < innerHeight / 2) return;
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    this.box.firstElementChild?.scrollIntoView({ block: "start", behavior: calm ? "auto" : "smooth" });
  }
}

function headOf(turn) {
  const head = make("div", "asked-head");
  head.append(outside("h3", "asked", turn.question));
  if (turn.at) head.append(outside("span", "tag past", `as of ${turn.at.label}`));
  if (turn.namespace !== "default") head.append(outside("span", "tag", clean(turn.namespace)));
  return head;
}

export function compareTimes(turn, cards) {
  const times = turn.models.map((model) => turn.answers[model]?.facts?.total_s ?? 0);
  const slowest = Math.max(...times);
  if (times.length < 2 || !slowest) return;
  cards.forEach((card, number) => { if (times[number]) card.showTime(times[number], slowest); });
}

// One sentence for those who listen: said once, when the answer is whole.
export function announce(turn) {
  const answer = turn.answers[turn.models[0]];
  const said = answer.state === "failed" ? answer.message : answer.text.trim() || "No answer";
  const read = answer.sources.length ? ` ${answer.sources.length} source${answer.sources.length > 1 ? "s" : ""}.` : "";
  $("announce").textContent = clean(answer.state === "stopped" ? "Stopped." : `Answer: ${said}${read}`);
}
