// Which tab runs a turn: one at a time. A tab that is closed, or dies, has no claims.

const ANSWER_MS = 5000; // in which a tab answers another one, also where it is busy
const AGAIN_MS = 2000;
const LOOK_MS = 50;

const pause = (duration) => new Promise((resolve) => setTimeout(resolve, duration));

// Waits until no other tab claims `name`; returns a function that gives it back. `fresh` says that no other tab knows the name yet.
function hold(name) {
  return new Promise((held, failed) => {
    navigator.locks.request(`satori.${name}`, () => new Promise((release) => held(release))).catch(failed);
  });
}

// Browsers have no locks over plain http from another host. There, tabs ask each other. Two that ask in the same moment may both
// get a claim, and a tab in the background may answer late.
class Asking {
  constructor() {
    this.mine = new Set();
    this.refused = new Set();
    this.channel = new BroadcastChannel("satori.claims");
    this.channel.onmessage = ({ data }) => {
      if (data.asks && this.mine.has(data.asks)) this.channel.postMessage({ has: data.asks });
      if (data.has) this.refused.add(data.has);
    };
  }

  // Returns whether another tab claims `name`.
  async claimed(name) {
    this.refused.delete(name);
    this.channel.postMessage({ asks: name });
    for (const end = Date.now() + ANSWER_MS; Date.now() < end && !this.refused.has(name); ) await pause(LOOK_MS);
    return this.refused.has(name);
  }

  async hold(name, fresh = false) {
    while (!fresh && await this.claimed(name)) await pause(AGAIN_MS);
    this.mine.add(name);
    return () => this.mine.delete(name);
  }
}

export const claims = () => (navigator.locks ? { hold } : new Asking());
