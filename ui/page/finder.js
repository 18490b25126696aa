// Finds a conversation by what is in it: Ctrl+K.

import { composing, h } from "./dom.js";
import { t } from "./words.js";

const SHOWN = 50;

export class Finder {
  // `opened` shows a conversation.
  constructor({ library, opened }) {
    Object.assign(this, { library, opened });
    this.element = h("dialog", { class: "finder", id: "finder" });
    this.draw();
  }

  draw() {
    this.box = h("input", { type: "search", "aria-label": t("find.title"), placeholder: t("find.placeholder"), autocomplete: "off", oninput: () => this.find(), onkeydown: (event) => this.pressed(event) });
    this.count = h("p", { class: "hint", role: "status" });
    this.list = h("ul", {});
    this.element.setAttribute("aria-label", t("find.title"));
    this.element.replaceChildren(h("div", { class: "inside" }, this.box, this.count, this.list));
    this.element.onclick = (event) => { if (event.target === this.element) this.element.close(); };
  }

  open() {
    if (this.element.open) return;
    this.box.value = "";
    this.element.showModal();
    this.box.focus();
    this.find();
  }

  async find() {
    const text = this.box.value;
    const found = await this.library.find(text);
    if (text !== this.box.value) return; // typed on meanwhile
    this.count.textContent = t("find.count", { count: found.length });
    this.list.replaceChildren(...found.slice(0, SHOWN).map(({ id, title }) => h("li", {},
      h("button", { type: "button", class: "title", dir: "auto", onclick: () => this.choose(id), onkeydown: (event) => this.move(event) }, title || t("conversation.untitled")))));
  }

  choose(id) {
    this.element.close();
    this.opened(id);
  }

  pressed(event) {
    if (event.key !== "Enter" || composing(event)) return this.move(event);
    event.preventDefault();
    this.list.querySelector("button")?.click();
  }

  move(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const all = [this.box, ...this.list.querySelectorAll("button")];
    all[all.indexOf(document.activeElement) + step]?.focus();
  }
}
