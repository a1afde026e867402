/** Makes elements. Text always becomes a text node, so nothing that is shown can ever be HTML. */

const SVG = "http://www.w3.org/2000/svg";

/** `make("button", { class: "quiet", onclick: stop }, "Stop")`; false, null and undefined leave a part out. */
export function make(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** The same for the parts of a picture. */
export function draw(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export const find = (id) => document.getElementById(id);

/** Puts text on the clipboard, also where the page has no secure origin and the modern way is shut. */
export async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const field = make("textarea", { class: "unseen", readonly: true });
  field.value = text;
  document.body.append(field);
  field.select();
  const isDone = document.execCommand("copy");
  field.remove();
  if (!isDone) throw new Error("the browser does not let this page copy");
}

/** A button that copies what `text()` gives, and says so for a moment. */
export function copyButton(text, label = "Copy") {
  const button = make("button", { type: "button", class: "quiet small" }, label);
  button.addEventListener("click", async () => {
    button.textContent = await copy(text()).then(() => "Copied", () => "Not allowed");
    setTimeout(() => { button.textContent = label; }, 1500);
  });
  return button;
}
