// Questions to begin with: those of which the service found that the memory can answer them.
import { getJson } from "./api.js";
import { clean, outside } from "./outside.js";

const SHOWN = 4;
const EVERY_MS = 20000;
const $ = (id) => document.getElementById(id);

export class Chips {
  constructor(ask) {
    this.ask = ask;
    this.at = 0;
    this.version = null;
  }

  // Looks again when the memory has changed, at most every 20 s; not while somebody is about to choose one.
  async refresh(version, namespace) {
    const box = $("chips");
    const held = box.matches(":hover") || box.contains(document.activeElement);
    const same = version === this.version && namespace === this.namespace;
    const soon = box.children.length && namespace === this.namespace && Date.now() - this.at < EVERY_MS;
    if (same || held || soon || this.looking) return;
    this.looking = true;
    try {
      const found = await getJson(`v1/starters?n=${SHOWN}&namespace=${encodeURIComponent(namespace)}`);
      [this.at, this.version, this.namespace] = [Date.now(), version, namespace];
      this.show(found.data.map((one) => one.question));
    } catch {
      this.show([]); // the live side says what is wrong
    } finally {
      this.looking = false;
    }
  }

  show(questions) {
    $("chips").replaceChildren(...questions.map((text) => {
      const chip = outside("button", "", text);
      chip.type = "button";
      chip.setAttribute("aria-label", `Ask: ${clean(text)}`);
      chip.addEventListener("click", () => this.ask(text));
      return chip;
    }));
    this.hideWhen(this.hidden);
  }

  // They are there to begin with: a conversation needs none.
  hideWhen(hidden) {
    this.hidden = hidden;
    $("chips").hidden = hidden || !$("chips").children.length;
  }
}
