// The same question with two settings, side by side.

import { Composer } from "./composer.js";
import { h } from "./dom.js";
import { ReplyView } from "./reply.js";
import { SettingsForm, effective, forRequest, summary } from "./settings.js";
import * as store from "./store.js";
import { blank, ended, goesOn, isRunning, soundReply } from "./turns.js";
import { t } from "./words.js";

const SIDES = ["a", "b"];

export class Compare {
  constructor({ replies, models, announce }) {
    Object.assign(this, { follower: replies, models, announce });
    this.element = h("section", { class: "compare", id: "panel-compare", role: "tabpanel", "aria-labelledby": "tab-compare", hidden: true });
    const kept = store.comparison() ?? {};
    this.question = typeof kept.question === "string" ? kept.question : "";
    this.settings = kept.settings ?? {}; // with which each reply was asked for
    const sound = Object.entries(kept.replies ?? {}).filter(([, reply]) => soundReply(reply));
    const again = sound.filter(([name, reply]) => goesOn(reply) && this.settings[name]);
    this.replies = Object.fromEntries(sound.map(([name, reply]) => [name, this.settings[name] && goesOn(reply) ? reply : ended(reply)]));
    this.draw();
    again.forEach(([name]) => this.follow(name));
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

  side(name) {
    const words = h("span", { class: "facts" });
    const describe = () => { words.textContent = summary(effective(name, this.models()), this.models()); };
    const form = new SettingsForm(name, this.models(), describe);
    describe();
    this.views[name] = new ReplyView({ retry: () => this.begin(name) });
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
    SIDES.forEach((name) => this.begin(name));
  }

  begin(name) {
    this.settings[name] = forRequest(effective(name, this.models()));
    const view = new ReplyView({ retry: () => this.begin(name) });
    this.views[name].element.replaceWith(view.element);
    this.views[name] = view;
    this.receive(name, blank("sent", store.newReplyId()));
    this.follow(name);
    this.composer.box.focus();
  }

  follow(name) {
    const reply = this.replies[name];
    const question = { id: reply.id, messages: [{ role: "user", content: this.question }], settings: this.settings[name] };
    this.follower.follow(question, reply, (state) => this.receive(name, state));
  }

  receive(name, reply) {
    const before = this.replies[name];
    this.replies[name] = reply;
    this.views[name].update(reply);
    if (before?.phase === reply.phase && before.stored === reply.stored) return;
    store.saveComparison({ question: this.question, replies: this.replies, settings: this.settings });
    if (before?.phase === reply.phase) return;
    if (!isRunning(reply) && reply.stored) this.follower.drop(reply.id);
    this.refresh();
    if (reply.phase === "done") this.announce(`${t(`compare.${name}`)}: ${reply.answer ? t("live.answer", { answer: reply.answer }) : t("live.done")}`);
  }

  stop() {
    for (const name of SIDES) {
      if (!isRunning(this.replies[name])) continue;
      this.follower.stop(this.replies[name].id);
      this.receive(name, { ...this.replies[name], phase: "stopped", lost: false });
    }
    this.announce(t("state.stopped"));
    this.composer.box.focus();
  }
}
