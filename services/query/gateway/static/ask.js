// Asks the service: one turn at a time, its answers one after the other; a question that is replaced ends without a word.
import { Refused, explain, streamAnswer } from "./api.js";
import { messagesOf } from "./conversation.js";

const CLOSED_TOKENS = 80; // a whole sentence: without anything to read the LLM answers in its own words

export class Asker {
  constructor() { this.running = null; }

  get busy() { return this.running !== null; }

  // `silently`: another question takes its place, and nothing is said of this one.
  stop({ silently = false } = {}) {
    const run = this.running;
    if (!run) return;
    run.silent = silently;
    if (silently) this.running = null;
    run.abort.abort();
  }

  // Fills turn.answers, shown on `cards`, one per model. Gives whether the turn is still wanted.
  async answer(turn, earlier, cards) {
    this.stop({ silently: true });
    const run = { abort: new AbortController(), silent: false };
    this.running = run;
    cards.forEach((card) => card.waits());
    // one after the other: at the same time they would wait for each other, and the times would say nothing
    for (const [number, model] of turn.models.entries()) {
      const over = run.abort.signal.aborted;
      const answer = over ? stopped("") : await answerOf(turn, model, earlier, cards[number], run.abort.signal);
      if (run.silent) {
        cards[number].halt();
        return false;
      }
      turn.answers[model] = answer;
      cards[number].show(answer);
    }
    if (this.running === run) this.running = null;
    return true;
  }
}

async function answerOf(turn, model, earlier, card, signal) {
  const began = performance.now();
  const seconds = () => (performance.now() - began) / 1000;
  let first = null;
  card.reads();
  try {
    const messages = messagesOf(earlier, turn.question, model);
    const longest = model === "cmt-closed" ? { max_tokens: CLOSED_TOKENS } : {};
    const reply = await streamAnswer({ model, messages, cmt: optionsOf(turn), ...longest }, signal, (piece) => {
      first ??= seconds();
      card.add(piece);
    });
    const facts = {
      total_s: seconds(), first_s: first, find_s: model === "cmt-closed" ? null : reply.cmt.retrieve_ms / 1000,
      prompt_tokens: reply.usage?.prompt_tokens ?? 0, read: model === "cmt-rag" ? null : reply.cmt.read,
    };
    return { state: "done", text: card.text, known: reply.cmt.known, grounded: reply.cmt.grounded, sources: reply.sources, notes: reply.cmt.notes, facts };
  } catch (error) {
    if (error.name === "AbortError") return stopped(card.text);
    if (!(error instanceof Refused)) console.error(error);
    const message = error instanceof Refused ? explain(error) : "The answer can't be shown.";
    return { state: "failed", text: card.text, known: false, sources: [], notes: [], facts: null, message };
  }
}

function optionsOf(turn) {
  const cmt = {};
  if (turn.topK) cmt.top_k = turn.topK;
  if (turn.at) cmt.as_of = turn.at.as_of;
  if (turn.namespace !== "default") cmt.namespace = turn.namespace;
  return cmt;
}

function stopped(text) {
  return { state: "stopped", text, known: false, sources: [], notes: [], facts: null };
}
