// The chat: one conversation at a time on the page. Its questions are asked one after the other; those of other conversations, and replies
// that go on from before, beside that.

import { claims } from "./claims.js";
import { Composer } from "./composer.js";
import { h, icon } from "./dom.js";
import { Scroll } from "./scroll.js";
import { effective, forRequest } from "./settings.js";
import * as store from "./store.js";
import { TurnView } from "./turn.js";
import { before, blank, choose, ended, goesOn, hasText, isRunning, path, put, versions } from "./turns.js";
import { t } from "./words.js";

const RECEIVED = 3; // replies at a time: browsers have six connections to a server, and a comparison takes two
const FOLLOWED = 2; // of these, replies from before
const EXAMPLES = ["example.compare", "example.arithmetic", "example.word", "example.equation"]; // even nano answers them
const SAVE_MS = 1000;
const DRAW_MS = 100; // between two drawings of a reply that grows, at least: each time, the browser lays it out again
const DRAW_LONGEST_MS = 500; // and at most
const DRAW_SHARE = 0.05; // of the time, for drawings
const TITLE_LENGTH = 48;

export class Chat {
  // `models()` returns the served models. `listed` is called when another conversation is shown or the list has changed, `announce`
  // speaks to screen readers, `check` polls the state of the model. `bar` shows the settings.
  constructor({ replies, library, models, listed, announce, check, bar }) {
    Object.assign(this, { replies, library, models, listed, announce, check, bar });
    this.element = h("section", { class: "chat", id: "panel-chat", role: "tabpanel", "aria-labelledby": "tab-chat" });
    this.claims = claims();
    this.queue = []; // turns to ask: {kept, turn, ready, again}; `again` says that they were asked before
    this.running = []; // of the queue, too
    this.releases = new Map(); // of the claims on the turns whose replies this tab receives
    this.withheld = new Map(); // conversations that could not be kept: the ended turns whose claims are held meanwhile
    this.adopting = new Set(); // turns whose replies another tab receives, until it is gone
    this.saved = new WeakMap(); // when, by turn
    this.undrawn = new Map(); // turns whose replies have changed since they were drawn: the replies as they were then
    this.drawAt = 0; // when they are drawn, at the earliest
    library.changed = (kept) => this.changed(kept);
    library.removed = (id) => this.forget(id);
    library.stopped = (id) => this.stopTurn(id);
  }

  // Shows a conversation; a new one where there is none with this id.
  async open(id) {
    const wanted = this.wanted = {};
    const kept = id ? await this.library.load(id) : null;
    if (this.wanted !== wanted) return; // another one was opened meanwhile
    this.kept = kept ?? this.library.create();
    store.setCurrent(this.kept.id);
    this.draw();
    this.adopt(this.kept);
    this.listed();
  }

  // Looks after the replies of all conversations.
  async adoptAll() {
    for (const { id } of this.library.list().filter((entry) => entry.running)) {
      const kept = await this.library.load(id);
      if (kept) this.adopt(kept);
    }
  }

  draw() {
    this.views = new Map();
    this.composer = new Composer("chat", { send: (text) => this.send(text), stop: () => this.stop(), queues: true });
    this.composer.element.prepend(this.bar);
    this.turns = h("div", { class: "turns" });
    const scroller = h("div", { class: "scroller", tabindex: "0", role: "region", "aria-label": t("chat.label") }, this.turns);
    this.element.replaceChildren(scroller, this.composer.element);
    this.scroll = new Scroll(scroller, this.kept.id, this.views);
    this.update();
    this.scroll.restore();
  }

  // Draws what has changed.
  update() {
    const seen = path(this.kept);
    const drawn = [...this.views.keys()];
    const differs = drawn.findIndex((id, at) => id !== seen[at]?.id);
    for (const id of differs < 0 ? [] : drawn.slice(differs)) {
      this.views.get(id).element.remove();
      this.views.delete(id);
    }
    for (const turn of seen) {
      if (!this.views.has(turn.id)) this.show(turn);
      this.updateTurn(turn);
    }
    this.refresh();
    this.scroll.grown();
  }

