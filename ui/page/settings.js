// The settings of a request, in plain words, with the API's limits.

import { h } from "./dom.js";
import * as store from "./store.js";
import { t } from "./words.js";

export const DEFAULTS = {
  model: "", temperature: 0, max_tokens: null, effort: "normal", max_reasoning_tokens: null, max_reflections: null,
  max_explorations: null, min_reflections: 0, votes: 1, card_prompt: null, history: false,
};
const EFFORTS = ["quick", "normal", "thorough", "custom"];
const LARGEST = 1000000;

// What is kept may be of another page's version: what is not as the defaults are is left out.
const fits = (key, value) => {
  const like = { number: Number.isFinite, string: (one) => typeof one === "string", boolean: (one) => typeof one === "boolean" };
  const kind = key === "card_prompt" ? "boolean" : DEFAULTS[key] === null ? "number" : typeof DEFAULTS[key];
  return key in DEFAULTS && (value === DEFAULTS[key] || like[kind](value)) && (key !== "effort" || EFFORTS.includes(value));
};

// Returns the user's settings, with defaults for the rest and a model that is served.
export function effective(name, models) {
  const kept = Object.entries(store.settings(name)).filter(([key, value]) => fits(key, value));
  const values = { ...DEFAULTS, ...Object.fromEntries(kept) };
  if (!models.some((model) => model.id === values.model)) values.model = models[0]?.id ?? "";
  values.card_prompt ??= /satori/i.test(values.model); // the model was trained on this very prompt
  return values;
}

// Returns the settings that go to the server with a question.
export function forRequest({ history, ...values }) {
  return values;
}

export function summary(values, models) {
  const parts = [models.length > 1 ? values.model : "", t(`effort.${values.effort}`)];
  if (values.temperature) parts.push(t("summary.temperature", { value: values.temperature }));
  else if (values.votes <= 1) parts.push(t("summary.greedy")); // a vote has a temperature of its own then
  if (values.votes > 1) parts.push(t("summary.votes", { count: values.votes }));
  if (values.max_tokens) parts.push(t("unit.tokens", { count: values.max_tokens }));
  return parts.filter((part) => part).join(" · ");
}

function field(name, id, control, hint) {
  const help = hint ? h("p", { class: "hint", id: `${id}-hint` }, hint) : null;
  if (help) control.setAttribute("aria-describedby", `${id}-hint`);
  control.id = id;
  return h("div", { class: "field" }, h("label", { for: id }, t(`setting.${name}`)), control, help);
}

// A form for the settings `name`; `changed` is called after each change.
export class SettingsForm {
  constructor(name, models, changed) {
    Object.assign(this, { name, models, changed });
    this.element = h("form", { class: "settings", onsubmit: (event) => event.preventDefault() });
    this.draw();
  }

  get values() {
    return effective(this.name, this.models);
  }

  set(change) {
    store.saveSettings(this.name, { ...store.settings(this.name), ...change });
    this.changed();
  }

  draw() {
    const values = this.values;
    this.element.replaceChildren(...[
      this.models.length > 1 ? this.model(values) : null,
      this.effort(values),
      values.effort === "custom" ? this.custom(values) : null,
      this.range("votes", values, 1, 16, 1, (value) => (value > 1 ? t("setting.votes.on", { count: value }) : t("setting.votes.off"))),
      this.range("temperature", values, 0, 2, 0.1, (value) => (value ? String(value) : t("setting.temperature.zero"))),
      this.number("max_tokens", values, 1, this.models.find((model) => model.id === values.model)?.max_model_len ?? LARGEST),
      this.check("card_prompt", values),
      this.name === "chat" ? this.check("history", values) : null, // a comparison has no earlier turns
    ].filter((part) => part));
  }

  id(name) {
    return `${this.name}-${name}`;
  }

  model(values) {
    const options = this.models.map((model) => h("option", { value: model.id }, model.id));
    const select = h("select", { onchange: () => { this.set({ model: select.value }); this.draw(); } }, options);
    select.value = values.model;
    return field("model", this.id("model"), select);
  }

  effort(values) {
    const options = EFFORTS.map((effort) => h("label", {},
      h("input", { type: "radio", name: this.id("effort"), value: effort, checked: values.effort === effort, onchange: () => {
        this.set({ effort });
        this.draw();
        this.element.querySelector(`input[value=${effort}]`).focus();
      } }), h("span", {}, t(`effort.${effort}`))));
    return h("fieldset", { class: "field effort" }, h("legend", {}, t("setting.effort")), h("div", { class: "segments" }, options),
      h("p", { class: "hint" }, t(`effort.${values.effort}.hint`)));
  }

  custom(values) {
    return h("div", { class: "custom" }, this.number("max_reasoning_tokens", values, 0, LARGEST), this.number("min_reflections", values, 0, 32),
      this.number("max_reflections", values, 0, LARGEST), this.number("max_explorations", values, 0, LARGEST));
  }

  number(name, values, min, max) {
    const input = h("input", { type: "number", min, max, step: 1, inputmode: "numeric", placeholder: t("setting.empty"), onchange: () => {
      input.setAttribute("aria-invalid", String(!input.checkValidity()));
      if (!input.reportValidity()) return;
      this.set({ [name]: input.value === "" ? DEFAULTS[name] : Number(input.value) });
    } });
    input.value = values[name] ?? "";
    return field(name, this.id(name), input, t(`setting.${name}.hint`));
  }

  range(name, values, min, max, step, word) {
    const shown = h("output", { for: this.id(name) }, word(values[name]));
    const input = h("input", { type: "range", min, max, step, "aria-valuetext": word(values[name]), oninput: () => {
      const value = Number(input.value);
      shown.textContent = word(value);
      input.setAttribute("aria-valuetext", word(value));
      this.set({ [name]: value });
    } });
    input.value = values[name];
    const element = field(name, this.id(name), input, t(`setting.${name}.hint`));
    element.querySelector("label").after(shown);
    return element;
  }

  check(name, values) {
    const id = this.id(name);
    const input = h("input", { type: "checkbox", id, checked: values[name], "aria-describedby": `${id}-hint`, onchange: () => this.set({ [name]: input.checked }) });
    return h("div", { class: "field check" }, input, h("label", { for: id }, t(`setting.${name}`)), h("p", { class: "hint", id: `${id}-hint` }, t(`setting.${name}.hint`)));
  }
}

// The field of the API key, which is kept for this tab and not with the settings.
export function keyField(changed) {
  const input = h("input", { type: "password", autocomplete: "off", spellcheck: "false", onchange: () => { store.saveKey(input.value.trim()); changed(); } });
  input.value = store.key();
  return field("key", "api-key", input, t("setting.key.hint"));
}
