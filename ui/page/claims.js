// Which tab runs a turn: one at a time. A tab that is closed, or dies, has no claims.

const ANSWER_MS = 500; // in which a tab answers another one
const AGAIN_MS = 2000;

// Waits until no other tab claims `name`; returns a function that gives it back.
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
    this.channel = new BroadcastChannel("satori.claims");
    this.channel.onmessage = ({ data }) => {
      if (data.asks && this.mine.has(data.asks)) this.channel.postMessage({ has: data.asks });
      if (data.has) this.refused?.add(data.has);
    };
  }

  async hold(name) {
    for (;;) {
      this.refused ??= new Set();
      this.refused.delete(name);
      this.channel.postMessage({ asks: name });
      await new Promise((resolve) => setTimeout(resolve, ANSWER_MS));
      if (!this.refused.has(name)) break;
      await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
    }
    this.mine.add(name);
    return () => this.mine.delete(name);
  }
}

export const claims = () => (navigator.locks ? { hold } : new Asking());
