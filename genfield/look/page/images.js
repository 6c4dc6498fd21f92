// A few samples of an image run, drawn at the press of a button.

import { element, latest, post, told } from "./api.js";
import { SamplerControls } from "./controls.js";

export class Images {
  constructor(facts) {
    this.facts = facts;
    this.sheet = document.getElementById("sheet");
    this.sheet.append(element("p", { className: "empty", textContent: "Samples appear here." }));
    this.made = document.getElementById("made");
    this.controls = new SamplerControls(document.getElementById("image-sampler"), facts, () => {});
    const button = document.getElementById("make"), make = latest(() => this.draw());
    button.addEventListener("click", async () => {
      button.disabled = true;
      this.made.textContent = "Computing. A sampler's first samples take longer, as it is compiled.";
      await make();
      button.disabled = false;
    });
  }

  async draw() {
    const num = Number(document.getElementById("count").value);
    try {
      const { images, nfe, labels } = await post("/api/images", { ...this.controls.request(), num });
      told(null);
      this.sheet.replaceChildren(...images.map((src, i) => this.card(src, labels && labels[i])));
      this.made.textContent = `${images.length} samples, ${Math.round(nfe.reduce((a, b) => a + b, 0) / nfe.length)} evaluations of the field each.`;
    } catch (error) {
      this.made.textContent = "";
      throw error;
    }
  }

  card(src, label) {
    const figure = element("figure", {}, element("img", { src, alt: "a sample" }));
    if (label !== null) figure.append(element("figcaption", { textContent: this.facts.classes[label] ?? "no class" }));
    return figure;
  }
}
