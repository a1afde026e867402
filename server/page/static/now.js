/** What the server does now: slots, queue, cache, and how drafts fared by domain over the last minutes. */

import { get, inWords } from "./api.js";
import { make } from "./element.js";
import { duration, percent, rate, short, times, whole } from "./numbers.js";

const EVERY = 2000;

export class Now {
  constructor(node) {
    this.body = make("div");
    this.history = [];
    this.isShown = false;
    this.timer = null;
    node.append(make("h1", { id: "now-title" }, "Now"), this.body);
    document.addEventListener("visibilitychange", () => this.poll());
  }

  show(isShown) {
    this.isShown = isShown;
    this.poll();
  }

  /** Asks while the view is open and the tab is seen; otherwise the server hears nothing. */
  async poll() {
    clearTimeout(this.timer);
    if (!this.isShown || document.hidden) return;
    try {
      this.draw(await get("now"));
    } catch (error) {
      const text = error.status === 404 ? "This server does not tell what it does. Its figures are at /metrics." : inWords(error);
      this.body.replaceChildren(make("p", { class: "trouble", role: "status" }, text));
      if (error.status === 401 || error.status === 404) return;
    }
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.poll(), EVERY);
  }

  draw(now) {
    this.history = [...this.history, now.tokens_per_second].slice(-60);
    const minutes = Math.round(now.window_seconds / 60);
    this.body.replaceChildren(
      make("p", { class: "lead" }, `${now.model}, version ${now.version}, method ${now.method}, up for ${duration(now.uptime_seconds)}.`),
      make("div", { class: "tiles" },
        tile("Slots", `${now.running} of ${now.slots}`, meter(now.running, now.slots, "slots in use")),
        tile("Waiting", whole(now.waiting), meter(now.waiting, now.max_waiting, "of the queue")),
        tile("Cache", `${whole(now.tokens_cached)} tokens`, meter(now.tokens_cached, now.max_tokens_cached, "of the cache")),
        tile("Speed", `${rate(now.tokens_per_second)} tokens/s`, bars(this.history))),
      make("h2", {}, `By domain, the last ${minutes} minutes`),
      now.domains.length ? table(now.domains) : make("p", { class: "note" }, "No answers yet. Ask something in the chat."),
      make("p", {}, now.grafana && make("a", { href: safe(now.grafana), rel: "noopener", target: "_blank" }, "Open Grafana")),
    );
  }
}

const tile = (name, value, picture) => make("div", { class: "tile" }, make("p", { class: "note" }, name), make("p", { class: "big" }, value), picture);

function meter(value, most, name) {
  const share = most > 0 ? Math.min(value / most, 1) : 0;
  const bar = make("div", { class: "meter", role: "img", "aria-label": `${percent(share)} ${name}` }, make("i"));
  bar.firstChild.style.width = `${share * 100}%`;
  return bar;
}

function bars(values) {
  const most = Math.max(...values, 1);
  return make("div", { class: "spark", "aria-hidden": "true" }, values.map((value) => {
    const bar = make("i");
    bar.style.height = `${Math.max((value / most) * 100, 2)}%`;
    return bar;
  }));
}

/** A row for each domain; on a narrow screen each cell says what it is. */
function table(domains) {
  const names = ["Answers", "Tokens", "Accepted", "Tokens/s", "Over plain"];
  const head = make("tr", {}, ["Domain", ...names].map((name) => make("th", { scope: "col" }, name)));
  const rows = domains.map((domain) => {
    const share = domain.drafted ? percent(domain.accepted / domain.drafted) : "–";
    const values = [whole(domain.answers), whole(domain.tokens), share, domain.tokens_per_second ? short(domain.tokens_per_second) : "–",
      domain.speedup ? times(domain.speedup) : "–"];
    return make("tr", {}, make("th", { scope: "row" }, domain.name),
      values.map((value, i) => make("td", { "data-name": names[i] }, value)));
  });
  return make("table", { class: "domains" }, make("thead", {}, head), make("tbody", {}, rows));
}

/** Only an address of the web becomes a link, whatever the setting says. */
const safe = (address) => (/^https?:\/\//i.test(address) ? address : "#now");
