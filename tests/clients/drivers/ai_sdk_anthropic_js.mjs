// Vercel's AI SDK with its provider for Anthropic's API.
import assert from "node:assert";
import { createAnthropic } from "@ai-sdk/anthropic";
import { generateObject, generateText, Output, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";
import * as things from "./things.mjs";

const anthropic = createAnthropic({ baseURL: things.URL, apiKey: "any" });
const schema = z.object({ name: z.string(), age: z.number().int() });
const tools = {
  get_weather: tool({
    description: "Return the weather of a city.",
    inputSchema: z.object({ city: z.string() }),
    execute: async ({ city }) => things.getWeather(city),
  }),
};
const asked = { model: anthropic(things.MODEL), maxRetries: 0 };

export async function text() {
  const answer = await generateText({ ...asked, system: "Be brief.", prompt: things.CAPITAL });
  assert.equal(answer.text, things.CAPITAL_ANSWER);
  assert.equal(answer.finishReason, "stop");
}

export async function stream() {
  const answer = streamText({ ...asked, prompt: things.CAPITAL });
  let text = "";
  for await (const part of answer.textStream) text += part;
  assert.equal(text, things.CAPITAL_ANSWER);
  assert.ok((await answer.usage).outputTokens > 0);
}

export async function object() {
  assert.deepEqual((await generateObject({ ...asked, schema, prompt: things.PERSON })).object, things.ADA);
}

export async function objectBySchema() {
  const providerOptions = { anthropic: { structuredOutputMode: "outputFormat" } };
  const answer = await generateObject({ ...asked, providerOptions, schema, prompt: things.PERSON });
  assert.deepEqual(answer.object, things.ADA);
}

export async function outputObject() {
  const answer = await generateText({ ...asked, output: Output.object({ schema }), prompt: things.PERSON });
  assert.deepEqual(answer.output, things.ADA);
}

export async function agent() {
  const answer = await generateText({ ...asked, tools, stopWhen: stepCountIs(4), prompt: things.WEATHER });
  assert.equal(answer.text, things.WEATHER_ANSWER);
}

export async function agentStreamed() {
  const answer = streamText({ ...asked, tools, stopWhen: stepCountIs(4), prompt: things.WEATHER });
  let text = "";
  for await (const part of answer.textStream) text += part;
  assert.equal(text, things.WEATHER_ANSWER);
}

export async function thinking() {
  const providerOptions = { anthropic: { thinking: { type: "enabled", budgetTokens: 1024 } } };
  const answer = await generateText({ ...asked, providerOptions, prompt: things.CAPITAL });
  assert.equal(answer.text, things.CAPITAL_ANSWER);
}
