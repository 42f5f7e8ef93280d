// LangChain for JavaScript: chats, typed output, an agent, and the Responses API.
import assert from "node:assert";
import { ChatOpenAI } from "@langchain/openai";
import { createAgent, tool } from "langchain";
import { z } from "zod";
import * as things from "./things.mjs";

const schema = z.object({ name: z.string(), age: z.number().int() });
const tools = [
  tool(({ city }) => things.getWeather(city), {
    name: "get_weather",
    description: "Return the weather of a city.",
    schema: z.object({ city: z.string() }),
  }),
];
const make = (options) => new ChatOpenAI({ model: things.MODEL, maxRetries: 0, ...options });
const model = make();

export async function invoke() {
  assert.equal((await model.invoke(things.CAPITAL)).content, things.CAPITAL_ANSWER);
}

export async function stream() {
  let text = "";
  for await (const part of await model.stream(things.CAPITAL)) text += part.content;
  assert.equal(text, things.CAPITAL_ANSWER);
}

async function checkTyped(options) {
  assert.deepEqual(await model.withStructuredOutput(schema, options).invoke(things.PERSON), things.ADA);
}

export async function structuredOutput() {
  await checkTyped();
}

export async function structuredOutputByTool() {
  await checkTyped({ method: "functionCalling", name: "Person" });
}

async function checkAgent(llm) {
  const answer = await createAgent({ model: llm, tools }).invoke({ messages: things.ASK_WEATHER });
  assert.equal(answer.messages.at(-1).text, things.WEATHER_ANSWER);
}

export async function agent() {
  await checkAgent(model);
}

export async function agentStreamed() {
  let last;
  const running = createAgent({ model, tools }).stream({ messages: things.ASK_WEATHER }, { streamMode: "values" });
  for await (const state of await running) last = state.messages.at(-1);
  assert.equal(last.text, things.WEATHER_ANSWER);
}

export async function responsesAgent() {
  await checkAgent(make({ useResponsesApi: true }));
}
