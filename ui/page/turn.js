// A turn on the page: its question, which can be edited, its versions, and the reply.

import { editor } from "./composer.js";
import { copyButton, h, icon, setHidden } from "./dom.js";
import { ReplyView } from "./reply.js";
import { t } from "./words.js";

export class TurnView {
  // `edited(text)` asks another question in its place, `retry()` asks again, `goOn(thought)` has the model go on from these steps,
  // `chosen(turn)` shows another version.
  constructor(turn, number, { edited, retry, goOn, chosen }) {
    Object.assign(this, { turn, edited, chosen });
    this.reply = new ReplyView({ retry, goOn });
    const begun = turn.thought.length;
    this.question = h("div", { class: "question" });
    this.versions = h("div", { class: "versions", role: "group", "aria-label": t("versions.label"), hidden: true });
    this.elsewhere = h("p", { class: "note", hidden: true }, t("state.elsewhere"));
    this.element = h("section", { class: "turn", "data-turn": turn.id, "aria-label": t("question.title", { number }) },
      h("h2", { class: "offscreen" }, t("question.title", { number })), this.question, begun ? h("p", { class: "note" }, t("state.begun", { count: begun })) : null, this.elsewhere, this.reply.element);
    this.read();
  }

  // `versions` are all turns in its place, `elsewhere` says that another tab receives the reply.
  update(versions, elsewhere) {
    setHidden(this.elsewhere, !elsewhere);
    if (this.turn.reply) this.reply.update(this.turn.reply);
    const drawn = versions.map((one) => one.id).join();
    if (this.drawn === drawn) return;
    this.drawn = drawn;
    const at = versions.indexOf(this.turn);
    const arrow = (name, to) => h("button", { type: "button", class: "bare", "data-focus": name, "aria-label": t(`versions.${name}`), title: t(`versions.${name}`), disabled: !to, onclick: () => this.chosen(to, name) }, icon(name));
    this.versions.hidden = versions.length < 2;
    this.versions.replaceChildren(arrow("before", versions[at - 1]), h("span", { class: "facts" }, `${at + 1}/${versions.length}`), arrow("after", versions[at + 1]));
  }

  // Shows the question to be read.
  read() {
    this.question.replaceChildren(h("p", { class: "bubble", dir: "auto" }, this.turn.question), h("div", { class: "actions" }, this.versions,
      copyButton(t("action.copy"), t("action.copied"), () => this.turn.question),
      h("button", { type: "button", class: "quiet edit", onclick: () => this.edit() }, icon("edit"), t("action.edit"))));
  }

  edit() {
    const cancel = () => { this.read(); this.question.querySelector(".edit").focus({ preventScroll: true }); };
    const [box, actions] = editor({ value: this.turn.question, rows: 3, label: t("action.edit"), word: t("composer.send"), submit: (text) => this.edited(text.trim()), cancel });
    this.question.replaceChildren(box, actions);
    box.focus({ preventScroll: true });
  }

  // Gives the focus to an arrow, or to the one that can still be used.
  focus(name) {
    const arrows = [...this.versions.querySelectorAll("button")];
    (arrows.find((one) => one.dataset.focus === name && !one.disabled) ?? arrows.find((one) => !one.disabled))?.focus({ preventScroll: true });
  }
}
