// Requests to this server, one at a time where a newer one makes an older one needless.

const problem = document.getElementById("problem");

export function told(error) {
  problem.textContent = error ? error.message : "";
  problem.hidden = !error;
}

async function answer(response) {
  let found;
  try {
    found = await response.json();
  } catch {
    throw new Error(`the server answered ${response.status}`);
  }
  if (!response.ok) throw new Error(found.error || `the server answered ${response.status}`);
  return found;
}

export async function get(path) {
  return answer(await reached(fetch(path)));
}

export async function post(path, body) {
  const headers = { "Content-Type": "application/json" };
  return answer(await reached(fetch(path, { method: "POST", headers, body: JSON.stringify(body) })));
}

async function reached(response) {
  try {
    return await response;
  } catch {
    throw new Error("the server does not answer: it was stopped, or this page is offline");
  }
}

// latest(work)(…): work runs once at a time; of the calls made meanwhile the last one follows.
export function latest(work) {
  let busy = false, waiting = null;
  return async function call(...given) {
    if (busy) { waiting = given; return; }
    busy = true;
    try {
      await work(...given);
    } catch (error) {
      told(error);
    } finally {
      busy = false;
      const next = waiting;
      waiting = null;
      if (next) call(...next);
    }
  };
}

export function element(kind, properties = {}, ...children) {
  const made = document.createElement(kind);
  for (const [name, value] of Object.entries(properties)) made[name] = value;
  made.append(...children);
  return made;
}

export function short(value) {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number") return String(value);
  if (Number.isInteger(value) && Math.abs(value) < 1e7) return String(value);
  return String(Number(value.toPrecision(4)));
}
