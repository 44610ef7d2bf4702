// What comes from outside, shown as text: never as HTML, in its own direction, without characters that act on their neighbours.
import { make } from "./format.js";

// controls, and marks that embed or override a direction; plain marks and joiners are spelling and stay
const ACTING = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069\u2028\u2029\ufeff\ufff9-\ufffb]/g;
// names that are reserved for examples and tests (RFC 2606, RFC 6761): nobody answers there
const NOWHERE = /(^|\.)(example|invalid|test|localhost)$|(^|\.)example\.(com|net|org)$/;

export const clean = (text) => String(text ?? "").replace(ACTING, "");

// An element with a text from outside; its letters decide its direction.
export function outside(tag, className, text) {
  const node = make(tag, className, clean(text));
  node.dir = "auto";
  return node;
}

// Without a single character that can be seen.
export const isUntitled = (entry) => /^[\p{C}\p{Z}]*$/u.test(entry.title ?? "");

export function titleOf(entry) {
  return isUntitled(entry) ? `Untitled (${clean(entry.doc_id)})` : clean(entry.title).trim();
}

// A control that opens an article in the reader; `open(entry)` does it.
export function titleButton(entry, open) {
  const node = outside("button", isUntitled(entry) ? "title untitled" : "title", titleOf(entry));
  node.type = "button";
  node.title = titleOf(entry);
  node.setAttribute("aria-haspopup", "dialog");
  node.addEventListener("click", () => open(entry));
  return node;
}

// The address of an article: a link where it can lead somewhere, else its text, null where there is none.
export function addressNode(url) {
  if (!url) return null;
  let parsed = null;
  try { parsed = new URL(url); } catch { return outside("span", "address", url); }
  const web = ["http:", "https:"].includes(parsed.protocol);
  if (!web || NOWHERE.test(parsed.hostname)) return outside("span", "address", url);
  const link = outside("a", "address", `Read it at ${parsed.hostname}`);
  link.href = parsed.href;
  link.target = "_blank";
  link.rel = "noopener noreferrer";
  return link;
}
