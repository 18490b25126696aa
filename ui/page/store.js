// What the browser keeps beside the conversations: settings, drafts, colours, language. Where it keeps nothing, this page does.

const ASIDE = "satori.aside."; // what could not be read
const memory = { local: new Map(), session: new Map() };
const reported = new Set();
let listener = null;

// Calls `told` with each kind of trouble with the browser's storage, once: "full", "forbidden" or "damaged".
export function onTrouble(told) {
  listener = told;
  reported.forEach((kind) => told(kind));
}

export function trouble(kind) {
  if (reported.has(kind)) return;
  reported.add(kind);
  listener?.(kind);
}

export const kindOf = (error) => (error?.name === "QuotaExceededError" ? "full" : "forbidden");

const storage = (where) => (where === "local" ? localStorage : sessionStorage);

function raw(where, key) {
  if (memory[where].has(key)) return memory[where].get(key);
  try {
    return storage(where).getItem(key);
  } catch (error) {
    trouble(kindOf(error));
    return null;
  }
}

function keep(where, key, text) {
  try {
    storage(where).setItem(key, text);
    memory[where].delete(key);
  } catch (error) {
    memory[where].set(key, text);
    trouble(kindOf(error));
  }
}

// Returns an object that was kept, null where there is none. What cannot be read is kept aside.
function read(where, key) {
  const text = raw(where, key);
  if (text === null) return null;
  try {
    const value = JSON.parse(text);
    if (value && typeof value === "object" && !Array.isArray(value)) return value;
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw error;
  }
  setAside(where, key, text);
  return null;
}

function setAside(where, key, text) {
  keep("local", ASIDE + key, text);
  forget(where, key);
  trouble("damaged");
}

function forget(where, key) {
  memory[where].delete(key);
  try {
    storage(where).removeItem(key);
  } catch (error) {
    trouble(kindOf(error));
  }
}

// Returns the texts in local storage whose keys begin with `prefix`, by key.
export function texts(prefix) {
  try {
    return Object.fromEntries(Object.keys(localStorage).filter((key) => key.startsWith(prefix)).map((key) => [key, localStorage.getItem(key)]));
  } catch (error) {
    trouble(kindOf(error));
    return {};
  }
}

export const drop = (key) => forget("local", key);
export const asideTexts = () => texts(ASIDE);

export const newId = () => `${Date.now().toString(36)}${Math.random().toString(36).slice(2, 8)}`;

// Returns the id of a reply, which nobody can guess: who knows it may read the reply.
export const newReplyId = () => [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");

// The conversation that is shown: this tab's, or in a new tab that of the last one.
export const current = () => raw("session", "satori.current") ?? raw("local", "satori.current");
export function setCurrent(id) {
  keep("session", "satori.current", id);
  keep("local", "satori.current", id);
}
export const settings = (name) => read("local", `satori.settings.${name}`) ?? {};
export const saveSettings = (name, values) => keep("local", `satori.settings.${name}`, JSON.stringify(values));
export const draft = (name) => raw("local", `satori.draft.${name}`) ?? "";
export const saveDraft = (name, text) => keep("local", `satori.draft.${name}`, text);
export const language = () => raw("local", "satori.language");
export const saveLanguage = (name) => keep("local", "satori.language", name);
export const theme = () => raw("local", "satori.theme") ?? "system";
export const saveTheme = (name) => keep("local", "satori.theme", name);
// The ids of replies that the server is to drop, and does not know of yet.
export const stops = () => (read("local", "satori.stops")?.ids ?? []);
export const saveStops = (ids) => (ids.length ? keep("local", "satori.stops", JSON.stringify({ ids })) : forget("local", "satori.stops"));
// Only for this tab.
export const comparison = () => read("session", "satori.comparison");
export const saveComparison = (value) => keep("session", "satori.comparison", JSON.stringify(value));
export const place = () => read("session", "satori.place");
export function savePlace(value) {
  const text = JSON.stringify(value);
  if (text !== raw("session", "satori.place")) keep("session", "satori.place", text);
}
// Only for this tab, and never part of an export.
export const key = () => raw("session", "satori.key") ?? "";
export const saveKey = (value) => keep("session", "satori.key", value);
