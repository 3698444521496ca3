// Signs in, keeps what is shown live, and says so when it is not.

import { drawFigures, drawFlow, drawService, drawVerdict } from "./board.js";
import { setCommands } from "./commands.js";
import { byId, setText } from "./dom.js";
import { drawActions, drawEvents, drawKept, drawStreams, drawTables, prepareTables } from "./lists.js";
import { Live } from "./live.js";
import { Plots } from "./plots.js";
import { clock, printable } from "./text.js";

const KEY = "replicator-read-token";
const STILL_MS = 30000; // connected, and yet no new frame: the service itself hangs
const THEMES = ["auto", "dark", "light"];

let plots = null;
let frameAt = 0; // performance.now() of the latest frame
let shownAt = 0; // the service's own time of it
let spokenState = "";

const live = new Live({ hour, frame, state: link, refused });

function speak(text) {
  setText(byId("spoken"), text);
}

// ── what comes ──

function hour(points) {
  board();
  plots.hour(points);
}

function frame(view) {
  board();
  frameAt = performance.now();
  shownAt = view.at;
  setCommands(view.command, speak);
  setText(byId("pipeline"), printable(view.pipeline));
  document.title = `${view.state} · ${printable(view.pipeline)} · replicator`;
  drawVerdict(view);
  drawFlow(view);
  drawFigures(view);
  plots.add(view.point);
  drawKept(view);
  drawTables(view);
  drawStreams(view);
  drawEvents(view);
  drawActions(view);
  drawService(view);
  link("live", "");
  const said = `${view.state}. ${view.reasons.slice(0, 3).map((reason) => printable(reason.text)).join(". ")}`;
  const key = `${view.state} ${view.reasons_total}`;
  if (key !== spokenState) speak(said);
  spokenState = key;
}

function link(state, detail) {
  const told = byId("link");
  if (state === "connecting" && shownAt) return; // still stale: what is shown is no newer for trying
  told.dataset.link = state;
  byId("board").classList.toggle("stale", state === "stale");
  if (state === "live") setText(byId("link-text"), `live, ${clock(shownAt)}`);
  else if (state === "connecting") setText(byId("link-text"), "connecting …");
  else {
    const since = shownAt ? `stale since ${clock(shownAt)}` : "not connected";
    setText(byId("link-text"), `${since}: ${printable(detail)}`);
    if (!spokenState.startsWith("stale")) speak(since);
    spokenState = "stale";
    document.title = "stale · replicator";
  }
}

setInterval(() => {
  const silent = frameAt && performance.now() - frameAt > STILL_MS;
  if (silent && byId("link").dataset.link === "live") link("stale", "the service answers, but has nothing new to tell");
}, 1000);

// ── signing in and out ──

function board() {
  if (!byId("board").hidden) return;
  byId("sign-in").hidden = true;
  byId("board").hidden = false;
  byId("sign-out").hidden = false;
  plots ??= new Plots(byId("plots"));
}

function signIn(message) {
  byId("board").hidden = true;
  byId("sign-out").hidden = true;
  byId("sign-in").hidden = false;
  byId("link").dataset.link = "none";
  setText(byId("link-text"), "signed out");
  setText(byId("sign-in-fault"), message);
  document.title = "sign in · replicator";
  byId("token").focus();
}

function refused(message) {
  remember(null);
  frameAt = shownAt = 0;
  spokenState = "";
  signIn(`Not let in: ${message}.`);
}

// In this tab only; where storage is forbidden, until it is reloaded.
function remember(token) {
  try {
    if (token === null) sessionStorage.removeItem(KEY);
    else sessionStorage.setItem(KEY, token);
  } catch {
    // then it is not remembered
  }
}

function remembered() {
  try {
    return sessionStorage.getItem(KEY);
  } catch {
    return null;
  }
}

byId("sign-in-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const field = byId("token");
  const token = field.value.trim();
  field.value = "";
  if (!/^[\x21-\x7e]+$/.test(token)) return signIn("A token has letters, digits and signs, and no spaces.");
  setText(byId("sign-in-fault"), "");
  remember(token);
  live.start(token);
  return undefined;
});

byId("sign-out").addEventListener("click", () => {
  live.stop();
  remember(null);
  location.reload(); // so that nothing of what was shown is left
});

// ── colours ──

const root = document.documentElement;

function nameTheme() {
  setText(byId("theme"), `Colours: ${root.dataset.theme}`);
}

byId("theme").addEventListener("click", () => {
  root.dataset.theme = THEMES[(THEMES.indexOf(root.dataset.theme) + 1) % THEMES.length];
  try {
    localStorage.setItem("replicator-theme", root.dataset.theme);
  } catch {
    // then it holds until the page is left
  }
  nameTheme();
  plots?.draw();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => plots?.draw());

nameTheme();
prepareTables();
const token = remembered();
if (token === null) signIn("");
else live.start(token);
