/** The map: the domains' anchors in the plane, a prompt's point among them, and lines to its nearest anchors. */

import { draw, make } from "./element.js";

const SIZE = 100;
const place = ([x, y]) => [x * SIZE, -y * SIZE];

/** A picture of `/map`'s domains; `route` is an answer's, or null. `earlier` are the points of prompts before. */
export function mapPicture(map, route, earlier = []) {
  const own = map.domains.find((domain) => domain.name === route?.domain);
  const groups = map.domains.map((domain) => dots(domain, domain === own));
  const labels = map.domains.map((domain) => label(domain, domain === own));
  const point = route?.point && place(route.point);
  return make("figure", { class: "map" },
    draw("svg", { viewBox: "-118 -112 236 224", role: "img", "aria-label": told(map, route) },
      ...groups,
      ...earlier.filter(Boolean).map((old) => draw("circle", { cx: place(old)[0], cy: place(old)[1], r: 2.4, class: "earlier" })),
      point && draw("g", { class: "prompt" }, ...rays(map, route, point),
        draw("circle", { cx: point[0], cy: point[1], r: 10, class: "halo" }),
        draw("circle", { cx: point[0], cy: point[1], r: 4.5, class: "point" })),
      ...labels),
    make("figcaption", { class: "note" }, point
      ? "Dots are anchors, computed offline from prompts of each kind. The ring is this prompt."
      : "Dots are anchors, computed offline from prompts of each kind. A prompt gets a ring."));
}

function dots(domain, isOwn) {
  const circles = domain.anchors.map((anchor) => {
    const [cx, cy] = place(anchor);
    return draw("circle", { cx, cy, r: 3 });
  });
  return draw("g", { class: `anchors${isOwn ? " own" : ""}` }, draw("title", {}, domain.name), ...circles);
}

/** The domain's name over the middle of its anchors, moved to stay inside. */
function label(domain, isOwn) {
  if (domain.anchors.length === 0) return null;
  const [x, y] = [0, 1].map((axis) => domain.anchors.reduce((sum, a) => sum + a[axis], 0) / domain.anchors.length);
  const top = Math.max(...domain.anchors.filter((a) => Math.abs(a[0] - x) < 0.4).map((a) => a[1]), y);
  const half = domain.name.length * 2.4;
  const left = Math.min(Math.max(x * SIZE, half - 114), 114 - half);
  return draw("text", { x: left, y: Math.max(-top * SIZE - 7, -103), class: isOwn ? "label own" : "label" }, domain.name);
}

function rays(map, route, [x1, y1]) {
  return (route.nearest ?? []).flatMap(([name, index], rank) => {
    const anchor = map.domains.find((domain) => domain.name === name)?.anchors[index];
    if (!anchor) return [];
    const [x2, y2] = place(anchor);
    return [draw("line", { x1, y1, x2, y2, class: rank === 0 ? "ray first" : "ray" })];
  });
}

function told(map, route) {
  const names = map.domains.filter(({ anchors }) => anchors.length > 0).map(({ name }) => name).join(", ");
  if (!route) return `Map of the domains ${names}.`;
  const near = (route.nearest ?? []).map(([name]) => name).join(", ");
  return `Map of the domains ${names}. This prompt was taken for ${route.domain}. Its nearest anchors, nearest first: ${near || "none"}.`;
}
