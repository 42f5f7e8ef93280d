// Vercel's AI SDK with its provider for OpenAI, which speaks the Responses API by default.
import assert from "node:assert";
import { createOpenAI } from "@ai-sdk/openai";
import { generateObject, generateText, Output, stepCountIs, streamObject, streamText, tool } from "ai";
import { z } from "zod";
import * as things from "./things.mjs";

const model = createOpenAI({ baseURL: things.URL, apiKey: "any" })(things.MODEL);
const schema = z.object({ name: z.string(), age: z.number().int() });
const tools = {
  get_weather: tool({
    description: "Return the weather of a city.",
    inputSchema: z.object({ city: z.string() }),
    execute: async ({ city }) => things.getWeather(city),
  }),
};
const asked = { model, maxRetries: 0 };

export async function text() {
  assert.equal((await generateText({ ...asked, prompt: things.CAPITAL })).text, things.CAPITAL_ANSWER);
}

export async function stream() {
  const answer = streamText({ ...asked, prompt: things.CAPITAL });
  let text = "";
  for await (const part of answer.textStream) text += part;
  assert.equal(text, things.CAPITAL_ANSWER);
  assert.ok((await answer.usage).outputTokens > 0);
}

export async function object() {
  const answer = await generateObject({ ...asked, schema, prompt: things.PERSON });
  assert.deepEqual(answer.object, things.ADA);
}

export async function objectStreamed() {
  const answer = streamObject({ ...asked, schema, prompt: things.PERSON });
  for await (const part of answer.partialObjectStream) assert.equal(typeof part, "object");
  assert.deepEqual(await answer.object, things.ADA);
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

export async function agentThatSpeaksFirst() {
  // The text before the call goes back as a reference to the earlier answer.
  const prompt = `${things.WEATHER} Speak first.`;
  const answer = await generateText({ ...asked, tools, stopWhen: stepCountIs(4), prompt });
  assert.equal(answer.steps[0].text.trim(), "I look.");
  assert.equal(answer.text, things.WEATHER_ANSWER);
}
