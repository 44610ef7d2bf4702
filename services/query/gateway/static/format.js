// How times, sizes and links are shown; every text from outside goes in as textContent, never as HTML.
const number = new Intl.NumberFormat("en");
const relative = new Intl.RelativeTimeFormat("en", { numeric: "auto" });

export const count = (value) => number.format(value);

export function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined && text !== null) node.textContent = String(text);
  return node;
}

export function draw(tag, attributes) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

export function setText(id, text) {
  const node = document.getElementById(id);
  if (node.textContent !== text) node.textContent = text;
}

export function ago(iso) {
  if (!iso) return "";
  const seconds = (Date.parse(iso) - Date.now()) / 1000;
  if (Number.isNaN(seconds)) return "";
  const size = Math.abs(seconds);
  if (size < 5) return "just now";
  if (size < 60) return relative.format(Math.round(seconds), "second");
  if (size < 3600) return relative.format(Math.round(seconds / 60), "minute");
  if (size < 86400) return relative.format(Math.round(seconds / 3600), "hour");
  if (size < 30 * 86400) return relative.format(Math.round(seconds / 86400), "day");
  return new Date(iso).toLocaleDateString("en", { year: "numeric", month: "short", day: "numeric" });
}

export function duration(seconds) {
  if (seconds < 10) return [seconds.toFixed(1), "s"];
  if (seconds < 120) return [seconds.toFixed(0), "s"];
  if (seconds < 7200) return [(seconds / 60).toFixed(0), "min"];
  return [(seconds / 3600).toFixed(0), "h"];
}

export const took = (seconds) => (seconds < 1 ? `${Math.round(1000 * seconds)} ms` : `${seconds.toFixed(2)} s`);

export function bytes(size) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let i = 0;
  while (size >= 1000 && i < units.length - 1) { size /= 1000; i += 1; }
  return `${size < 10 && i > 0 ? size.toFixed(1) : size.toFixed(0)} ${units[i]}`;
}

// A title with its link; anything but http and https stays text: a feed may say javascript:
export function titleNode(entry) {
  const text = entry.title || entry.doc_id;
  let url = null;
  try { url = entry.url ? new URL(entry.url) : null; } catch { url = null; }
  if (!url || !["http:", "https:"].includes(url.protocol)) return make("span", "title", text);
  const link = make("a", "title", text);
  link.href = url.href;
  link.target = "_blank";
  link.rel = "noopener noreferrer";
  return link;
}
