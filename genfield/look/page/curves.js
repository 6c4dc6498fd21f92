// Curves of metrics.jsonl, drawn anew as the file grows.

import { element, get, short } from "./api.js";

const SIZE = { width: 360, height: 190, left: 46, right: 20, top: 10, bottom: 24 };
const SPEED = ["examples_per_second", "step_seconds", "data_seconds", "dispatch_seconds", "device_seconds", "mfu"];
const SPACE = "http://www.w3.org/2000/svg";

export class Curves {
  constructor(root) {
    Object.assign(this, { token: "", cards: new Map() });
    this.empty = element("p", { className: "empty", textContent: "The run has written no figures yet." });
    this.places = { alone: element("div", { className: "stats" }), curve: element("div", { className: "cards" }), speed: element("div", { className: "cards" }) };
    this.head = element("h2", { textContent: "Speed" });
    root.append(this.empty, this.places.alone, this.places.curve, this.head, this.places.speed);
  }

  async refresh() {
    const found = await get(`/api/curves?since=${encodeURIComponent(this.token)}`);
    if (!found.curves) return;
    this.token = found.token;
    const names = Object.keys(found.curves);
    const evaluated = (name) => Object.keys(found.curves[name]).some((split) => split !== "train");
    const rank = (name) => (name === "loss" ? 0 : evaluated(name) ? 1 : 2);
    names.sort((a, b) => rank(a) - rank(b));
    this.empty.hidden = names.length > 0;
    for (const place of Object.values(this.places)) place.replaceChildren();
    for (const name of names) {
      if (!this.cards.has(name)) this.cards.set(name, element("figure"));
      const card = this.cards.get(name), splits = drawable(found.curves[name]);
      const alone = splits.every(([, points]) => points.length < 2);
      this.places[SPEED.includes(name) ? "speed" : alone ? "alone" : "curve"].append(card);
      (alone ? figure : chart)(card, name, splits);
    }
    this.head.hidden = this.places.speed.children.length === 0;
  }
}

// Figures that are not finite came as null, and are left out.
function drawable(splits) {
  const finite = Object.entries(splits).map(([split, points]) => [split, points.filter(([, value]) => value !== null)]);
  return finite.filter(([, points]) => points.length);
}

function figure(card, name, splits) {
  const values = splits.map(([split, [[step, value]]]) => element("b", { textContent: short(value), title: `${split}, step ${step}` }));
  if (!values.length) values.push(element("b", { textContent: "not finite" }));
  card.replaceChildren(...values, element("figcaption", { textContent: name.replaceAll("_", " ") }));
}

function svg(kind, attributes, text) {
  const made = document.createElementNS(SPACE, kind);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function chart(card, name, whole) {
  const caption = element("figcaption", {}, element("span", { textContent: name.replaceAll("_", " ") }));
  const reading = element("span", { className: "quiet" });
  caption.append(reading);
  const rest = () => {
    reading.replaceChildren(...whole.map(([split, points]) => element("span", { className: `key ${split}`, textContent: `${split} ${short(points.at(-1)[1])}` })));
  };
  rest();
  const scale = scales(whole.flatMap(([, points]) => points));
  const drawing = svg("svg", { viewBox: `0 0 ${SIZE.width} ${SIZE.height}`, class: "chart", role: "img", "aria-label": `${name} against the step` });
  axes(drawing, scale);
  for (const [split, points] of whole) {
    const group = svg("g", { class: `series ${split}` });
    if (points.length > 1) group.append(svg("polyline", { points: points.map(([s, v]) => `${scale.x(s).toFixed(1)},${scale.y(v).toFixed(1)}`).join(" ") }));
    if (points.length < 30) for (const [s, v] of points) group.append(svg("circle", { cx: scale.x(s), cy: scale.y(v), r: 2.6 }));
    drawing.append(group);
  }
  const cursor = svg("line", { class: "cursor", y1: SIZE.top, y2: SIZE.height - SIZE.bottom, visibility: "hidden" });
  drawing.append(cursor);
  drawing.addEventListener("pointermove", (event) => {
    const box = drawing.getBoundingClientRect(), x = (event.clientX - box.left) / box.width * SIZE.width;
    const nearest = (points) => points.reduce((a, b) => (Math.abs(scale.x(b[0]) - x) < Math.abs(scale.x(a[0]) - x) ? b : a));
    const at = nearest(whole.flatMap(([, points]) => points))[0];
    cursor.setAttribute("x1", scale.x(at));
    cursor.setAttribute("x2", scale.x(at));
    cursor.setAttribute("visibility", "visible");
    reading.replaceChildren(`step ${at}`, ...whole.map(([split, points]) => element("span", { className: `key ${split}`, textContent: short(nearest(points)[1]) })));
  });
  drawing.addEventListener("pointerleave", () => { cursor.setAttribute("visibility", "hidden"); rest(); });
  card.replaceChildren(caption, drawing);
}

function scales(points) {
  const steps = points.map(([s]) => s), values = points.map(([, v]) => v);
  const first = Math.min(...steps), last = Math.max(...steps);
  let low = Math.min(...values), high = Math.max(...values);
  const log = low > 0 && high / low > 30;
  if (log) [low, high] = [Math.log10(low), Math.log10(high)];
  if (high - low < 1e-12) [low, high] = [low - 0.5 * (Math.abs(low) || 1), high + 0.5 * (Math.abs(high) || 1)];
  const pad = 0.05 * (high - low);
  low -= pad;
  high += pad;
  const across = SIZE.width - SIZE.left - SIZE.right, down = SIZE.height - SIZE.top - SIZE.bottom;
  const x = (s) => SIZE.left + (last === first ? 0.5 : (s - first) / (last - first)) * across;
  const y = (v) => SIZE.top + (1 - ((log ? Math.log10(v) : v) - low) / (high - low)) * down;
  const rows = log ? powers(low, high) : ticks(low, high, 4);
  return { x, y, rows, columns: ticks(first, last, 4).filter((s) => Number.isInteger(s)) };
}

function ticks(low, high, about) {
  const rough = (high - low) / about || 1, unit = 10 ** Math.floor(Math.log10(rough));
  const step = unit * [1, 2, 5, 10].find((one) => one * unit >= rough), out = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; k++) out.push(Number((k * step).toPrecision(12)));
  return out;
}

function powers(low, high) {
  const every = Math.max(1, Math.ceil((high - low) / 4)), out = [];
  for (let k = Math.ceil(low); k <= high; k += every) out.push(10 ** k);
  return out.length > 1 ? out : [low, (low + high) / 2, high].map((one) => Number((10 ** one).toPrecision(2)));
}

function compact(value) {
  const big = Math.abs(value);
  if (big >= 1e6) return `${short(value / 1e6)}M`;
  if (big >= 1e4) return `${short(value / 1e3)}k`;
  return big && big < 1e-3 ? value.toExponential(0) : short(value);
}

function axes(drawing, { x, y, rows, columns }) {
  for (const value of rows) {
    drawing.append(svg("line", { class: "grid", x1: SIZE.left, x2: SIZE.width - SIZE.right, y1: y(value), y2: y(value) }));
    drawing.append(svg("text", { x: SIZE.left - 6, y: y(value) + 4, "text-anchor": "end" }, compact(value)));
  }
  for (const step of columns) drawing.append(svg("text", { x: x(step), y: SIZE.height - 6, "text-anchor": "middle" }, compact(step)));
}
