// The official client for JavaScript.
import assert from "node:assert";
import OpenAI from "openai";
import { zodFunction, zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";
import * as things from "./things.mjs";

const client = new OpenAI({ maxRetries: 0 });
const model = things.MODEL;
const Person = z.object({ name: z.string(), age: z.number().int() });

export async function chat() {
  const answer = await client.chat.completions.create({ model, messages: things.USER });
  assert.equal(answer.choices[0].message.content, things.CAPITAL_ANSWER);
}

export async function stream() {
  let text = "";
  const chunks = await client.chat.completions.create({ model, messages: things.USER, stream: true });
  for await (const chunk of chunks) text += chunk.choices[0]?.delta?.content ?? "";
  assert.equal(text, things.CAPITAL_ANSWER);
}

export async function parse() {
  const response_format = zodResponseFormat(Person, "person");
  const answer = await client.chat.completions.parse({ model, messages: things.ASK_PERSON, response_format });
  assert.deepEqual(answer.choices[0].message.parsed, things.ADA);
}

export async function streamHelper() {
  const running = client.chat.completions.stream({ model, messages: things.USER });
  assert.equal(await running.finalContent(), things.CAPITAL_ANSWER);
}

export async function runTools() {
  const tool = zodFunction({
    name: "get_weather",
    parameters: z.object({ city: z.string() }),
    function: ({ city }) => things.getWeather(city),
  });
  const running = client.chat.completions.runTools({ model, messages: things.ASK_WEATHER, tools: [tool] });
  assert.equal(await running.finalContent(), things.WEATHER_ANSWER);
}

export async function runToolsStreamed() {
  const tool = zodFunction({
    name: "get_weather",
    parameters: z.object({ city: z.string() }),
    function: ({ city }) => things.getWeather(city),
  });
  const running = client.chat.completions.runTools({
    model,
    messages: things.ASK_WEATHER,
    tools: [tool],
    stream: true,
  });
  assert.equal(await running.finalContent(), things.WEATHER_ANSWER);
}

export async function responses() {
  const answer = await client.responses.create({ model, input: things.CAPITAL });
  assert.equal(answer.output_text, things.CAPITAL_ANSWER);
}

export async function responsesStreamHelper() {
  const running = client.responses.stream({ model, input: things.CAPITAL });
  let text = "";
  running.on("response.output_text.delta", (event) => (text += event.delta));
  assert.equal((await running.finalResponse()).output_text, things.CAPITAL_ANSWER);
  assert.equal(text, things.CAPITAL_ANSWER);
}

export async function responsesParse() {
  const text = { format: zodTextFormat(Person, "person") };
  const answer = await client.responses.parse({ model, input: things.PERSON, text });
  assert.deepEqual(answer.output_parsed, things.ADA);
}

export async function responsesTools() {
  const parameters = {
    type: "object",
    properties: { city: { type: "string" } },
    required: ["city"],
    additionalProperties: false,
  };
  const tools = [{ type: "function", name: "get_weather", parameters, strict: true }];
  const input = [{ role: "user", content: things.WEATHER }];
  const answer = await client.responses.stream({ model, input, tools }).finalResponse();
  const [call] = answer.output;
  const output = things.getWeather(JSON.parse(call.arguments).city);
  input.push(...answer.output, { type: "function_call_output", call_id: call.call_id, output });
  assert.equal((await client.responses.create({ model, input, tools })).output_text, things.WEATHER_ANSWER);
}
