// The list of conversations: new, find, switch, rename, delete, clear, export, backup, import.

import { asHtml } from "./document.js";
import { composing, download, h, icon, keepingFocus } from "./dom.js";
import { NoConversation, asJson, asSeen } from "./library.js";
import { language, t } from "./words.js";

export class Sidebar {
  // `chat` shows conversations, `opened` shows one (null: a new one), `find` opens the search, `announce` tells what was done.
  // `server` is Gradio's.
  constructor({ server, library, chat, opened, find, announce }) {
    Object.assign(this, { server, library, chat, opened, find, announce });
    this.element = h("nav", { class: "sidebar", id: "sidebar" });
    library.listed = () => this.refresh();
    this.draw();
  }

  draw() {
    this.list = h("ul", {});
    this.items = new Map();
    const button = (name, label, onclick) => h("button", { type: "button", class: "quiet", onclick }, icon(name), label);
    this.file = h("input", { type: "file", accept: ".json,application/json", hidden: true, "aria-label": t("sidebar.import"), onchange: () => this.take() });
    this.element.setAttribute("aria-label", t("sidebar.label"));
    this.element.replaceChildren(
      h("button", { type: "button", class: "new", onclick: () => this.opened(null) }, icon("add"), t("sidebar.new")),
      h("button", { type: "button", class: "find", onclick: () => this.find() }, icon("find"), t("find.title"), h("kbd", {}, "Ctrl K")),
      this.list,
      h("div", { class: "export one" }, h("h2", {}, t("sidebar.this")), button("save", "Markdown", () => this.export("markdown")), button("save", "HTML", () => this.export("html")), button("save", "JSON", () => this.export("json")), this.clear()),
      h("div", { class: "export" }, h("h2", {}, t("sidebar.all")), button("save", t("sidebar.backup"), () => this.backup()), button("open", t("sidebar.import"), () => this.file.click()), this.file),
      h("p", { class: "hint" }, t("sidebar.kept")));
    this.refresh();
  }

  // Draws the entries that have changed. One that is being renamed or deleted stays as it is, and meanwhile none moves: it would lose
  // the focus, which ends that.
  refresh() {
    const current = this.chat.kept.id;
    const kept = this.library.list();
    keepingFocus(this.element, () => {
      for (const [id, { element }] of this.items) {
        if (kept.some((entry) => entry.id === id)) continue;
        element.remove();
        this.items.delete(id);
      }
      const busy = [...this.items.values()].some((item) => item.busy);
      kept.forEach((entry, place) => {
        const item = this.item(entry, entry.id === current);
        if (busy && item.isConnected) return;
        if (this.list.children[place] !== item) this.list.insertBefore(item, this.list.children[place] ?? null);
      });
    });
    this.element.querySelector(".export.one").hidden = !kept.some((entry) => entry.id === current);
  }

  item(entry, chosen) {
    const drawn = JSON.stringify([entry.title, chosen, Boolean(entry.running)]);
    if (!this.items.has(entry.id)) this.items.set(entry.id, { element: h("li", {}) });
    const item = this.items.get(entry.id);
    if (item.drawn === drawn || item.busy) return item.element;
    item.drawn = drawn;
    const named = entry.title || t("conversation.untitled");
    const button = (name, what, onclick) => h("button", { type: "button", class: "bare", "data-focus": `${name} ${entry.id}`, "aria-label": t(`sidebar.${what}`, { title: named }), title: t(`action.${what}`), onclick }, icon(name));
    item.element.classList.toggle("chosen", chosen);
    item.element.replaceChildren(
      entry.running ? h("span", { class: "spinner", role: "img", "aria-label": t("sidebar.running"), title: t("sidebar.running") }) : "",
      h("button", { type: "button", class: "title", dir: "auto", "data-focus": `open ${entry.id}`, "aria-current": chosen ? "true" : null, onclick: () => this.opened(entry.id) }, named),
      button("edit", "rename", () => this.rename(entry.id, named)), button("delete", "delete", () => this.confirm(entry.id)));
    return item.element;
  }

  // Draws an entry as it was, with the focus on one of its buttons.
  close(id, focused) {
    const item = this.items.get(id);
    if (!item) return;
    Object.assign(item, { busy: false, drawn: null });
    const inside = item.element.contains(document.activeElement);
    this.refresh();
    if (inside || document.activeElement === document.body) item.element.querySelector(`[data-focus="${focused} ${id}"]`)?.focus();
  }

  rename(id, title) {
    const item = this.items.get(id);
    const box = h("input", { type: "text", value: title, "aria-label": t("action.rename") });
    const done = (save) => {
      if (!item.busy) return;
      const wanted = box.value.trim();
      if (save && wanted && wanted !== title) this.chat.rename(id, wanted).then(() => this.refresh());
      this.close(id, "edit");
    };
    box.addEventListener("keydown", (event) => {
      // Without its default: the button that gets the focus would be pressed.
      if (event.key === "Enter" && !composing(event)) { event.preventDefault(); done(true); }
      if (event.key === "Escape") { event.stopPropagation(); event.preventDefault(); done(false); }
    });
    box.addEventListener("blur", () => done(true));
    item.busy = true;
    item.element.replaceChildren(box);
    box.select();
  }

  confirm(id) {
    const item = this.items.get(id);
    const yes = h("button", { type: "button", class: "danger", onclick: () => this.remove(id) }, t("sidebar.delete.yes"));
    item.busy = true;
    item.element.replaceChildren(yes, h("button", { type: "button", onclick: () => this.close(id, "delete") }, t("action.cancel")));
    yes.focus();
  }

  // Returns a button that empties the conversation when it is pressed twice.
  clear() {
    const words = h("span", {}, t("sidebar.clear"));
    let asked = false;
    const reset = () => { asked = false; words.textContent = t("sidebar.clear"); };
    return h("button", { type: "button", class: "quiet", onblur: reset, onclick: () => {
      if (asked) { reset(); this.chat.clear(); return; }
      asked = true;
      words.textContent = t("sidebar.clear.yes");
    } }, icon("delete"), words);
  }

  remove(id) {
    this.library.remove(id);
    (this.list.querySelector(".title") ?? this.element.querySelector(".new")).focus();
  }

  async export(form) {
    const { kept } = this.chat;
    const name = (kept.title || "conversation").replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-+|-+$/g, "").slice(0, 40) || "conversation";
    if (form === "json") download(`${name}.json`, asJson(kept), "application/json");
    else if (form === "html") download(`${name}.html`, await asHtml(kept), "text/html");
    else download(`${name}.md`, await this.server.export({ conversation: asSeen(kept), language }), "text/markdown");
  }

  async backup() {
    download(`satori-${new Date().toISOString().slice(0, 10)}.json`, await this.library.backup(), "application/json");
  }

  async take() {
    const [file] = this.file.files;
    this.file.value = "";
    if (!file) return;
    const { name } = file;
    try {
      const { added, left, broken } = await this.library.take(await file.text());
      this.announce([t("import.done", { count: added }), left ? t("import.left", { count: left }) : "",
        broken.length ? t("import.broken", { name, titles: broken.join(", ") }) : ""].filter((part) => part).join(". "), true);
    } catch (error) {
      if (error instanceof SyntaxError) this.announce(t("import.syntax", { name, reason: error.message }), true);
      else if (error instanceof NoConversation) this.announce(t("import.failed", { name }), true);
      else throw error;
    }
  }
}
