// A small line over the last two minutes: no axis, one number beside it.
import { draw } from "./format.js";

const KEPT_MS = 120000;
const WIDTH = 120;
const HEIGHT = 30;

export class Spark {
  constructor(box, { fromZero = true } = {}) {
    this.points = [];
    this.fromZero = fromZero;
    this.svg = draw("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" });
    this.area = draw("path", { class: "area" });
    this.line = draw("path", { class: "line" });
    this.svg.append(this.area, this.line);
    box.replaceChildren(this.svg);
  }

  push(value, label) {
    const now = Date.now();
    if (value !== null && value !== undefined) this.points.push([now, value]);
    this.points = this.points.filter(([at]) => now - at < KEPT_MS);
    this.svg.setAttribute("aria-label", label);
    this.redraw(now);
  }

  redraw(now = Date.now()) {
    if (!this.points.length) return;
    const values = this.points.map(([, value]) => value);
    const low = this.fromZero ? 0 : Math.min(...values);
    const high = Math.max(...values, low + 1e-9);
    const flat = high - low < 1e-6;
    const x = (at) => (WIDTH * (1 - (now - at) / KEPT_MS)).toFixed(1);
    const y = (value) => (flat ? HEIGHT - 3 : HEIGHT - 3 - (HEIGHT - 6) * ((value - low) / (high - low))).toFixed(1);
    // a value holds until the next one: steps, up to now
    const steps = this.points.map(([at, value], i) => `${i ? `H${x(at)}V` : `M${x(at)} `}${y(value)}`).join("");
    const path = `${steps}H${WIDTH}`;
    this.line.setAttribute("d", path);
    this.area.setAttribute("d", `${path}V${HEIGHT}H${x(this.points[0][0])}Z`);
  }
}
