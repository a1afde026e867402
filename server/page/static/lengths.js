/** Accepted lengths: a bar for each step, and how often each length came. */

import { draw, make } from "./element.js";
import { plural } from "./numbers.js";
import { originOf } from "./origins.js";

/** So many of the last steps have a bar. */
const SHOWN = 96;
/** Most columns of the histogram. */
const COLUMNS = 11;
const [WIDTH, GAP, UNIT, DEEPEST] = [5, 1.5, 5, 40];

/**
 * A bar for each step: accepted tokens up, in the colour of their origin; rejected ones down, the second lane.
 * `onPick(number)` is called with the number of a drafted step whose bar is clicked.
 */
export function stepBars(steps, onPick) {
  const first = Math.max(steps.length - SHOWN, 0);
  let number = steps.slice(0, first).filter(isDrafted).length;
  const shown = steps.slice(first);
  const up = Math.min(Math.max(...shown.map((step) => step.accepted.length), 4) * UNIT, DEEPEST);
  const down = Math.min(Math.max(...shown.map((step) => step.rejected.length), 1) * UNIT, DEEPEST);
  const bars = shown.map((step, i) => {
    const own = isDrafted(step) ? number++ : null;
    return bar(step, i * (WIDTH + GAP), up, own === null ? undefined : () => onPick(own));
  });
  const width = Math.max(shown.length, 48) * (WIDTH + GAP);
  return draw("svg", { viewBox: `0 0 ${width} ${up + down + 3}`, class: "bars", role: "img", "aria-label": told(steps) },
    draw("line", { x1: 0, x2: width, y1: up + 1.5, y2: up + 1.5, class: "axis" }), ...bars);
}

const isDrafted = (step) => step.accepted.length + step.rejected.length > 0;

function bar(step, x, up, onclick) {
  const accepted = Math.min(step.accepted.length * UNIT, DEEPEST);
  const rejected = Math.min(step.rejected.length * UNIT, DEEPEST);
  const title = draw("title", {}, `${originOf(step.origin).label}: ${step.accepted.length} accepted, ${step.rejected.length} rejected`);
  return draw("g", { class: `${originOf(step.origin).style}${onclick ? " clickable" : ""}`, onclick }, title,
    onclick && draw("rect", { x, width: WIDTH + GAP, y: 0, height: "100%", class: "target" }),
    accepted > 0 && draw("rect", { x, width: WIDTH, y: up - accepted, height: accepted, rx: 1, class: "accepted" }),
    rejected > 0 && draw("rect", { x, width: WIDTH, y: up + 3, height: rejected, rx: 1, class: "rejected" }),
    !onclick && draw("rect", { x, width: WIDTH, y: up, height: 1.5, class: "alone" }));
}

function told(steps) {
  const accepted = steps.reduce((sum, step) => sum + step.accepted.length, 0);
  return `${plural(steps.length, "step")}, ${plural(accepted, "accepted token")}. A bar for each of the last steps.`;
}

/** How many drafts had 0, 1, 2, … tokens accepted; from the steps, or from the server's own histogram where there are none. */
export function histogram(steps, counted) {
  const counts = counted?.slice() ?? countsOf(steps.filter(isDrafted).map((step) => step.accepted.length));
  while (counts.length > 1 && !counts.at(-1)) counts.pop();
  // The long ones share a column.
  const longest = counts.length > COLUMNS ? COLUMNS - 1 : null;
  if (longest !== null) counts.push(counts.splice(longest).reduce((sum, count) => sum + count, 0));
  const most = Math.max(...counts, 1);
  return make("ol", { class: "histogram", start: 0 }, counts.map((count, length) => {
    const bar = make("i");
    bar.style.height = `${(count / most) * 100}%`;
    const name = length === longest ? `${length}+` : length;
    const title = `${plural(count, "draft")} with ${name} accepted ${length === 1 ? "token" : "tokens"}`;
    return make("li", { title }, make("span", { class: "unseen" }, title), make("span", { class: "column", "aria-hidden": "true" }, bar),
      make("span", { "aria-hidden": "true" }, name));
  }));
}

/** How often each number from 0 to the largest comes: [2, 0, 1] of 0, 0 and 2. */
function countsOf(numbers) {
  const counts = new Array(Math.max(...numbers, 0) + 1).fill(0);
  for (const number of numbers) counts[number] += 1;
  return counts;
}
