// The way into the past: a slider of usual distances, or an exact moment. It asks again when it has come to rest.
import { setText } from "./format.js";
import { ago, moment } from "./times.js";

const REST_MS = 600;
const MINUTE = 60;
const HOUR = 60 * MINUTE;
const DAY = 24 * HOUR;
const PASTS = [
  [30 * DAY, "30 days ago"], [7 * DAY, "a week ago"], [2 * DAY, "2 days ago"], [DAY, "a day ago"], [12 * HOUR, "12 hours ago"],
  [3 * HOUR, "3 hours ago"], [HOUR, "an hour ago"], [15 * MINUTE, "15 minutes ago"], [5 * MINUTE, "5 minutes ago"],
  [2 * MINUTE, "2 minutes ago"], [MINUTE, "a minute ago"], [30, "30 seconds ago"], [0, "now"],
];
const $ = (id) => document.getElementById(id);

export class Past {
  // `onRest()` is called once the slider has rested
  constructor(onRest) {
    this.began = null; // when the first document came, ISO; null while it is unknown
    $("past").max = String(PASTS.length - 1);
    $("past").value = $("past").max;
    const moved = () => {
      this.show();
      clearTimeout(this.timer);
      this.timer = setTimeout(onRest, REST_MS);
    };
    $("past").addEventListener("input", () => { $("as-of").value = ""; moved(); });
    $("as-of").addEventListener("input", moved);
    this.show();
  }

  // {as_of, label}, null for now.
  get at() {
    if ($("as-of").value) return atMoment(new Date($("as-of").value).toISOString());
    const [seconds, label] = PASTS[Number($("past").value)];
    return seconds ? { as_of: new Date(Date.now() - 1000 * seconds).toISOString(), label } : null;
  }

  // Shows a moment that was asked for elsewhere; null is now.
  set(at) {
    clearTimeout(this.timer);
    $("past").value = $("past").max;
    $("as-of").value = "";
    if (at) {
      const local = new Date(at.as_of);
      local.setMinutes(local.getMinutes() - local.getTimezoneOffset());
      $("as-of").value = local.toISOString().slice(0, 19);
    }
    this.show();
  }

  setBegan(iso) {
    this.began = iso;
    this.show();
  }

  // Whether a moment lies before the first document.
  isBefore(at) { return Boolean(at && this.began) && Date.parse(at.as_of) < Date.parse(this.began); }

  beganWords() { return `The memory was still empty then: its first article came ${ago(this.began)} (${moment(this.began)}).`; }

  show() {
    const { at } = this;
    setText("past-label", at ? at.label : "now");
    $("past").setAttribute("aria-valuetext", at ? at.label : "now");
    document.body.classList.toggle("in-the-past", at !== null);
    $("past-note").hidden = !this.isBefore(at);
    setText("past-note", this.isBefore(at) ? this.beganWords() : "");
  }
}

export const atMoment = (iso) => ({ as_of: iso, label: moment(iso) });
