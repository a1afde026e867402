/** Reads server-sent events: the JSON objects of a stream's `data:` lines, one by one. */

/** The connection to the server broke, or there was none. */
export class Gone extends Error {}

/** Yields each event's object up to `[DONE]`; throws `Gone` where a stream ends without it. */
export async function* events(body) {
  let rest = "";
  for await (const piece of pieces(body)) {
    rest += piece;
    const blocks = rest.split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const data = dataOf(block);
      if (data === "[DONE]") return;
      if (data) yield JSON.parse(data);
    }
  }
  throw new Gone();
}

async function* pieces(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read().catch(asGone);
      if (done) return;
      yield value;
    }
  } finally {
    // Whoever stops reading lets the server know, which then stops writing.
    reader.cancel().catch(() => {});
  }
}

/** A network's error is told by no more than its type; that the user ended the reading is no error of the network. */
export function asGone(error) {
  throw error instanceof TypeError ? new Gone() : error;
}

function dataOf(block) {
  const lines = block.split("\n").filter((line) => line.startsWith("data:"));
  return lines.map((line) => line.slice(5).trimStart()).join("\n");
}
