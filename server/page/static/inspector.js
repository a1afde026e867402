/** How one answer was drafted: speed, origins, accepted lengths, route, draft and map. */

import { make } from "./element.js";
import { histogram, stepBars } from "./lengths.js";
import { mapPicture } from "./map.js";
import { percent, plural, rate, seconds, times } from "./numbers.js";
import { originOf } from "./origins.js";
import { inWords, strip } from "./sublayers.js";

/** Milliseconds between two drawings of an answer that grows. */
const EVERY = 120;

/** The panel beside the chat. It shows one answer at a time. */
export class Inspector {
  constructor(node) {
    this.node = node;
    this.map = null;
    this.speedups = {};
    this.answer = null;
    this.tokens = null;
    this.points = [];
    this.isDue = false;
    this.draw();
  }

  /** Shows an answer and whatever it becomes; `tokens` is the view that a picked step is shown in. */
  show(answer, tokens) {
    this.answer = answer;
    this.tokens = tokens;
    this.refresh();
  }

  refresh() {
    if (this.isDue) return;
    this.isDue = true;
    setTimeout(() => {
      this.isDue = false;
      this.draw();
    }, EVERY);
  }

  draw() {
    const { answer } = this;
    this.node.replaceChildren(
      make("h2", {}, "How it was drafted"),
      ...(answer ? this.sections(answer) : [make("p", { class: "note" }, "An answer’s drafts appear here while it is written.")]),
      ...(this.map?.domains.length && !answer ? [section("Where prompts lie", mapPicture(this.map, null))] : []),
    );
  }

  sections(answer) {
    const counted = answer.isTraced ? undefined : answer.metrics?.speculative_decoding.acceptance_histogram;
    const route = answer.route ?? routeFrom(answer.metrics);
    return [
      figures(answer, this.speedups[route?.domain]),
      answer.isTraced && section("Where tokens come from", origins(answer.steps)),
      answer.isTraced && section("Each step", stepBars(answer.steps, (number) => this.tokens?.show(number)),
        make("p", { class: "note" }, "Up: accepted tokens. Down: rejected ones. A dot is a token of the model alone.")),
      (counted || answer.drafts.number > 0) && section("Drafts by accepted tokens", histogram(answer.steps, counted)),
      route && section("The route", ...this.routeOf(route)),
      this.map?.domains.length > 0 && section("Where the prompt lies", mapPicture(this.map, route, this.points)),
    ].filter(Boolean);
  }

  routeOf(route) {
    const layers = this.map?.num_layers;
    return [
      make("p", { class: "domain" }, make("strong", {}, route.domain), make("span", { class: "note" }, this.likeness(route))),
      layers && strip(route.draft, layers),
      layers && make("p", { class: "key" }, ...["kept", "skipped", "patched"].map((state) =>
        make("span", {}, make("i", { class: state }), ` ${state}`))),
      make("p", { class: "note" }, `Its draft: ${inWords(route.draft, layers ?? 0)}.`),
    ].filter(Boolean);
  }

  likeness({ domain, similarity }) {
    if (similarity === null) return "nothing to compare with";
    const threshold = this.map?.domains.find(({ name }) => name === domain)?.threshold;
    const needed = typeof threshold === "number" ? `${threshold.toFixed(2)} is enough` : "like none of the known kinds";
    return `similarity ${similarity.toFixed(2)}, ${needed}`;
  }
}

const section = (title, ...parts) => make("section", {}, make("h3", {}, title), ...parts);

/** The route of a server that tells of it in the metrics only. */
function routeFrom(metrics) {
  const found = metrics?.speculative_decoding;
  return found ? { domain: found.domain, similarity: found.similarity, draft: found.draft, point: null, nearest: [] } : null;
}

function figures(answer, speedup) {
  const { drafted, accepted } = answer.drafts;
  const perSecond = answer.tokensPerSecond;
  const cells = [
    [perSecond === null ? "–" : rate(perSecond), "tokens a second"],
    [speedup ? times(speedup) : "–", speedup ? "as fast as plain, now" : "over plain: not known yet"],
    [drafted ? percent(accepted / drafted) : "–", "of drafts accepted"],
    [answer.steps.length && answer.isTraced ? (answer.tokens / answer.steps.length).toFixed(2) : "–", "tokens a pass"],
  ];
  return make("div", {},
    make("dl", { class: "figures" }, cells.map(([value, name]) => make("div", {}, make("dt", {}, name), make("dd", {}, value)))),
    make("p", { class: "note" }, `${plural(answer.tokens, "token")} in ${seconds(answer.seconds)}`));
}

/** Share of each origin, as one bar and as a legend. */
function origins(steps) {
  const counts = new Map();
  const count = (name, number) => number && counts.set(name, (counts.get(name) ?? 0) + number);
  for (const step of steps) {
    count(step.origin === "" ? "plain" : step.origin, step.origin === "plain" ? 0 : step.accepted.length);
    count("plain", 1);
  }
  const all = [...counts.values()].reduce((sum, number) => sum + number, 0);
  const sorted = [...counts].sort((a, b) => b[1] - a[1]);
  const bar = make("div", { class: "shares", "aria-hidden": "true" }, sorted.map(([name, number]) => {
    const part = make("i", { class: originOf(name).style });
    part.style.flexGrow = number;
    return part;
  }));
  const legend = make("ul", { class: "legend" }, sorted.map(([name, number]) => {
    const { label, explanation, style } = originOf(name);
    return make("li", { class: style, title: explanation }, make("i", { class: "swatch" }), label,
      make("span", { class: "count" }, `${number} · ${percent(number / all)}`));
  }));
  return make("div", {}, bar, legend);
}
