// What the page shows until the model is ready: the current stage, the time so far, and what comes next.

import { h, icon } from "./dom.js";
import { wholeSeconds } from "./reply.js";
import { t } from "./words.js";

const STAGES = ["starting", "loading", "ready"];

export class Status {
  constructor({ announce }) {
    this.announce = announce;
    this.state = null;
    this.element = h("section", { class: "status", hidden: true });
  }

  update(state) {
    const before = this.state;
    this.state = state;
    this.draw();
    if (before && before.stage !== state.stage) this.announce(t(`status.${state.stage}.now`));
  }

  draw() {
    if (!this.state) return;
    const { stage, elapsed_s, reason } = this.state;
    this.element.hidden = stage === "ready";
    if (this.element.hidden) return;
    this.element.setAttribute("aria-label", t("status.label"));
    if (stage === "asleep" || stage === "lost") {
      this.element.replaceChildren(h("div", { class: "line" }, h("strong", {}, t(`status.${stage}.now`))), h("p", { class: "hint" }, t(`status.${stage}.hint`)));
      return;
    }
    const at = STAGES.indexOf(stage);
    this.element.replaceChildren(
      h("div", { class: "line" }, h("span", { class: "spinner", "aria-hidden": "true" }), h("strong", {}, t(`status.${stage}.now`)), h("span", { class: "facts" }, wholeSeconds(elapsed_s))),
      h("ol", {}, STAGES.map((name, index) => h("li", { class: index < at ? "past" : index === at ? "now" : "", "aria-current": index === at ? "step" : null },
        index < at ? icon("done") : null, t(`status.${name}`)))),
      h("p", { class: "hint" }, t("status.hint"), reason && stage === "loading" ? ` (${reason})` : ""));
  }
}
