/** The race: one prompt answered by two methods, two clocks, and whether the texts are the same. */

import { Answer } from "./answer.js";
import { chat, inWords } from "./api.js";
import { make } from "./element.js";
import { STORY } from "./examples.js";
import { plural, rate, seconds, times } from "./numbers.js";
import { listMethods } from "./settings.js";
import { showStep } from "./stepcard.js";
import { TokenView } from "./tokens.js";

/** One method's side of the race. */
class Lane {
  constructor(method) {
    this.select = make("select", { "aria-label": `Method of lane ${method === "plain" ? 1 : 2}` });
    this.clock = make("output", { class: "clock" }, "0.00 s");
    this.count = make("p", { class: "note" }, "ready");
    this.track = make("div", { class: "track" });
    this.node = make("section", { class: "lane", "aria-label": `Lane of ${method}` },
      make("header", {}, this.select, this.clock), this.count, this.track);
    this.answer = null;
  }

  reset() {
    this.answer = null;
    this.clock.textContent = "0.00 s";
    this.count.textContent = "waits";
    this.node.classList.remove("first");
    this.track.replaceChildren();
  }

  async run(body, signal) {
    const view = new TokenView(showStep);
    this.track.replaceChildren(view.node);
    let numSteps = 0;
    this.answer = new Answer((answer) => {
      for (; numSteps < answer.steps.length; numSteps += 1) view.add(answer.steps[numSteps]);
      view.node.scrollTop = view.node.scrollHeight;
    });
    await this.answer.read(chat({ ...body, speculation: { method: this.select.value } }, signal));
    this.tick();
  }

  tick() {
    if (!this.answer) return;
    const speed = this.answer.tokensPerSecond;
    this.clock.textContent = seconds(this.answer.seconds);
    this.count.textContent = `${plural(this.answer.tokens, "token")}${speed ? `, ${rate(speed)} a second` : ""}`;
  }
}

export class Race {
  constructor(node, model) {
    this.model = model;
    this.lanes = [new Lane("plain"), new Lane("drafted")];
    this.prompt = make("textarea", { id: "race-prompt", rows: 5 });
    this.prompt.value = STORY;
    this.tokens = make("input", { type: "number", min: 1, step: 1, value: 160, required: true });
    this.temperature = make("input", { type: "number", min: 0, max: 2, step: 0.1, value: 0, required: true });
    this.order = make("select", {}, make("option", { value: "together" }, "both at once"),
      make("option", { value: "alone" }, "one after the other"));
    this.start = make("button", { type: "submit", class: "main" }, "Start the race");
    this.tracks = make("div", { class: "lanes" }, this.lanes.map((lane) => lane.node));
    this.verdict = make("p", { class: "verdict", role: "status" });
    const form = make("form", { class: "race-form", onsubmit: (event) => this.submit(event) },
      make("label", { class: "wide" }, "Prompt", this.prompt),
      make("label", {}, "Most tokens", this.tokens), make("label", {}, "Temperature", this.temperature),
      make("label", {}, "Run", this.order), this.start);
    node.append(make("h1", { id: "race-title" }, "The race"),
      make("p", { class: "lead" }, "One prompt, two methods, the same text. At once, both share the machine and are slower than alone. " +
        "One after the other, the second finds the prompt already read. The server drafts from its earlier answers, too: " +
        "a prompt that was answered before is drafted better."),
      form, this.verdict, this.tracks);
    this.running = null;
  }

  setMethods(methods, own) {
    const drafted = own === "plain" ? methods.find(({ name, lacks }) => name !== "plain" && !lacks)?.name : own;
    listMethods(this.lanes[0].select, methods, "plain");
    listMethods(this.lanes[1].select, methods, drafted ?? "plain");
  }

  async submit(event) {
    event.preventDefault();
    if (this.running) return this.running.abort();
    await this.run();
  }

  async run() {
    this.running = new AbortController();
    this.start.textContent = "Stop";
    this.verdict.textContent = "";
    for (const lane of this.lanes) lane.reset();
    if (this.tracks.getBoundingClientRect().bottom > innerHeight) this.start.scrollIntoView();
    const body = this.body();
    const ticking = setInterval(() => this.lanes.forEach((lane) => lane.answer?.isOpen && lane.tick()), 50);
    const laps = this.lanes.map((lane) => () => lane.run(body, this.running.signal));
    if (this.order.value === "together") await Promise.all(laps.map((lap) => lap()));
    // The drafted one goes first: it has nothing to copy from the other's answer then.
    else for (const lap of laps.reverse()) await lap();
    clearInterval(ticking);
    this.running = null;
    this.start.textContent = "Start the race";
    this.judge();
  }

  /** Both get the same seed, so that sampled texts are the same as well. */
  body() {
    const [max_tokens, temperature] = [Number(this.tokens.value), Number(this.temperature.value)];
    const messages = [{ role: "user", content: this.prompt.value }];
    return { model: this.model(), messages, max_tokens, temperature, seed: 1 };
  }

  judge() {
    const answers = this.lanes.map((lane) => lane.answer);
    const failed = answers.find((answer) => answer?.error);
    this.verdict.classList.toggle("bad", Boolean(failed));
    if (failed) return void (this.verdict.textContent = inWords(failed.error));
    if (answers.some((answer) => !answer || answer.isStopped)) return void (this.verdict.textContent = "Stopped.");
    const [a, b] = answers;
    const faster = a.seconds <= b.seconds ? 0 : 1;
    this.lanes[faster].node.classList.add("first");
    const ratio = Math.max(a.seconds, b.seconds) / Math.min(a.seconds, b.seconds);
    this.verdict.textContent = `${sameness(a.text, b.text)} ${this.lanes[faster].select.value} was ${times(ratio)} as fast.`;
  }
}

function sameness(a, b) {
  if (a === b) return `✓ The same text, ${plural(a.length, "character")}.`;
  let at = 0;
  while (a[at] === b[at]) at += 1;
  return `The texts differ from character ${at + 1} on: on this device a near-tie was rounded another way.`;
}
