// The reader: the text of an article as the memory holds it, with the passage that was found, its versions and their times.
import { Refused, explain, getJson } from "./api.js";
import { make } from "./format.js";
import { addressNode, outside, titleOf } from "./outside.js";
import { passageNodes } from "./passage.js";
import { joined, timeNode } from "./times.js";

const $ = (id) => document.getElementById(id);
const STATES = {
  live: ["The memory answers from this version.", null],
  superseded: ["A newer version took its place", "superseded_at"],
  deleted: ["It was withdrawn", "deleted_at"],
  expired: ["Its time was over", "expires_at"],
};

export class Reader {
  constructor() {
    this.dialog = $("reader");
    this.looks = 0;
    $("reader-close").addEventListener("click", () => this.dialog.close());
    this.dialog.addEventListener("click", (event) => { if (event.target === this.dialog) this.dialog.close(); });
  }

  // Opens {doc_id, title, ...}; one that was read carries chunk_no (the passage) and ingested_at (the version), and
  // `asked` is the {question, answer} that it was read for.
  async open(entry, namespace = "default", asked = null) {
    this.said = asked;
    const look = ++this.looks;
    this.entry = entry;
    $("reader-title").textContent = titleOf(entry);
    for (const id of ["reader-about", "reader-state", "reader-text", "reader-foot", "reader-versions"]) $(id).replaceChildren();
    $("reader-versions").hidden = true;
    $("reader-text").append(make("p", "empty", "Opening…"));
    if (!this.dialog.open) this.dialog.showModal();
    this.dialog.scrollTop = 0;
    try {
      const path = `v1/documents/${encodeURIComponent(entry.doc_id)}?namespace=${encodeURIComponent(namespace)}`;
      const found = await getJson(path);
      if (look === this.looks) this.show(found, found.history.findIndex((one) => sameMoment(one, entry)));
    } catch (error) {
      if (look !== this.looks) return;
      if (!(error instanceof Refused)) console.error(error);
      $("reader-text").replaceChildren(make("p", "empty", problemOf(error)));
    }
  }

  show(found, read) {
    this.found = found;
    this.read = read; // the version that the answer was read from, -1 where that is unknown
    this.showVersion(Math.max(0, read));
  }

  showVersion(number) {
    const version = this.found.history[number];
    $("reader-title").textContent = titleOf({ ...version, doc_id: this.found.id });
    const published = timeNode(version.published_at, { whole: true });
    const came = timeNode(version.ingested_at, { whole: true });
    $("reader-about").replaceChildren(joined([
      version.source && outside("span", "", version.source), phrase("published", published), phrase("in memory since", came),
    ]));
    this.showState(version, number);
    this.showButtons(number);
    this.showText(version, this.read === -1 || number === this.read);
    const space = this.found.namespace === "default" ? null : phrase("namespace", outside("span", "", this.found.namespace));
    $("reader-foot").replaceChildren(joined([addressNode(version.url), phrase("id", outside("span", "id", this.found.id)), space]));
  }

  showState(version, number) {
    const [words, time] = STATES[version.state];
    const parts = [words];
    if (time) parts.push(" ", timeNode(version[time]), ".");
    if (this.read === number && version.state !== "live") parts.push(" The answer was read from it.");
    if (this.read > -1 && this.read !== number) parts.push(" The answer was read from another version.");
    $("reader-state").replaceChildren(...parts);
    $("reader-state").dataset.state = version.state;
  }

  showButtons(chosen) {
    const versions = this.found.history;
    $("reader-versions").hidden = versions.length < 2;
    $("reader-versions").replaceChildren(...versions.map((version, number) => {
      const button = make("button", "", `Version ${versions.length - number}`);
      button.type = "button";
      button.append(" · ", timeNode(version.ingested_at));
      button.setAttribute("aria-pressed", String(number === chosen));
      button.addEventListener("click", () => {
        this.showVersion(number);
        $("reader-versions").children[number].focus();
      });
      return button;
    }));
  }

  showText(version, marked) {
    const windows = version.text.split("\n"); // a passage has no line break of its own
    const read = marked && windows.length === version.chunks ? this.entry.chunk_no : undefined;
    const box = $("reader-text");
    box.replaceChildren(...passageNodes(windows, read, this.said));
    box.querySelector("mark, .passage")?.scrollIntoView({ block: "nearest" });
  }
}

function sameMoment(version, entry) {
  return Boolean(entry.ingested_at) && Date.parse(version.ingested_at) === Date.parse(entry.ingested_at);
}

function phrase(words, node) {
  if (!node) return null;
  const box = make("span", "", `${words} `);
  box.append(node);
  return box;
}

function problemOf(error) {
  if (!(error instanceof Refused)) return "The article can't be shown.";
  return error.status === 404 ? "The memory does not have this article any more." : explain(error);
}
