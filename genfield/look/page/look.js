// The page: its head, its tabs, and what is asked again while the run goes on.

import { element, get, post, told } from "./api.js";
import { Curves } from "./curves.js";
import { card, Pictures, record } from "./folder.js";
import { Images } from "./images.js";
import { Plane } from "./plane.js";

const EVERY = 3000; // milliseconds between looks at the run folder
const byId = (name) => document.getElementById(name);
const tabs = { field: "Field", samples: "Samples", curves: "Curves", pictures: "Pictures", card: "Card", config: "Config" };

function show(name) {
  for (const [other, button] of Object.entries(show.buttons)) {
    byId(other).hidden = other !== name;
    button.setAttribute("aria-selected", other === name);
  }
  history.replaceState(null, "", `#${name}`);
}

function build(facts) {
  const there = Object.keys(tabs).filter((name) => (name !== "field" || facts.plane) && (name !== "samples" || facts.images));
  show.buttons = {};
  for (const name of there) {
    const button = element("button", { type: "button", textContent: tabs[name] });
    button.setAttribute("role", "tab");
    button.addEventListener("click", () => show(name));
    show.buttons[name] = button;
    byId("tabs").append(button);
  }
  const asked = location.hash.slice(1);
  show(there.includes(asked) ? asked : there[0]);
}

function head(facts) {
  document.title = `${facts.name} · genfield look`;
  byId("name").replaceChildren(...facts.name.split(/(?<=[_-])/).flatMap((part) => [part, element("wbr")]));
  const shape = facts.plane ? "in the plane" : `of shape ${facts.shape.join("×")}`;
  const classes = facts.classes.length ? `, ${facts.classes.length} classes` : "";
  byId("about").textContent = `${facts.method.replaceAll("_", " ")} on ${facts.data}, ${shape}${classes}, at the checkpoint of step ${facts.step}`;
}

function newer(step, newest) {
  byId("newer").hidden = newest === null || newest <= step;
  byId("newer").querySelector("span").textContent = `There is a newer checkpoint, of step ${newest}.`;
}

let known = "";

async function records() {
  const found = await get("/api/records"), told = JSON.stringify(found);
  if (told === known) return;
  known = told;
  card(byId("card"), found.card || found.summary, "The run has no card yet: it is written when a training ends.");
  record(byId("config"), found.config, "The run has no config.");
}

async function start() {
  const facts = await get("/api/run");
  head(facts);
  build(facts);
  const curves = new Curves(byId("curves")), pictures = new Pictures(byId("pictures"));
  if (facts.plane) new Plane(facts);
  if (facts.images) new Images(facts);
  byId("newer").querySelector("button").addEventListener("click", async (event) => {
    event.target.disabled = true;
    try { await post("/api/load", {}); location.reload(); } catch (error) { told(error); event.target.disabled = false; }
  });
  let lost = false;
  const follow = async () => {
    try {
      await Promise.all([curves.refresh(), pictures.refresh(), records(), get("/api/status").then(({ step, newest }) => newer(step, newest))]);
      if (lost) told(null);
      lost = false;
    } catch (error) {
      told(error);
      lost = true;
    }
    setTimeout(follow, document.hidden ? 4 * EVERY : EVERY);
  };
  await follow();
}

start().catch(told);
