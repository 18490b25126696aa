// The page: creates its parts and connects them. Gradio starts it (see ui/app.py).

import { Chat } from "./chat.js";
import { Compare } from "./compare.js";
import { composing, h, icon, keepingFocus, setHidden, setText } from "./dom.js";
import { Finder } from "./finder.js";
import { Library } from "./library.js";
import * as markup from "./markup.js";
import { Replies } from "./reattach.js";
import { SettingsForm, effective, keyField, summary } from "./settings.js";
import { Sidebar } from "./sidebar.js";
import { Status } from "./status.js";
import * as store from "./store.js";
import * as words from "./words.js";

const { t } = words;
const THEMES = ["system", "light", "dark"];
const TABS = ["chat", "compare"];
const KEY_KINDS = ["key"];
const POLL_MS = 15000;
const LOADING_POLL_MS = 2000;
const NARROW = matchMedia("(max-width: 860px)"); // as in page.css

export async function start({ element, server, home, settings }) {
  const link = h("link", { rel: "stylesheet", href: new URL("page/page.css", home).href });
  const styled = new Promise((resolve) => { link.onload = resolve; link.onerror = resolve; });
  document.head.append(link);
  const [library] = await Promise.all([Library.begin(), words.begin(home), markup.begin(home, settings), styled]);
  const page = new Page({ root: element.querySelector(".satori"), server, home, library });
  await page.begin();
}

class Page {
  constructor({ root, server, home, library }) {
    Object.assign(this, { root, server, home, library });
    this.models = [];
    this.tab = "chat";
    this.troubles = [];
    this.live = h("p", { class: "offscreen", role: "status", "aria-live": "polite" });
    this.notice = h("p", { class: "notice", role: "alert", hidden: true });
    this.storage = h("section", { class: "notice storage", role: "alert", hidden: true });
    const announce = (text, seen) => this.announce(text, seen);
    const replies = new Replies(home, { lost: (is) => this.lose(is) });
    const shared = { replies, models: () => this.models, announce, check: () => this.check() };
    this.status = new Status({ announce });
    this.bar = h("button", { type: "button", class: "summary", "aria-haspopup": "dialog", onclick: () => this.openSettings() });
    this.chat = new Chat({ ...shared, library, bar: this.bar, listed: () => this.sidebar?.refresh() });
    this.compare = new Compare(shared);
    this.finder = new Finder({ library, opened: (id) => this.open(id) });
  }

