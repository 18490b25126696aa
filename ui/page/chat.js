// The chat: one conversation at a time on the page, one reply at a time on the lane.

import { Composer } from "./composer.js";
import { copyButton, h, icon } from "./dom.js";
import { ReplyView } from "./reply.js";
import { effective, forRequest } from "./settings.js";
import * as store from "./store.js";
import { t } from "./words.js";

const LANE = 0;
const EXAMPLES = ["example.compare", "example.arithmetic", "example.word", "example.algebra"];
const SAVE_MS = 1000;
const TITLE_LENGTH = 48;
const NEAR_END = 120; // px

const pending = (phase, id) => ({ id, phase, elapsed_s: 0, waiting: null, steps: [], content: "", answer: null, vote: null, finish: null, stats: null, error: null });

export class Chat {
  // `models()` returns the served models. `listed` is called when the list of conversations has changed, `announce` speaks to
  // screen readers, `check` polls the state of the model. `bar` shows the settings.
  constructor({ lanes, models, listed, announce, check, bar }) {
    Object.assign(this, { lanes, models, listed, announce, check, bar });
    this.element = h("section", { class: "chat", id: "panel-chat", role: "tabpanel", "aria-labelledby": "tab-chat" });
    this.queue = []; // turns to ask: {kept, turn}
    this.running = null;
    this.open(store.current());
    // Gradio reloads the page when its server is back after a restart, and so may the user. Neither may lose a question.
    this.kept.turns.filter((turn) => turn.again).forEach((turn) => this.ask(turn));
  }

  // Shows a conversation; a new one where there is none with this id.
  open(id) {
    const known = [this.running, ...this.queue].find((one) => one?.kept.id === id);
    this.kept = known?.kept ?? (id && store.conversation(id)) ?? store.create();
    store.setCurrent(this.kept.id);
    this.draw();
  }

  draw() {
    this.views = new Map();
    this.composer = new Composer("chat", { send: (text) => this.send(text), stop: () => this.stop() });
    this.composer.element.prepend(this.bar);
    this.turns = h("div", { class: "turns" });
    this.scroller = h("div", { class: "scroller", tabindex: "0", role: "region", "aria-label": t("chat.label") }, this.turns);
    this.element.replaceChildren(this.scroller, this.composer.element);
    this.kept.turns.forEach((turn) => this.show(turn));
    this.refresh();
    this.scroller.scrollTop = this.scroller.scrollHeight;
    this.follow = true;
    // Text grows at the end; the view follows it unless the reader has scrolled away.
    this.scroller.addEventListener("scroll", () => {
      this.follow = this.scroller.scrollHeight - this.scroller.scrollTop - this.scroller.clientHeight < NEAR_END;
    });
  }

  refresh() {
    this.composer.busy = this.kept.turns.some((turn) => store.isRunning(turn.reply));
    this.welcome?.remove();
    this.welcome = this.kept.turns.length ? null : this.examples();
    if (this.welcome) this.turns.append(this.welcome);
  }

  examples() {
    const buttons = EXAMPLES.map((key) => h("button", { type: "button", onclick: () => this.send(t(key)) }, t(key)));
    return h("div", { class: "welcome" }, h("h2", {}, t("welcome.title")), h("p", {}, t("welcome.text")),
      h("ul", { class: "legend" }, ["continue", "reflect", "explore"].map((name) => h("li", { class: `step ${name}` }, icon(name), h("span", { class: "word" }, t(`step.${name}`)), h("span", {}, t(`step.${name}.means`))))),
      h("h3", {}, t("welcome.examples")), h("div", { class: "examples" }, buttons));
  }

  // Puts a turn on the page.
  show(turn) {
    const view = new ReplyView({ retry: () => this.ask(turn) });
    const question = h("div", { class: "question" }, h("p", { class: "bubble" }, turn.question),
      h("div", { class: "actions" }, copyButton(t("action.copy"), t("action.copied"), () => turn.question),
        h("button", { type: "button", class: "quiet", onclick: () => this.edit(turn, question) }, icon("edit"), t("action.edit"))));
    const element = h("div", { class: "turn", "data-turn": turn.id }, question, view.element);
    this.views.set(turn.id, { view, element });
    this.turns.append(element);
    if (turn.reply) view.update(turn.reply);
  }

