// Times in the reader's language: how long ago, with the moment itself on hover.
import { make } from "./format.js";

const languages = navigator.languages?.length ? [...navigator.languages] : undefined;
const relative = new Intl.RelativeTimeFormat(languages, { numeric: "auto" });
const absolute = new Intl.DateTimeFormat(languages, { dateStyle: "medium", timeStyle: "medium" });
const exact = new Intl.DateTimeFormat(languages, { dateStyle: "full", timeStyle: "long" });
const day = new Intl.DateTimeFormat(languages, { year: "numeric", month: "short", day: "numeric" });
const STEPS = [[60, 1, "second"], [3600, 60, "minute"], [86400, 3600, "hour"], [30 * 86400, 86400, "day"]];

const isTime = (iso) => Boolean(iso) && !Number.isNaN(Date.parse(iso));

export const moment = (iso) => (isTime(iso) ? absolute.format(new Date(iso)) : "");

export function ago(iso) {
  if (!isTime(iso)) return "";
  const seconds = (Date.parse(iso) - Date.now()) / 1000;
  if (Math.abs(seconds) < 1) return relative.format(0, "second");
  for (const [below, size, unit] of STEPS) {
    if (Math.abs(seconds) < below) return relative.format(Math.round(seconds / size), unit);
  }
  return day.format(new Date(iso));
}

// A <time> that says how long ago, or with `whole` the moment; null where the time is unknown.
export function timeNode(iso, { whole = false } = {}) {
  if (!isTime(iso)) return null;
  const node = make("time", whole ? "" : "ago", whole ? moment(iso) : ago(iso));
  node.dateTime = iso;
  node.dir = "auto";
  node.title = exact.format(new Date(iso));
  return node;
}

// Brings all that are shown up to date.
export function refreshTimes() {
  for (const node of document.querySelectorAll("time.ago")) {
    const text = ago(node.dateTime);
    if (node.textContent !== text) node.textContent = text;
  }
}

// Parts, those that are missing left out, with a dot between them.
export function joined(parts) {
  const box = document.createDocumentFragment();
  for (const part of parts.filter(Boolean)) {
    if (box.childNodes.length) box.append(" · ");
    box.append(part);
  }
  return box;
}
