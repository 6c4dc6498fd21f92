// The plane: level sets and arrows of the field, its value under the mouse, samples from a click.

import { element, latest, post, short, told } from "./api.js";
import { SamplerControls, slider } from "./controls.js";

const WAY = 700; // milliseconds in which the samples are seen to move
const SPREAD = 0.03; // of a cloud around a click, in parts of the plane's width

export class Plane {
  constructor(facts) {
    this.facts = facts;
    this.box = document.getElementById("plane");
    [this.base, this.top] = this.box.querySelectorAll("canvas");
    this.shown = { levels: true, arrows: true, data: true };
    this.time = facts.clock ? facts.clock.start : null;
    this.found = this.trace = this.mouse = this.last = null;
    const again = () => { if (this.last) this.sample(); };
    this.controls = new SamplerControls(document.getElementById("field-sampler"), facts, (label) => { if (label) this.load(); again(); });
    this.view(document.getElementById("view"));
    this.load = latest(() => this.fetchLevels());
    this.read = latest((point) => this.fetchField(point));
    this.sample = latest(() => this.fetchSamples());
    this.listen();
    new ResizeObserver(() => this.draw()).observe(this.box);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    this.load();
  }

  view(root) {
    const { clock } = this.facts, names = { levels: "level sets", arrows: "arrows", data: "data" };
    if (clock && clock.high > clock.low) {
      const log = clock.low > 0, ends = log ? [Math.log(clock.low), Math.log(clock.high)] : [clock.low, clock.high];
      const value = (at) => { const v = ends[0] + (ends[1] - ends[0]) * at / 1000; return Math.min(clock.high, Math.max(clock.low, log ? Math.exp(v) : v)); };
      const start = log ? Math.log(clock.start) : clock.start;
      const at = Math.round(1000 * (start - ends[0]) / (ends[1] - ends[0]));
      root.append(slider(`The field at ${clock.name}`, { at, show: (one) => short(value(one)), id: "time" }, (one) => { this.time = value(one); this.load(); if (this.mouse) this.read(this.mouse.point); }));
    }
    const checks = element("div", { className: "check" });
    for (const [name, text] of Object.entries(names)) {
      const box = element("input", { type: "checkbox", checked: true });
      box.addEventListener("change", () => { this.shown[name] = box.checked; this.draw(); });
      checks.append(element("label", {}, box, text));
    }
    this.legend = element("p", { className: "quiet" });
    root.append(checks, this.legend);
  }

  listen() {
    this.box.addEventListener("pointermove", (event) => this.read(this.place(event)));
    this.box.addEventListener("pointerleave", () => { this.mouse = null; this.over(); });
    this.box.addEventListener("click", (event) => {
      const point = this.place(event);
      this.last = { starts: cloud(point, Number(document.getElementById("cloud").value), this.width() * SPREAD) };
      this.read(point);
      this.sample();
    });
    document.getElementById("draw").addEventListener("click", () => {
      this.last = { num: Number(document.getElementById("amount").value) };
      this.sample();
    });
    document.getElementById("clear").addEventListener("click", () => { this.last = this.trace = null; this.say(""); this.over(); });
  }

  say(text) { document.getElementById("told").textContent = text; }

  width() { return this.facts.extent[1] - this.facts.extent[0]; }

  place(event) {
    const box = this.box.getBoundingClientRect(), [left, right, below, above] = this.facts.extent;
    const across = (event.clientX - box.left) / box.width, down = (event.clientY - box.top) / box.height;
    return [left + across * (right - left), above - down * (above - below)];
  }

  at(label = this.controls.label) {
    const asked = label === null ? {} : { label };
    return this.time === null ? asked : { ...asked, t: this.time };
  }

  async fetchLevels() {
    this.found = await post("/api/levels", this.at());
    told(null);
    const { what } = this.found;
    this.legend.textContent = what === "speed" ? "Colour and lines: how fast samples move." : `Colour and lines: the ${what}, bluest where it is least.`;
    this.draw();
  }

