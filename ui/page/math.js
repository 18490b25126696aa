// LaTeX in a model's text, as models write it: rules for the Markdown parser that find it, and KaTeX, which draws it.

import { h } from "./dom.js";

const DELIMITERS = [["$$", "$$", true], ["\\[", "\\]", true], ["\\(", "\\)", false], ["$", "$", false]];
const ENVIRONMENT = /^\\begin\{((?:align|alignat|aligned|gather|gathered|equation|multline|cases|rcases|array|split|CD|[pbBvV]?matrix|smallmatrix)\*?)\}/;
const SYMBOL = /[\\=^_+*/<>|(){}\d-]/;
const MONEY = /^\d[\d.,]*\s+\p{L}{2,}/u; // "$5 and": an amount with a word behind it
const WORDS = /[A-Za-z]{2,}\s+[A-Za-z]{2,}/;
const DRAWN = 500; // formulas that are kept, so that those of a growing text are drawn once

let katex = null;
let style = ""; // the address of its styles
const drawn = new Map();

export async function begin(home, settings) {
  style = new URL(settings.katexStyle, home).href;
  document.head.append(h("link", { rel: "stylesheet", href: style }));
  katex = (await import(new URL(settings.katex, home).href)).default;
}

// Returns KaTeX's styles with its fonts within them.
export async function styleWithFonts() {
  const text = await fetch(style).then((response) => response.text());
  const names = [...new Set(text.match(/[^(]+\.woff2(?=\))/g))];
  const fonts = new Map(await Promise.all(names.map(async (name) => [name, await asDataUrl(new URL(name, style))])));
  return text.replace(/\.gradio-container-[\w-]+ /g, "") // Gradio has them for its own page only
    .replace(/src:url\(([^)]+\.woff2)\)[^;}]*/g, (_, name) => `src:url(${fonts.get(name)})format("woff2")`);
}

async function asDataUrl(address) {
  const blob = await fetch(address).then((response) => response.blob());
  return new Promise((resolve, reject) => {
    const reader = Object.assign(new FileReader(), { onload: () => resolve(reader.result), onerror: () => reject(reader.error) });
    reader.readAsDataURL(blob);
  });
}

// Draws a formula in `element`; where it is not LaTeX after all, its source.
export function draw(element, source, display) {
  const key = `${display}${source}`;
  if (!drawn.has(key)) {
    const formula = h("span");
    try {
      katex.render(source, formula, { displayMode: display, throwOnError: true, trust: false, strict: "ignore", maxSize: 20, maxExpand: 500 });
    } catch (error) {
      if (!(error instanceof Error)) throw error;
      formula.textContent = source;
    }
    drawn.set(key, formula);
    if (drawn.size > DRAWN) drawn.delete(drawn.keys().next().value);
  }
  element.replaceChildren(...drawn.get(key).cloneNode(true).childNodes);
}

// Returns the index of the brace that closes the one at text[at], or -1.
function closing(text, at) {
  let depth = 0;
  for (let i = at; i < text.length; i++) {
    if (text[i] === "\\") i++;
    else if (text[i] === "{") depth++;
    else if (text[i] === "}" && --depth === 0) return i;
  }
  return -1;
}

// Returns the index of `close` from `at` on, or -1. A dollar behind a backslash closes nothing.
function ending(text, close, at) {
  for (let end = text.indexOf(close, at); end >= 0; end = text.indexOf(close, end + 1)) {
    if (close[0] !== "$" || text[end - 1] !== "\\") return end;
  }
  return -1;
}

// Whether what stands between single dollars is money, or just text: "$5 and $6", "a $ and a $". A formula has a space at both ends or
// at none.
function isMoney(source, next) {
  const inner = source.trim();
  const spaces = [/^\s/.test(source), /\s$/.test(source)];
  if (spaces[0] !== spaces[1] || /\n\s*\n/.test(source) || /\d/.test(next ?? "") || MONEY.test(inner)) return true;
  if (!spaces[0]) return false;
  return WORDS.test(inner.replace(/\\[A-Za-z]+\s*(\{[^}]*\})?/g, "")) || (inner.length > 3 && !SYMBOL.test(inner));
}

