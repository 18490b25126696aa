// Turns a model's text into elements: Markdown by markdown-it, cleaned by DOMPurify, and math by KaTeX (`math.js`).

import { copyButton, h } from "./dom.js";
import * as math from "./math.js";
import { t } from "./words.js";

const TAGS = ["a", "blockquote", "br", "code", "del", "div", "em", "h3", "hr", "li", "ol", "p", "pre", "s", "span", "strong", "table", "tbody", "td", "th", "thead", "tr", "ul"];
const ATTRIBUTES = ["class", "href", "start", "title"];
const OPEN = 2; // blocks at the end of a growing text that may still change: "2" becomes "2." and belongs to the list before it

let parser = null;

export async function begin(home, settings) {
  const scripts = ["markdown-it.umd.min.js", "purify.min.js"].map((name) => new Promise((resolve, reject) => {
    document.head.append(h("script", { src: new URL(`page/vendor/${name}`, home).href, onload: resolve, onerror: () => reject(new Error(`${name} cannot be loaded`)) }));
  }));
  await Promise.all([...scripts, math.begin(home, settings)]);
  parser = globalThis.markdownit({ html: false, linkify: true, breaks: true });
  parser.validateLink = (url) => /^(https?:|mailto:)/i.test(url);
  parser.linkify.set({ fuzzyLink: false, fuzzyEmail: false });
  // No images: the page loads nothing from elsewhere. A model's sum that is written in columns is neither code nor a heading.
  parser.disable(["image", "code", "lheading"]);
  // A page has one outline: whatever level a model takes, its headings are below the question's.
  parser.renderer.rules.heading_open = (tokens, at) => `<h3 class="heading level-${tokens[at].tag[1]}">`;
  parser.renderer.rules.heading_close = () => "</h3>";
  math.rules(parser);
}

// Returns the blocks of tokens, each with the number of the line at which it begins.
function blocks(tokens) {
  const found = [];
  for (const token of tokens) {
    if (token.level === 0 && token.nesting >= 0) found.push({ line: token.map?.[0] ?? 0, tokens: [] });
    found.at(-1).tokens.push(token);
  }
  return found;
}

function elements(tokens, env) {
  const html = parser.renderer.render(tokens, parser.options, env);
  const fragment = globalThis.DOMPurify.sanitize(html, { ALLOWED_TAGS: TAGS, ALLOWED_ATTR: ATTRIBUTES, ALLOW_DATA_ATTR: false, RETURN_DOM_FRAGMENT: true });
  for (const element of fragment.querySelectorAll("p, li, h3, td, th, ul, ol, blockquote")) element.dir = "auto";
  for (const element of fragment.querySelectorAll(".math:not(.pending)")) {
    const display = element.classList.contains("display");
    math.draw(element, element.textContent, display);
    if (display) [element.previousSibling, element.nextSibling].filter((side) => side?.nodeName === "BR").forEach((side) => side.remove());
  }
  for (const link of fragment.querySelectorAll("a")) Object.assign(link, { target: "_blank", rel: "noopener noreferrer" });
  for (const table of fragment.querySelectorAll("table")) enclose(table, h("div", { class: "scroll", tabindex: "0" }));
  for (const code of fragment.querySelectorAll("pre")) {
    code.tabIndex = 0;
    const name = /(?:^|\s)language-(\S+)/.exec(code.querySelector("code")?.className ?? "")?.[1] ?? "";
    enclose(code, h("div", { class: "code" }, h("div", { class: "head" }, h("span", { class: "facts" }, name), copyButton(t("action.copy"), t("action.copied"), () => code.textContent))));
  }
  return [...fragment.childNodes];
}

function enclose(element, container) {
  element.replaceWith(container);
  container.append(element);
}

// Puts `fresh` nodes in the place of the `old` ones, which are the last of `parent`. What is the same stays, and a text that has grown
// is added to: the browser lays out only what is new. Returns the nodes that are there now.
function renew(parent, old, fresh) {
  const now = fresh.map((node, at) => (old[at] ? merged(old[at], node) : parent.appendChild(node)));
  for (const node of old.slice(fresh.length)) node.remove();
  return now;
}

function merged(old, fresh) {
  if (old.isEqualNode(fresh)) return old;
  if ([old, fresh].every((node) => node.nodeType === Node.TEXT_NODE)) {
    if (fresh.data.startsWith(old.data)) old.appendData(fresh.data.slice(old.length));
    else old.data = fresh.data;
    return old;
  }
  if (old.cloneNode(false).isEqualNode(fresh.cloneNode(false))) {
    renew(old, [...old.childNodes], [...fresh.childNodes]);
    return old;
  }
  old.replaceWith(fresh);
  return fresh;
}

// A model's text within `element`.
export class Prose {
  constructor(element) {
    this.element = element;
    this.settled = ""; // the text of the blocks that do not change any more
    this.open = []; // the nodes of the others
  }

  // Writes `text`. While it is `growing`, only its last blocks are read again; at its end, all of it is.
  write(text, growing) {
    if (!growing || !text.startsWith(this.settled)) Object.assign(this, { settled: "", open: [...this.element.childNodes] });
    const env = { growing };
    const rest = text.slice(this.settled.length);
    const found = blocks(parser.parse(rest, env));
    const settled = growing ? Math.max(found.length - OPEN, 0) : found.length;
    const drawn = found.map((block) => elements(block.tokens, env));
    this.open = renew(this.element, this.open, drawn.flat()).slice(drawn.slice(0, settled).flat().length);
    if (settled < found.length) this.settled = text.slice(0, this.settled.length + lineStart(rest, found[settled].line));
  }
}

// Returns where a line of a text begins.
function lineStart(text, line) {
  let at = 0;
  for (let i = 0; i < line; i++) at = text.indexOf("\n", at) + 1;
  return at;
}

// Writes an answer: as math where it is LaTeX, else as text.
export function writeAnswer(element, answer) {
  if (/[\\^_]/.test(answer)) math.draw(element, answer, false);
  else element.textContent = answer;
}