  updateTurn(turn) {
    this.views.get(turn.id)?.update(versions(this.kept, turn), isRunning(turn.reply) && !this.library.mine.has(turn.id));
  }

  refresh() {
    this.composer.busy = this.kept.turns.some((turn) => isRunning(turn.reply));
    this.welcome?.remove();
    this.welcome = this.kept.turns.length ? null : this.examples();
    if (this.welcome) this.turns.append(this.welcome);
  }

  examples() {
    const buttons = EXAMPLES.map((key) => h("button", { type: "button", onclick: () => { this.send(t(key)); this.composer.box.focus(); } }, t(key)));
    return h("div", { class: "welcome" }, h("h2", {}, t("welcome.title")), h("p", {}, t("welcome.text")),
      h("ul", { class: "legend" }, ["continue", "reflect", "explore"].map((name) => h("li", { class: `step ${name}` }, icon(name), h("span", { class: "word" }, t(`step.${name}`)), h("span", {}, t(`step.${name}.means`))))),
      h("h3", {}, t("welcome.examples")), h("div", { class: "examples" }, buttons));
  }

  // Puts a turn on the page, after those that are there.
  show(turn) {
    const view = new TurnView(turn, this.views.size + 1, {
      edited: (text) => this.edit(turn, text),
      retry: () => this.retry(turn),
      goOn: (thought) => this.goOn(turn, thought),
      chosen: (other, arrow) => this.choose(other, arrow),
    });
    this.views.set(turn.id, view);
    this.turns.append(view.element);
  }

  send(text) {
    this.scroll.following = true;
    this.ask(this.kept, this.turn(path(this.kept).at(-1)?.id ?? null, text));
  }

  turn(parent, question, thought = []) {
    return { id: store.newId(), parent, question, thought, settings: {}, reply: null };
  }

  // Asks another question in the place of one: both are kept, each with the turns behind it.
  edit(turn, text) {
    if (isRunning(turn.reply)) this.stop(turn);
    this.ask(this.kept, this.turn(turn.parent, text));
    this.composer.box.focus();
  }

  // Asks again. What had arrived is kept, as a version.
  retry(turn) {
    this.ask(this.kept, hasText(turn.reply) ? this.turn(turn.parent, turn.question, turn.thought) : turn);
    this.composer.box.focus();
  }

  // Has the model go on from these steps of a thought. The reply is another version.
  goOn(turn, thought) {
    this.ask(this.kept, this.turn(turn.parent, turn.question, thought));
    this.composer.box.focus();
  }

  choose(turn, arrow) {
    this.library.change(this.kept, (kept) => choose(kept, turn), false);
    this.scroll.following = false;
    this.update();
    this.views.get(turn.id).focus(arrow);
  }

  // Asks a turn's question.
  ask(kept, turn) {
    const fresh = !kept.turns.some((one) => one.id === turn.id);
    turn.settings = effective("chat", this.models());
    if (turn.thought.length) turn.settings.votes = 1; // one chain goes on
    turn.reply = blank("held", store.newReplyId());
    put(kept, turn);
    choose(kept, turn);
    return this.enqueue(kept, turn, fresh);
  }

  // Has a turn's question wait until the turns before it have their replies, and it can be received (`canBegin`). `release` gives back a
  // claim on the turn that this tab has already.
  async enqueue(kept, turn, fresh, release = null) {
    const entry = { kept, turn, ready: false, again: turn.reply.phase !== "held" };
    this.queue.push(entry);
    this.library.mine.add(turn.id);
    if (kept === this.kept) this.update();
    // Other tabs hear of the turn when it is claimed.
    this.releases.set(turn.id, release ?? this.releases.get(turn.id) ?? await this.claims.hold(turn.id, fresh));
    this.library.mine.add(turn.id);
    if (!this.queue.includes(entry)) {
      this.keep(kept, turn).then(() => this.release(kept, turn)); // stopped, or deleted
      return;
    }
    entry.ready = true;
    this.keep(kept, turn, !entry.again);
    this.adopt(kept);
    this.next();
  }

