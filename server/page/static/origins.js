/** Where a token comes from: names, explanations and the class that has its colour. */

const KNOWN = {
  suffix: ["suffix tree", "goes on as the same words went on before, here or in earlier answers"],
  lookup: ["copied", "copied from where the same words came before in this text"],
  recycling: ["recycled", "what followed the same token last time"],
  skip: ["skipped layers", "drafted by the model without some of its sub-layers"],
  patch: ["patched layers", "drafted by the model with one small matrix in place of layers"],
  "low-bit": ["fewer bits", "drafted by a copy of the model in fewer bits"],
  plain: ["the model itself", "written by the whole model, one token a pass"],
};

/** `{ name, label, explanation, style }` of an origin; one that this page does not know keeps its own name. */
export function originOf(name) {
  const [label, explanation] = KNOWN[name] ?? [name, "drafted by this method"];
  return { name, label, explanation, style: `o-${name in KNOWN ? name : "other"}` };
}
