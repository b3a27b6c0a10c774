// Elements, words for numbers, and colours. Whatever comes from outside becomes text, never markup.

export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "onclick") element.addEventListener("click", value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

export const byId = (id) => document.getElementById(id);

export function swatch(colour) {
  const square = h("span", { class: "swatch", "aria-hidden": "true" });
  square.style.background = colour;
  return square;
}

// Charts read a little markup in names and labels: theirs must have none.
export const plain = (text) => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  const ms = seconds * 1000;
  if (ms < 10) return `${ms.toFixed(2)} ms`;
  if (ms < 100) return `${ms.toFixed(1)} ms`;
  if (ms < 1000) return `${ms.toFixed(0)} ms`;
  return `${seconds.toFixed(seconds < 10 ? 2 : 1)} s`;
}

export function count(value) {
  if (value === null || value === undefined) return "–";
  return value >= 100 ? Math.round(value).toLocaleString("en") : String(Math.round(value * 10) / 10);
}

export function share(value) {
  if (value === null || value === undefined) return "–";
  // Rounded down: what is not all is never shown as all.
  return `${Math.floor(value * 1000) / 10} %`;
}

// As the charts have it; with its day where that is another.
export function clock(unixS) {
  if (!unixS) return "–";
  const at = new Date(unixS * 1000);
  const time = at.toLocaleTimeString([], { hourCycle: "h23", hour: "2-digit", minute: "2-digit", second: "2-digit" });
  return at.toDateString() === new Date().toDateString() ? time : `${at.toLocaleDateString()} ${time}`;
}

const PALETTE = ["#3b7dd8", "#e08214", "#2e9e6b", "#9467bd", "#d1495b", "#17a2b8", "#a67c52", "#d977b3", "#8a9a2b", "#6b7a90"];
const given = new Map();

// The same name has the same colour in every chart for as long as the page is open.
export function colourOf(kind, name) {
  const key = `${kind}\n${name}`;
  if (!given.has(key)) {
    const used = [...given.keys()].filter((each) => each.startsWith(`${kind}\n`)).length;
    given.set(key, PALETTE[used % PALETTE.length]);
  }
  return given.get(key);
}

// A colour of the style sheet as it is in the theme of now.
export function themed(name) {
  const probe = h("span");
  probe.style.color = `var(--${name})`;
  document.body.append(probe);
  const colour = getComputedStyle(probe).color;
  probe.remove();
  return colour;
}

export function table(caption, columns, rows, nothing) {
  if (!rows.length) return h("p", { class: "hint" }, nothing);
  const head = columns.map((column) => h("th", { scope: "col", class: column.class }, column.title));
  const body = rows.map((row) => h("tr", {}, columns.map((column) => h("td", { class: column.class }, column.cell(row)))));
  const made = h("table", {}, h("caption", { class: "unseen" }, caption), h("thead", {}, h("tr", {}, head)), h("tbody", {}, body));
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption }, made);
}
