// Follows replies. A question is sent with an id of its own, by which the server stores the reply; where the connection is lost, it is
// sent again until the reply has ended. A reply that no server stores ends with its connection.

import * as store from "./store.js";
import { blank, goesOn, isRunning, size } from "./turns.js";

const SILENCE_MS = 12000; // the server is never silent for longer than two seconds
const FIRST_MS = 500; // the first pause after a connection was lost; each is twice the one before
const LONGEST_MS = 15000;
const REFUSED = [400, 403, 413, 415, 422]; // what a server says whatever it is doing; all else may pass

class Refused extends Error {}

const question = ({ id, resumed, messages, thought, settings }) => ({ id, resumed, messages, thought, settings, key: store.key() });

// Returns what a change, as ui/changes.py writes it, makes of a value.
export function changed(value, change) {
  if ("=" in change) return change["="];
  if ("+" in change) return value + change["+"];
  const now = Array.isArray(value) ? [...value] : { ...value };
  for (const [key, inner] of Object.entries(change)) now[key] = changed(now[key], inner);
  return now;
}

// Yields the states of a reply from the server's events.
async function* statesOf(response, heard) {
  const reader = response.body.getReader();
  const decoder = new TextDecoder(); // a stream of its own would cost a task for each piece
  let state = null;
  for (let rest = ""; ; ) {
    const { done, value } = await reader.read();
    if (done) return;
    heard();
    const events = (rest + decoder.decode(value, { stream: true })).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      state = changed(state, JSON.parse(event.slice("data: ".length)));
      yield state;
    }
  }
}

export class Replies {
  // `lost(is)` is called when the server cannot be reached, and when it can again.
  constructor(home, { lost }) {
    Object.assign(this, { home, lost });
    this.active = new Map(); // by id
    this.waiting = new Set(); // what ends a pause
    addEventListener("online", () => this.wake());
    addEventListener("offline", () => { for (const one of this.active.values()) one.connection.abort(); });
    this.sendStops();
  }

  // Sends a question {id, messages, thought, settings}; `receive` is called with each state of its reply. `reply` is what is known of it.
  follow(asked, reply, receive) {
    const one = { ...asked, reply, receive, connection: new AbortController() };
    this.active.set(asked.id, one);
    this.run(one);
  }

  // Stops a reply, here and on the server, now or as soon as that can be reached.
  stop(id) {
    this.active.get(id)?.connection.abort();
    this.active.delete(id);
    this.drop(id);
  }

  // Has the server keep a reply no longer: it ends, if it has not.
  drop(id) {
    store.saveStops([...new Set([...store.stops(), id])]);
    this.sendStops();
  }

  async run(one) {
    for (let pause = FIRST_MS; ; pause = Math.min(2 * pause, LONGEST_MS)) {
      try {
        for await (const state of this.states(one)) {
          if (this.active.get(one.id) !== one) return; // stopped
          pause = FIRST_MS;
          this.receive(one, state);
          if (!isRunning(state)) return;
        }
      } catch (error) {
        if (error instanceof Refused) return this.end(one, { kind: "other", message: error.message, retry_after_s: null });
        if (![TypeError, DOMException, SyntaxError].some((kind) => error instanceof kind)) throw error; // SyntaxError: of a portal's page
      }
      if (this.active.get(one.id) !== one) return;
      if (!goesOn(one.reply)) return this.end(one, { kind: "lost", message: "", retry_after_s: null });
      this.tell(one, { ...one.reply, lost: true });
      await this.pause(pause);
      if (this.active.get(one.id) !== one) return;
    }
  }

  async* states(one) {
    one.connection = new AbortController();
    let silence;
    const heard = () => {
      clearTimeout(silence);
      silence = setTimeout(() => one.connection.abort(), SILENCE_MS);
    };
    try {
      heard();
      one.resumed = Boolean(one.reply.stored);
      const response = await this.post("ask", question(one), one.connection.signal);
      if (REFUSED.includes(response.status)) throw new Refused(`HTTP ${response.status}: ${(await response.text()).slice(0, 500)}`);
      if (!response.ok) return;
      this.lost(false);
      yield* statesOf(response, heard);
    } catch (error) {
      if (error instanceof TypeError) this.lost(true);
      throw error;
    } finally {
      clearTimeout(silence);
      one.connection.abort();
    }
  }

  post(name, body, signal) {
    return fetch(new URL(name, this.home), { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body), signal });
  }

  // A reply that is read anew is not shown until it is as long as what is there.
  receive(one, state) {
    const behind = isRunning(state) && size(state) < size(one.reply);
    const lost = state.lost || (behind && state.phase === "waiting");
    if (behind) this.tell(one, { ...one.reply, lost });
    else if (isRunning(state)) this.tell(one, { ...state, stored: state.stored || Boolean(one.reply.stored) });
    else this.end(one, state.error, state);
  }

  tell(one, reply) {
    one.reply = reply;
    one.receive(reply);
  }

  end(one, error, state = one.reply) {
    this.active.delete(one.id);
    const known = size(state) < size(one.reply) ? one.reply : state;
    this.tell(one, error ? { ...blank("error", one.id), ...known, phase: "error", lost: false, error } : state);
  }

  pause(duration) {
    return new Promise((resolve) => {
      const end = () => { clearTimeout(timer); this.waiting.delete(end); resolve(); };
      const timer = setTimeout(end, duration);
      this.waiting.add(end);
    });
  }

  wake() {
    this.waiting.forEach((end) => end());
  }

  // Tells the server of stops, also of those that a page before this one could not tell.
  async sendStops() {
    if (this.sending) return;
    this.sending = true;
    for (let pause = FIRST_MS; store.stops().length; ) {
      const [id] = store.stops();
      const response = await this.post("stop", { id, key: store.key() }).catch((error) => error);
      if (response.ok || REFUSED.includes(response.status)) {
        store.saveStops(store.stops().filter((one) => one !== id));
        continue;
      }
      await this.pause(pause);
      pause = Math.min(2 * pause, LONGEST_MS);
    }
    this.sending = false;
  }
}
