// Elements made and changed by text alone: nothing that comes from the service is ever read as markup.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

// make("td", {class: "n"}, "text", child …)
export function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", `icon icon-${name}`);
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// Text that says "unknown" looks like what it is.
export function setFigure(element, text, unknown = "unknown") {
  setText(element, text);
  element.classList.toggle("unknown", text === unknown);
}

export function setState(element, state, text) {
  if (element.dataset.state === state && element.dataset.text === text) return;
  element.dataset.state = state;
  element.dataset.text = text;
  element.replaceChildren(icon(state), make("span", {}, text));
}

// Rebuilds only when what is shown has changed, so that focus and selection stay where they are.
export function redraw(element, shown, build) {
  const key = JSON.stringify(shown);
  if (element.shownKey === key) return;
  element.shownKey = key;
  element.replaceChildren(...build());
}
