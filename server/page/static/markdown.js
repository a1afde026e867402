/**
 * Markdown as DOM nodes, never as HTML: blocks here, what is inside of a line in inline.js.
 * Knows headings, paragraphs, lists, quotes, code, tables and rules. All patterns are linear, since a model may write anything.
 */

import { copyButton, make } from "./element.js";
import { inline } from "./inline.js";

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([\w+#.-]{0,30})/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*)$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const RULE = /^ {0,3}([-*_])(?:\s*\1){2,}\s*$/;
const QUOTE = /^ {0,3}> ?/;
const TABLE_RULE = /^\s*\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?\s*$/;
/** Deeper quotes and lists are shown as text. */
const DEEPEST = 6;

/** The nodes of a text. */
export function markdown(text, depth = 0) {
  const lines = text.replaceAll("\r\n", "\n").split("\n");
  const nodes = [];
  for (let at = 0; at < lines.length; ) {
    const [node, next] = block(lines, at, depth);
    if (node) nodes.push(node);
    at = next;
  }
  return nodes;
}

/** The node of the block that begins at a line, and the line after it. */
function block(lines, at, depth) {
  const line = lines[at];
  if (line.trim() === "") return [null, at + 1];
  if (FENCE.test(line)) return fenced(lines, at);
  const heading = HEADING.exec(line);
  // The page has headings of its own above those of an answer.
  if (heading) return [make(`h${Math.min(heading[1].length + 2, 6)}`, {}, ...inline(heading[2])), at + 1];
  if (RULE.test(line)) return [make("hr"), at + 1];
  if (depth < DEEPEST && QUOTE.test(line)) return quote(lines, at, depth);
  if (depth < DEEPEST && ITEM.test(line)) return list(lines, at, depth);
  if (isTable(lines, at)) return table(lines, at);
  return paragraph(lines, at, depth);
}

function fenced(lines, at) {
  const [, fence, language] = FENCE.exec(lines[at]);
  let end = at + 1;
  while (end < lines.length && !lines[end].trimStart().startsWith(fence)) end += 1;
  const code = lines.slice(at + 1, end).join("\n");
  const head = make("figcaption", {}, make("span", {}, language || "code"), copyButton(() => code));
  const body = make("pre", { tabindex: 0, "aria-label": `Code${language && `, ${language}`}` }, make("code", {}, code));
  return [make("figure", { class: "code" }, head, body), end + 1];
}

function quote(lines, at, depth) {
  let end = at;
  while (end < lines.length && QUOTE.test(lines[end])) end += 1;
  const inner = lines.slice(at, end).map((line) => line.replace(QUOTE, "")).join("\n");
  return [make("blockquote", {}, ...markdown(inner, depth + 1)), end];
}

/** A list with the lists inside of its items: lines that are indented deeper than the item's own mark belong to it. */
function list(lines, at, depth) {
  const [, indent, mark] = ITEM.exec(lines[at]);
  const isOrdered = /\d/.test(mark);
  const items = [];
  let next = at;
  while (next < lines.length) {
    const item = ITEM.exec(lines[next]);
    if (!item || item[1].length > indent.length + 1 || /\d/.test(item[2]) !== isOrdered) break;
    const inside = insideOf(lines, next + 1, item[1].length);
    const own = [item[3], ...lines.slice(next + 1, inside).map((line) => line.slice(indentOf(lines[next], line)))];
    items.push(make("li", {}, ...tight(markdown(own.join("\n"), depth + 1))));
    next = inside;
    if (lines[next]?.trim() === "" && ITEM.test(lines[next + 1] ?? "")) next += 1;
  }
  return [make(isOrdered ? "ol" : "ul", isOrdered ? { start: parseInt(mark, 10) } : {}, ...items), next];
}

/** The line after those that belong to an item whose mark stands at `column`. */
function insideOf(lines, at, column) {
  let end = at;
  for (let i = at; i < lines.length; i += 1) {
    if (lines[i].trim() === "") continue;
    if (lines[i].search(/\S/) <= column) break;
    end = i + 1;
  }
  return end;
}

/** How much of a line's indentation is the item's: as wide as its mark and the blanks around it, or less. */
function indentOf(first, line) {
  return Math.min(first.length - first.replace(/^\s*\S+\s+/, "").length, Math.max(line.search(/\S/), 0));
}

/** An item of one paragraph has its text without the paragraph around it. */
function tight(nodes) {
  return nodes[0]?.tagName === "P" ? [...nodes[0].childNodes, ...nodes.slice(1)] : nodes;
}

function isTable(lines, at) {
  return lines[at].includes("|") && at + 1 < lines.length && lines[at + 1].includes("|") && TABLE_RULE.test(lines[at + 1]);
}

function table(lines, at) {
  const row = (line, tag) => make("tr", {}, ...cells(line).map((cell) => make(tag, {}, ...inline(cell))));
  let end = at + 2;
  while (end < lines.length && lines[end].includes("|")) end += 1;
  const head = make("thead", {}, row(lines[at], "th"));
  const body = make("tbody", {}, ...lines.slice(at + 2, end).map((line) => row(line, "td")));
  const whole = make("table", {}, head, body);
  return [make("div", { class: "table", tabindex: 0, role: "group", "aria-label": "Table" }, whole), end];
}

const cells = (line) => line.trim().replace(/^\|/, "").replace(/\|$/, "").split("|").map((cell) => cell.trim());

function paragraph(lines, at, depth) {
  let end = at + 1;
  while (end < lines.length && !endsParagraph(lines, end, depth)) end += 1;
  return [make("p", {}, ...inline(lines.slice(at, end).join("\n"))), end];
}

function endsParagraph(lines, at, depth) {
  const line = lines[at];
  const isNested = depth < DEEPEST && (QUOTE.test(line) || ITEM.test(line));
  return line.trim() === "" || isNested || FENCE.test(line) || HEADING.test(line) || RULE.test(line) || isTable(lines, at);
}
