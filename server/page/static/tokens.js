/** The text of an answer, token by token, each in the colour of its origin; drafts that were wrong stand struck before what is right. */

import { make } from "./element.js";
import { originOf } from "./origins.js";

/** Shows steps as they come. A step with a draft can be pointed at, tapped, and walked to with the arrow keys. */
export class TokenView {
  /** `onStep(step, element)` is called with the step that is looked at, and with null when none is any more. */
  constructor(onStep) {
    this.onStep = onStep;
    this.steps = [];
    this.current = null;
    this.node = make("div", {
      class: "tokens",
      tabindex: 0,
      role: "group",
      "aria-label": "Answer by token. Left and right arrow keys walk through the drafts.",
      onkeydown: (event) => this.walk(event),
      onpointerover: (event) => event.pointerType === "mouse" && this.look(event.target),
      onpointerleave: () => this.look(null),
      onclick: (event) => this.look(event.target),
      onblur: () => this.look(null),
    });
    this.ground = null;
  }

  add(step) {
    const isDrafted = step.accepted.length + step.rejected.length > 0;
    if (isDrafted) this.addDraft(step);
    else this.addPlain(step.own);
  }

  /** Plain tokens share one text node: nothing is to be said of each, and there may be many. */
  addPlain(text) {
    this.ground ??= this.node.appendChild(document.createTextNode(""));
    this.ground.appendData(text);
  }

  addDraft(step) {
    this.ground = null;
    const { style } = originOf(step.origin);
    const accepted = step.accepted.map((text) => make("span", { class: `token${lineClass(text)}` }, text));
    const rejected = step.rejected.length > 0 && make("del", {}, clipped(step.rejected.map(visible).join("")));
    const own = make("span", { class: "own" }, step.own);
    this.steps.push(step);
    this.node.append(make("span", { class: `step ${style}`, "data-step": this.steps.length - 1 }, accepted, rejected, own));
  }

  /** Marks the step of an element, or of none. */
  look(target) {
    const element = target?.closest?.(".step") ?? null;
    if (element === this.current) return;
    this.current?.classList.remove("looked-at");
    element?.classList.add("looked-at");
    this.current = element;
    this.onStep(element && this.steps[element.dataset.step], element);
  }

  walk(event) {
    const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (event.key === "Escape") this.look(null);
    if (!move || this.steps.length === 0) return;
    event.preventDefault();
    const at = this.current ? Number(this.current.dataset.step) + move : (move > 0 ? 0 : this.steps.length - 1);
    this.show(Math.min(Math.max(at, 0), this.steps.length - 1));
  }

  /** Looks at the step of a number, and scrolls to it. */
  show(number) {
    const element = this.node.querySelector(`[data-step="${number}"]`);
    element?.scrollIntoView({ block: "nearest" });
    this.look(element);
  }
}

/** Line breaks have a sign, so that a drafted one is seen; it is not part of the text that is copied. */
const lineClass = (text) => (text.includes("\n") ? " broken" : "");
const visible = (text) => text.replaceAll("\n", "↵");

/** The beginning of a long draft is enough between the words of an answer; its card has all of it. */
const clipped = (text) => (text.length > 16 ? `${text.slice(0, 14)}…` : text);
