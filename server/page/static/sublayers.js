/** The strip of sub-layers: which of them a draft computes, skips, or has a patch in place of. */

import { make } from "./element.js";
import { plural, whole } from "./numbers.js";

/** Two rows, attention and MLP, with a cell for each layer. */
export function strip(draft, layers) {
  const rows = [["attention", draft.attention ?? []], ["MLP", draft.mlp ?? []]];
  const cell = (skipped, i) => make("i", { class: stateOf(draft, skipped, i) });
  return make("div", { class: "strip", role: "img", "aria-label": inWords(draft, layers) },
    rows.map(([name, skipped]) => {
      const cells = make("span", { class: "cells" }, Array.from({ length: layers }, (_, i) => cell(skipped, i)));
      return make("span", { class: "row" }, make("span", { class: "name" }, name), cells);
    }));
}

function stateOf(draft, skipped, layer) {
  if (draft.patched_from !== null && layer >= draft.patched_from) return "patched";
  return skipped.includes(layer) ? "skipped" : "kept";
}

/** What the strip shows, as sentences. */
export function inWords(draft, layers) {
  const patched = draft.patched_from === null ? 0 : layers - draft.patched_from;
  const parts = [];
  if (patched === layers) parts.push(`one matrix in place of all ${layers} layers`);
  else if (patched > 0) parts.push(`one matrix in place of the last ${plural(patched, "layer")}`);
  const skipped = draft.skipped_attention + draft.skipped_mlp;
  if (skipped > 0) parts.push(`without ${draft.skipped_attention} attention and ${draft.skipped_mlp} MLP sub-layers`);
  if (patched === 0 && skipped === 0) parts.push("all layers");
  if (draft.is_low_bit) parts.push("in fewer bits");
  if (draft.vocabulary_size) parts.push(`${whole(draft.vocabulary_size)} of the tokens scored`);
  if (draft.max_draft) parts.push(`at most ${plural(draft.max_draft, "token")} a draft`);
  return parts.join(", ");
}
