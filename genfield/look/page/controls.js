// The sampler's controls: which one, its step sizes and steps, seed, class and guidance.

import { element, short } from "./api.js";

const STOPS = [1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 25, 32, 40, 50, 64, 80, 100, 125, 160, 200, 250, 320, 400, 500, 640, 800, 1000, 1250, 1600, 2000];
const SPAN = 50; // a step size goes from a fiftieth of where it begins to fifty times it

export function slider(name, { at, show, ends = [0, 1000], step = 1, id }, changed) {
  const output = element("output");
  const input = element("input", { type: "range", min: ends[0], max: ends[1], step, value: at });
  if (id) input.id = id;
  const tell = () => { output.textContent = show(Number(input.value)); };
  input.addEventListener("input", () => { tell(); changed(Number(input.value)); });
  tell();
  return element("label", { className: "slider" }, name, output, input);
}

export class SamplerControls {
  constructor(root, facts, changed) {
    Object.assign(this, { facts, changed, stages: [], label: null, guidance: facts.guidance });
    const select = element("select", { className: "which" });
    for (const one of facts.samplers) select.append(element("option", { value: one.name, textContent: one.name.replaceAll("_", " ") }));
    select.addEventListener("change", () => { this.choose(select.value); changed(); });
    this.parts = element("div");
    root.append(element("label", {}, "Sampler", select), this.parts);
    this.others(root);
    if (facts.samplers.length) this.choose(facts.samplers[0].name);
  }

  choose(name) {
    const found = this.facts.samplers.find((one) => one.name === name);
    this.sampler = name;
    this.stages = found.stages.map(() => ({}));
    this.parts.replaceChildren();
    found.stages.forEach((stage, number) => this.stage(stage, this.stages[number], found.stages.length > 1 || name !== stage.name));
  }

  stage(stage, held, named) {
    if (named) this.parts.append(element("p", { className: "part", textContent: stage.name.replaceAll("_", " ") }));
    if (stage.step_size !== null) {
      held.step_size = stage.step_size;
      const low = Math.log(stage.step_size / SPAN), high = Math.log(stage.step_size * SPAN);
      const size = (at) => Number(Math.exp(low + (high - low) * at / 1000).toPrecision(3));
      this.parts.append(slider("Step size", { at: 500, show: (at) => short(at === 500 ? stage.step_size : size(at)) }, (at) => {
        held.step_size = at === 500 ? stage.step_size : size(at);
        this.changed();
      }));
    }
    if (stage.num_steps === null) {
      this.parts.append(element("p", { className: "quiet", textContent: "It chooses its own steps." }));
      return;
    }
    held.num_steps = stage.num_steps;
    const most = this.facts.bounds.steps;
    const stops = [...new Set([...STOPS, stage.num_steps])].filter((n) => n <= most).sort((a, b) => a - b);
    const shape = { at: stops.indexOf(stage.num_steps), ends: [0, stops.length - 1], show: (at) => stops[at] };
    this.parts.append(slider("Steps", shape, (at) => { held.num_steps = stops[at]; this.changed(); }));
  }

  others(root) {
    const { facts } = this;
    if (facts.guidance !== null) {
      const show = (at) => short(at / 10);
      const at = Math.round(facts.guidance * 10);
      root.append(slider("Guidance scale", { at, ends: [0, Math.min(200, Math.max(100, 2 * at))], show }, (at) => { this.guidance = at / 10; this.changed(); }));
    }
    const row = element("div", { className: "row" });
    if (facts.classes.length) {
      const select = element("select");
      select.append(element("option", { value: "", textContent: "each in turn" }));
      facts.classes.forEach((name, number) => select.append(element("option", { value: number, textContent: name })));
      if (facts.guidance !== null) select.append(element("option", { value: facts.classes.length, textContent: "none" }));
      select.addEventListener("change", () => { this.label = select.value === "" ? null : Number(select.value); this.changed(true); });
      row.append(element("label", {}, "Class", select));
    }
    const seed = element("input", { type: "number", min: 0, max: 2 ** 31 - 1, step: 1, value: facts.seed });
    this.seed = facts.seed;
    seed.addEventListener("change", () => { if (seed.reportValidity() && seed.value !== "") { this.seed = Number(seed.value); this.changed(); } });
    row.append(element("label", {}, "Seed", seed));
    root.append(row);
  }

  request() {
    const asked = { sampler: this.sampler, stages: this.stages, seed: this.seed };
    if (this.label !== null) asked.label = this.label;
    if (this.guidance !== null) asked.guidance = this.guidance;
    return asked;
  }
}
