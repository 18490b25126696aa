// All chains of a vote, by answer: each is opened to its steps, and is drawn when it is.

import { h } from "./dom.js";
import { Prose, writeAnswer } from "./markup.js";
import { t } from "./words.js";

const normal = (text) => text.normalize("NFKC").replace(/\s+/g, " ").trim();

// Returns the first step, from 0, at which a chain's segments part from the winner's: the one behind its last where it answers earlier;
// null where they do not part. The last step of a chain that was stopped may be the beginning of the winner's.
export function parting(segments, winners, stopped) {
  const differs = ({ action, text }, at) => {
    const other = winners[at];
    if (action !== other?.action) return true;
    const open = stopped && at === segments.length - 1;
    return open ? !normal(other.text).startsWith(normal(text)) : normal(other.text) !== normal(text);
  };
  const at = segments.findIndex(differs);
  if (at >= 0) return at;
  return stopped || segments.length === winners.length ? null : segments.length;
}

// Returns the chains of a vote in groups [{answer, votes, chains}], the winning answer's first; those without a vote are in the last one.
export function groupsOf(vote, chains) {
  const byIndex = new Map(chains.map((chain) => [chain.index, chain]));
  const groups = vote.votes.map(({ answer, votes, indices }) => ({ answer, votes, chains: (indices ?? []).map((index) => byIndex.get(index)).filter(Boolean) }));
  const voted = new Set(groups.flatMap((group) => group.chains));
  const rest = chains.filter((chain) => !voted.has(chain)).sort((one, other) => one.index - other.index);
  return [...groups, { answer: null, votes: 0, chains: rest }].filter((group) => group.chains.length);
}

// Calls `draw(body)` when the details are first opened.
function lazily(details, body, draw) {
  const drawn = () => {
    if (!details.open) return;
    details.removeEventListener("toggle", drawn);
    draw(body);
  };
  details.addEventListener("toggle", drawn);
  return details;
}

export class Chains {
  // `drawSteps(steps)` returns the views of steps, as they are drawn in a thought.
  constructor(drawSteps) {
    this.drawSteps = drawSteps;
    this.list = h("ul", {});
    this.element = h("div", { class: "chains", role: "group", hidden: true, "aria-label": t("chains.title") }, h("h3", {}, t("chains.title")), this.list);
  }

  // Shows the chains of a reply that has ended.
  update({ vote, chains }) {
    this.element.hidden = !vote || !chains?.length;
    if (this.element.hidden) return;
    this.winner = chains.find(({ index }) => index === vote.winner);
    this.list.replaceChildren(...groupsOf(vote, chains).map((group) => this.group(group, vote.counted)));
  }

  group({ answer, votes, chains }, counted) {
    const label = h("span", { class: "label", dir: "auto" });
    if (answer === null) label.textContent = t("chains.none");
    else writeAnswer(label, answer);
    const share = t("chains.share", { votes: t("vote.votes", { count: votes }), percent: Math.round((100 * votes) / counted) });
    const facts = answer === null ? t("chains.attempts", { count: chains.length }) : share;
    const body = h("ul", {});
    const details = h("details", { class: "group" }, h("summary", {}, label, h("span", { class: "facts" }, facts)), body);
    return h("li", {}, lazily(details, body, () => body.append(...chains.map((chain) => this.chain(chain)))));
  }

  chain(chain) {
    const won = chain === this.winner;
    const stopped = chain.finish_reason === null;
    const at = won || !this.winner ? null : parting(chain.segments, this.winner.segments, stopped);
    const tokens = chain.segments.reduce((sum, { tokens }) => sum + tokens, 0);
    const end = stopped ? t("chains.stopped") : chain.finish_reason === "length" ? t("chains.cut") : "";
    const size = chain.segments.length ? [t("unit.steps", { count: chain.segments.length }), t("unit.tokens", { count: tokens })] : [];
    const facts = [won ? t("chains.won") : this.compared(chain, at, stopped), end, ...size];
    const words = facts.filter(Boolean).map((fact) => fact.replaceAll(" ", "\u00a0")).join(" · "); // lines break between facts
    const body = h("div", {});
    const details = h("details", { class: won ? "chain won" : "chain" },
      h("summary", {}, h("span", { class: "word" }, t("chains.attempt", { number: chain.index + 1 })), h("span", { class: "facts" }, words)), body);
    return h("li", {}, lazily(details, body, () => this.open(chain, at, body)));
  }

  // Returns in words how a chain goes beside the winner's; nothing where there is nothing to compare.
  compared(chain, at, stopped) {
    if (at !== null) return t("chains.parts", { step: at + 1 });
    if (!this.winner || !chain.segments.length) return "";
    return t(stopped ? "chains.same.yet" : "chains.same");
  }

  open(chain, at, body) {
    const steps = this.drawSteps(chain.segments.map((segment) => ({ ...segment, seconds: null })));
    const content = h("div", { class: "written content", hidden: !chain.content });
    new Prose(content).write(chain.content, false);
    const nothing = steps.length || chain.content ? null : h("p", { class: "note" }, t("chains.empty"));
    body.append(...[nothing, h("ol", {}, steps.map((step) => step.element)), content].filter(Boolean));
    if (at === null) return;
    const mark = h("span", { class: "parts" }, t("chains.here"));
    if (steps[at]) steps[at].details.querySelector("summary .word").after(mark);
    else content.before(mark);
  }
}
