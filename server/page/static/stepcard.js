/** The card that tells of one step: what was drafted, how much of it was right, what the model wrote instead. */

import { find, make } from "./element.js";
import { originOf } from "./origins.js";
import { plural } from "./numbers.js";

/** Shows a step beside its element; null hides the card. */
export function showStep(step, element) {
  const card = find("step-card");
  card.hidden = !step;
  if (!step) return;
  const { label, explanation, style } = originOf(step.origin);
  const drafted = [...step.accepted, ...step.rejected];
  card.className = `step-card ${style}`;
  card.replaceChildren(
    make("p", { class: "step-title" }, make("i", { class: "swatch" }), make("strong", {}, label)),
    make("p", { class: "note" }, explanation),
    make("p", { class: "step-tokens" }, drafted.map((text, i) =>
      make(i < step.accepted.length ? "ins" : "del", {}, shown(text)))),
    make("p", {}, `${plural(step.accepted.length, "token")} of ${drafted.length} accepted; then the model wrote `,
      make("b", { class: "own-token" }, shown(step.own)), "."),
  );
  place(card, element.getClientRects());
  find("spoken-step").textContent = card.innerText;
}

const shown = (text) => text.replaceAll("\n", "↵").replaceAll(" ", "\u00a0") || "…";

/** Under the step's last line, or over its first where there is no room; always inside of the window. */
function place(card, lines) {
  const first = lines[0];
  const last = lines[lines.length - 1];
  const { width, height } = card.getBoundingClientRect();
  const isBelow = last.bottom + height + 12 < document.documentElement.clientHeight;
  const left = Math.min(Math.max(first.left, 8), document.documentElement.clientWidth - width - 8);
  card.style.left = `${Math.max(left, 8) + scrollX}px`;
  card.style.top = `${(isBelow ? last.bottom + 6 : Math.max(first.top - height - 6, 8)) + scrollY}px`;
}
