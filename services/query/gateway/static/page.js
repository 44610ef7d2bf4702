// The page: puts the live side and the asking side together, with keyboard, theme and the slider into the past.
import { useKey } from "./api.js";
import { Asker, WAYS } from "./ask.js";
import { make, setText } from "./format.js";
import { Live } from "./live.js";

const GENERAL_QUESTIONS = ["What happened today?", "Who was elected?", "Where was the storm?"];
const MINUTE = 60;
const HOUR = 60 * MINUTE;
const DAY = 24 * HOUR;
const PASTS = [
  [30 * DAY, "30 days ago"], [7 * DAY, "a week ago"], [2 * DAY, "2 days ago"], [DAY, "a day ago"], [12 * HOUR, "12 hours ago"],
  [3 * HOUR, "3 hours ago"], [HOUR, "an hour ago"], [15 * MINUTE, "15 minutes ago"], [5 * MINUTE, "5 minutes ago"],
  [2 * MINUTE, "2 minutes ago"], [MINUTE, "a minute ago"], [30, "30 seconds ago"], [0, "now"],
];
const $ = (id) => document.getElementById(id);

/* The past */

function past() {
  if ($("as-of").value) {
    const at = new Date($("as-of").value);
    return { as_of: at.toISOString(), label: at.toLocaleString("en", { dateStyle: "medium", timeStyle: "short" }) };
  }
  const [seconds, label] = PASTS[Number($("past").value)];
  return seconds ? { as_of: new Date(Date.now() - 1000 * seconds).toISOString(), label } : null;
}

function showPast() {
  const label = PASTS[Number($("past").value)][1];
  setText("past-label", label);
  $("past").setAttribute("aria-valuetext", label);
  document.body.classList.toggle("in-the-past", past() !== null);
}

const asker = new Asker(past);
$("past").max = String(PASTS.length - 1);
$("past").value = $("past").max;
$("past").addEventListener("input", showPast);
$("past").addEventListener("change", () => { $("as-of").value = ""; showPast(); asker.again(); });
$("as-of").addEventListener("change", () => { showPast(); asker.again(); });

/* Asking */

const question = () => $("question").value.trim();
const chosen = () => document.querySelector('input[name="model"]:checked').value;
const ask = () => asker.ask(question(), [chosen()]);

function showHint() { setText("hint", WAYS[chosen()][1]); }

$("form").addEventListener("submit", (event) => { event.preventDefault(); ask(); });
$("compare").addEventListener("click", () => asker.compare(question()));
$("stop").addEventListener("click", () => asker.stop());
$("question").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  if (event.ctrlKey || event.metaKey) asker.compare(question());
  else ask();
});
for (const choice of document.querySelectorAll('input[name="model"]')) choice.addEventListener("change", showHint);
document.addEventListener("keydown", (event) => {
  const writing = event.target.matches?.("input, textarea, select");
  if (event.key === "Escape") asker.stop();
  else if (event.key === "/" && !writing && !event.ctrlKey && !event.metaKey) { event.preventDefault(); $("question").focus(); }
});

/* Questions to begin with: the latest headlines */

let chipsAt = 0;

function showChips(articles) {
  const box = $("chips");
  const held = box.matches(":hover") || box.contains(document.activeElement);
  if (box.children.length && (held || Date.now() - chipsAt < 30000)) return;
  const titles = articles.map((article) => article.title).filter((title) => title && title.length < 80).slice(0, 3);
  const questions = titles.length ? titles.map((title) => `What do we know about this: ${title}?`) : GENERAL_QUESTIONS;
  box.replaceChildren(...questions.map((text, i) => {
    const chip = make("button", "", titles[i] || text);
    chip.type = "button";
    chip.setAttribute("aria-label", `Ask: ${text}`);
    chip.addEventListener("click", () => { $("question").value = text; ask(); });
    return chip;
  }));
  chipsAt = titles.length ? Date.now() : 0;
}

/* Theme and key */

function showTheme(theme) {
  document.documentElement.dataset.theme = theme;
  $("theme").setAttribute("aria-pressed", String(theme === "dark"));
}

const dark = matchMedia("(prefers-color-scheme: dark)");
showTheme(localStorage.getItem("cmt-theme") || (dark.matches ? "dark" : "light"));
dark.addEventListener("change", () => { if (!localStorage.getItem("cmt-theme")) showTheme(dark.matches ? "dark" : "light"); });
$("theme").addEventListener("click", () => {
  const theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  localStorage.setItem("cmt-theme", theme);
  showTheme(theme);
});

const live = new Live(showChips);
$("key-save").addEventListener("click", () => { useKey($("key").value.trim()); live.restart(); });
$("namespace").addEventListener("change", () => live.restart());
showHint();
showPast();
showChips([]);
live.run();
