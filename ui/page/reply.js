// A reply on the page: the outline of its thought, the votes and their chains, the answer, the measurements. `update` draws only what has changed.

import { Chains } from "./chains.js";
import { editor } from "./composer.js";
import { copyButton, h, icon, setHidden, setText } from "./dom.js";
import { Prose, writeAnswer } from "./markup.js";
import { isRunning, unanswered } from "./turns.js";
import { t } from "./words.js";

export const seconds = (value) => t("unit.seconds", { count: value < 10 ? value.toFixed(1) : Math.round(value) });
export const wholeSeconds = (value) => t("unit.seconds", { count: Math.round(value) });

const LONG = 4; // steps from which a thought has tools
const VERY_LONG = 20; // and a map
const DEEPEST = 4; // branches are indented no further

class Step {
  // `goOn(text)` has the model go on from this step with another text; null where it cannot. `jump(place)` shows another step.
  constructor(action, number, goOn, jump) {
    const name = action ?? "none";
    Object.assign(this, { action, name, goOn, jump });
    this.number = h("span", { class: "facts" }, String(number));
    this.refuted = h("span", { class: "facts refuted-word", hidden: true }, t("thought.refuted"));
    this.preview = h("span", { class: "preview", dir: "auto" });
    this.facts = h("span", { class: "facts" });
    this.body = h("div", { class: "written" });
    this.details = h("details", { open: true, ontoggle: () => this.describe() },
      h("summary", {}, icon(name), this.number, h("span", { class: "word" }, t(`step.${name}`)), this.refuted, this.preview, this.facts), this.body);
    this.element = h("li", { class: `step ${name}` }, this.details);
    this.prose = new Prose(this.body);
  }

  // Draws a step; `growing` says that it is still written, `running` that the reply is.
  update(step, growing, running) {
    if (step === this.step && growing === this.growing && running === this.running) return;
    if (!running && this.goOn && !this.button) {
      this.button = h("button", { type: "button", class: "quiet go-on", onclick: () => this.edit() }, icon("edit"), t("thought.edit"));
      this.details.append(this.button);
    }
    const given = step.tokens === 0; // the model has not written it
    const time = step.seconds === null || given ? "" : seconds(step.seconds);
    const tokens = step.tokens === null || given ? "" : t("unit.tokens", { count: step.tokens });
    setText(this.facts, [time, tokens].filter((fact) => fact).join(" · "));
    if (step.text !== this.step?.text || growing !== this.growing) this.prose.write(step.text, growing);
    Object.assign(this, { step, growing, running });
    this.describe();
  }

  // Shows how the step begins, where it is folded.
  describe() {
    if (!this.details.open) setText(this.preview, this.step.text.trim().split("\n")[0].replace(/\\[()[\]]|\$/g, "").slice(0, 120));
  }

  // Draws where a step is in the tree of a thought (`treeOf`).
  place({ depth, refuted, checked }) {
    const drawn = `${depth} ${refuted} ${checked?.from} ${checked?.to}`;
    if (this.placed === drawn) return;
    Object.assign(this, { placed: drawn, checked });
    this.element.style.setProperty("--depth", Math.min(depth, DEEPEST));
    this.element.classList.toggle("refuted", refuted);
    this.refuted.hidden = !refuted;
    if (!checked) return;
    this.checks ??= this.body.insertAdjacentElement("afterend", h("button", { type: "button", class: "quiet checks", onclick: () => this.jump(this.checked.from) }));
    setText(this.checks, t("thought.checks", { count: checked.to - checked.from + 1, from: checked.from + 1, to: checked.to + 1 }));
  }

  show() {
    this.details.open = true;
    this.element.scrollIntoView({ block: "nearest" });
    this.element.querySelector("summary").focus({ preventScroll: true });
  }

  // Shows the text to be changed, with the markup in which the model has written it.
  edit() {
    const shown = (form) => {
      this.form?.remove();
      this.form = form;
      this.body.hidden = this.button.hidden = Boolean(form);
    };
    const cancel = () => { shown(null); this.button.focus({ preventScroll: true }); };
    const submit = (text) => { shown(null); this.goOn(text); };
    const rows = Math.min(12, this.step.text.split("\n").length + 1);
    const [box, actions] = editor({ value: this.step.text, rows, label: t("thought.text"), word: t("thought.go_on"), submit, cancel });
    shown(h("div", { class: "question" }, box, actions));
    this.details.append(this.form);
    box.focus({ preventScroll: true });
  }
}

class Votes {
  constructor() {
    this.count = h("p", { class: "count" });
    this.bars = h("ul", {});
    this.element = h("div", { class: "votes", role: "group", hidden: true, "aria-label": t("vote.title") }, h("h3", {}, t("vote.title")), this.count, this.bars);
  }

