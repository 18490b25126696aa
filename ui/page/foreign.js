// Conversations that ChatGPT (`conversations.json`) and Open WebUI have exported, as this page keeps them. Nothing here touches the page.

import * as store from "./store.js";
import { blank } from "./turns.js";

const isText = (value) => typeof value === "string";
const isObject = (value) => Boolean(value) && typeof value === "object" && !Array.isArray(value);
const isQuestion = (message) => message.role === "user" && message.text;

// Reads a file's value. Returns the conversations {kept, updated} that it has, how many messages were `left` out (without a text, or
// before any question), and the titles of conversations that are `broken`; null where the file is something else.
export function foreign(value) {
  const items = Array.isArray(value) ? value : [value];
  if (!items.length || !items.every((item) => isObject(item) && ("mapping" in item || isObject(item.chat)))) return null;
  const found = [];
  const broken = [];
  let left = 0;
  for (const [at, item] of items.entries()) {
    const title = [item.title, item.chat?.title].find(isText) ?? "";
    const read = "mapping" in item ? ofChatGpt(item) : ofOpenWebUi(item);
    if (!read) {
      broken.push(title || `#${at + 1}`);
      continue;
    }
    const { kept, taken } = conversation(title, read);
    left += read.messages.filter((message) => message.counts && !taken.has(message)).length;
    if (!kept.turns.length) continue;
    const seconds = [item.update_time, item.create_time, item.updated_at, item.created_at].find(Number.isFinite);
    found.push({ kept, updated: seconds ? seconds * 1000 : Date.now() });
  }
  return { found, left, broken };
}

// Both return {messages, current}, null where they cannot: each message's id, parent, role and text, and whether it `counts` as left out
// where it is.
function ofChatGpt({ mapping, current_node }) {
  if (!isObject(mapping) || !Object.values(mapping).every(isObject)) return null;
  const messages = Object.entries(mapping).map(([id, { parent, message }]) => {
    const role = message?.author?.role;
    const seen = ["user", "assistant"].includes(role) && !message.metadata?.is_visually_hidden_from_conversation && (message.recipient ?? "all") === "all";
    const content = isObject(message?.content) ? message.content : {};
    const parts = Array.isArray(content.parts) ? content.parts : [content.text];
    const texts = parts.map((part) => (isObject(part) ? part.text ?? `[${part.content_type}]` : part)).filter((text) => isText(text) && text.trim());
    return { id, parent, role, text: seen ? texts.join("\n\n") : "", counts: seen };
  });
  return { messages, current: current_node };
}

function ofOpenWebUi({ chat }) {
  const tree = chat.history?.messages;
  const list = isObject(tree) ? Object.entries(tree).map(([id, message]) => ({ ...message, id })) : chat.messages;
  if (!Array.isArray(list) || !list.every(isObject)) return null;
  const messages = list.map(({ id, parentId, role, content }, at) => ({
    id: isText(id) ? id : String(at), role, counts: ["user", "assistant"].includes(role), text: isText(content) ? content.trim() : "",
    parent: isObject(tree) ? parentId : at && messageId(list[at - 1], at - 1),
  }));
  return { messages, current: isObject(tree) ? chat.history.currentId : messages.at(-1)?.id };
}

const messageId = ({ id }, at) => (isText(id) ? id : String(at));

// Returns messages as a conversation, and which were taken: a question and what follows it up to the next one are a turn, other branches
// its versions.
function conversation(title, { messages, current }) {
  const known = new Map(messages.map((message) => [message.id, message]));
  const root = {};
  const children = new Map([[root, []]]);
  for (const message of messages) {
    const parent = known.get(message.parent) ?? root;
    children.set(parent, [...children.get(parent) ?? [], message]);
  }
  const seen = new Set();
  for (let message = known.get(current); message && !seen.has(message); message = known.get(message.parent)) seen.add(message);

  // Returns the ways on from a message: what was said up to the next questions, these, and whether it is the way that was seen.
  const ways = (message) => {
    const next = children.get(message) ?? [];
    const asked = next.filter(isQuestion);
    const others = next.filter((one) => !isQuestion(one)).flatMap((one) =>
      ways(one).map((way) => ({ ...way, said: [one, ...way.said], seen: way.seen && seen.has(one) })));
    const here = { said: [], asked, seen: !next.some((one) => seen.has(one)) || asked.some((one) => seen.has(one)) };
    return asked.length || !others.length ? [here, ...others] : others;
  };

  const taken = new Set();
  const kept = { id: store.newId(), title, turns: [], shown: {} };
  const open = ways(root).flatMap((way) => way.asked.map((question) => ({ question, parent: null })));
  for (const { question, parent } of open) {
    for (const way of ways(question)) {
      const said = way.said.filter((message) => message.text);
      const content = said.map((message) => message.text).join("\n\n");
      [question, ...said].forEach((message) => taken.add(message));
      const reply = content ? { ...blank("done", store.newReplyId()), content } : null;
      const turn = { id: store.newId(), parent, question: question.text, thought: [], settings: {}, reply };
      kept.turns.push(turn);
      if (seen.has(question) && way.seen) kept.shown[parent ?? ""] = turn.id;
      open.push(...way.asked.map((next) => ({ question: next, parent: turn.id })));
    }
  }
  return { kept, taken };
}