  async begin() {
    await this.chat.open(store.current());
    this.sidebar = new Sidebar({ server: this.server, library: this.library, chat: this.chat, opened: (id) => this.open(id), find: () => this.find(), announce: (text, seen) => this.announce(text, seen) });
    this.panel = h("dialog", { class: "drawer", id: "settings", "aria-labelledby": "settings-title", onclose: () => this.root.querySelector("header .settings").focus(), onclick: (event) => { if (event.target === this.panel) this.panel.close(); } });
    // On a phone the list of conversations is a dialog, too.
    this.menu = h("dialog", { class: "drawer menu-drawer", onclose: () => this.closeMenu(), onclick: (event) => { if (event.target === this.menu) this.menu.close(); } });
    NARROW.addEventListener("change", () => this.menu.close());
    this.theme(store.theme());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.theme(store.theme()));
    this.draw();
    this.chat.scroll.restore();
    this.chat.adoptAll();
    this.check();
    addEventListener("keydown", (event) => this.pressed(event));
    addEventListener("online", () => this.check());
    addEventListener("offline", () => this.lose(true));
    store.onTrouble((kind) => { this.troubles.push(kind); this.tellTroubles(); });
  }

  announce(text, seen = false) {
    setText(this.live, text);
    setText(this.notice, seen ? text : "");
    setHidden(this.notice, !seen);
  }

  // What the browser's storage does not do, and how to save what is here.
  tellTroubles() {
    this.storage.hidden = !this.troubles.length;
    if (this.storage.hidden) return;
    this.storage.replaceChildren(...this.troubles.map((kind) => h("p", {}, t(`storage.${kind}`))), h("div", { class: "actions" },
      h("button", { type: "button", onclick: () => this.sidebar.backup() }, icon("save"), t("storage.save")),
      h("button", { type: "button", onclick: () => { this.troubles = []; this.tellTroubles(); this[this.tab].composer.box.focus(); } }, t("action.close"))));
  }

  draw() {
    this.head = this.header();
    // Gradio's own <main> is around all this.
    this.columns = h("div", { class: "columns" }, this.sidebar.element,
      h("div", { class: "main" }, this.status.element, this.storage, this.notice, this.chat.element, this.compare.element));
    this.root.replaceChildren(this.head, this.columns, this.panel, this.menu, this.finder.element, this.live);
    this.menu.setAttribute("aria-label", t("sidebar.label"));
    this.settings();
    this.tellTroubles();
    this.show(this.tab);
  }

  header() {
    const button = (name, label, onclick, extra = {}) => h("button", { type: "button", class: `bare ${name}`, "data-focus": name, "aria-label": label, title: label, onclick, ...extra }, icon(name));
    const language = h("button", { type: "button", class: "bare language", "data-focus": "language", lang: words.language === "zh" ? "en" : "zh", onclick: () => this.speak() }, t("language.other"));
    const theme = this.chosenTheme();
    const next = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
    const tabs = TABS.map((name) => h("button", { type: "button", role: "tab", id: `tab-${name}`, "aria-controls": `panel-${name}`, onclick: () => this.show(name), onkeydown: (event) => this.arrow(event) }, t(`tab.${name}`)));
    return h("header", {},
      button("menu", t("sidebar.label"), () => this.openMenu(), { "aria-haspopup": "dialog" }),
      h("h1", {}, "Satori"),
      h("div", { class: "tabs", role: "tablist", "aria-label": t("tab.label") }, tabs),
      h("span", { class: "space" }), language,
      button(theme, t("theme.next", { now: t(`theme.${theme}`), next: t(`theme.${next}`) }), () => this.changeTheme(next), { "data-focus": "theme" }),
      button("settings", t("settings.title"), () => this.openSettings(), { "aria-haspopup": "dialog" }));
  }

  settings() {
    const form = new SettingsForm("chat", this.models, () => this.summarize());
    keepingFocus(this.panel, () => this.panel.replaceChildren(h("div", { class: "inside" },
      h("div", { class: "head" }, h("h2", { id: "settings-title" }, t("settings.title")),
        h("button", { type: "button", class: "bare", "aria-label": t("action.close"), onclick: () => this.panel.close() }, icon("close"))),
      form.element, h("form", { class: "settings", onsubmit: (event) => event.preventDefault() }, keyField(() => this.ownModels())))));
    this.summarize();
  }

  summarize() {
    this.bar.replaceChildren(icon("settings"), h("span", {}, summary(effective("chat", this.models), this.models)));
    this.bar.setAttribute("aria-label", `${t("settings.title")}: ${this.bar.textContent}`);
  }

  // There are two languages: the button switches to the other one.
  async speak() {
    await words.speak(words.language === "en" ? "zh" : "en", this.home);
    this.chat.scroll.save();
    keepingFocus(this.root, () => {
      this.chat.draw();
      for (const part of [this.compare, this.sidebar, this.finder, this.status, this]) part.draw();
    });
    this.chat.scroll.restore();
  }

  changeTheme(name) {
    this.theme(name);
    keepingFocus(this.root, () => {
      const before = this.head;
      this.head = this.header();
      before.replaceWith(this.head);
      this.show(this.tab);
    });
  }

  chosenTheme() {
    return THEMES.includes(store.theme()) ? store.theme() : "system";
  }

  theme(name) {
    store.saveTheme(name);
    const dark = name === "dark" || (name !== "light" && matchMedia("(prefers-color-scheme: dark)").matches);
    document.body.classList.toggle("dark", dark); // Gradio's own class
    document.documentElement.dataset.theme = dark ? "dark" : "light";
  }

  show(tab) {
    const hidden = this[tab].element.hidden;
    this.tab = tab;
    for (const name of TABS) {
      this[name].element.hidden = name !== tab;
      const button = this.root.querySelector(`#tab-${name}`);
      button.setAttribute("aria-selected", String(name === tab));
      button.tabIndex = name === tab ? 0 : -1;
    }
    this.root.dataset.tab = tab;
    this[tab].composer.fit();
    if (hidden && tab === "chat") this.chat.scroll.restore();
  }

  arrow(event) {
    if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
    const other = TABS.find((name) => name !== this.tab);
    this.show(other);
    this.root.querySelector(`#tab-${other}`).focus();
  }

  openSettings() {
    this.panel.showModal();
  }

  openMenu() {
    this.menu.append(this.sidebar.element);
    this.menu.showModal();
  }

  closeMenu() {
    this.columns.prepend(this.sidebar.element);
    (NARROW.matches ? this.root.querySelector("header .menu") : this.chat.composer.box).focus();
  }

  find() {
    this.menu.close();
    this.finder.open();
  }

  pressed(event) {
    const dialog = this.root.querySelector("dialog[open]");
    if (event.key.toLowerCase() === "k" && (event.ctrlKey || event.metaKey) && !event.altKey && !event.shiftKey) {
      event.preventDefault();
      if (!dialog) this.find();
    }
    if (event.key === "Escape" && !dialog && !composing(event) && this[this.tab].busy) this[this.tab].stop();
  }

  async open(id) {
    await this.chat.open(id);
    this.menu.close();
    this.show("chat");
    this.chat.composer.box.focus();
  }

  // Asks whether the model can answer, now and from time to time.
  async check() {
    clearTimeout(this.polling);
    const checking = this.checking = {};
    const state = await fetch(new URL("state", this.home)).then((response) => (response.ok ? response.json() : null)).catch(() => this.lose(true));
    if (this.checking !== checking) return; // again, meanwhile
    if (state) this.receive(state);
    this.polling = setTimeout(() => this.check(), state?.stage === "ready" ? POLL_MS : LOADING_POLL_MS);
  }

  // The server cannot be reached, or can again.
  lose(is) {
    if (is) this.status.update({ stage: "lost" });
    else if (this.status.state?.stage === "lost") this.check();
  }

  // Receives a state of the model.
  receive(state) {
    this.status.update(state);
    if (state.models.length) this.useModels(state.models);
    else if (KEY_KINDS.includes(state.error?.kind)) this.ownModels();
  }

  // Asks for the models with the user's own key.
  async ownModels() {
    if (!store.key()) return;
    const { models } = await this.server.models(store.key());
    if (models.length) this.useModels(models);
  }

  useModels(models) {
    if (JSON.stringify(models) === JSON.stringify(this.models)) return;
    this.models = models;
    this.settings();
    if (!this.compare.question) {
      this.compare.draw();
      this.show(this.tab);
    }
  }
}