  update(vote) {
    this.element.hidden = !vote;
    if (!vote || this.drawn === JSON.stringify(vote)) return;
    this.drawn = JSON.stringify(vote);
    this.count.textContent = t(vote.decided ? "vote.decided" : "vote.counted", { counted: vote.counted, samples: vote.samples });
    this.bars.replaceChildren(...vote.votes.map(({ answer, votes }, place) => {
      const words = h("span", { class: "label" });
      writeAnswer(words, answer);
      const bar = h("span", { class: "bar", "aria-hidden": "true" }, h("span", { style: `width: ${(100 * votes) / vote.samples}%` }));
      return h("li", { class: place ? "" : "leader" }, words, bar, h("span", { class: "number" }, t("vote.votes", { count: votes })));
    }));
  }
}

// Returns the tree of a thought from its actions, for each step: how many branches it is within (`depth`: an exploration opens one), the
// steps that it looks at again (`checked`), if it is a reflection, and whether it was set aside (`refuted`: an exploration follows a
// reflection on it, as in ui/assurance.py).
export function treeOf(actions) {
  const tree = [];
  let [begun, unchecked] = [0, 0];
  actions.forEach((action, at) => {
    if (action === "explore") {
      if (actions[at - 1] === "reflect") tree.forEach((one, index) => { one.refuted ||= index >= begun && actions[index] !== "reflect"; });
      [begun, unchecked] = [at, at];
    }
    const checked = action === "reflect" && unchecked < at ? { from: unchecked, to: at - 1 } : null;
    if (action === "reflect") unchecked = at + 1;
    tree.push({ depth: (tree.at(-1)?.depth ?? 0) + (action === "explore"), refuted: false, checked });
  });
  return tree;
}

// All steps of a very long thought in a strip, for the mouse: the keyboard has the filters.
class Overview {
  constructor(jump) {
    this.element = h("div", { class: "overview", "aria-hidden": "true", hidden: true, onclick: ({ target }) => {
      const place = [...this.element.children].indexOf(target);
      if (place >= 0) jump(place);
    } });
  }

  update(steps, tree) {
    this.element.hidden = steps.length < VERY_LONG;
    if (this.element.hidden) return;
    while (this.element.children.length > steps.length) this.element.lastChild.remove();
    steps.forEach(({ name }, place) => {
      const wanted = `tone ${name}${tree[place].refuted ? " refuted" : ""}`;
      const mark = this.element.children[place] ?? this.element.appendChild(h("span", { title: `${place + 1}` }));
      if (mark.className !== wanted) mark.className = wanted;
    });
  }
}

// What finds its way in a long thought: only the steps of one action, all steps folded, the last step.
class Tools {
  constructor(steps) {
    this.steps = steps;
    this.only = null; // the action whose steps are seen; null for all
    this.filters = new Map(); // by action: {button, count}
    this.actions = h("div", { class: "filters" });
    this.foldWords = h("span", {}, t("thought.fold"));
    this.element = h("div", { class: "tools", role: "group", "aria-label": t("thought.tools"), hidden: true }, this.actions,
      h("button", { type: "button", class: "quiet", onclick: () => this.fold() }, this.foldWords),
      h("button", { type: "button", class: "quiet", onclick: () => this.end() }, t("thought.end")));
  }

  update() {
    this.element.hidden = this.steps.length < LONG;
    const counts = new Map();
    for (const { name } of this.steps) counts.set(name, (counts.get(name) ?? 0) + 1);
    for (const [name, count] of counts) {
      if (!this.filters.has(name)) this.add(name);
      setText(this.filters.get(name).count, String(count));
    }
    this.show();
  }

  add(name) {
    const count = h("span", { class: "facts" });
    const button = h("button", { type: "button", class: `quiet tone ${name}`, "aria-pressed": "false", onclick: () => {
      this.only = this.only === name ? null : name;
      this.show();
    } }, icon(name), h("span", {}, t(`step.${name}`)), count);
    this.filters.set(name, { button, count });
    this.actions.append(button);
  }

  show() {
    for (const [name, { button }] of this.filters) button.setAttribute("aria-pressed", String(name === this.only));
    for (const { name, element } of this.steps) {
      const hidden = this.only !== null && name !== this.only;
      setHidden(element, hidden);
    }
  }

  // Folds all steps; unfolds them where they are.
  fold() {
    this.folded = !this.folded;
    for (const { element } of this.steps) element.firstChild.open = !this.folded;
    setText(this.foldWords, t(this.folded ? "thought.unfold" : "thought.fold"));
  }

  end() {
    const { element } = this.steps.findLast((step) => !step.element.hidden);
    element.scrollIntoView({ block: "end" });
    element.querySelector("summary").focus({ preventScroll: true });
  }