// Returns the formula that begins at text[at]: {source, display, end}; null where there is none.
function formula(text, at) {
  if (text.startsWith("\\boxed{", at)) {
    const end = closing(text, at + 6);
    return end < 0 ? null : { source: text.slice(at, end + 1), display: false, end: end + 1 };
  }
  const named = text.startsWith("\\begin{", at) ? ENVIRONMENT.exec(text.slice(at, at + 40)) : null;
  if (named) {
    const close = `\\end{${named[1]}}`;
    const end = text.indexOf(close, at);
    return end < 0 ? null : { source: text.slice(at, end + close.length), display: true, end: end + close.length };
  }
  for (const [open, close, display] of DELIMITERS) {
    if (!text.startsWith(open, at)) continue;
    const end = ending(text, close, at + open.length);
    if (end < 0) return null;
    const source = text.slice(at + open.length, end);
    if (!source.trim() || (open === "$" && isMoney(source, text[end + 1]))) return null;
    return { source: source.trim(), display, end: end + close.length };
  }
  return null;
}

function inline(state, silent) {
  const char = state.src[state.pos];
  const found = char === "$" || char === "\\" ? formula(state.src, state.pos) : null;
  if (!found || found.end > state.posMax) return false;
  if (!silent) Object.assign(state.push("math", "", 0), { content: found.source, markup: found.display ? "display" : "" });
  state.pos = found.end;
  return true;
}

// A formula that begins a line and has what follows it on a line of its own; it may have blank lines within. In a text that is still
// `growing`, one that has not ended yet takes all that follows.
function block(state, first, last, silent) {
  const begin = state.bMarks[first] + state.tShift[first];
  const line = state.src.slice(begin, state.eMarks[first]);
  const named = ENVIRONMENT.exec(line);
  const [open, close] = named ? [named[0], `\\end{${named[1]}}`] : ["$$", "\\["].filter((one) => line.startsWith(one)).map((one) => [one, one === "$$" ? "$$" : "\\]"])[0] ?? [];
  if (!open) return false;
  const parts = [];
  for (let at = first; at < last; at++) {
    if (at > first && state.sCount[at] < state.blkIndent && !state.isEmpty(at)) break; // behind the list item that it is in
    const text = at === first ? line.slice(open.length) : state.src.slice(state.bMarks[at] + state.tShift[at], state.eMarks[at]);
    const end = ending(text, close, 0);
    if (end < 0) {
      parts.push(text);
      continue;
    }
    const behind = text.slice(end + close.length).trim();
    if (behind && !/^[.,;:!?。，；]$/.test(behind)) return false; // the paragraph's text goes on
    if (silent) return true;
    parts.push(text.slice(0, end));
    const source = named ? `${open}${parts.join("\n")}${close}` : parts.join("\n").trim() + behind;
    return push(state, first, at + 1, "math_block", source);
  }
  if (!state.env.growing) return false;
  return silent || push(state, first, last, "math_pending", state.src.slice(begin, state.eMarks[last - 1]));
}

function push(state, first, next, name, content) {
  state.line = next;
  Object.assign(state.push(name, "", 0), { block: true, content, map: [first, next] });
  return true;
}

// Teaches a Markdown parser to find LaTeX. It becomes elements of the class `math`, with the source as their text.
export function rules(parser) {
  const written = (tag, kind) => (tokens, at) => `<${tag} class="math ${kind ?? tokens[at].markup}">${parser.utils.escapeHtml(tokens[at].content)}</${tag}>`;
  parser.inline.ruler.before("escape", "math", inline);
  parser.block.ruler.before("fence", "math", block, { alt: ["paragraph", "reference", "blockquote", "list"] });
  Object.assign(parser.renderer.rules, { math: written("span"), math_block: written("div", "display"), math_pending: written("p", "pending") });
}
