// Turns a model's text into elements: paragraphs, lists, headings, tables, code, bold, and math by KaTeX. All else is plain text.

import { h } from "./dom.js";

let katex = null;

export async function begin(home, settings) {
  document.head.append(h("link", { rel: "stylesheet", href: new URL(settings.katexStyle, home).href }));
  katex = (await import(new URL(settings.katex, home).href)).default;
}

function math(source, display) {
  const element = h(display ? "div" : "span", { class: display ? "math display" : "math" });
  try {
    katex.render(source, element, { displayMode: display, throwOnError: true, trust: false, strict: "ignore", maxSize: 20, maxExpand: 500 });
  } catch (error) {
    if (!(error instanceof Error)) throw error;
    element.textContent = source; // not LaTeX after all, or not complete yet
  }
  return element;
}

const DELIMITERS = [["$$", "$$", true], ["\\[", "\\]", true], ["\\(", "\\)", false], ["$", "$", false]];

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

function mathAt(text, at) {
  if (text.startsWith("\\boxed{", at)) {
    const end = closing(text, at + 6);
    return end < 0 ? null : { source: text.slice(at, end + 1), display: false, end: end + 1 };
  }
  for (const [open, close, display] of DELIMITERS) {
    if (!text.startsWith(open, at)) continue;
    const end = text.indexOf(close, at + open.length);
    if (end < 0) return null;
    const source = text.slice(at + open.length, end);
    // "$5 and $6" is money: a formula in single dollars has no space inside its ends and no digit after it.
    const money = open === "$" && (!source || /^\s|\s$|\n/.test(source) || /\d/.test(text[end + 1] || ""));
    if (money || !source.trim()) return null;
    return { source, display, end: end + close.length };
  }
  return null;
}

function inline(text) {
  const nodes = [];
  let plain = "";
  const flush = () => { if (plain) nodes.push(plain); plain = ""; };
  for (let at = 0; at < text.length; ) {
    const char = text[at];
    const formula = char === "$" || char === "\\" ? mathAt(text, at) : null;
    const span = !formula && char === "`" ? /^`([^`\n]+)`/.exec(text.slice(at)) : null;
    const bold = !formula && char === "*" ? /^\*\*([^*\n]+)\*\*/.exec(text.slice(at)) : null;
    if (formula) { flush(); nodes.push(math(formula.source, formula.display)); at = formula.end + (formula.display && text[formula.end] === "\n" ? 1 : 0); }
    else if (span) { flush(); nodes.push(h("code", {}, span[1])); at += span[0].length; }
    else if (bold) { flush(); nodes.push(h("strong", {}, ...inline(bold[1]))); at += bold[0].length; }
    else if (char === "\n") { flush(); if (!/^\n(\$\$|\\\[)/.test(text.slice(at, at + 3))) nodes.push(h("br")); at++; }
    else { plain += char; at++; }
  }
  flush();
  return nodes;
}

function table(lines) {
  const cells = (line) => line.trim().replace(/^\||\|$/g, "").split("|");
  const row = (line, name) => h("tr", {}, cells(line).map((cell) => h(name, {}, ...inline(cell.trim()))));
  return h("div", { class: "scroll", tabindex: "0" }, h("table", {}, row(lines[0], "th"), lines.slice(2).map((line) => row(line, "td"))));
}

function block(text) {
  const lines = text.split("\n");
  const heading = /^(#{1,6})\s+(.*)$/.exec(lines[0]);
  if (heading && lines.length === 1) return h("p", { class: "heading" }, ...inline(heading[2]));
  if (lines.length > 2 && lines[0].includes("|") && /^[\s|:-]+$/.test(lines[1]) && lines[1].includes("-")) return table(lines);
  for (const [name, mark] of [["ul", /^\s*[-*]\s+/], ["ol", /^\s*\d+[.)]\s+/]]) {
    if (lines.every((line) => mark.test(line))) {
      const start = name === "ol" ? parseInt(lines[0], 10) : null;
      return h(name, { start }, lines.map((line) => h("li", {}, ...inline(line.replace(mark, "")))));
    }
  }
  return h("p", {}, ...inline(text));
}

// Replaces the content of `element` with `text`.
export function write(element, text) {
  const parts = text.split(/^```[^\n]*\n([\s\S]*?)(?:^```[ \t]*$|$(?![\s\S]))/m);
  const nodes = parts.flatMap((part, index) => {
    if (index % 2) return [h("pre", { tabindex: "0" }, h("code", {}, part))];
    return part.split(/\n\s*\n/).map((piece) => piece.replace(/^\n+|\s+$/g, "")).filter((piece) => piece).map(block);
  });
  element.replaceChildren(...nodes);
}

// Writes an answer: as math where it is LaTeX, else as text.
export function writeAnswer(element, answer) {
  element.replaceChildren(/[\\^_]/.test(answer) ? math(answer, false) : answer);
}