  // Shows a step, and all others again where the filter hides it.
  jump(place) {
    if (this.steps[place].element.hidden) this.only = null;
    this.show();
    this.steps[place].show();
  }
}

// Returns the views of the steps of a thought that is complete.
function drawSteps(steps) {
  const tree = treeOf(steps.map((step) => step.action));
  const views = steps.map((step, at) => new Step(step.action, at + 1, null, (place) => views[place].show()));
  views.forEach((view, at) => {
    view.update(steps[at], false, false);
    view.place(tree[at]);
  });
  return views;
}

// How fast a thought is written, and when it may end, in words. A reply that was kept by an older page has no progress.
function progress(known) {
  if (!known) return [];
  const [low, , high] = (known.eta_s ?? []).map(Math.round);
  const left = low === high ? String(high) : `${low}–${high}`;
  return [known.tokens_per_s === null ? "" : t("unit.speed", { count: Math.round(known.tokens_per_s) }),
    known.eta_s ? t("thought.left", { left }) : ""];
}

// Returns steps as a thought to go on from, the last one with another text.
const thoughtOf = (steps, text) => steps.map((step, at) => ({ action: step.action, text: at === steps.length - 1 ? text : step.text }));

class Thought {
  // `goOn(thought)` has the model go on from these steps; null where it cannot.
  constructor(goOn) {
    this.goOn = goOn;
    this.steps = [];
    this.title = h("span", { class: "word" });
    this.facts = h("span", { class: "facts" });
    this.list = h("ol", {});
    this.tools = new Tools(this.steps);
    this.jump = (place) => this.tools.jump(place);
    this.overview = new Overview(this.jump);
    this.details = h("details", { class: "thought", open: true, hidden: true }, h("summary", {}, h("span", { class: "spinner", "aria-hidden": "true" }), icon("menu"), this.title, this.facts), this.tools.element, this.overview.element, this.list);
    // Once the reader has folded or unfolded it, it stays that way.
    this.details.firstChild.addEventListener("click", () => { this.chosen = true; });
    this.element = this.details;
  }

  // Whether the reader has unfolded it; null where they have left it alone.
  get folded() {
    return this.chosen ? this.details.open : null;
  }

  fold(open) {
    this.chosen = true;
    this.details.open = open;
  }

  update(reply) {
    this.reply = reply;
    const thinking = ["thinking", "voting"].includes(reply.phase);
    setHidden(this.details, !reply.steps.length);
    let begun = false; // a step
    reply.steps.forEach((step, index) => {
      const drawn = this.steps[index];
      if (drawn?.action !== step.action) {
        begun = true;
        this.steps[index] = new Step(step.action, index + 1, this.goOn && ((text) => this.goOn(thoughtOf(this.reply.steps.slice(0, index + 1), text))), this.jump);
        if (drawn) drawn.element.replaceWith(this.steps[index].element);
        else this.list.append(this.steps[index].element);
      }
      this.steps[index].update(step, thinking && index === reply.steps.length - 1, isRunning(reply));
    });
    if (begun) this.arrange(reply.steps);
    const timed = !reply.vote && reply.steps.every((step) => step.seconds !== null); // not where it was read anew
    const total = timed ? seconds(reply.steps.reduce((sum, step) => sum + step.seconds, 0)) : "";
    const known = reply.steps.every((step) => step.tokens !== null);
    const tokens = known ? t("unit.tokens", { count: reply.steps.reduce((sum, step) => sum + step.tokens, 0) }) : "";
    setText(this.title, t(thinking ? "thought.now" : "thought.past"));
    setText(this.facts, [t("unit.steps", { count: reply.steps.length }), total, tokens, ...(reply.lost ? [] : progress(reply.progress))].filter((fact) => fact).join(" · "));
    this.details.classList.toggle("running", thinking);
    if (!this.chosen && (reply.phase === "answering" || reply.phase === "done")) this.details.open = false;
  }

  // Draws what depends on which steps there are.
  arrange(steps) {
    const tree = treeOf(steps.map((step) => step.action));
    this.steps.forEach((step, index) => step.place(tree[index]));
    this.tools.update();
    this.overview.update(this.steps, tree);
  }
}

const STATS = ["ttft_s", "tokens_per_s", "seconds", "tokens", "reasoning_tokens", "prompt_tokens", "reflections", "explorations"];

function stats(values) {
  const shown = STATS.filter((name) => values[name] !== null && values[name] !== undefined);
  const value = (name) => (name.endsWith("_s") && name !== "tokens_per_s" || name === "seconds" ? t("unit.seconds", { count: values[name] }) : values[name]);
  return h("dl", { class: "stats", "aria-label": t("stats.title") },
    shown.map((name) => h("div", {}, h("dt", {}, t(`stats.${name}`)), h("dd", {}, String(value(name))))));
}

