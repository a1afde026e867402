/** The API key: asked for when the server wants one, kept in this tab's session storage only. */

import { find } from "./element.js";

const NAME = "knnssd-key";
let asking = null;

export const key = () => sessionStorage.getItem(NAME) ?? "";

/** Opens the dialog and gives whether a key was entered; two requests that ask at once share one dialog. */
export function askKey(reason) {
  asking ??= ask(reason).finally(() => { asking = null; });
  return asking;
}

function ask(reason) {
  const [dialog, field] = [find("key-dialog"), find("key")];
  find("key-reason").textContent = reason;
  field.value = "";
  dialog.returnValue = "";
  dialog.showModal();
  field.focus();
  return new Promise((resolve) => {
    const answers = new AbortController();
    const once = { signal: answers.signal };
    find("key-cancel").addEventListener("click", () => dialog.close("cancelled"), once);
    dialog.addEventListener("close", () => {
      answers.abort();
      const isGiven = dialog.returnValue !== "cancelled" && field.value.trim() !== "";
      if (isGiven) sessionStorage.setItem(NAME, field.value.trim());
      find("change-key").hidden = !key();
      field.value = "";
      resolve(isGiven);
    }, once);
  });
}
