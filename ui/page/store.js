// What the browser keeps: conversations, one entry each, and their order; settings; the draft. The server keeps none of it.

const INDEX = "satori.conversations";
const ENTRY = "satori.conversation.";
const UNANSWERED = ["held", "sent", "waiting"];
const RUNNING = [...UNANSWERED, "voting", "thinking", "answering"];

const read = (key, otherwise) => JSON.parse(localStorage.getItem(key) ?? "null") ?? otherwise;
const write = (key, value) => localStorage.setItem(key, JSON.stringify(value));

export const newId = () => `${Date.now().toString(36)}${Math.random().toString(36).slice(2, 8)}`;
export const isRunning = (reply) => Boolean(reply) && RUNNING.includes(reply.phase);

export const conversations = () => read(INDEX, []);

export function conversation(id) {
  const found = read(ENTRY + id, null);
  // A reply that was under way when the page was left keeps what had arrived. Where nothing had, `again` says that the page may ask
  // the question again by itself.
  for (const turn of found?.turns ?? []) {
    turn.again = UNANSWERED.includes(turn.reply?.phase);
    if (turn.reply) turn.reply = ended(turn.reply);
  }
  return found;
}

function ended(reply) {
  return isRunning(reply) ? { ...reply, phase: "error", error: { kind: "lost", message: "", retry_after_s: null } } : reply;
}

function settled(comparison) {
  for (const [name, reply] of Object.entries(comparison?.replies ?? {})) comparison.replies[name] = ended(reply);
  return comparison;
}

export const create = () => ({ id: newId(), title: "", turns: [] });

// Saves a conversation as the newest one. Returns false where the browser's storage is full.
export function save(kept) {
  const others = conversations().filter((entry) => entry.id !== kept.id);
  try {
    write(ENTRY + kept.id, kept);
    write(INDEX, [{ id: kept.id, title: kept.title, updated: Date.now() }, ...others]);
  } catch (error) {
    if (error.name !== "QuotaExceededError") throw error;
    return false;
  }
  return true;
}

export function rename(id, title) {
  write(INDEX, conversations().map((entry) => (entry.id === id ? { ...entry, title } : entry)));
  const kept = read(ENTRY + id, null);
  if (kept) write(ENTRY + id, { ...kept, title });
}

export function remove(id) {
  write(INDEX, conversations().filter((entry) => entry.id !== id));
  localStorage.removeItem(ENTRY + id);
}

export const current = () => localStorage.getItem("satori.current");
export const setCurrent = (id) => localStorage.setItem("satori.current", id);
export const settings = (name) => read(`satori.settings.${name}`, {});
export const saveSettings = (name, values) => write(`satori.settings.${name}`, values);
export const draft = (name) => localStorage.getItem(`satori.draft.${name}`) ?? "";
export const saveDraft = (name, text) => localStorage.setItem(`satori.draft.${name}`, text);
// Only for this tab.
export const comparison = () => settled(JSON.parse(sessionStorage.getItem("satori.comparison") ?? "null")) ?? { question: "", replies: {} };
export const saveComparison = (value) => sessionStorage.setItem("satori.comparison", JSON.stringify(value));
export const theme = () => localStorage.getItem("satori.theme") ?? "system";
export const saveTheme = (name) => localStorage.setItem("satori.theme", name);
// Only for this tab, and never part of an export.
export const key = () => sessionStorage.getItem("satori.key") ?? "";
export const saveKey = (value) => sessionStorage.setItem("satori.key", value);
