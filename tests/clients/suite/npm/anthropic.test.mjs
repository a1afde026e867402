// Anthropic's npm client against the server at SERVER_URL; fields beyond Anthropic's go beside the others.
import assert from "node:assert/strict";
import test from "node:test";
import Anthropic from "@anthropic-ai/sdk";

const { SERVER_URL, MODEL, GREETING, WEATHER } = process.env;
const client = new Anthropic({ baseURL: SERVER_URL, apiKey: "none", maxRetries: 0 });
const asked = { model: MODEL, temperature: 0, max_tokens: 100, messages: [{ role: "user", content: GREETING }] };
const tools = [{ name: "get_weather", input_schema: { type: "object", properties: { city: { type: "string" } } } }];

test("whole and streamed", async () => {
  const whole = await client.messages.create({ ...asked, speculation: { method: "plain" } });
  assert.equal(await client.messages.stream(asked).finalText(), whole.content[0].text);
});

test("a tool over two turns", async () => {
  const question = { role: "user", content: WEATHER };
  const tool_choice = { type: "any", disable_parallel_tool_use: true };
  const first = await client.messages.create({ ...asked, messages: [question], tools, tool_choice });
  const [call] = first.content;
  assert.equal(call.name, "get_weather");
  const result = { type: "tool_result", tool_use_id: call.id, content: "It is sunny in Paris." };
  const messages = [question, { role: "assistant", content: first.content }, { role: "user", content: [result] }];
  assert.ok(await client.messages.create({ ...asked, messages, tools, tool_choice: { type: "none" } }));
});

test("errors", async () => {
  await assert.rejects(client.messages.create({ ...asked, model: "absent" }), Anthropic.NotFoundError);
  await assert.rejects(client.messages.create({ ...asked, speculation: { method: "absent" } }), /speculation.method/);
});