  async fetchField(point) {
    const { moves, scalar } = await post("/api/field", { points: [point], ...this.at() });
    this.mouse = { point, move: moves[0] };
    const bold = (text) => element("b", { textContent: text });
    const pair = (two) => `(${two.map((one) => (one === null ? "–" : one.toFixed(3))).join(", ")})`;
    const parts = ["At ", bold(pair(point)), " samples move along ", bold(pair(moves[0])), ", length ", bold(short(Math.hypot(...moves[0])))];
    if (scalar) parts.push(`, ${this.facts.scalar || "scalar"} `, bold(scalar[0] === null ? "–" : scalar[0].toFixed(3)));
    document.getElementById("reading").replaceChildren(...parts, ".");
    this.over();
  }

  async fetchSamples() {
    const button = document.getElementById("draw");
    button.disabled = true;
    const wait = setTimeout(() => this.say("Computing. A sampler's first samples take a little longer."), 400);
    try {
      const { trace, nfe } = await post("/api/samples", { ...this.controls.request(), ...this.last });
      told(null);
      this.trace = trace;
      const mean = nfe.reduce((a, b) => a + b, 0) / nfe.length, n = nfe.length;
      this.say(`${n} sample${n > 1 ? "s" : ""}, ${short(mean)} evaluations of the field${n > 1 ? " each" : ""}.`);
      this.move();
    } catch (error) {
      this.say("");
      throw error;
    } finally {
      clearTimeout(wait);
      button.disabled = false;
    }
  }

  move() {
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches, begun = performance.now(), { trace } = this;
    const frame = (now) => {
      if (this.trace !== trace) return;
      this.share = still ? 1 : Math.min(1, Math.max(0, now - begun) / WAY);
      this.over();
      if (this.share < 1) requestAnimationFrame(frame);
    };
    requestAnimationFrame(frame);
  }

  // Drawing

  colours() {
    const style = getComputedStyle(document.documentElement);
    return (name) => style.getPropertyValue(`--${name}`).trim();
  }

  open(canvas) {
    const ratio = devicePixelRatio || 1, side = this.box.clientWidth;
    canvas.width = canvas.height = Math.max(1, Math.round(side * ratio));
    const pen = canvas.getContext("2d"), [left, right, below, above] = this.facts.extent;
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    const to = ([x, y]) => [(x - left) / (right - left) * side, (above - y) / (above - below) * side];
    return { pen, to, side };
  }

  draw() {
    const { pen, to, side } = this.open(this.base), colour = this.colours();
    if (this.found) {
      if (this.shown.levels) { fill(pen, this.found.value, side, colour("low"), colour("high")); contours(pen, to, this.found.levels, colour("contour"), colour("high")); }
      if (this.shown.data) dots(pen, this.facts.target.map(to), 1.3, colour("target"), 0.55);
      if (this.shown.arrows) arrows(pen, to, this.found.arrows, side, colour("arrow"));
    }
    this.over();
  }

  over() {
    const { pen, to, side } = this.open(this.top), colour = this.colours();
    if (this.trace) {
      const count = 1 + Math.round((this.share ?? 1) * (this.trace.length - 1));
      const few = this.trace[0].length <= 16;
      ways(pen, to, this.trace.slice(0, count), colour("way"), few);
      dots(pen, this.trace[0].map(to), few ? 3 : 1.6, colour("begin"), 0.9);
      dots(pen, this.trace[count - 1].map(to), few ? 4.5 : 2.6, colour("end"), 0.95, few && colour("high"));
    }
    if (this.mouse) {
      const long = Math.hypot(...this.mouse.move), [x, y] = to(this.mouse.point);
      dots(pen, [[x, y]], 4, colour("accent"), 1);
      if (long > 0) arrow(pen, [x, y], this.mouse.move.map((one) => one / long), side * 0.09, colour("accent"), 2.5);
    }
  }
}

function cloud([x, y], count, spread) {
  const around = () => spread * Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());
  return Array.from({ length: count }, (_, i) => (i ? [x + around(), y + around()] : [x, y]));
}

function rgb(hex) { return [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)); }

