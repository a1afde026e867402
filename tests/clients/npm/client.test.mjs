// The official npm client against live servers, whose addresses test_npm.py passes in.
import assert from "node:assert/strict";
import test from "node:test";
import OpenAI from "openai";

const { PLAIN_URL, GUARDED_URL, BUSY_URL, MORTAL_URL } = process.env;
const client = new OpenAI({ baseURL: PLAIN_URL, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "Once upon a time" }];
const sampled = { model: "tiny", temperature: 1.2, seed: 7 };

async function collect(stream) {
  const events = [];
  for await (const event of stream) events.push(event);
  return events;
}

test("models", async () => {
  const [card] = (await client.models.list()).data;
  assert.equal(card.id, "tiny");
  assert.deepEqual(await client.models.retrieve("tiny"), card);
  await assert.rejects(client.models.retrieve("absent"), OpenAI.NotFoundError);
});

test("chat, whole and streamed, with usage", async () => {
  const body = { ...sampled, messages, max_completion_tokens: 24, logprobs: true, top_logprobs: 2 };
  const whole = await client.chat.completions.create(body);
  const [choice] = whole.choices;
  assert.equal(choice.finish_reason, "length");
  assert.equal(choice.message.refusal, null);
  assert.ok(choice.logprobs.content.every((entry) => entry.top_logprobs.length === 2));
  const chunks = await collect(
    await client.chat.completions.create({ ...body, stream: true, stream_options: { include_usage: true } }),
  );
  const text = chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join("");
  assert.equal(text, choice.message.content);
  assert.deepEqual(chunks.at(-1).usage, whole.usage);
});

test("the client's own chat stream", async () => {
  const stream = client.chat.completions.stream({ ...sampled, messages, max_tokens: 24 });
  const final = await stream.finalChatCompletion();
  const whole = await client.chat.completions.create({ ...sampled, messages, max_tokens: 24 });
  assert.equal(final.choices[0].message.content, whole.choices[0].message.content);
});

test("text completions, several prompts and choices", async () => {
  const body = { ...sampled, prompt: ["a", "b"], n: 2, max_tokens: 8, echo: true };
  const whole = await client.completions.create(body);
  assert.deepEqual(whole.choices.map((choice) => [choice.index, choice.text[0]]), [[0, "a"], [1, "a"], [2, "b"], [3, "b"]]);
  const texts = ["", "", "", ""];
  for (const chunk of await collect(await client.completions.create({ ...body, stream: true }))) {
    texts[chunk.choices[0].index] += chunk.choices[0].text;
  }
  assert.deepEqual(texts, whole.choices.map((choice) => choice.text));
});

test("responses, whole, streamed, and as the next input", async () => {
  const body = { ...sampled, input: "Once upon a time", max_output_tokens: 24 };
  const whole = await client.responses.create(body);
  assert.equal(whole.status, "incomplete");
  const events = await collect(await client.responses.create({ ...body, stream: true }));
  const deltas = events.filter((event) => event.type === "response.output_text.delta");
  assert.equal(deltas.map((event) => event.delta).join(""), whole.output_text);
  assert.equal(events[0].type, "response.created");
  assert.deepEqual(events.at(-1).response.usage, whole.usage);
  const final = await client.responses.stream(body).finalResponse();
  assert.equal(final.output_text, whole.output_text);
  const input = [{ role: "user", content: "Once upon a time" }, ...whole.output, { role: "user", content: "Go on" }];
  assert.equal((await client.responses.create({ ...body, input })).object, "response");
});

test("errors have their class, field and request id", async () => {
  const refused = await client.chat.completions.create({ model: "tiny", messages, temperature: 3 }).catch((e) => e);
  assert.ok(refused instanceof OpenAI.BadRequestError);
  assert.deepEqual([refused.status, refused.param, refused.code], [400, "temperature", "invalid_value"]);
  assert.match(refused.requestID, /^req-/);
  await assert.rejects(client.chat.completions.create({ model: "absent", messages }), OpenAI.NotFoundError);
  const stranger = new OpenAI({ baseURL: GUARDED_URL, apiKey: "wrong", maxRetries: 0 });
  await assert.rejects(stranger.models.list(), OpenAI.AuthenticationError);
  const guest = new OpenAI({ baseURL: GUARDED_URL, apiKey: "first", maxRetries: 0 });
  assert.equal((await guest.models.list()).data.length, 1);
});

test("a full queue is tried again", async () => {
  const seen = [];
  const counted = async (...request) => {
    const response = await fetch(...request);
    seen.push([response.status, response.headers.get("retry-after")]);
    return response;
  };
  const patient = new OpenAI({ baseURL: BUSY_URL, apiKey: "none", maxRetries: 5, fetch: counted });
  const answer = await patient.chat.completions.create({ model: "tiny", messages, max_tokens: 2 });
  assert.equal(answer.object, "chat.completion");
  assert.deepEqual(seen[0], [429, "1"]);
  assert.equal(seen.at(-1)[0], 200);
});

test("leaving a stream, and one that the server cannot finish", async () => {
  const stream = await client.chat.completions.create({ ...sampled, messages, stream: true });
  for await (const chunk of stream) {
    assert.equal(chunk.object, "chat.completion.chunk");
    break;
  }
  const mortal = new OpenAI({ baseURL: MORTAL_URL, apiKey: "none", maxRetries: 0 });
  const long = { model: "tiny", input: "hi", temperature: 0, ignore_eos: true, speculation: { method: "plain" } };
  const broken = await mortal.responses.create({ ...long, stream: true });
  await assert.rejects(collect(broken), /engine failed/);
  await assert.rejects(mortal.responses.create(long), OpenAI.InternalServerError);
});