  edit(turn, question) {
    if (store.isRunning(turn.reply)) this.stop();
    const box = h("textarea", { rows: 3, "aria-label": t("action.edit"), value: turn.question });
    const submit = () => {
      if (!box.value.trim()) return;
      turn.question = box.value.trim();
      if (effective("chat", this.models()).history) this.kept.turns.splice(this.kept.turns.indexOf(turn) + 1);
      this.draw();
      this.ask(turn);
    };
    box.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); submit(); }
      if (event.key === "Escape") this.draw();
    });
    question.replaceChildren(box, h("div", { class: "actions" },
      h("button", { type: "button", class: "primary", onclick: submit }, t("composer.send")),
      h("button", { type: "button", onclick: () => this.draw() }, t("action.cancel"))));
    box.focus();
  }

  send(text) {
    const turn = { id: store.newId(), question: text, reply: null };
    this.kept.title ||= text.replace(/\s+/g, " ").slice(0, TITLE_LENGTH);
    this.kept.turns.push(turn);
    this.show(turn);
    this.follow = true;
    this.ask(turn);
  }

  // Asks a turn's question (again). It waits while the lane is busy with another conversation.
  ask(turn) {
    const kept = this.kept;
    delete turn.again;
    turn.settings = effective("chat", this.models());
    this.receive(kept, turn, pending("held", store.newId()));
    this.queue.push({ kept, turn });
    this.next();
  }

  next() {
    if (this.lanes.busy(LANE) || !this.queue.length) return;
    this.running = this.queue.shift();
    const { kept, turn } = this.running;
    const id = store.newId();
    this.receive(kept, turn, pending("sent", id));
    const question = { id, messages: this.messages(kept, turn), settings: forRequest(turn.settings), key: store.key() };
    this.lanes.ask(LANE, question, (state) => this.receive(kept, turn, state));
  }

  messages(kept, turn) {
    const before = turn.settings.history ? kept.turns.slice(0, kept.turns.indexOf(turn)).filter((one) => one.reply?.phase === "done") : [];
    const earlier = before.flatMap((one) => [{ role: "user", content: one.question }, { role: "assistant", content: one.reply.content }]);
    return [...earlier, { role: "user", content: turn.question }];
  }

  // Receives a new state of a turn's reply.
  receive(kept, turn, reply) {
    const before = turn.reply;
    turn.reply = reply;
    const running = store.isRunning(reply);
    if (this.kept === kept) {
      this.views.get(turn.id)?.view.update(reply);
      if (before?.phase !== reply.phase) this.refresh();
      if (this.follow) this.scroller.scrollTop = this.scroller.scrollHeight;
      this.speak(before, reply);
    }
    this.keep(kept, !running || reply.phase !== before?.phase);
    if (reply.phase !== before?.phase && (reply.phase === "waiting" || reply.phase === "error")) this.check();
    if (running) return;
    if (this.running?.turn === turn) this.running = null;
    this.next();
  }

  keep(kept, now) {
    if (!now && Date.now() - (this.saved ?? 0) < SAVE_MS) return;
    this.saved = Date.now();
    if (!store.conversations().some((entry) => entry.id === kept.id) || now) {
      if (!store.save(kept)) this.announce(t("storage.full"), true);
      this.listed();
    } else store.save(kept);
  }

  // Tells a screen reader what is seen at a glance, not every word.
  speak(before, reply) {
    if (before?.steps.length !== reply.steps.length && reply.steps.length) {
      this.announce(t("live.step", { number: reply.steps.length, action: t(`step.${reply.steps.at(-1).action ?? "none"}`) }));
    }
    if (before?.phase === reply.phase) return;
    if (reply.phase === "done") this.announce(reply.answer ? t("live.answer", { answer: reply.answer }) : t("live.done"));
    else if (reply.phase === "waiting") this.announce(t(`state.waiting.${reply.waiting.kind}`));
    else if (reply.phase === "sent") this.announce(t("state.sent"));
  }

  stop() {
    const turn = this.kept.turns.find((one) => store.isRunning(one.reply));
    if (!turn) return;
    this.queue = this.queue.filter((one) => one.turn !== turn);
    if (this.running?.turn === turn) this.lanes.stop(LANE);
    this.announce(t("state.stopped"));
    this.receive(this.kept, turn, { ...turn.reply, phase: "stopped" });
    this.composer.box.focus();
  }

  // The title is in what is shown, runs or waits, too: each is saved again as a whole.
  rename(id, title) {
    for (const { kept } of [this, this.running, ...this.queue].filter((one) => one?.kept.id === id)) kept.title = title;
    store.rename(id, title);
  }

  // Empties the conversation.
  clear() {
    this.stop();
    Object.assign(this.kept, { title: "", turns: [] });
    this.keep(this.kept, true);
    this.draw();
  }

  // Called before a conversation is deleted.
  forget(id) {
    if (this.kept.id === id) this.stop();
    this.queue = this.queue.filter((one) => one.kept.id !== id);
    if (this.running?.kept.id === id) {
      this.lanes.stop(LANE);
      this.running = null;
      this.next();
    }
  }
}
