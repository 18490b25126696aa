// The conversations that this browser keeps, for all its tabs: IndexedDB has them, each change is a transaction on what is kept there,
// and the other tabs are told. Where nothing can be kept, this tab has them until it is closed.

import { Database } from "./database.js";
import { foreign } from "./foreign.js";
import * as store from "./store.js";
import { isRunning, path, sound } from "./turns.js";

const OLD_INDEX = "satori.conversations"; // where localStorage had them
const OLD_ENTRY = "satori.conversation.";
const FORMAT = "satori-conversations";

export class NoConversation extends Error {}

export class Library {
  // `changed(kept)` is called when another tab has changed a conversation that this one has loaded, `listed()` when the list has
  // changed, `removed(id)` when another tab has deleted one, `stopped(turnId)` when it wants a reply to be stopped.
  static async begin() {
    const library = new Library();
    try {
      library.database = await Database.open();
    } catch (error) {
      library.fail(error);
    }
    await library.takeOver();
    try {
      for (const entry of await library.database?.all("index") ?? []) library.entries.set(entry.id, entry);
    } catch (error) {
      library.fail(error);
    }
    library.channel.onmessage = ({ data }) => library.hear(data);
    return library;
  }

  constructor() {
    Object.assign(this, { database: null, changed: () => {}, listed: () => {}, removed: () => {}, stopped: () => {} });
    this.entries = new Map(); // of the list, see `entryOf`
    this.loaded = new Map(); // conversations, by id
    this.unsaved = new Set(); // ids of those that the browser has not kept yet
    this.mine = new Set(); // ids of the turns whose replies this tab receives
    this.writing = Promise.resolve();
    this.channel = new BroadcastChannel("satori");
  }

  // Returns the entry of each conversation, the newest first.
  list() {
    return [...this.entries.values()].sort((one, other) => other.updated - one.updated);
  }

  create() {
    const kept = { id: store.newId(), title: "", turns: [], shown: {} };
    this.loaded.set(kept.id, kept);
    this.unsaved.add(kept.id);
    return kept;
  }

  // Returns a conversation; null where there is none.
  async load(id) {
    if (this.loaded.has(id)) return this.loaded.get(id);
    const kept = await this.read(id);
    if (kept && !this.loaded.has(id)) this.loaded.set(id, kept);
    return this.loaded.get(id) ?? null;
  }

  async read(id) {
    try {
      const record = await this.database?.get("conversations", id);
      if (record === undefined) return null;
      const kept = sound(record);
      if (!kept) await this.setAside(id, record);
      return kept;
    } catch (error) {
      this.fail(error);
      return null;
    }
  }

  // Takes over what other tabs have changed. Returns whether the browser has the conversation.
  async refresh(kept) {
    await this.writing;
    const now = await this.read(kept.id);
    if (now) this.merge(kept, now);
    return Boolean(now);
  }

  // Changes a conversation by `change(kept)`, here and in what the browser keeps. Returns when it is kept, or cannot be.
  change(kept, change, seen = true) {
    change(kept);
    if (this.loaded.get(kept.id) !== kept) return Promise.resolve(); // deleted
    const updated = seen ? Date.now() : this.entries.get(kept.id)?.updated ?? Date.now();
    this.entries.set(kept.id, entryOf(kept, updated));
    this.writing = this.writing.then(() => this.write(kept, change, updated));
    return this.writing;
  }

  async write(kept, change, updated) {
    const { id } = kept;
    if (this.loaded.get(id) !== kept) return;
    try {
      if (!this.database) throw new DOMException("nothing is kept", "InvalidStateError");
      const record = await this.database.write(async ({ get, put }) => {
        const before = this.unsaved.has(id) ? kept : sound(await get("conversations", id));
        if (!before) return null; // deleted in another tab
        if (before !== kept) change(before);
        await put("conversations", before);
        await put("index", entryOf(before, updated));
        return before;
      });
      if (!record) return this.forget(id);
      this.unsaved.delete(id);
      if (record !== kept) this.merge(kept, record);
      this.channel.postMessage({ changed: id });
    } catch (error) {
      this.unsaved.add(id);
      this.fail(error);
    }
  }

  merge(kept, record) {
    const known = new Map(kept.turns.map((turn) => [turn.id, turn]));
    const turns = record.turns.map((turn) => {
      const mine = known.get(turn.id);
      known.delete(turn.id);
      return !mine ? turn : this.mine.has(turn.id) ? mine : Object.assign(mine, turn);
    });
    kept.turns = [...turns, ...[...known.values()].filter((turn) => this.mine.has(turn.id))];
    kept.title = record.title;
    kept.shown = { ...record.shown, ...kept.shown };
  }

  async remove(id) {
    this.writing = this.writing.then(async () => {
      try {
        await this.database?.write(({ remove }) => Promise.all([remove("conversations", id), remove("index", id)]));
        this.channel.postMessage({ removed: id });
      } catch (error) {
        this.fail(error);
      }
    });
    this.forget(id);
    return this.writing;
  }

  forget(id) {
    const known = this.loaded.has(id);
    for (const all of [this.entries, this.loaded, this.unsaved]) all.delete(id);
    if (known) this.removed(id);
    this.listed();
  }

  // Asks the tab that receives a turn's reply to stop it.
  stopElsewhere(turnId) {
    this.channel.postMessage({ stop: turnId });
  }

  async hear({ changed, removed, stop }) {
    if (stop) this.stopped(stop);
    if (removed) this.forget(removed);
    if (!changed) return;
    try {
      const entry = await this.database?.get("index", changed);
      if (!entry) return;
      this.entries.set(changed, entry);
    } catch (error) {
      this.fail(error);
    }
    // One that is being answered is looked after by all tabs.
    const kept = this.loaded.get(changed) ?? (this.entries.get(changed)?.running ? await this.load(changed) : null);
    if (kept) {
      await this.refresh(kept);
      this.changed(kept);
    }
    this.listed();
  }

