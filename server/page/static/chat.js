/** The conversation: sends turns, shows answers while they come, stops and makes them anew. */

import { Answer } from "./answer.js";
import { chat } from "./api.js";
import { find, make } from "./element.js";
import { AnswerMessage, userMessage } from "./message.js";
import { Narrator } from "./narrator.js";
import { settings, systemMessages, wrongField } from "./settings.js";

export class Chat {
  /** `model()` is the served model's name; `inspector` shows the drafts of an answer; `onEnd` hears of each that ended. */
  constructor(model, inspector, onEnd) {
    this.model = model;
    this.inspector = inspector;
    this.onEnd = onEnd;
    this.turns = [];
    this.messages = [];
    this.stopping = null;
    this.isProse = false;
    this.log = find("log");
  }

  get isBusy() {
    return this.stopping !== null;
  }

  /** Sends a message and gives whether it could. */
  send(text) {
    if (this.isBusy || !text.trim() || wrongField()) return false;
    this.turns.push({ role: "user", content: text });
    find("welcome").hidden = true;
    this.log.append(userMessage(text));
    this.answerLast();
    return true;
  }

  stop() {
    this.stopping?.abort();
  }

  /** Answers the last question again, in place of its answer. */
  regenerate() {
    if (this.isBusy || wrongField()) return;
    if (this.turns.at(-1)?.role === "assistant") this.turns.pop();
    const last = this.messages.pop();
    this.inspector.points = this.messages.map(({ answer }) => answer.route?.point);
    last?.node.remove();
    this.answerLast();
  }

  clear() {
    this.stop();
    this.turns = [];
    this.messages = [];
    this.log.replaceChildren();
    find("spoken").replaceChildren();
    find("welcome").hidden = false;
    this.inspector.points = [];
    this.inspector.show(null, null);
  }

  showAs(isProse) {
    this.isProse = isProse;
    for (const message of this.messages) message.showAs(isProse);
  }

  async answerLast() {
    const { turns } = this;
    const body = { model: this.model(), messages: [...systemMessages(), ...turns], ...settings() };
    const [narrator, stopping] = [new Narrator(), new AbortController()];
    const answer = new Answer();
    const message = this.begin(answer);
    answer.listen = () => {
      message.refresh();
      if (this.inspector.answer === answer) this.inspector.refresh();
      narrator.tell(answer.text, !answer.isOpen);
      follow(this.log);
    };
    this.setBusy(stopping);
    await answer.read(chat(body, stopping.signal));
    this.setBusy(null);
    // A new chat may have begun in the meantime.
    if (turns === this.turns && answer.text) turns.push({ role: "assistant", content: answer.text });
    this.onEnd(answer);
  }

  begin(answer) {
    const again = make("button", { type: "button", class: "quiet small again", onclick: () => this.regenerate() }, "Regenerate");
    const drafts = make("button", { type: "button", class: "quiet small", onclick: () => this.inspect(message) }, "Drafts");
    const message = new AnswerMessage(answer, this.isProse, [again, drafts]);
    this.inspector.points = this.messages.map((earlier) => earlier.answer.route?.point);
    this.messages.push(message);
    this.log.append(message.node);
    this.inspector.show(answer, message.tokens);
    message.node.scrollIntoView({ block: "nearest" });
    return message;
  }

  /** Shows an answer's drafts in the panel; on a narrow screen that is a view of its own. */
  inspect(message) {
    this.inspector.show(message.answer, message.tokens);
    if (matchMedia("(max-width: 63.99rem)").matches) location.hash = "#drafts";
    this.inspector.node.focus();
  }

  setBusy(stopping) {
    const [send, stop] = [find("send"), find("stop")];
    const hadFocus = [send, stop].includes(document.activeElement);
    this.stopping = stopping;
    [send.hidden, stop.hidden] = [this.isBusy, !this.isBusy];
    if (hadFocus) (this.isBusy ? stop : find("prompt")).focus();
  }
}

let isAtEnd = true;
let isFollowing = false;

addEventListener("scroll", () => {
  const page = document.documentElement;
  isAtEnd = page.scrollHeight - page.scrollTop - page.clientHeight < 80;
}, { passive: true });

/** Keeps the end of a growing answer in sight; those who have scrolled up to read are left alone. */
function follow(log) {
  if (!isAtEnd || isFollowing || !log.checkVisibility()) return;
  isFollowing = true;
  requestAnimationFrame(() => {
    isFollowing = false;
    scrollTo({ top: document.documentElement.scrollHeight });
  });
}
