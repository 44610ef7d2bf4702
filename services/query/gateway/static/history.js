// The list of earlier conversations, kept in this browser: one is opened again, forgotten, or all are.
import { forget, keptConversations } from "./conversation.js";
import { make } from "./format.js";
import { outside } from "./outside.js";
import { joined, timeNode } from "./times.js";

const $ = (id) => document.getElementById(id);

export class History {
  // `open(conversation)` shows one again
  constructor(open) {
    this.open = open;
    this.dialog = $("history");
    $("history-open").addEventListener("click", () => { this.show(); this.dialog.showModal(); });
    $("history-close").addEventListener("click", () => this.dialog.close());
    $("history-clear").addEventListener("click", () => { forget(); this.show(); });
    this.dialog.addEventListener("click", (event) => { if (event.target === this.dialog) this.dialog.close(); });
  }

  show() {
    const kept = keptConversations();
    $("history-empty").hidden = kept.length > 0;
    $("history-clear").hidden = kept.length === 0;
    $("history-list").replaceChildren(...kept.map((one) => this.item(one)));
  }

  item(conversation) {
    const { turns } = conversation;
    const item = make("li");
    const title = outside("button", "title", turns[0].question);
    title.type = "button";
    title.addEventListener("click", () => { this.dialog.close(); this.open(conversation); });
    const about = make("div", "about");
    about.append(joined([timeNode(turns.at(-1).asked), turns.length > 1 ? `${turns.length} questions` : null]));
    const drop = make("button", "link", "Forget");
    drop.type = "button";
    drop.setAttribute("aria-label", `Forget: ${turns[0].question}`);
    drop.addEventListener("click", () => {
      forget(conversation.id);
      this.show();
      ($("history-list").querySelector("button") || $("history-close")).focus();
    });
    item.append(title, drop, about);
    return item;
  }
}
