// The page: creates its parts and connects them. Gradio starts it (see ui/app.py).

import { Chat } from "./chat.js";
import { Compare } from "./compare.js";
import { h, icon } from "./dom.js";
import { Lanes } from "./lanes.js";
import * as markup from "./markup.js";
import { SettingsForm, effective, keyField, summary } from "./settings.js";
import { Sidebar } from "./sidebar.js";
import { Status } from "./status.js";
import * as store from "./store.js";
import * as words from "./words.js";

const { t } = words;
const THEMES = ["system", "light", "dark"];
const TABS = ["chat", "compare"];
const KEY_KINDS = ["key"];

export async function start({ element, trigger, server, home, settings }) {
  const link = h("link", { rel: "stylesheet", href: new URL("page/page.css", home).href });
  const styled = new Promise((resolve) => { link.onload = resolve; link.onerror = resolve; });
  document.head.append(link);
  await Promise.all([words.begin(home), markup.begin(home, settings), styled]);
  new Page({ root: element.querySelector(".satori"), trigger, server, home });
}

class Page {
  constructor({ root, trigger, server, home }) {
    Object.assign(this, { root, trigger, server, home });
    this.models = [];
    this.tab = "chat";
    this.live = h("p", { class: "offscreen", role: "status", "aria-live": "polite" });
    this.notice = h("p", { class: "notice", role: "alert", hidden: true });
    const announce = (text, seen) => this.announce(text, seen);
    const shared = { lanes: new Lanes(trigger, home), models: () => this.models, announce, check: () => trigger("check") };
    this.status = new Status({ announce });
    this.bar = h("button", { type: "button", class: "summary", "aria-controls": "settings", onclick: () => this.drawer("settings") });
    this.chat = new Chat({ ...shared, bar: this.bar, listed: () => this.sidebar?.refresh() });
    this.compare = new Compare(shared);
    this.sidebar = new Sidebar({ server, current: () => this.chat.kept.id, opened: (id) => this.open(id), removed: (id) => this.chat.forget(id), cleared: () => this.chat.clear(), renamed: (id, title) => this.chat.rename(id, title) });
    this.theme(store.theme());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.theme(store.theme()));
    this.draw();
    window.satoriLanes.receive.status = (state) => this.receive(state);
    if (window.satoriLanes.latest.status) this.receive(window.satoriLanes.latest.status);
    addEventListener("keydown", (event) => { if (event.key === "Escape") this.drawer(null); });
    addEventListener("online", () => this.trigger("check"));
    addEventListener("storage", () => this.sidebar.refresh());
  }

  announce(text, seen = false) {
    this.live.textContent = text;
    this.notice.textContent = seen ? text : "";
    this.notice.hidden = !seen;
  }

  draw() {
    this.panel = h("aside", { class: "drawer", id: "settings", "aria-label": t("settings.title") });
    this.shade = h("div", { class: "shade", onclick: () => this.drawer(null) });
    this.root.replaceChildren(this.header(), h("div", { class: "columns" }, this.sidebar.element,
      h("main", {}, this.status.element, this.notice, this.chat.element, this.compare.element), this.panel, this.shade), this.live);
    this.settings();
    this.show(this.tab);
    this.drawer(null);
  }

  header() {
    const button = (name, label, onclick, extra = {}) => h("button", { type: "button", class: `bare ${name}`, "aria-label": label, title: label, onclick, ...extra }, icon(name));
    const language = h("button", { type: "button", class: "bare language", lang: words.language === "zh" ? "en" : "zh", onclick: () => this.speak() }, t("language.other"));
    const theme = store.theme();
    const next = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
    const tabs = TABS.map((name) => h("button", { type: "button", role: "tab", id: `tab-${name}`, "aria-controls": `panel-${name}`, onclick: () => this.show(name), onkeydown: (event) => this.arrow(event) }, t(`tab.${name}`)));
    return h("header", {},
      button("menu", t("sidebar.label"), () => this.drawer("sidebar"), { "aria-controls": "sidebar" }),
      h("h1", {}, "Satori"),
      h("div", { class: "tabs", role: "tablist", "aria-label": t("tab.label") }, tabs),
      h("span", { class: "space" }), language,
      button(theme, t("theme.next", { now: t(`theme.${theme}`), next: t(`theme.${next}`) }), () => { this.theme(next); this.redraw(".theme"); }, { "data-theme-button": "" }),
      button("settings", t("settings.title"), () => this.drawer("settings"), { "aria-controls": "settings" }));
  }

  settings() {
    const form = new SettingsForm("chat", this.models, () => this.summarize());
    this.panel.replaceChildren(
      h("div", { class: "head" }, h("h2", {}, t("settings.title")),
        h("button", { type: "button", class: "bare", "aria-label": t("action.close"), onclick: () => this.drawer(null) }, icon("close"))),
      form.element, h("form", { class: "settings", onsubmit: (event) => event.preventDefault() }, keyField(() => this.ownModels())));
    this.summarize();
  }

  summarize() {
    this.bar.replaceChildren(icon("settings"), h("span", {}, summary(effective("chat", this.models), this.models)));
    this.bar.setAttribute("aria-label", `${t("settings.title")}: ${this.bar.textContent}`);
  }

  // There are two languages: the button switches to the other one.
  async speak() {
    await words.speak(words.language === "en" ? "zh" : "en", this.home);
    this.redraw(".language");
  }

  redraw(focused) {
    this.chat.draw();
    this.compare.draw();
    this.sidebar.draw();
    this.status.draw();
    this.draw();
    this.root.querySelector(focused === ".theme" ? "[data-theme-button]" : focused)?.focus();
  }

  theme(name) {
    store.saveTheme(name);
    const dark = name === "dark" || (name === "system" && matchMedia("(prefers-color-scheme: dark)").matches);
    document.body.classList.toggle("dark", dark); // Gradio's own class
    document.documentElement.dataset.theme = dark ? "dark" : "light";
  }

  show(tab) {
    this.tab = tab;
    for (const name of TABS) {
      this[name].element.hidden = name !== tab;
      const button = this.root.querySelector(`#tab-${name}`);
      button.setAttribute("aria-selected", String(name === tab));
      button.tabIndex = name === tab ? 0 : -1;
    }
    this.root.dataset.tab = tab;
    this[tab].composer.fit();
  }

  arrow(event) {
    if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
    const other = TABS.find((name) => name !== this.tab);
    this.show(other);
    this.root.querySelector(`#tab-${other}`).focus();
  }

  // Opens a drawer, or closes both.
  drawer(name) {
    const before = this.root.dataset.drawer;
    this.root.dataset.drawer = name ?? "";
    if (name) this.root.querySelector(`#${name}`).querySelector("button, input, select").focus();
    else if (before) this.root.querySelector(`header .${before === "sidebar" ? "menu" : "settings"}`)?.focus();
  }

  open(id) {
    this.chat.open(id);
    this.sidebar.refresh();
    this.drawer(null);
    this.show("chat");
    this.chat.composer.box.focus();
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
