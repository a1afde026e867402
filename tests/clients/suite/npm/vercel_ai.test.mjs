// Vercel's AI SDK against the server at SERVER_URL, in each of its ways there.
import assert from "node:assert/strict";
import test from "node:test";
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, generateText, Output, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const { SERVER_URL, MODEL, GREETING, WEATHER, BOAT } = process.env;
const baseURL = `${SERVER_URL}/v1`;
const openai = createOpenAI({ baseURL, apiKey: "none" });
const transformRequestBody = (body) => ({ ...body, speculation: { method: "plain" } });
const wrongly = (body) => ({ ...body, speculation: { method: "absent" } });
const supported = { includeUsage: true, supportsStructuredOutputs: true };
const compatible = createOpenAICompatible({ baseURL, name: "own", ...supported, transformRequestBody });
const anthropic = createAnthropic({ baseURL, apiKey: "none" });
const ways = { responses: openai, chat: openai.chat, completions: openai.completion, compatible, anthropic };
const limits = { temperature: 0, maxOutputTokens: 100, maxRetries: 0 };
const weather = tool({
  description: "Returns the weather of a city.",
  inputSchema: z.object({ city: z.string() }),
  execute: async () => "It is sunny in Paris.",
});
const boat = z.object({ kind: z.enum(["rowing", "sailing", "ferry"]), length: z.int() });

for (const [name, way] of Object.entries(ways)) {
  const asked = { model: way(MODEL), ...limits };

  test(`${name}: whole and streamed`, async () => {
    const whole = await generateText({ ...asked, prompt: GREETING });
    const streamed = streamText({ ...asked, prompt: GREETING });
    assert.ok(whole.text);
    assert.equal(await streamed.text, whole.text);
    assert.deepEqual((await streamed.usage).outputTokens, whole.usage.outputTokens);
  });

  test(`${name}: an error`, async () => {
    const refused = await generateText({ ...asked, model: way("absent"), prompt: GREETING }).catch((error) => error);
    assert.ok(APICallError.isInstance(refused));
    assert.equal(refused.statusCode, 404);
    assert.match(refused.message, /does not exist/);
  });

  if (name === "completions") continue;

  test(`${name}: a tool over two turns`, async () => {
    const prepareStep = ({ stepNumber }) => ({ toolChoice: stepNumber ? "none" : "required" });
    const told = { ...asked, prompt: WEATHER, tools: { weather }, prepareStep, stopWhen: stepCountIs(2) };
    const whole = await generateText(told);
    assert.equal(whole.steps[0].toolResults[0].output, "It is sunny in Paris.");
    assert.ok(whole.text);
    const streamed = streamText(told);
    assert.equal(await streamed.text, whole.text);
  });

  test(`${name}: an object`, async () => {
    const told = { ...asked, prompt: BOAT, output: Output.object({ schema: boat }) };
    const whole = await generateText(told);
    assert.deepEqual(boat.parse(whole.output), whole.output);
    assert.deepEqual(await streamText(told).output, whole.output);
  });
}

test("compatible: fields beyond OpenAI's", async () => {
  const told = createOpenAICompatible({ baseURL, name: "own", transformRequestBody: wrongly });
  await assert.rejects(generateText({ model: told(MODEL), ...limits, prompt: GREETING }), /speculation.method/);
});
