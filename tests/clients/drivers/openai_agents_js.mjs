// OpenAI's Agents SDK for JavaScript, over chat completions and over its default, the Responses API.
import assert from "node:assert";
import { Agent, OpenAIChatCompletionsModel, run, setTracingDisabled, tool } from "@openai/agents";
import OpenAI from "openai";
import { z } from "zod";
import * as things from "./things.mjs";

setTracingDisabled(true);
const chats = new OpenAIChatCompletionsModel(new OpenAI({ maxRetries: 0 }), things.MODEL);
const outputType = z.object({ name: z.string(), age: z.number().int() });
const tools = [
  tool({
    name: "get_weather",
    description: "Return the weather of a city.",
    parameters: z.object({ city: z.string() }),
    execute: ({ city }) => things.getWeather(city),
  }),
];
const make = (options) => new Agent({ name: "helper", instructions: "You help.", model: chats, ...options });

async function checkStream(agent) {
  const running = await run(agent, things.WEATHER, { stream: true });
  for await (const event of running) assert.ok(event.type);
  assert.equal(running.finalOutput, things.WEATHER_ANSWER);
}

export async function text() {
  assert.equal((await run(make(), things.CAPITAL)).finalOutput, things.CAPITAL_ANSWER);
}

export async function agent() {
  assert.equal((await run(make({ tools }), things.WEATHER)).finalOutput, things.WEATHER_ANSWER);
}

export async function agentStreamed() {
  await checkStream(make({ tools }));
}

export async function typed() {
  assert.deepEqual((await run(make({ outputType }), things.PERSON)).finalOutput, things.ADA);
}

export async function handoff() {
  assert.equal((await run(make({ handoffs: [make()] }), things.CAPITAL)).finalOutput, things.CAPITAL_ANSWER);
}

export async function responsesAgent() {
  const agent = make({ tools, model: things.MODEL });
  assert.equal((await run(agent, things.WEATHER)).finalOutput, things.WEATHER_ANSWER);
}

export async function responsesAgentStreamed() {
  await checkStream(make({ tools, model: things.MODEL }));
}

export async function responsesTyped() {
  const agent = make({ outputType, model: things.MODEL });
  assert.deepEqual((await run(agent, things.PERSON)).finalOutput, things.ADA);
}
