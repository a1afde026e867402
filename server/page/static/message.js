/** A message of the conversation as it is shown: the user's text, or an answer as drafts and as prose. */

import { copyButton, make } from "./element.js";
import { inWords as errorInWords } from "./api.js";
import { markdown } from "./markdown.js";
import { plural, rate, seconds } from "./numbers.js";
import { showStep } from "./stepcard.js";
import { TokenView } from "./tokens.js";

export function userMessage(text) {
  return make("article", { class: "message user", "aria-label": "You" }, make("p", {}, text));
}

/** An answer that is shown while it grows; `actions` are the buttons under it. */
export class AnswerMessage {
  constructor(answer, isProse, actions) {
    this.answer = answer;
    this.isProse = isProse;
    this.tokens = new TokenView(showStep);
    this.prose = make("div", { class: "prose" });
    this.blocks = [];
    this.thoughts = make("details", { class: "thoughts", hidden: true }, make("summary", {}, "Thoughts"), make("p"));
    this.note = make("p", { class: "note" });
    this.trouble = make("p", { class: "trouble", role: "alert", hidden: true });
    this.foot = make("footer", { hidden: true }, copyButton(() => answer.text), ...actions, this.note);
    this.numSteps = 0;
    this.restUntil = 0;
    this.isDue = false;
    this.node = make("article", { class: "message answer", "aria-label": "Answer", "aria-busy": "true" },
      this.thoughts, this.tokens.node, this.prose, this.trouble, this.foot);
    this.draw();
  }

  /** Draws soon: at most once a frame, and at most a quarter of the time, however long the answer has become. */
  refresh() {
    if (this.isDue) return;
    this.isDue = true;
    const wait = Math.max(this.restUntil - performance.now(), 0);
    setTimeout(() => requestAnimationFrame(() => {
      this.isDue = false;
      const begun = performance.now();
      this.draw();
      this.restUntil = performance.now() + 3 * (performance.now() - begun);
    }), wait);
  }

  showAs(isProse) {
    this.isProse = isProse;
    this.draw();
  }

  draw() {
    const { answer } = this;
    this.tokens.node.hidden = this.isProse;
    this.prose.hidden = !this.isProse;
    if (this.isProse) this.drawProse();
    else this.drawSteps();
    this.thoughts.hidden = !answer.thoughts;
    this.thoughts.lastChild.textContent = answer.thoughts;
    this.node.classList.toggle("open", answer.isOpen);
    this.node.setAttribute("aria-busy", String(answer.isOpen));
    this.foot.hidden = answer.isOpen;
    this.note.textContent = answer.isOpen ? "" : endOf(answer);
    this.trouble.hidden = !answer.error;
    if (answer.error) this.trouble.textContent = errorInWords(answer.error);
  }

  drawSteps() {
    for (; this.numSteps < this.answer.steps.length; this.numSteps += 1) this.tokens.add(this.answer.steps[this.numSteps]);
  }

  /** Only what changed is made anew: parts of the text up to its last empty line stay as they are. */
  drawProse() {
    const parts = partsOf(this.answer.text);
    parts.forEach((part, i) => {
      if (this.blocks[i]?.part === part) return;
      const node = make("div", {}, ...markdown(part));
      if (this.blocks[i]) this.blocks[i].node.replaceWith(node);
      else this.prose.append(node);
      this.blocks[i] = { part, node };
    });
  }
}

/** A text in parts that can be shown each alone: cut at empty lines between blocks, never in code or before an indented line. */
function partsOf(text) {
  const parts = [];
  let part = [];
  let fence = null;
  for (const line of text.split("\n")) {
    const mark = /^ {0,3}(`{3,}|~{3,})/.exec(line)?.[1];
    const isNew = !fence && part.at(-1)?.trim() === "" && /^[^\s\d*+>-]/.test(line);
    if (isNew) parts.push(part.splice(0).join("\n"));
    if (mark && !fence) fence = mark;
    else if (fence && line.trimStart().startsWith(fence)) fence = null;
    part.push(line);
  }
  return [...parts, part.join("\n")];
}

function endOf(answer) {
  const speed = answer.tokensPerSecond;
  const figures = `${plural(answer.tokens, "token")}, ${seconds(answer.seconds)}${speed ? `, ${rate(speed)} tokens/s` : ""}`;
  if (answer.isStopped) return `Stopped after ${figures}`;
  if (answer.error) return answer.text ? "What came before it broke off stays." : "";
  return answer.finish === "length" ? `${figures}; it ended at its limit of tokens` : figures;
}
