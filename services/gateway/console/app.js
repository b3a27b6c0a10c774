// The page: signing in, the view that the address names, and what comes every second.

import { showEmpty, showNow, showRecent } from "./board.js";
import { Charts } from "./charts.js";
import { byId } from "./dom.js";
import { Refused, ask, follow, key } from "./link.js";
import { showStory, showTrouble } from "./waterfall.js";

const RECENT_MS = 3000;
const THEMES = ["auto", "light", "dark"];
let charts = null;
let running = false;
let anyRequest = false;
let anyFilter = "";
let story = null;

function view() {
  const signedIn = key.get() !== null;
  const id = new URLSearchParams(location.hash.slice(1)).get("request");
  byId("sign-in").hidden = signedIn;
  byId("leave").hidden = !signedIn;
  byId("request").hidden = !signedIn || !id;
  byId("board").hidden = !signedIn || Boolean(id);
  document.title = id ? `${id} · Fairlead console` : "Fairlead console";
  if (!signedIn) {
    byId("key").focus();
    return;
  }
  start();
  if (id) open(id);
  else story = null;
}

async function open(id) {
  if (story?.id === id) {
    showStory(story);
    return;
  }
  try {
    story = await ask(`v1/fairlead/requests/${encodeURIComponent(id)}`);
    showStory(story);
  } catch (error) {
    if (!turnedAway(error)) showTrouble(id, error.message, () => open(id));
  }
}

async function start() {
  if (running) return;
  running = true;
  charts ??= new Charts();
  recent();
  try {
    await follow({ event: take, state });
  } catch (error) {
    running = false;
    turnedAway(error);
  }
}

function take(kind, document) {
  if (kind === "history") {
    charts.begin(document);
    return;
  }
  charts.add(document.point, document.promises);
  showNow(document);
  anyRequest ||= document.num_running > 0 || Object.keys(document.point.classes).length > 0;
  showEmpty(!anyRequest, document.model);
}

function state(live, sentence) {
  const place = byId("link");
  if (place.textContent !== sentence) place.textContent = sentence;
  place.className = `link ${live ? "live" : "lost"}`;
  byId("board").classList.toggle("past", !live); // what it shows is of before
}

async function recent() {
  while (running) {
    await showThose().catch((error) => turnedAway(error));
    await new Promise((resolve) => setTimeout(resolve, RECENT_MS));
  }
}

async function showThose() {
  const filters = new FormData(byId("filters"));
  const query = new URLSearchParams({ tenant: filters.get("tenant").trim(), class: filters.get("class"), missed: filters.has("missed") ? "true" : "false" });
  anyFilter = String(query);
  const { requests } = await ask(`v1/fairlead/requests?${query}`);
  if (anyFilter !== String(query)) return; // asked otherwise meanwhile
  anyRequest ||= requests.length > 0;
  showRecent(requests);
}

// Whether it was the key: then there is nothing to see without another.
function turnedAway(error) {
  if (!(error instanceof Refused) || ![401, 403].includes(error.status)) return false;
  byId("refusal").textContent = error.message;
  leave();
  return true;
}

function leave() {
  key.forget();
  running = false;
  state(false, ""); // of a connection that nobody has now
  byId("about").textContent = "";
  view();
}

function theme(chosen) {
  if (chosen === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = chosen;
  byId("theme").textContent = `Theme: ${chosen}`;
  localStorage.setItem("fairlead-theme", chosen);
  charts?.draw();
  if (story && !byId("request").hidden) showStory(story);
}

byId("sign-in").addEventListener("submit", (event) => {
  event.preventDefault();
  byId("refusal").textContent = "";
  key.set(byId("key").value.trim());
  byId("key").value = "";
  view();
});
byId("leave").addEventListener("click", () => {
  leave();
  location.reload(); // ends the stream, and forgets what was shown
});
byId("theme").addEventListener("click", () => theme(THEMES[(THEMES.indexOf(localStorage.getItem("fairlead-theme") ?? "auto") + 1) % THEMES.length]));
byId("filters").addEventListener("submit", (event) => event.preventDefault());
byId("filters").addEventListener("input", () => showThose().catch((error) => turnedAway(error)));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => theme(localStorage.getItem("fairlead-theme") ?? "auto"));
document.addEventListener("visibilitychange", () => charts?.draw());
window.addEventListener("hashchange", view);
theme(localStorage.getItem("fairlead-theme") ?? "auto");
view();
