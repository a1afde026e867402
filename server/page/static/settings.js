/** What a request asks for beside its messages: the fields of the form, and the methods that the server has. */

import { find, make } from "./element.js";

const NUMBERS = ["temperature", "top_p", "max_tokens", "seed"];

/** The fields that are filled in, under the API's names; empty ones are left to the server. */
export function settings() {
  const form = find("composer");
  const filled = NUMBERS.filter((name) => form.elements[name].value !== "");
  const numbers = filled.map((name) => [name, Number(form.elements[name].value)]);
  const method = form.elements.method.value;
  return { ...Object.fromEntries(numbers), ...(method && { speculation: { method } }) };
}

/** The system prompt as a message, or none. */
export function systemMessages() {
  const content = find("composer").elements.system.value.trim();
  return content ? [{ role: "system", content }] : [];
}

/** The first field with a value that cannot be, after showing it; null where all are right. */
export function wrongField() {
  const wrong = NUMBERS.map((name) => find("composer").elements[name]).find((field) => !field.checkValidity());
  if (!wrong) return null;
  openSettings(true);
  wrong.reportValidity();
  return wrong;
}

export function openSettings(isOpen) {
  find("settings").hidden = !isOpen;
  find("settings-toggle").setAttribute("aria-expanded", String(isOpen));
}

/** Fills a list with methods; those that the server lacks something for cannot be picked, and say what. */
export function listMethods(select, methods, chosen) {
  select.append(...methods.map(({ name, summary, lacks }) =>
    make("option", { value: name, disabled: Boolean(lacks), title: summary }, lacks ? `${name} (needs ${lacks})` : name)));
  if (chosen) select.value = chosen;
}
