/** Reads an answer to a screen reader while it comes: sentence by sentence, not token by token. */

import { find, make } from "./element.js";

const SENTENCE = /[^]*?(?:[.!?:;]["')\]]*\s|\n)/y;
const LONGEST = 400;

export class Narrator {
  constructor() {
    this.region = find("spoken");
    this.region.replaceChildren();
    this.told = 0;
  }

  /** Takes the whole text so far; at the end what is left is told as well. */
  tell(text, isEnd = false) {
    for (;;) {
      SENTENCE.lastIndex = this.told;
      const isLong = text.length - this.told > LONGEST;
      const sentence = SENTENCE.exec(text.slice(0, this.told + LONGEST))?.[0];
      if (!sentence && !isLong) break;
      this.say(sentence ?? text.slice(this.told, this.told + LONGEST));
    }
    if (isEnd && this.told < text.length) this.say(text.slice(this.told, this.told + LONGEST));
  }

  say(sentence) {
    this.told += sentence.length;
    if (!sentence.trim()) return;
    this.region.append(make("p", {}, sentence.trim()));
    // Old sentences were read; a region that grows for ever would be read again by some.
    if (this.region.childElementCount > 20) this.region.firstChild.remove();
  }
}
