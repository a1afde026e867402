/** Talks to the server: JSON and streams, the key, and what goes wrong in plain words. */

import { asGone, events, Gone } from "./events.js";
import { askKey, key } from "./key.js";

/** What the server refused, with its status and its own words. */
export class Refusal extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** The JSON of an address, as `get("v1/models")`. */
export async function get(path) {
  return (await request(path, { cache: "no-store" })).json();
}

let isTraced = true;

/** The chunks of a streamed chat. A server that knows no traces is asked once more without. */
export async function* chat(body, signal) {
  const response = isTraced ? await tracedPost(body, signal) : await post(body, signal);
  for await (const event of events(response.body)) {
    if (event.error) throw new Refusal(0, event.error.message);
    yield event;
  }
}

async function tracedPost(body, signal) {
  try {
    return await post(traced(body), signal);
  } catch (error) {
    if (error.status !== 400 || !error.message.includes("trace")) throw error;
    isTraced = false;
    return post(body, signal);
  }
}

const traced = (body) => ({ ...body, speculation: { ...body.speculation, trace: true } });

function post(body, signal) {
  const streamed = { ...body, stream: true, stream_options: { include_usage: true } };
  const headers = { "content-type": "application/json" };
  return request("v1/chat/completions", { method: "POST", headers, body: JSON.stringify(streamed), signal });
}

/** The response of a request that succeeded; where a key is missing or wrong it asks for one and tries again. */
async function request(path, options) {
  for (;;) {
    const sent = key();
    const headers = { ...options.headers, ...(sent && { authorization: `Bearer ${sent}` }) };
    const response = await fetch(path, { ...options, headers }).catch(asGone);
    if (response.ok) return response;
    const refusal = await refusalOf(response);
    // Another request may have got a better key in the meantime.
    if (response.status !== 401 || (sent === key() && !(await askKey(reasonFor(sent))))) throw refusal;
  }
}

const reasonFor = (sent) => sent
  ? "The server does not know this key. Please check it."
  : "This server asks for an API key.";

async function refusalOf(response) {
  const body = await response.json().catch(() => null);
  return new Refusal(response.status, body?.error?.message ?? `The server answered ${response.status}.`);
}

/** What went wrong, and what to do, for a person. */
export function inWords(error) {
  if (error instanceof Refusal) {
    if (error.status === 401) return "Without a valid API key the server gives no answers. Send again to enter one.";
    if (error.status === 429) return "The server has too many requests in its queue. Try again in a moment.";
    return error.message;
  }
  if (error instanceof Gone) return "The server cannot be reached any more. Is it still running?";
  return `This page has a fault: ${error.message}`;
}
