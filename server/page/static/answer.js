/** One answer: what a stream has told of it so far. Knows nothing of how it is shown. */

/** Text, steps and figures of an answer; `listen` is called after each change. */
export class Answer {
  constructor(listen = () => {}) {
    this.listen = listen;
    this.text = "";
    this.thoughts = "";
    this.steps = [];
    this.route = null;
    this.metrics = null;
    this.usage = null;
    this.finish = null;
    this.error = null;
    this.isOpen = true;
    this.isStopped = false;
    this.isTraced = false;
    this.startedAt = performance.now();
    this.firstAt = null;
    this.endedAt = null;
  }

  /** Takes all chunks of a stream; never throws: what goes wrong is `error`, what the user ended `isStopped`. */
  async read(chunks) {
    try {
      for await (const chunk of chunks) this.take(chunk);
    } catch (error) {
      if (error.name === "AbortError") this.isStopped = true;
      else this.error = error;
    }
    this.isOpen = false;
    this.endedAt = performance.now();
    this.listen(this);
  }

  take(chunk) {
    this.route = chunk.route ?? this.route;
    // A traced answer says its route first; a step may come later than its text, when it is certain.
    this.isTraced ||= Boolean(chunk.route);
    this.metrics = chunk.metrics ?? this.metrics;
    this.usage = chunk.usage ?? this.usage;
    for (const choice of chunk.choices ?? []) this.takeChoice(choice);
    this.listen(this);
  }

  takeChoice({ delta = {}, trace, finish_reason: finish }) {
    const text = delta.content ?? "";
    this.text += text;
    this.thoughts += delta.reasoning_content ?? "";
    this.finish = finish ?? this.finish;
    this.steps.push(...(trace ?? []));
    // Without a trace all text is shown as it comes, from nowhere in particular.
    if (text && !this.isTraced) this.steps.push({ origin: "", accepted: [], own: text, rejected: [] });
    if (this.firstAt === null && (text || trace?.length)) this.firstAt = performance.now();
  }

  /** Seconds from sending to the end, or to now. */
  get seconds() {
    return ((this.endedAt ?? performance.now()) - this.startedAt) / 1000;
  }

  /** Tokens so far: counted by the server in the end, from the steps before. */
  get tokens() {
    return this.usage?.completion_tokens ?? this.steps.reduce((sum, step) => sum + step.accepted.length + 1, 0);
  }

  /** Tokens a second after the first one: by the server's clock in the end, by this one's before; null for one token. */
  get tokensPerSecond() {
    const own = this.metrics?.tokens_per_second;
    if (own) return own;
    const elapsed = this.firstAt === null ? 0 : ((this.endedAt ?? performance.now()) - this.firstAt) / 1000;
    return this.tokens > 1 && elapsed > 0.05 ? (this.tokens - 1) / elapsed : null;
  }

  /** Drafted and accepted tokens, and the number of drafts. */
  get drafts() {
    const drafts = this.steps.filter((step) => step.accepted.length + step.rejected.length > 0);
    const accepted = drafts.reduce((sum, step) => sum + step.accepted.length, 0);
    const drafted = drafts.reduce((sum, step) => sum + step.accepted.length + step.rejected.length, 0);
    return { number: drafts.length, accepted, drafted };
  }
}
