// The words of the page in the chosen language. The choice is remembered; without one the browser's language decides.

import * as store from "./store.js";

const LANGUAGES = ["en", "zh"];
let words = {};
export let language = "en";

function preferred() {
  const chosen = store.language();
  if (LANGUAGES.includes(chosen)) return chosen;
  for (const name of navigator.languages || [navigator.language]) {
    const found = LANGUAGES.find((code) => name.toLowerCase().startsWith(code));
    if (found) return found;
  }
  return "en";
}

async function load(name, home) {
  const response = await fetch(new URL(`page/texts/${name}.json`, home));
  words = await response.json();
  language = name;
  document.documentElement.lang = name === "zh" ? "zh-Hans" : name;
}

export const begin = (home) => load(preferred(), home);

export async function speak(name, home) {
  store.saveLanguage(name);
  await load(name, home);
}

// t("unit.tokens", {count: 3}) returns the text with {count} filled in. Where the count is 1, it is the text of "unit.tokens.one",
// if there is one.
export function t(key, values = {}) {
  const text = (values.count === 1 && words[`${key}.one`]) || words[key];
  if (text === undefined) throw new Error(`no text for ${key} in ${language}`);
  return text.replace(/\{(\w+)\}/g, (_, name) => values[name]);
}
