// The page: puts the live side and the conversation together, with keyboard, options, theme and key.
import { useKey } from "./api.js";
import { WAYS } from "./card.js";
import { Chips } from "./chips.js";
import { setText } from "./format.js";
import { History } from "./history.js";
import { Live } from "./live.js";
import { Past } from "./past.js";
import { Reader } from "./reader.js";
import { Session } from "./session.js";
import { followTheme } from "./theme.js";

const $ = (id) => document.getElementById(id);
const question = () => $("question").value.trim();
const chosen = () => document.querySelector('input[name="model"]:checked').value;
const namespace = () => $("namespace").value.trim() || "default";

followTheme();
const reader = new Reader();
const past = new Past(() => session.again());
const session = new Session({
  options: () => ({ at: past.at, topK: Number($("top-k").value) || null, namespace: namespace() }),
  past,
  open: (source, turn, model) => reader.open(source, turn.namespace, { question: turn.question, answer: turn.answers[model].text }),
  onChange: showSession,
  onLoad: showOptions,
});
const chips = new Chips((text) => ask(text));
const live = new Live({
  open: (article) => reader.open(article, namespace()),
  onNumbers: (stats) => {
    past.setBegan(stats.first_ingested_at);
    chips.refresh(stats.version, namespace());
  },
});
new History((conversation) => session.open(conversation));

/* Asking */

function ask(text) {
  if (!text) { $("question").focus(); return; }
  session.ask(text, [chosen()]);
  clearBox();
}

function compare() {
  if (!question() && !session.last) { $("question").focus(); return; }
  session.compare(question());
  clearBox();
}

// An empty box waits for the next question; on a phone its keyboard makes room for the answer.
function clearBox() {
  $("question").value = "";
  if (matchMedia("(pointer: coarse)").matches) $("question").blur();
}

function showSession({ asker, turns }) {
  $("stop").hidden = !asker.busy;
  $("fresh").hidden = turns.length === 0;
  $("question").placeholder = turns.length ? "Ask on: and where? and when?" : "What happened, who, where, when?";
  chips.hideWhen(turns.length > 0);
}

function showHint() { setText("hint", WAYS[chosen()][1]); }

$("form").addEventListener("submit", (event) => { event.preventDefault(); ask(question()); });
$("compare").addEventListener("click", compare);
$("stop").addEventListener("click", () => session.stop());
$("fresh").addEventListener("click", () => { session.begin(); $("question").focus(); });
$("question").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  if (event.ctrlKey || event.metaKey) compare();
  else ask(question());
});
for (const choice of document.querySelectorAll('input[name="model"]')) choice.addEventListener("change", showHint);
document.addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]")) return; // Escape closes it
  const writing = event.target.matches?.("input, textarea, select");
  if (event.key === "Escape") session.stop();
  else if (event.key === "/" && !writing && !event.ctrlKey && !event.metaKey) { event.preventDefault(); $("question").focus(); }
});

/* Options */

$("key-save").addEventListener("click", () => { useKey($("key").value.trim()); live.restart(); });
$("namespace").addEventListener("change", () => live.restart());

// A link's options stand in the form, so that the next question is asked in the same way.
function showOptions({ at, topK, namespace: space }) {
  const before = namespace();
  past.set(at);
  $("top-k").value = topK ?? "";
  $("namespace").value = space === "default" ? "" : space;
  if (namespace() !== before) live.restart();
}

document.querySelector(".skip").addEventListener("click", (event) => { event.preventDefault(); $("question").focus(); });
showHint();
session.load(history.state);
live.run();
