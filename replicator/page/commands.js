// Commands as they are shown: the whole line to copy, its own words in front of the eye.

import { make } from "./dom.js";
import { printable, shell } from "./text.js";

let prefix = "replicator";
let speak = () => {};

export function setCommands(command, spoken) {
  prefix = command;
  speak = spoken;
}

// words: what follows `replicator`, each quoted where a shell needs it; null where one of them cannot be given.
export function words(...parts) {
  const quoted = parts.map((part) => shell(String(part)));
  return quoted.includes(null) ? null : quoted.join(" ");
}

export function command(line, label) {
  if (line === null) {
    return make("p", { class: "small" }, "Its name holds characters that no command line should be given: use the HTTP interface.");
  }
  const whole = `${prefix} ${line}`;
  const button = make("button", { type: "button", class: "quiet copy", "aria-label": `Copy: ${label ?? line}` }, "Copy");
  const code = make("code", { title: printable(whole) }, make("span", { class: "dim" }, "replicator "), line);
  button.addEventListener("click", () => copy(whole, code, button));
  return make("div", { class: "command" }, code, button);
}

async function copy(text, code, button) {
  let done = true;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    done = copyOldWay(text, code);
  }
  button.textContent = done ? "Copied" : "Select it";
  speak(done ? "Command copied" : "The browser does not let this page copy");
  setTimeout(() => (button.textContent = "Copy"), 2000);
}

// Where the page came over plain HTTP from another machine, browsers have no clipboard for it.
function copyOldWay(text, code) {
  const field = make("textarea", { class: "unseen", "aria-hidden": "true" });
  field.value = text;
  code.parentElement.append(field);
  field.select();
  const done = document.execCommand("copy");
  field.remove();
  return done;
}

// A reason's own words, and the commands that stand in it between backticks.
export function split(text) {
  const found = [...text.matchAll(/`replicator ([^`]+)`/g)].map((match) => match[1]);
  return { said: found.length ? text.replace(/:? *`replicator [^`]+`/g, "") : text, found };
}