  // Returns the conversations in which `text` is found, as in the list.
  async find(text) {
    const wanted = text.trim().toLowerCase();
    if (!wanted) return this.list();
    const kept = new Map((await this.all()).map((one) => [one.id, one]));
    const holds = (words) => Boolean(words) && words.toLowerCase().includes(wanted);
    return this.list().filter(({ id, title }) => holds(title) || kept.get(id)?.turns.some(({ question, reply }) =>
      holds(question) || holds(reply?.content) || holds(reply?.answer) || reply?.steps.some((step) => holds(step.text))));
  }

  async all() {
    await this.writing;
    let records = [];
    try {
      records = await this.database?.all("conversations") ?? [];
    } catch (error) {
      this.fail(error);
    }
    const found = new Map(records.map((record) => [record.id, sound(record)]).filter(([, kept]) => kept));
    for (const id of this.unsaved) if (this.entries.has(id)) found.set(id, this.loaded.get(id));
    return [...found.values()];
  }

  // Returns everything as one text, damaged entries as well.
  async backup() {
    let damaged = Object.entries(store.asideTexts()).map(([id, text]) => ({ id, text }));
    try {
      damaged = [...damaged, ...await this.database?.all("damaged") ?? []];
    } catch (error) {
      this.fail(error);
    }
    const order = new Map(this.list().map(({ id, updated }) => [id, updated]));
    const conversations = (await this.all()).map((kept) => ({ ...kept, updated: order.get(kept.id) }));
    return `${JSON.stringify({ format: FORMAT, version: 1, conversations, damaged }, null, 2)}\n`;
  }

  // Adds the conversations of a text that `backup`, the export of one, ChatGPT or Open WebUI has written. Nothing is overwritten: one that
  // is here, and is another, gets a new id. Returns how many were `added`, and what `foreign` left out. Raises SyntaxError where the text
  // is no JSON, NoConversation where it is something else.
  async take(text) {
    const value = JSON.parse(text);
    const given = value?.format === FORMAT ? value.conversations : [value];
    const own = Array.isArray(given) ? given.map((one) => ({ kept: sound(one), updated: Number.isFinite(one?.updated) ? one.updated : Date.now() })) : [];
    const known = own.length && own.every(({ kept }) => kept) ? { found: own, left: 0, broken: [] } : foreign(value);
    if (!known) throw new NoConversation();
    const { found, left, broken } = known;
    const here = new Map((await this.all()).map((kept) => [kept.id, JSON.stringify(kept)]));
    let added = 0;
    for (const { kept, updated } of found) {
      if (here.get(kept.id) === JSON.stringify(kept)) continue;
      if (here.has(kept.id)) kept.id = store.newId();
      this.hold(kept, updated);
      await this.change(kept, () => {}, false);
      added += 1;
    }
    this.listed();
    return { added, left, broken };
  }

  // Takes over, once, what older pages have kept in localStorage. Where the browser does not let it, this tab has it meanwhile.
  async takeOver() {
    const texts = store.texts(OLD_ENTRY);
    if (!Object.keys(texts).length) return;
    const listed = parsed(store.texts(OLD_INDEX)[OLD_INDEX] ?? "[]");
    const order = new Map((Array.isArray(listed) ? listed : []).map((entry) => [entry?.id, entry]));
    const found = Object.entries(texts).map(([name, text]) => {
      const kept = sound(parsed(text));
      const { title, updated } = order.get(kept?.id) ?? {};
      if (kept && typeof title === "string") kept.title = title;
      return { name, text, kept, updated: Number.isFinite(updated) ? updated : Date.now() };
    });
    try {
      if (!this.database) throw new DOMException("nothing is kept", "InvalidStateError");
      await this.database.write(async ({ get, put }) => {
        for (const { name, text, kept, updated } of found) {
          if (!kept) await put("damaged", { id: name, text });
          else if (!(await get("index", kept.id))) {
            await put("conversations", kept);
            await put("index", entryOf(kept, updated));
          }
        }
      });
      [OLD_INDEX, ...Object.keys(texts)].forEach(store.drop);
    } catch (error) {
      this.fail(error);
      for (const { kept, updated } of found) if (kept) this.hold(kept, updated);
    }
    if (found.some(({ kept }) => !kept)) store.trouble("damaged");
  }

  // Has a conversation that the browser has not kept yet.
  hold(kept, updated) {
    this.loaded.set(kept.id, kept);
    this.unsaved.add(kept.id);
    this.entries.set(kept.id, entryOf(kept, updated));
  }

  async setAside(id, record) {
    await this.database.write(async ({ put, remove }) => {
      await put("damaged", { id, record });
      await remove("conversations", id);
      await remove("index", id);
    });
    this.entries.delete(id);
    store.trouble("damaged");
  }

  fail(error) {
    if (!(error instanceof DOMException)) throw error;
    store.trouble(store.kindOf(error));
  }
}

// What the list of conversations shows of one, kept apart; `running` says that it is being answered.
const entryOf = ({ id, title, turns }, updated) => ({ id, title, updated, running: turns.some(({ reply }) => isRunning(reply)) });

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw error;
    return null;
  }
}

// Returns a conversation as text, to work with.
export const asJson = (kept) => `${JSON.stringify(kept, null, 2)}\n`;
// Returns a conversation of what is seen of it, to read.
export const asSeen = (kept) => ({ ...kept, turns: path(kept) });
