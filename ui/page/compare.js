// The same question with two settings, side by side.

import { Composer } from "./composer.js";
import { h } from "./dom.js";
import { ReplyView } from "./reply.js";
import { SettingsForm, effective, forRequest, summary } from "./settings.js";
import * as store from "./store.js";
import { blank, ended, isRunning, soundReply } from "./turns.js";
import { t } from "./words.js";

const SIDES = [{ name: "a", lane: 1 }, { name: "b", lane: 2 }];

export class Compare {
  constructor({ lanes, models, announce }) {
    Object.assign(this, { lanes, models, announce });
    this.element = h("section", { class: "compare", id: "panel-compare", role: "tabpanel", "aria-labelledby": "tab-compare", hidden: true });
    const { question, replies } = store.comparison() ?? {};
    this.question = typeof question === "string" ? question : "";
    const sound = Object.entries(replies ?? {}).filter(([, reply]) => soundReply(reply));
    this.replies = Object.fromEntries(sound.map(([name, reply]) => [name, ended(reply)]));
    this.draw();
  }

  draw() {
    this.composer = new Composer("compare", { send: (text) => this.ask(text), stop: () => this.stop() });
    this.asked = h("h2", { class: "asked", dir: "auto" });
    this.views = {};
    const sides = SIDES.map((side) => this.side(side));
    this.element.replaceChildren(h("div", { class: "scroller", tabindex: "0", role: "region", "aria-label": t("tab.compare") },
      h("p", { class: "hint intro" }, t("compare.intro")), this.asked, h("div", { class: "sides" }, sides)), this.composer.element);
    this.refresh();
  }

  side({ name, lane }) {
    const words = h("span", { class: "facts" });
    const describe = () => { words.textContent = summary(effective(name, this.models()), this.models()); };
    const form = new SettingsForm(name, this.models(), describe);
    describe();
    this.views[name] = new ReplyView({ retry: () => this.begin(name, lane) });
    if (this.replies[name]) this.views[name].update(this.replies[name]);
    return h("section", { class: `side ${name}`, "aria-label": t(`compare.${name}`) },
      h("details", { class: "setup" }, h("summary", {}, h("span", { class: "word" }, t(`compare.${name}`)), words), form.element),
      this.views[name].element);
  }

  refresh() {
    this.asked.textContent = this.question;
    this.asked.hidden = !this.question;
    this.composer.busy = this.busy;
  }

  get busy() {
    return Object.values(this.replies).some(isRunning);
  }

  ask(text) {
    this.question = text;
    SIDES.forEach(({ name, lane }) => this.begin(name, lane));
  }

  begin(name, lane) {
    const id = store.newId();
    const settings = forRequest(effective(name, this.models()));
    const question = { id, messages: [{ role: "user", content: this.question }], settings, key: store.key() };
    const view = new ReplyView({ retry: () => this.begin(name, lane) });
    this.views[name].element.replaceWith(view.element);
    this.views[name] = view;
    this.receive(name, blank("sent", id));
    this.lanes.ask(lane, question, (state) => this.receive(name, state));
    this.composer.box.focus();
  }

  receive(name, reply) {
    const before = this.replies[name];
    this.replies[name] = reply;
    this.views[name].update(reply);
    if (before?.phase === reply.phase) return;
    store.saveComparison({ question: this.question, replies: this.replies });
    this.refresh();
    if (reply.phase === "done") this.announce(`${t(`compare.${name}`)}: ${reply.answer ? t("live.answer", { answer: reply.answer }) : t("live.done")}`);
  }

  stop() {
    for (const { name, lane } of SIDES) {
      if (!isRunning(this.replies[name])) continue;
      this.lanes.stop(lane);
      this.receive(name, { ...this.replies[name], phase: "stopped" });
    }
    this.announce(t("state.stopped"));
    this.composer.box.focus();
  }
}