  next() {
    for (let entry; (entry = this.queue.find((one) => this.canBegin(one))); ) this.begin(entry);
  }

  canBegin({ kept, turn, ready, again }) {
    if (!ready || this.running.length >= RECEIVED || before(kept, turn).some((one) => isRunning(one.reply))) return false;
    if (again) return this.running.filter((one) => one.again).length < FOLLOWED;
    return !this.running.some((one) => !one.again && one.kept === kept);
  }

  begin(entry) {
    const { kept, turn } = entry;
    this.queue = this.queue.filter((one) => one !== entry);
    this.running.push(entry);
    if (!entry.again) this.receive(kept, turn, blank("sent", turn.reply.id));
    const question = { id: turn.reply.id, messages: this.messages(kept, turn), thought: turn.thought, settings: forRequest(turn.settings) };
    this.replies.follow(question, turn.reply, (state) => this.receive(kept, turn, state));
  }

  messages(kept, turn) {
    const earlier = turn.settings.history ? before(kept, turn).filter((one) => one.reply?.phase === "done") : [];
    return [...earlier.flatMap((one) => [{ role: "user", content: one.question }, { role: "assistant", content: one.reply.content }]), { role: "user", content: turn.question }];
  }

  // Receives a new state of a turn's reply.
  receive(kept, turn, reply) {
    const was = turn.reply;
    turn.reply = reply;
    const running = isRunning(reply);
    const news = was?.phase !== reply.phase || Boolean(was.lost) !== Boolean(reply.lost) || Boolean(was.stored) !== Boolean(reply.stored);
    if (this.kept === kept) {
      if (!this.undrawn.has(turn)) this.undrawn.set(turn, was);
      if (news) this.drawUndrawn();
      else this.timer ??= setTimeout(() => this.drawUndrawn(), this.drawAt - performance.now());
    }
    if (news || Date.now() - (this.saved.get(turn) ?? 0) >= SAVE_MS) {
      this.saved.set(turn, Date.now());
      const saved = this.keep(kept, turn);
      if (!running) saved.then(() => this.release(kept, turn));
    }
    if (news && (reply.phase === "waiting" || reply.phase === "error")) this.check();
    if (running) return;
    this.running = this.running.filter((one) => one.turn !== turn);
    this.next();
  }

  // Draws what has come since the last drawing.
  drawUndrawn() {
    const begun = performance.now();
    clearTimeout(this.timer);
    this.timer = null;
    for (const [turn, was] of this.undrawn) {
      this.updateTurn(turn);
      if (was?.phase !== turn.reply.phase) this.refresh();
      if (this.views.has(turn.id)) this.speak(was, turn.reply);
    }
    this.undrawn.clear();
    this.scroll.grown();
    const now = performance.now();
    this.drawAt = now + Math.min(Math.max(DRAW_MS, (now - begun) / DRAW_SHARE), DRAW_LONGEST_MS);
  }

  // Keeps a turn, `shown` in place of its other versions. The first question is the conversation's title.
  keep(kept, turn, shown = false) {
    const title = turn.question.replace(/\s+/g, " ").slice(0, TITLE_LENGTH);
    const written = this.library.change(kept, (one) => {
      one.title ||= title;
      put(one, turn);
      if (shown) choose(one, turn);
    });
    this.listed();
    return written;
  }

  // Gives back the claim on a turn. Not where the browser could not keep how its reply has ended: another tab would ask again.
  release(kept, turn) {
    if (isRunning(turn.reply)) return; // asked again meanwhile
    const withheld = this.withheld.get(kept) ?? new Set();
    this.withheld.set(kept, withheld.add(turn));
    if (this.library.unsaved.has(kept.id)) return;
    this.withheld.delete(kept);
    for (const { id, reply } of withheld) {
      if (isRunning(reply)) continue;
      this.releases.get(id)?.();
      this.releases.delete(id);
      this.library.mine.delete(id);
      if (reply.stored) this.replies.drop(reply.id); // the browser has it
    }
  }

