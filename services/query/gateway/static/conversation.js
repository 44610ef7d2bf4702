// A conversation: its turns as plain values, what the service is told of them, and where they are kept.
//
// turn = {question, models, at: {as_of, label} or null, topK, namespace, asked: ISO time, answers: {model: answer}}
// answer = {state: "done" | "stopped" | "failed", text, known, sources, notes, facts, message}

export const MODELS = ["cmt", "cmt-memory", "cmt-rag", "cmt-hybrid", "cmt-closed"];
const KEPT_CONVERSATIONS = 40;
const KEPT_TURNS = 20;
const SENT_TURNS = 4; // the service reads three
const STORE = "cmt-history";

// The messages of a conversation with `model` whose last turn asks `question`; unanswered and unknown turns say nothing.
export function messagesOf(earlier, question, model) {
  const said = earlier.map((turn) => [turn.question, spoken(turn, model)]).filter(([, answer]) => answer).slice(-SENT_TURNS);
  const before = said.flatMap(([asked, answer]) => [{ role: "user", content: asked }, { role: "assistant", content: answer }]);
  return [...before, { role: "user", content: question }];
}

// What the model itself has said, else what the turn's first one has; without a memory it must not hear of one.
function spoken(turn, model) {
  const answer = turn.answers[model] ?? (model === "cmt-closed" ? null : turn.answers[turn.models[0]]);
  return answer && answer.state === "done" && answer.known ? answer.text.trim() : "";
}

export const isWhole = (turn) => turn.models.every((model) => turn.answers[model]);

/* In the address: every question of the conversation, and how the last one was asked */

export function addressOf(turns) {
  const last = turns.at(-1);
  if (!last) return location.pathname;
  const query = new URLSearchParams(turns.slice(-SENT_TURNS).map((turn) => ["q", turn.question]));
  if (last.models.length > 1) query.set("from", "compare");
  else if (last.models[0] !== "cmt") query.set("from", last.models[0]);
  if (last.at) query.set("at", last.at.as_of);
  if (last.topK) query.set("k", String(last.topK));
  if (last.namespace !== "default") query.set("namespace", last.namespace);
  return `${location.pathname}?${query}`;
}

// What an address asks: {questions, from, at, topK, namespace}; parts that can't be read are left out.
export function askedBy(address) {
  const query = new URL(address).searchParams;
  const at = query.get("at");
  const topK = Number(query.get("k"));
  return {
    questions: query.getAll("q").map((text) => text.trim().slice(0, 4000)).filter(Boolean).slice(-SENT_TURNS),
    from: query.get("from") || "cmt",
    at: at && !Number.isNaN(Date.parse(at)) ? new Date(at).toISOString() : null,
    topK: Number.isInteger(topK) && topK >= 1 && topK <= 64 ? topK : null,
    namespace: (query.get("namespace") || "default").slice(0, 128),
  };
}

/* In this browser: [{id, turns}], the latest first */

export function keptConversations() {
  try {
    const kept = JSON.parse(localStorage.getItem(STORE) || "[]");
    return Array.isArray(kept) ? kept.filter((one) => Array.isArray(one?.turns) && one.turns.length > 0 && one.turns.every(isTurn)) : [];
  } catch { return []; }
}

// Keeps a conversation in front of the others; where there is no room the oldest go.
export function keep(id, turns) {
  const others = keptConversations().filter((one) => one.id !== id);
  store([{ id, turns: turns.slice(-KEPT_TURNS) }, ...others].slice(0, KEPT_CONVERSATIONS));
}

export function forget(id) { store(id === undefined ? [] : keptConversations().filter((one) => one.id !== id)); }

function store(conversations) {
  for (let many = conversations.length; many >= 0; many -= 1) {
    try {
      if (many) localStorage.setItem(STORE, JSON.stringify(conversations.slice(0, many)));
      else localStorage.removeItem(STORE);
      return;
    } catch { /* no room, or no storage at all */ }
  }
}

// What was kept by another version of the page, or by somebody else, must not break this one.
export function isTurn(turn) {
  return typeof turn?.question === "string" && typeof turn.namespace === "string" && Array.isArray(turn.models) && turn.models.length > 0
    && turn.models.every((model) => MODELS.includes(model)) && isPast(turn.at)
    && typeof turn.answers === "object" && turn.answers !== null && Object.values(turn.answers).every(isAnswer);
}

const isPast = (at) => at === null || (typeof at?.as_of === "string" && typeof at.label === "string");

function isAnswer(answer) {
  return ["done", "stopped", "failed"].includes(answer?.state) && typeof answer.text === "string" && Array.isArray(answer.notes)
    && Array.isArray(answer.sources) && answer.sources.every((source) => typeof source?.score === "number");
}