function fill(pen, value, side, low, high) {
  const flat = value.flat().filter((one) => one !== null), n = value.length;
  const least = Math.min(...flat), most = Math.max(...flat), small = new OffscreenCanvas(n, n), brush = small.getContext("2d");
  const image = brush.createImageData(n, n), [from, to] = [rgb(low), rgb(high)];
  value.forEach((row, j) => row.forEach((one, i) => {
    const share = one === null || most === least ? 1 : Math.sqrt((one - least) / (most - least));
    const at = 4 * ((n - 1 - j) * n + i);
    for (let k = 0; k < 3; k++) image.data[at + k] = from[k] + (to[k] - from[k]) * (0.25 + 0.75 * share);
    image.data[at + 3] = 255;
  }));
  brush.putImageData(image, 0, 0);
  pen.imageSmoothingQuality = "high";
  const half = side / (n - 1) / 2; // values stand at the middles of these pixels
  pen.drawImage(small, -half, -half, side + 2 * half, side + 2 * half);
}

function contours(pen, to, levels, colour, halo) {
  pen.strokeStyle = colour;
  pen.lineWidth = 0.8;
  pen.globalAlpha = 0.75;
  for (const { lines } of levels) for (const line of lines) { path(pen, line.map(to)); pen.stroke(); }
  pen.globalAlpha = 1;
  pen.font = "10px system-ui, sans-serif";
  pen.textAlign = "center";
  pen.textBaseline = "middle";
  for (const { level, lines } of levels) {
    const line = lines.reduce((a, b) => (b.length > a.length ? b : a), []);
    if (line.length < 24) continue;
    const [x, y] = to(line[Math.floor(line.length / 3)]), text = short(Number(level.toPrecision(3)));
    pen.lineWidth = 3;
    pen.strokeStyle = halo;
    pen.strokeText(text, x, y);
    pen.fillStyle = colour;
    pen.fillText(text, x, y);
  }
}

function arrows(pen, to, list, side, colour) {
  const most = Math.max(...list.map(([, , u, v]) => Math.hypot(u ?? 0, v ?? 0))), cell = side / Math.sqrt(list.length);
  if (!(most > 0)) return;
  for (const [x, y, u, v] of list) {
    const long = Math.hypot(u, v);
    if (long > 0) arrow(pen, to([x, y]), [u / long, v / long], cell * (0.25 + 0.5 * Math.sqrt(long / most)), colour, 1.1, 0.8);
  }
}

function arrow(pen, [x, y], [u, v], long, colour, width, alpha = 1) {
  const end = [x + u * long, y - v * long], head = Math.min(0.36 * long, 3.2 * width + 3);
  pen.globalAlpha = alpha;
  pen.strokeStyle = colour;
  pen.lineWidth = width;
  pen.lineCap = "round";
  pen.beginPath();
  pen.moveTo(x, y);
  pen.lineTo(...end);
  for (const turn of [2.6, -2.6]) {
    const c = Math.cos(turn), s = Math.sin(turn);
    pen.moveTo(...end);
    pen.lineTo(end[0] + head * (u * c - v * s), end[1] - head * (u * s + v * c));
  }
  pen.stroke();
  pen.globalAlpha = 1;
}

function ways(pen, to, trace, colour, few) {
  pen.strokeStyle = colour;
  pen.lineWidth = few ? 2 : 0.9;
  pen.lineJoin = "round";
  pen.globalAlpha = few ? 1 : 0.5;
  for (let i = 0; i < trace[0].length; i++) {
    path(pen, trace.map((positions) => to(positions[i])));
    pen.stroke();
  }
  pen.globalAlpha = 1;
}

function path(pen, points) {
  pen.beginPath();
  points.forEach(([x, y], i) => (i ? pen.lineTo(x, y) : pen.moveTo(x, y)));
}

function dots(pen, points, radius, colour, alpha, edge) {
  pen.globalAlpha = alpha;
  pen.fillStyle = colour;
  for (const [x, y] of points) {
    pen.beginPath();
    pen.arc(x, y, radius, 0, 2 * Math.PI);
    pen.fill();
    if (edge) { pen.strokeStyle = edge; pen.lineWidth = 1.5; pen.stroke(); }
  }
  pen.globalAlpha = 1;
}
