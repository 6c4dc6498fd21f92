// Pictures of the run folder, its card and its config; all text goes in as text.

import { element, get } from "./api.js";

export class Pictures {
  constructor(root) {
    Object.assign(this, { root, known: "" });
    this.dialog = document.getElementById("large");
    this.dialog.addEventListener("click", () => this.dialog.close());
  }

  async refresh() {
    const { pictures } = await get("/api/pictures"), told = JSON.stringify(pictures);
    if (told === this.known) return;
    this.known = told;
    this.root.replaceChildren();
    if (!pictures.length) this.root.append(element("p", { className: "empty", textContent: "The run has made no pictures yet." }));
    for (const folder of new Set(pictures.map((one) => one.folder))) {
      const cards = element("div", { className: "cards pictures" });
      for (const one of pictures.filter((other) => other.folder === folder)) cards.append(this.card(one));
      this.root.append(element("h2", { textContent: folder }), cards);
    }
  }

  card(one) {
    const src = `/picture/${one.id}?written=${one.written}`, when = new Date(1000 * one.written).toLocaleString();
    const image = element("img", { src, alt: one.name, loading: "lazy" });
    image.addEventListener("click", () => {
      this.dialog.querySelector("img").src = src;
      this.dialog.querySelector("img").alt = one.name;
      this.dialog.querySelector("p").textContent = `${one.folder}/${one.name}`;
      this.dialog.showModal();
    });
    return element("figure", {}, image, element("figcaption", {}, element("span", { textContent: one.name }), element("span", { className: "quiet", textContent: when })));
  }
}

const holds = (value) => value !== null && typeof value === "object" && !Array.isArray(value);

function shown(value) {
  if (typeof value === "string") return value;
  if (Array.isArray(value)) return value.map(shown).join(", ") || "[]";
  if (typeof value === "number" && !Number.isInteger(value)) return String(Number(value.toPrecision(6)));
  return JSON.stringify(value);
}

function leaves(value, before = "") {
  return Object.entries(value).flatMap(([name, one]) => {
    const path = before ? `${before}.${name}` : name;
    return holds(one) && Object.keys(one).length ? leaves(one, path) : [[path, one]];
  });
}

function table(rows) {
  const body = element("tbody");
  for (const [name, value] of rows) body.append(element("tr", {}, element("th", { scope: "row", textContent: name }), element("td", { textContent: holds(value) ? "{}" : shown(value) })));
  return element("div", { className: "table" }, element("table", {}, body));
}

// A measured figure of a card, with its spread over seeds where there are several.
function measured(value) {
  if (!holds(value) || typeof value.value !== "number") return value;
  return typeof value.sd === "number" ? `${shown(value.value)} ± ${Number(value.sd.toPrecision(2))}` : value.value;
}

// A card's figures first, what they depend on after, its config elsewhere.
export function card(root, value, empty) {
  if (!value) { record(root, value, empty); return; }
  const { metrics = {}, config, ...rest } = value;
  record(root, { metrics: Object.fromEntries(Object.entries(metrics).map(([name, one]) => [name, measured(one)])), ...rest });
}

// A record's sections as tables, its own fields first.
export function record(root, value, empty) {
  root.replaceChildren();
  if (!value) { root.append(element("p", { className: "empty", textContent: empty })); return; }
  const own = Object.entries(value).filter(([, one]) => !holds(one)), columns = element("div", { className: "columns" });
  if (own.length) columns.append(element("div", {}, element("h2", { textContent: "run" }), table(own)));
  for (const [name, one] of Object.entries(value)) {
    if (holds(one) && Object.keys(one).length) columns.append(element("div", {}, element("h2", { textContent: name.replaceAll("_", " ") }), table(leaves(one))));
  }
  root.append(columns);
}
