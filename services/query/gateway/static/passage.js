// The text of an article as its passages: the one that was read is set off, and the sentence that the answer stands in is marked.
import { make } from "./format.js";
import { clean, outside } from "./outside.js";

const COMMON = new Set("a an and are as at be by did do does for from had has have how in is it many much of on or that the to was were what when where which who whom whose why will with".split(" "));

// One paragraph for each passage. The last sentence of a passage opens the next one, too: it is shown once, with the first.
export function passageNodes(windows, read, said) {
  const texts = windows.map(clean);
  return texts.map((text, number) => {
    const from = number ? overlap(texts[number - 1], text) : 0;
    const box = outside("p", number === read ? "passage" : "", "");
    const own = text.slice(from).trim();
    const ahead = number + 1 === read ? overlap(text, texts[read]) : 0;
    if (number === read && said) box.append(...marked(own, said));
    else if (ahead && said) box.append(text.slice(from, text.length - ahead), ...markedTail(text.slice(-ahead), texts[read], said));
    else box.append(own);
    return box;
  });
}

// The sentence that opens the passage stands at the end of the one before: it is marked there, where it is the best of all.
function markedTail(tail, passage, said) {
  const best = sentences(passage)[bestOf(sentences(passage), said)]?.trim();
  return [best && best === tail.trim() ? make("mark", "", tail) : tail];
}

function marked(text, said) {
  const parts = sentences(text);
  const best = bestOf(parts, said);
  return parts.flatMap((part, number) => (number === best ? [make("mark", "", part.trimEnd()), " "] : [part]));
}

const sentences = (text) => text.match(/.+?(?:[.!?]["'”’»)\]]*\s+|[。！？।]+\s*|$)/gsu) || [];

const wordsOf = (text) => (clean(text).toLowerCase().match(/[\p{L}\p{N}]+/gu) || []).filter((word) => !COMMON.has(word));

// The place of the sentence that shares most with the answer, and then with the question; -1 where none shares anything.
function bestOf(parts, { question, answer }) {
  const wanted = [[answer, 3], [question, 1]].flatMap(([text, worth]) => [...new Set(wordsOf(text))].map((word) => [word, worth]));
  const whole = clean(answer).trim().toLowerCase();
  const scores = parts.map((part) => {
    const own = new Set(wordsOf(part));
    const words = wanted.reduce((sum, [word, worth]) => sum + (own.has(word) ? worth : 0), 0);
    return words + (words && whole.length > 1 && part.toLowerCase().includes(whole) ? 6 : 0);
  });
  const most = Math.max(0, ...scores);
  return most ? scores.indexOf(most) : -1;
}

// Characters at the end of `before` with which `after` begins, in whole words.
function overlap(before, after) {
  for (let size = Math.min(before.length, after.length - 1); size > 0; size -= 1) {
    const whole = /\s/.test(after[size]) && (size === before.length || /\s/.test(before[before.length - size - 1]));
    if (whole && before.endsWith(after.slice(0, size))) return size;
  }
  return 0;
}
