/** Light and dark: as the system has it, until someone chooses. */

import { find } from "./element.js";

const NEXT = { "": "light", light: "dark", dark: "" };
const SIGNS = { "": ["◐", "as the system"], light: ["☀", "light"], dark: ["☾", "dark"] };

export function wireTheme() {
  const root = document.documentElement;
  const tell = () => {
    const [sign, name] = SIGNS[root.dataset.theme ?? ""];
    find("theme").textContent = sign;
    find("theme").setAttribute("aria-label", `Theme: ${name}`);
    find("theme").title = `Theme: ${name}`;
  };
  find("theme").addEventListener("click", () => {
    const next = NEXT[root.dataset.theme ?? ""];
    if (next) root.dataset.theme = next;
    else delete root.dataset.theme;
    keep(next);
    tell();
  });
  tell();
}

function keep(theme) {
  try {
    if (theme) localStorage.setItem("theme", theme);
    else localStorage.removeItem("theme");
  } catch {
    // Storage is forbidden here: the choice holds until the page is left.
  }
}
