/** Reads server-sent events: the JSON objects of a stream's `data:` lines, one by one. */

/** Yields each event's object up to `[DONE]`; a stream that ends without it, or with half an event, throws. */
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
  throw new TypeError("the stream broke off");
}

async function* pieces(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield value;
    }
  } finally {
    // Whoever stops reading lets the server know, which then stops writing.
    reader.cancel().catch(() => {});
  }
}

function dataOf(block) {
  const lines = block.split("\n").filter((line) => line.startsWith("data:"));
  return lines.map((line) => line.slice(5).trimStart()).join("\n");
}
