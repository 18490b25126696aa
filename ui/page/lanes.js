// Sends questions and receives replies through Gradio. A lane carries one reply at a time.

import { blank } from "./turns.js";

const SILENCE_MS = 12000; // the server is never silent for longer than two seconds
const CHECK_MS = 1000;
const RECOVER_MS = 2000;

export class Lanes {
  // `kept()` waits until the browser keeps all that has been received.
  constructor(trigger, home, kept) {
    Object.assign(this, { trigger, home, kept });
    this.active = {};
    this.checked = Date.now();
    setInterval(() => this.check(), CHECK_MS);
  }

  busy(lane) {
    return lane in this.active;
  }

  // Sends `question`; `receive` is called with each state of the reply.
  ask(lane, question, receive) {
    this.active[lane] = { id: question.id, receive, receivedAt: Date.now(), state: null };
    window.satoriLanes.receive[lane] = (state) => this.receive(lane, state);
    this.trigger(`ask${lane}`, question);
  }

  // Stops the reply, here and on the server.
  stop(lane) {
    const { id } = this.active[lane] ?? {};
    delete this.active[lane];
    if (id) this.trigger(`stop${lane}`, id);
  }

  receive(lane, state) {
    const active = this.active[lane];
    if (!active || !state || state.id !== active.id) return; // of a reply that has been stopped
    active.receivedAt = Date.now();
    active.state = state;
    if (state.phase === "done" || state.phase === "error") delete this.active[lane];
    active.receive(state);
  }

  // Ends replies whose connection was lost.
  check() {
    const now = Date.now();
    const slept = now - this.checked > 5 * CHECK_MS;
    this.checked = now;
    for (const [lane, active] of Object.entries(this.active)) {
      if (slept) active.receivedAt = now;
      if (now - active.receivedAt < SILENCE_MS) continue;
      const lost = { kind: "lost", message: "", retry_after_s: null };
      this.stop(lane);
      active.receive({ ...blank("error", active.id), ...active.state, phase: "error", error: lost });
      this.recover();
    }
  }

  // Reloads the page as soon as the server answers: Gradio's client (6.31) may keep reading a stream that has ended, and then
  // receives nothing. Everything that the page shows is kept.
  async recover() {
    if (this.recovering) return;
    this.recovering = true;
    for (;;) {
      const response = await fetch(new URL("gradio_api/app_id", this.home)).catch((error) => error);
      if (response.ok) break;
      await new Promise((resolve) => setTimeout(resolve, RECOVER_MS));
    }
    await this.kept();
    location.reload();
  }
}
