// The conversation that is open: asks its questions, shows them, and keeps them in the address, the history and this browser.
import { Asker } from "./ask.js";
import { MODELS, addressOf, askedBy, isTurn, isWhole, keep } from "./conversation.js";
import { clean } from "./outside.js";
import { atMoment } from "./past.js";
import { Thread, announce, compareTimes } from "./thread.js";

const COMPARED = ["cmt-memory", "cmt-rag", "cmt-closed"];
const TITLE = document.title;

const newId = () => `${Date.now().toString(36)}-${Math.random().toString(36).slice(2, 8)}`;

export class Session {
  // `options()` gives {at, topK, namespace} as they are chosen now, `past` knows when the memory began,
  // `open(source, turn, model)` shows a source, `onChange(session)` hears of every step, and `onLoad(options)` of those with
  // which a conversation that comes from elsewhere was asked
  constructor({ options, past, open, onChange, onLoad }) {
    Object.assign(this, { options, past, onChange, onLoad });
    this.asker = new Asker();
    this.thread = new Thread({ open, retry: (turn) => this.retry(turn) });
    this.id = newId();
    this.turns = [];
    addEventListener("popstate", (event) => { if (!location.hash) this.load(event.state); });
  }

  get last() { return this.turns.at(-1) ?? null; }

  stop() { this.asker.stop(); }

  // Asks a question as it is chosen now; `models` are one, or those that are compared.
  ask(question, models) { return this.run(this.turnOf(question, models)); }

  compare(question) {
    const again = question || this.last?.question;
    return again ? this.run(this.turnOf(again, COMPARED), { instead: !question }) : Promise.resolve();
  }

  // The last question once more, as it is chosen now: the slider has come to rest.
  again() {
    if (this.last) return this.run(this.turnOf(this.last.question, this.last.models), { instead: true });
    return Promise.resolve();
  }

  // A turn that was stopped or has failed, in its own place when it is the last one.
  retry(turn) { return this.run({ ...turn, answers: {}, asked: new Date().toISOString() }, { instead: turn === this.last }); }

  begin() {
    this.asker.stop({ silently: true });
    [this.id, this.turns] = [newId(), []];
    this.thread.showAll([]);
    this.note("pushState");
  }

  // A conversation of the history list.
  open(conversation) {
    this.take(conversation);
    this.note("pushState");
    this.thread.scrollToLatest();
  }

  // What the browser's history keeps of this address, else what the address itself asks.
  async load(state) {
    if (Array.isArray(state?.turns) && state.turns.every(isTurn)) {
      this.take(state);
      if (this.last && !isWhole(this.last)) await this.run({ ...this.last, answers: {} }, { instead: true, method: "replaceState" });
      return;
    }
    const asked = askedBy(location.href);
    this.take({ id: newId(), turns: [] });
    if (asked.questions.length) this.onLoad({ ...asked, at: asked.at && atMoment(asked.at) });
    await this.askAddress(asked);
  }

  take({ id, turns }) {
    this.asker.stop({ silently: true });
    [this.id, this.turns] = [id, turns];
    this.thread.showAll(turns);
    if (this.last) this.onLoad(this.last);
    this.changed();
  }

  // A link asks its questions one after the other, as whoever sent it did.
  async askAddress({ questions, from, at, topK, namespace }) {
    const models = from === "compare" ? COMPARED : [MODELS.includes(from) ? from : "cmt"];
    for (const [number, question] of questions.entries()) {
      const own = number === questions.length - 1 ? models : [models[0]];
      const turn = { question, models: own, at: at ? atMoment(at) : null, topK, namespace, asked: new Date().toISOString(), answers: {} };
      if (!await this.run(turn, { method: "replaceState" })) return;
    }
  }

  turnOf(question, models) {
    return { question, models, ...this.options(), asked: new Date().toISOString(), answers: {} };
  }

  async run(turn, { instead = false, method = "pushState" } = {}) {
    const earlier = instead ? this.turns.slice(0, -1) : this.turns;
    this.turns = [...earlier, turn];
    const cards = this.thread.add(turn, { instead });
    this.note(method);
    if (!instead) this.thread.scrollToLatest();
    if (this.past.isBefore(turn.at)) {
      this.asker.stop({ silently: true });
      this.answerEmpty(turn, cards);
    } else {
      const answering = this.asker.answer(turn, earlier, cards);
      this.onChange(this);
      if (!await answering) return this.leave(turn, cards);
    }
    compareTimes(turn, cards);
    announce(turn);
    this.note("replaceState");
    keep(this.id, this.turns);
    return true;
  }

  // Before the first document there is nothing to ask.
  answerEmpty(turn, cards) {
    turn.models.forEach((model, number) => {
      turn.answers[model] = { state: "done", text: this.past.beganWords(), known: false, sources: [], notes: [], facts: null };
      cards[number].show(turn.answers[model]);
    });
  }

  // Another question came before this one was answered; where it still stands, that is said.
  leave(turn, cards) {
    turn.models.forEach((model, number) => {
      turn.answers[model] ??= { state: "stopped", text: cards[number].text, known: false, sources: [], notes: [], facts: null };
      cards[number].show(turn.answers[model]);
    });
    return false;
  }

  // The address and the browser's history know the conversation as it is now.
  note(method) {
    try {
      history[method]({ id: this.id, turns: this.turns }, "", addressOf(this.turns));
    } catch { /* too long for the browser: the page goes on without it */ }
    this.changed();
  }

  changed() {
    document.title = this.last ? `${clean(this.last.question).slice(0, 80)} · ${TITLE}` : TITLE;
    this.onChange(this);
  }
}
