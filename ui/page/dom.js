// Builds elements without markup strings, so text can never become markup.

const SVG = "http://www.w3.org/2000/svg";

// h("button", {class: "x", onclick: f, "aria-label": "y"}, child, "text", null) -> element
export function h(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "value" || key === "checked" || key === "disabled" || key === "open" || key === "hidden") element[key] = value;
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

const ICONS = {
  continue: "M4 12h14M12 6l6 6-6 6",
  reflect: "M20 12a8 8 0 1 1-2.6-5.9M20 3v4h-4",
  explore: "M5 21V3M5 16c0-5 4-8 9-8h5M15 4l4 4-4 4",
  none: "M5 12h.01M12 12h.01M19 12h.01",
  send: "M12 20V5M5 12l7-7 7 7",
  stop: "M7 7h10v10H7z",
  copy: "M9 9h11v11H9zM5 15H4V4h11v1",
  done: "M4 12l6 6L20 6",
  retry: "M4 12a8 8 0 1 0 2.6-5.9M4 3v4h4",
  edit: "M4 20h4L19 9l-4-4L4 16zM13 7l4 4",
  delete: "M4 7h16M9 7V4h6v3M6 7l1 13h10l1-13",
  add: "M12 5v14M5 12h14",
  menu: "M4 6h16M4 12h16M4 18h16",
  close: "M6 6l12 12M18 6L6 18",
  settings: "M4 7h10M18 7h2M4 17h2M10 17h10M16 5v4M8 15v4",
  light: "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8M12 2v2M12 20v2M2 12h2M20 12h2M5 5l1.4 1.4M17.6 17.6L19 19M5 19l1.4-1.4M17.6 6.4L19 5",
  dark: "M20 14.5A8.5 8.5 0 0 1 9.5 4 8.5 8.5 0 1 0 20 14.5z",
  system: "M4 5h16v11H4zM9 20h6M12 16v4",
  save: "M12 4v11M7 10l5 5 5-5M5 20h14",
  find: "M10.5 4a6.5 6.5 0 1 0 0 13 6.5 6.5 0 0 0 0-13M15.5 15.5L21 21",
  open: "M12 20V9M7 14l5-5 5 5M5 4h14",
  before: "M15 5l-7 7 7 7",
  after: "M9 5l7 7-7 7",
  warning: "M12 3l10 18H2zM12 10v5M12 18h.01",
};

export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  for (const [key, value] of Object.entries({ viewBox: "0 0 24 24", class: "icon", "aria-hidden": "true", focusable: "false" })) {
    svg.setAttribute(key, value);
  }
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

// Sets an element's text. One that has it already is left alone: to set it again would have the browser lay it out again.
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// Hides an element or shows it; one that is so already is left alone.
export function setHidden(element, hidden) {
  if (element.hidden !== hidden) element.hidden = hidden;
}

// Copies text to the clipboard; through a selection where the browser forbids that (plain http from another host).
export async function copy(text) {
  if (navigator.clipboard && window.isSecureContext) return navigator.clipboard.writeText(text);
  const area = h("textarea", { value: text, readonly: true, class: "offscreen" });
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

// Returns a button that copies what `text()` returns, and then shows `doneLabel` for two seconds.
export function copyButton(label, doneLabel, text) {
  const words = h("span", {}, label);
  const button = h("button", { type: "button", class: "quiet", onclick: async () => {
    await copy(text());
    words.textContent = doneLabel;
    setTimeout(() => { words.textContent = label; }, 2000);
  } }, icon("copy"), words);
  return button;
}

// Calls `draw`, which may replace what is within `container`, and gives the focus back to the control that had it: by its `data-focus`,
// its id or its name; else to the first control.
export function keepingFocus(container, draw) {
  const focused = document.activeElement;
  const inside = focused && focused !== container && container.contains(focused);
  const marks = inside ? ["data-focus", "id", "aria-label"].map((name) => [name, focused.getAttribute(name)]).filter(([, value]) => value) : [];
  draw();
  if (!inside || (document.activeElement !== document.body && document.activeElement?.isConnected)) return;
  const found = marks.map(([name, value]) => container.querySelector(`[${name}="${CSS.escape(value)}"]`)).find((element) => element);
  (found ?? container.querySelector("button, input, select, textarea, summary"))?.focus();
}

// Whether a key belongs to the input of Chinese, Japanese or Korean: Safari says so by the key code alone.
export const composing = (event) => event.isComposing || event.keyCode === 229;

export function download(name, text, type) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}
