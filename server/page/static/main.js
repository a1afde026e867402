/** Puts the page together: connects, then gives each room what it needs. */

import { get, inWords } from "./api.js";
import { Chat } from "./chat.js";
import { EXAMPLES } from "./examples.js";
import { find, make } from "./element.js";
import { Inspector } from "./inspector.js";
import { askKey, key } from "./key.js";
import { Now } from "./now.js";
import { Race } from "./race.js";
import { listMethods, openSettings } from "./settings.js";
import { wireTheme } from "./appearance.js";
import { showStep } from "./stepcard.js";

let model = "";
const inspector = new Inspector(find("inspector"));
const chat = new Chat(() => model, inspector, learnSpeedups);
const race = new Race(find("race-view"), () => model);
const now = new Now(find("now-view"));

/** What `/now` says of speed-ups, after an answer; servers without it say nothing. */
async function learnSpeedups() {
  const told = await get("now").catch(() => null);
  if (!told) return;
  inspector.speedups = Object.fromEntries(told.domains.map(({ name, speedup }) => [name, speedup]));
  inspector.refresh();
}

/** Waits until the server has a model, and tells what it waits for. */
async function connect() {
  for (;;) {
    try {
      model = (await get("v1/models")).data[0].id;
      break;
    } catch (error) {
      notice(error.status === 401 ? "The server gives answers only with an API key." : inWords(error));
      find("model").textContent = error.status === 503 ? "not ready yet" : "not connected";
      if (error.status === 401) return;
      await new Promise((resolve) => setTimeout(resolve, 2000));
    }
  }
  notice("");
  find("model").textContent = model;
  find("change-key").hidden = !key();
  const [told, map] = await Promise.all([get("now").catch(() => null), get("map").catch(() => null)]);
  const methods = told?.methods ?? [{ name: "plain" }, { name: "cascade" }];
  listMethods(find("composer").elements.method, methods);
  race.setMethods(methods, told?.method ?? "cascade");
  inspector.map = map;
  inspector.speedups = Object.fromEntries((told?.domains ?? []).map(({ name, speedup }) => [name, speedup]));
  inspector.refresh();
}

function notice(text) {
  find("notice").textContent = text;
  find("notice").hidden = !text;
}

/** The view that the address names; `#drafts` is the chat's panel, alone where the screen is narrow. */
function showView() {
  const named = location.hash.slice(1);
  const view = ["race", "now", "drafts"].includes(named) ? named : "chat";
  document.body.dataset.view = view;
  find("chat-view").hidden = view !== "chat" && view !== "drafts";
  find("race-view").hidden = view !== "race";
  find("now-view").hidden = view !== "now";
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${view}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  showStep(null);
  now.show(view === "now");
}

function wireComposer() {
  const [form, prompt] = [find("composer"), find("prompt")];
  const submit = async () => {
    if (!model) await connect();
    if (!model || !chat.send(prompt.value)) return;
    prompt.value = "";
    fit(prompt);
    openSettings(false);
  };
  form.addEventListener("submit", (event) => { event.preventDefault(); submit(); });
  prompt.addEventListener("input", () => fit(prompt));
  prompt.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    submit();
  });
  find("stop").addEventListener("click", () => chat.stop());
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") chat.stop(); });
  find("new-chat").addEventListener("click", () => { chat.clear(); prompt.focus(); });
  find("settings-toggle").addEventListener("click", () => openSettings(find("settings").hidden));
  for (const choice of form.elements.shown) choice.addEventListener("change", () => chat.showAs(form.elements.shown.value === "prose"));
  find("examples").append(...EXAMPLES.map(([name, text]) =>
    make("button", { type: "button", onclick: () => { prompt.value = text; fit(prompt); prompt.focus(); } },
      make("strong", {}, name), make("span", {}, text))));
}

/** A field as high as its text, up to a third of the window. */
function fit(field) {
  field.style.height = "auto";
  field.style.height = `${Math.min(field.scrollHeight + 2, innerHeight / 3)}px`;
}

find("change-key").addEventListener("click", () => askKey("Another key for this tab."));
addEventListener("hashchange", showView);
wireTheme();
wireComposer();
showView();
connect();
