// A conversation: {id, title, turns, shown}. Its turns are a tree: each has the `parent` before it (null: it is a first one), and turns
// with the same parent are versions of each other. `shown` has the version that is seen, by parent. A turn's `thought`, where it has one,
// are the steps from which its reply went on. Nothing here touches the page.

const UNANSWERED = ["held", "sent", "waiting"];
const RUNNING = [...UNANSWERED, "voting", "thinking", "answering"];
const PHASES = [...RUNNING, "done", "stopped", "error"];

export const isRunning = (reply) => Boolean(reply) && RUNNING.includes(reply.phase);
export const unanswered = (reply) => UNANSWERED.includes(reply?.phase);
// Whether a reply that is written somewhere can be followed again: it is stored there, or the question can be sent once more.
export const goesOn = (reply) => unanswered(reply) || (isRunning(reply) && Boolean(reply.stored));
export const size = (reply) => reply.steps.reduce((sum, step) => sum + step.text.length, reply.content.length);
export const hasText = (reply) => Boolean(reply && (reply.steps.length || reply.content));

export const blank = (phase, id) => ({ id, phase, elapsed_s: 0, waiting: null, steps: [], content: "", answer: null, assurance: null, vote: null, chains: [], finish: null, stats: null, error: null });

// Returns a reply that nobody writes any more: what had arrived is kept.
export const ended = (reply) => (isRunning(reply) ? { ...reply, phase: "error", lost: false, error: { kind: "lost", message: "", retry_after_s: null } } : reply);

const first = ""; // the key in `shown` of turns without a parent
const key = (turn) => turn.parent ?? first;

export const versions = (kept, turn) => kept.turns.filter((one) => key(one) === key(turn));

// Returns the turns that are seen, in their order.
export function path(kept) {
  const turns = [];
  for (let parent = first; ; parent = turns.at(-1).id) {
    const here = kept.turns.filter((turn) => key(turn) === parent);
    if (!here.length) return turns;
    turns.push(here.find((turn) => turn.id === kept.shown[parent]) ?? here.at(-1));
  }
}

// Returns the turns before one, the first one first.
export function before(kept, turn) {
  const turns = [];
  for (let one = turn; (one = kept.turns.find((other) => other.id === one.parent)); ) turns.unshift(one);
  return turns;
}

export function choose(kept, turn) {
  kept.shown[key(turn)] = turn.id;
}

// Adds a turn, or takes over its new state.
export function put(kept, turn) {
  const at = kept.turns.findIndex((one) => one.id === turn.id);
  if (at < 0) kept.turns.push(turn);
  else kept.turns[at] = turn;
}

const isText = (value) => typeof value === "string";
const isObject = (value) => Boolean(value) && typeof value === "object" && !Array.isArray(value);
const orNull = (test) => (value) => value === null || value === undefined || test(value);

function soundStep(step) {
  return isObject(step) && isText(step.text) && orNull(isText)(step.action) && orNull(Number.isFinite)(step.seconds) && orNull(Number.isFinite)(step.tokens);
}

const soundThought = (thought) => Array.isArray(thought) && thought.every((step) => isObject(step) && isText(step.text) && orNull(isText)(step.action));

function soundVote(vote) {
  return isObject(vote) && [vote.counted, vote.samples].every(Number.isFinite) && Array.isArray(vote.votes) &&
    vote.votes.every((one) => isObject(one) && isText(one.answer) && Number.isFinite(one.votes) && orNull(Array.isArray)(one.indices));
}

function soundChain(chain) {
  return isObject(chain) && Number.isFinite(chain.index) && isText(chain.content) && orNull(isText)(chain.finish_reason) && Array.isArray(chain.segments) && chain.segments.every(soundStep);
}

const soundChains = (chains) => Array.isArray(chains) && chains.every(soundChain);

export function soundReply(reply) {
  return isObject(reply) && PHASES.includes(reply.phase) && Array.isArray(reply.steps) && reply.steps.every(soundStep) && isText(reply.content) &&
    orNull(isText)(reply.answer) && orNull(soundVote)(reply.vote) && orNull(soundChains)(reply.chains) && orNull(isObject)(reply.stats) && orNull(isObject)(reply.assurance) &&
    (reply.phase !== "error" || (isObject(reply.error) && isText(reply.error.kind))) && (reply.phase !== "waiting" || (isObject(reply.waiting) && isText(reply.waiting.kind)));
}

// Returns a conversation as this page keeps it, from one that it, or an older page, has written; null where it is none.
export function sound(value) {
  if (!isObject(value) || !isText(value.id) || !value.id || !Array.isArray(value.turns)) return null;
  if (!value.turns.every((turn) => isObject(turn) && isText(turn.id) && turn.id && isText(turn.question) && orNull(soundReply)(turn.reply) && orNull(soundThought)(turn.thought))) return null;
  const ids = value.turns.map((turn) => turn.id);
  if (new Set(ids).size < ids.length) return null;
  const turns = value.turns.map(({ id, parent, question, thought, settings, reply }, at) => ({
    id, question, thought: thought ?? [], settings: isObject(settings) ? settings : {}, reply: reply ?? null,
    // Turns were a list once. A parent comes before its versions, so that no turn is its own ancestor.
    parent: parent === undefined ? ids[at - 1] ?? null : ids.slice(0, at).includes(parent) ? parent : null,
  }));
  const shown = isObject(value.shown) ? Object.fromEntries(Object.entries(value.shown).filter(([, id]) => isText(id))) : {};
  return { id: value.id, title: isText(value.title) ? value.title : "", turns, shown };
}