  // Looks after the replies that another tab receives, for when that tab is gone: those that can go on do so here, others keep what had
  // arrived.
  adopt(kept) {
    for (const { id, reply } of kept.turns) {
      if (isRunning(reply) && !this.library.mine.has(id) && !this.adopting.has(id)) this.adoptTurn(kept, id);
    }
  }

  async adoptTurn(kept, id) {
    this.adopting.add(id);
    const release = await this.claims.hold(id);
    this.adopting.delete(id);
    const there = await this.library.refresh(kept);
    const turn = there && this.library.loaded.get(kept.id) === kept ? kept.turns.find((one) => one.id === id) : null;
    if (!isRunning(turn?.reply)) release();
    else if (goesOn(turn.reply)) this.enqueue(kept, turn, false, release);
    else {
      this.library.mine.add(id);
      this.releases.set(id, release);
      this.receive(kept, turn, ended(turn.reply));
    }
    if (kept === this.kept) this.update();
    this.next();
  }

  // Another tab has changed a conversation.
  changed(kept) {
    if (kept === this.kept) this.update();
    this.adopt(kept);
    this.next();
  }

  // Tells a screen reader what is seen at a glance, not every word.
  speak(was, reply) {
    if (was?.steps.length !== reply.steps.length && reply.steps.length) {
      this.announce(t("live.step", { number: reply.steps.length, action: t(`step.${reply.steps.at(-1).action ?? "none"}`) }));
    }
    if (was?.phase === reply.phase) return;
    if (reply.phase === "done") this.announce(reply.answer ? t("live.answer", { answer: reply.answer }) : t("live.done"));
    else if (reply.phase === "waiting") this.announce(t(`state.waiting.${reply.waiting.kind}`));
    else if (reply.phase === "sent") this.announce(t("state.sent"));
  }

  get busy() {
    return this.kept.turns.some((turn) => isRunning(turn.reply));
  }

  // Stops a reply: that of the first turn that is seen, or of any.
  stop(turn = [...path(this.kept), ...this.kept.turns].find((one) => isRunning(one.reply))) {
    if (!turn) return;
    this.announce(t("state.stopped"));
    if (this.library.mine.has(turn.id)) this.stopTurn(turn.id);
    else this.library.stopElsewhere(turn.id);
    this.composer.box.focus();
  }

  stopTurn(id) {
    const found = [...this.running, ...this.queue].find((one) => one.turn.id === id);
    if (!found) return;
    this.queue = this.queue.filter((one) => one !== found);
    if (found.turn.reply.phase !== "held") this.replies.stop(found.turn.reply.id);
    this.receive(found.kept, found.turn, { ...found.turn.reply, phase: "stopped", lost: false });
  }

  async rename(id, title) {
    const kept = await this.library.load(id);
    if (kept) this.library.change(kept, (one) => { one.title = title; }, false);
  }

  // Empties the conversation.
  clear() {
    this.kept.turns.filter((turn) => this.library.mine.has(turn.id)).forEach((turn) => this.stopTurn(turn.id));
    this.library.change(this.kept, (kept) => Object.assign(kept, { title: "", turns: [], shown: {} }));
    this.draw();
    this.composer.box.focus();
    this.listed();
  }

  // A conversation was deleted, here or in another tab.
  forget(id) {
    for (const { kept, turn } of [...this.running, ...this.queue].filter((one) => one.kept.id === id)) {
      if (turn.reply.phase !== "held") this.replies.stop(turn.reply.id);
      turn.reply = { ...turn.reply, phase: "stopped" };
      this.library.writing.then(() => this.release(kept, turn)); // once no other tab finds the question any more
    }
    const others = (one) => one.kept.id !== id;
    [this.queue, this.running] = [this.queue.filter(others), this.running.filter(others)];
    this.next();
    if (this.kept.id === id) this.open(this.library.list()[0]?.id ?? null);
  }
}
