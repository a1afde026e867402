/** What is inside of a line of Markdown: code, strong and emphasised words, links, breaks. Gives nodes. */

import { make } from "./element.js";

/** Each alternative stops at its own delimiter or after 500 characters, so no text takes quadratic time. */
const SPAN = new RegExp(
  [
    "(?<escape>\\\\[\\\\`*_{}\\[\\]()#+.!|~>-])",
    "(?<code>`[^`]{1,500}`|``[^`]{1,500}``)",
    "\\*\\*(?<strong>(?:[^*]|\\*(?!\\*)){1,500})\\*\\*",
    "\\*(?<em>[^\\s*][^*]{0,500})\\*",
    "(?<![\\w_])__(?<strong2>[^_]{1,500})__(?!\\w)",
    "(?<![\\w_])_(?<em2>[^\\s_][^_]{0,500})_(?!\\w)",
    "~~(?<gone>[^~]{1,500})~~",
    "!?\\[(?<label>[^\\[\\]]{0,500})\\]\\((?<target>[^()\\s]{1,500})(?: \"[^\"]{0,200}\")?\\)",
    "(?<![\\w/])(?<address>https?://[^\\s<>()\"'`*\\[\\]]{1,500})(?<![.,;:!?])",
    "(?<break> {2,}\\n|\\\\\\n)",
  ].join("|"),
  "g",
);
const DEEPEST = 4;

/** The nodes of one line or paragraph. */
export function inline(text, depth = 0) {
  const nodes = [];
  let at = 0;
  for (const match of depth < DEEPEST ? text.matchAll(SPAN) : []) {
    if (match.index > at) nodes.push(text.slice(at, match.index));
    nodes.push(span(match[0], match.groups, (inner) => inline(inner, depth + 1)));
    at = match.index + match[0].length;
  }
  nodes.push(text.slice(at));
  return nodes;
}

function span(whole, found, inner) {
  const strong = found.strong ?? found.strong2;
  const em = found.em ?? found.em2;
  if (found.escape) return found.escape[1];
  if (found.code) return make("code", {}, found.code.replace(/^`+ ?| ?`+$/g, ""));
  if (strong) return make("strong", {}, ...inner(strong));
  if (em) return make("em", {}, ...inner(em));
  if (found.gone) return make("s", {}, ...inner(found.gone));
  if (found.break) return make("br");
  if (found.target) return link(found.target, inner(found.label || found.target), whole);
  return link(found.address, [found.address], whole);
}

/** A link to the web or to a mail address; any other, `javascript:` above all, stays the text that it was. */
function link(target, label, whole) {
  if (!/^(https?:\/\/|mailto:)/i.test(target)) return whole;
  return make("a", { href: target, title: target, rel: "noopener noreferrer nofollow", target: "_blank" }, ...label);
}
