// The list of conversations: new, switch, rename, delete, clear, export.

import { h, icon } from "./dom.js";
import * as store from "./store.js";
import { language, t } from "./words.js";

function download(name, text, type) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

export class Sidebar {
  // `opened` shows a conversation (null: a new one), `removed` is called before one is deleted, `cleared` empties the one that is
  // shown, `renamed` gets an id and its new title, and `current` returns the id that is shown. `server` is Gradio's.
  constructor({ server, opened, removed, cleared, renamed, current }) {
    Object.assign(this, { server, opened, removed, cleared, renamed, current });
    this.element = h("nav", { class: "sidebar", id: "sidebar" });
    this.draw();
  }

  draw() {
    this.list = h("ul", {});
    this.element.setAttribute("aria-label", t("sidebar.label"));
    this.element.replaceChildren(
      h("button", { type: "button", class: "new", onclick: () => this.opened(null) }, icon("add"), t("sidebar.new")),
      this.list,
      h("div", { class: "export" }, h("h3", {}, t("sidebar.this")),
        h("button", { type: "button", class: "quiet", onclick: () => this.export("markdown") }, icon("save"), "Markdown"),
        h("button", { type: "button", class: "quiet", onclick: () => this.export("json") }, icon("save"), "JSON"), this.clear()),
      h("p", { class: "hint" }, t("sidebar.kept")));
    this.refresh();
  }

  refresh() {
    const current = this.current();
    const kept = store.conversations();
    this.list.replaceChildren(...kept.map((entry) => this.entry(entry, entry.id === current)));
    this.element.querySelector(".export").hidden = !kept.some((entry) => entry.id === current);
  }

  entry({ id, title }, chosen) {
    const named = title || t("conversation.untitled");
    const open = h("button", { type: "button", class: "title", "aria-current": chosen ? "true" : null, onclick: () => this.opened(id) }, named);
    const item = h("li", { class: chosen ? "chosen" : "" }, open,
      h("button", { type: "button", class: "bare", "aria-label": t("sidebar.rename", { title: named }), title: t("action.rename"), onclick: () => this.rename(item, id, named) }, icon("edit")),
      h("button", { type: "button", class: "bare", "aria-label": t("sidebar.delete", { title: named }), title: t("action.delete"), onclick: () => this.confirm(item, id) }, icon("delete")));
    return item;
  }

  rename(item, id, title) {
    const box = h("input", { type: "text", value: title, "aria-label": t("action.rename") });
    let over = false;
    const done = (save) => {
      if (over) return;
      over = true;
      if (save && box.value.trim()) this.renamed(id, box.value.trim());
      this.refresh();
    };
    box.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.isComposing) done(true);
      if (event.key === "Escape") done(false);
    });
    box.addEventListener("blur", () => done(true));
    item.replaceChildren(box);
    box.select();
  }

  confirm(item, id) {
    const yes = h("button", { type: "button", class: "danger", onclick: () => this.remove(id) }, t("sidebar.delete.yes"));
    item.replaceChildren(yes, h("button", { type: "button", onclick: () => this.refresh() }, t("action.cancel")));
    yes.focus();
  }

  // Returns a button that empties the conversation when it is pressed twice.
  clear() {
    const words = h("span", {}, t("sidebar.clear"));
    let asked = false;
    const reset = () => { asked = false; words.textContent = t("sidebar.clear"); };
    return h("button", { type: "button", class: "quiet", onblur: reset, onclick: () => {
      if (asked) { reset(); this.cleared(); return; }
      asked = true;
      words.textContent = t("sidebar.clear.yes");
    } }, icon("delete"), words);
  }

  remove(id) {
    this.removed(id);
    store.remove(id);
    if (this.current() === id) this.opened(store.conversations()[0]?.id ?? null);
    this.refresh();
  }

  async export(form) {
    const conversation = store.conversation(this.current());
    const text = await this.server.export({ conversation, form, language });
    const name = (conversation.title || "conversation").replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-+|-+$/g, "").slice(0, 40) || "conversation";
    download(`${name}.${form === "json" ? "json" : "md"}`, text, form === "json" ? "application/json" : "text/markdown");
  }
}