// How sure an answer is, in words: the same as in ui/assurance.py.
function sure({ agree, counted, checks, refuted, unfinished }) {
  return [
    counted === null ? t("sure.single") : t("sure.votes", { agree, counted }),
    checks === 0 ? t("sure.unchecked") : checks ? t("sure.checks", { count: checks }) : "",
    refuted ? t("sure.refuted", { count: refuted }) : "",
    unfinished ? t("sure.unfinished") : "",
  ].filter((part) => part).join(" · ");
}

function problem(error, retry) {
  const wait = error.retry_after_s;
  return h("div", { class: "problem", role: "alert" }, icon("warning"), h("div", {},
    h("strong", {}, t(`error.${error.kind}.title`)),
    h("p", {}, t(`error.${error.kind}.help`), wait ? ` ${t("error.wait", { count: Math.ceil(wait) })}` : ""),
    error.message ? h("details", {}, h("summary", {}, t("error.detail")), h("code", {}, error.message)) : null,
    retry ? h("button", { type: "button", class: "primary", onclick: retry }, icon("retry"), t("action.retry")) : null));
}

export class ReplyView {
  // `retry` asks again, `goOn(thought)`, if it is given, has the model go on from these steps.
  constructor({ retry, goOn = null }) {
    this.retry = retry;
    this.status = h("p", { class: "waiting", hidden: true });
    this.votes = new Votes();
    this.thought = new Thought(goOn);
    this.content = h("div", { class: "written content" });
    this.prose = new Prose(this.content);
    this.answer = h("div", { class: "answer", role: "group", hidden: true, "aria-label": t("answer.title") });
    this.chains = new Chains(drawSteps);
    this.lost = h("p", { class: "note lost", role: "status" });
    this.end = h("div", { class: "end" });
    this.element = h("article", { class: "reply", "aria-label": t("reply.title") },
      this.status, this.votes.element, this.thought.element, this.content, this.answer, this.chains.element, this.lost, this.end);
  }

  update(reply) {
    this.state(reply);
    this.votes.update(reply.vote);
    this.thought.update(reply);
    const written = `${reply.phase === "answering"} ${reply.content}`;
    if (this.written !== written) {
      this.written = written;
      this.prose.write(reply.content, reply.phase === "answering");
    }
    this.conclude(reply);
    if (this.ended !== reply.phase) this.finish(reply);
  }

  state(reply) {
    const before = { held: "state.held", sent: "state.sent", voting: "state.voting" }[reply.phase];
    const waits = reply.phase === "waiting" ? `state.waiting.${reply.waiting.kind}` : before;
    setText(this.lost, reply.lost ? t(unanswered(reply) ? "state.unsent" : "state.lost") : "");
    setHidden(this.status, !waits || Boolean(reply.lost));
    if (waits) setText(this.status, `${t(waits)} ${reply.elapsed_s >= 1 ? wholeSeconds(reply.elapsed_s) : ""}`);
  }

  conclude({ answer, assurance }) {
    const drawn = JSON.stringify([answer ?? null, assurance ?? null]);
    if (this.concluded === drawn) return;
    this.concluded = drawn;
    this.answer.hidden = answer === null || answer === undefined;
    if (this.answer.hidden) return;
    this.answer.dataset.sure = assurance?.level ?? "some";
    const value = h("output", { dir: "auto" });
    writeAnswer(value, answer);
    this.answer.replaceChildren(h("h3", {}, t("answer.title")), value, copyButton(t("answer.copy"), t("action.copied"), () => answer),
      assurance ? h("p", { class: "sure" }, sure(assurance)) : "");
  }

  finish(reply) {
    this.ended = reply.phase;
    this.element.dataset.phase = reply.phase;
    this.element.setAttribute("aria-busy", String(isRunning(reply)));
    if (!isRunning(reply)) this.chains.update(reply);
    const parts = [];
    if (reply.phase === "stopped") parts.push(h("p", { class: "note" }, t("state.stopped")));
    if (reply.finish === "length") parts.push(h("p", { class: "note" }, t("state.length")));
    if (reply.phase === "error") parts.push(problem(reply.error, this.retry));
    if (reply.stats && reply.phase === "done") parts.push(stats(reply.stats));
    if (!isRunning(reply) && this.retry) parts.push(this.actions(reply));
    this.end.replaceChildren(...parts);
  }

  actions(reply) {
    const whole = () => [...reply.steps.map((step) => step.text.trim()), reply.content.trim()].join("\n\n").trim();
    return h("div", { class: "actions" },
      whole() ? copyButton(t("action.copy"), t("action.copied"), whole) : null,
      reply.phase === "error" ? null : h("button", { type: "button", class: "quiet", onclick: this.retry }, icon("retry"), t("action.retry")));
  }
}
