// The question box: Enter sends, Shift+Enter starts a new line, and what is typed survives a reload.

import { composing, h, icon } from "./dom.js";
import * as store from "./store.js";
import { t } from "./words.js";

const TALLEST = 240;

export class Composer {
  constructor(name, { send, stop, queues = false }) {
    Object.assign(this, { name, send, queues });
    this.box = h("textarea", { id: `${name}-question`, rows: 1, dir: "auto", placeholder: t("composer.placeholder"), "aria-label": t("composer.label"), "aria-describedby": `${name}-keys`, oninput: () => this.typed(), onkeydown: (event) => this.pressed(event) });
    this.box.value = store.draft(name);
    this.sendButton = h("button", { type: "button", class: "primary round", "aria-label": t("composer.send"), title: t("composer.send"), onclick: () => this.submit() }, icon("send"));
    this.stopButton = h("button", { type: "button", class: "stop round", "aria-label": t("composer.stop"), title: t("composer.stop"), hidden: true, onclick: stop }, icon("stop"));
    this.element = h("div", { class: "composer" }, h("div", { class: "box" }, this.box, this.stopButton, this.sendButton),
      h("p", { class: "keys", id: `${name}-keys` }, t("composer.keys")));
    requestAnimationFrame(() => this.fit());
    this.typed();
  }

  set busy(busy) {
    this.stopButton.hidden = !busy;
    this.isBusy = busy;
    this.offer();
  }

  set(text) {
    this.box.value = text;
    this.typed();
    this.box.focus();
  }

  typed() {
    store.saveDraft(this.name, this.box.value);
    this.sendButton.disabled = !this.box.value.trim();
    this.offer();
    this.fit();
  }

  // While a reply is written, a question can be sent that waits for it: not in a comparison.
  offer() {
    this.sendButton.hidden = Boolean(this.isBusy) && !(this.queues && this.box.value.trim());
  }

  fit() {
    this.box.style.height = "auto";
    this.box.style.height = `${Math.min(this.box.scrollHeight, TALLEST)}px`;
  }

  pressed(event) {
    if (event.key !== "Enter" || event.shiftKey || composing(event)) return;
    event.preventDefault();
    this.submit();
  }

  submit() {
    const text = this.box.value.trim();
    if (!text || this.sendButton.hidden) return;
    this.box.value = "";
    this.typed();
    this.send(text);
  }
}

// Returns the elements in which a text is changed in its place: Enter or the button `word` calls `submit(text)`, Escape `cancel()`.
export function editor({ value, rows, label, word, submit, cancel }) {
  const box = h("textarea", { rows, dir: "auto", "aria-label": label, value });
  const send = () => { if (box.value.trim()) submit(box.value); };
  box.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !composing(event)) { event.preventDefault(); send(); }
    if (event.key === "Escape") { event.stopPropagation(); cancel(); }
  });
  return [box, h("div", { class: "actions" },
    h("button", { type: "button", class: "primary", onclick: send }, word),
    h("button", { type: "button", onclick: cancel }, t("action.cancel")))];
}
