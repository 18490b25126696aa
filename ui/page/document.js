// A conversation as one HTML file to share: what is seen of it, as the page draws it. It runs no script and asks for nothing.

import { h } from "./dom.js";
import * as math from "./math.js";
import { ReplyView } from "./reply.js";
import { path } from "./turns.js";
import { t } from "./words.js";

const POLICY = "default-src 'none'; style-src 'unsafe-inline'; font-src data:";
const LIVE = "button, .tools, .overview, .spinner, [hidden]"; // what does nothing in a document

export async function asHtml(kept) {
  const title = kept.title || t("conversation.untitled");
  const whole = document.implementation.createHTMLDocument(title);
  const { lang, dataset } = document.documentElement;
  whole.documentElement.lang = lang;
  whole.documentElement.dataset.theme = dataset.theme;
  const turns = path(kept).map((turn, at) => drawn(turn, at + 1));
  const body = h("main", { class: "satori document" }, h("h1", { dir: "auto" }, title), turns);
  const page = await fetch(new URL("page.css", import.meta.url)).then((response) => response.text());
  const styles = body.querySelector(".katex") ? [await math.styleWithFonts(), page] : [page];
  whole.head.prepend(h("meta", { charset: "utf-8" }), h("meta", { "http-equiv": "Content-Security-Policy", content: POLICY }),
    h("meta", { name: "viewport", content: "width=device-width, initial-scale=1" }), ...styles.map((style) => h("style", {}, style)));
  whole.body.append(body);
  return `<!doctype html>\n${whole.documentElement.outerHTML}\n`;
}

function drawn(turn, number) {
  const view = new ReplyView({ retry: null });
  if (turn.reply) view.update(turn.reply);
  for (const checks of view.element.querySelectorAll(".checks")) checks.replaceWith(h("p", { class: "facts checks" }, checks.textContent));
  for (const one of view.element.querySelectorAll(LIVE)) one.remove();
  const begun = turn.thought.length;
  return h("section", { class: "turn", "aria-label": t("question.title", { number }) }, h("h2", { class: "offscreen" }, t("question.title", { number })),
    h("div", { class: "question" }, h("p", { class: "bubble", dir: "auto" }, turn.question)),
    begun ? h("p", { class: "note" }, t("state.begun", { count: begun })) : null, view.element);
}
