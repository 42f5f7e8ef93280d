// ollama, the official client of Ollama for JavaScript.
import assert from "node:assert";
import { Ollama } from "ollama";
import * as things from "./things.mjs";

const client = new Ollama({ host: things.URL.replace(/\/v1$/, "") });
const model = things.MODEL;
const tools = [
  {
    type: "function",
    function: {
      name: "get_weather",
      description: "Return the weather of a city.",
      parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
    },
  },
];

export async function models() {
  const names = (await client.list()).models.map((each) => each.name);
  assert(names.includes(model));
  assert((await client.show({ model })).capabilities.includes("completion"));
  assert.equal((await client.ps()).models.length, 1);
}

export async function chat() {
  const answer = await client.chat({ model, messages: things.USER });
  assert.equal(answer.message.content, things.CAPITAL_ANSWER);
  assert.equal(answer.done_reason, "stop");
}

export async function stream() {
  let text = "";
  for await (const part of await client.chat({ model, messages: things.USER, stream: true })) {
    text += part.message.content;
  }
  assert.equal(text, things.CAPITAL_ANSWER);
}

export async function generate() {
  const answer = await client.generate({ model, prompt: things.CAPITAL });
  assert.equal(answer.response, things.CAPITAL_ANSWER);
}

export async function format() {
  const schema = {
    type: "object",
    properties: { name: { type: "string" }, age: { type: "integer" } },
    required: ["name", "age"],
  };
  const answer = await client.chat({ model, messages: things.ASK_PERSON, format: schema });
  assert.deepEqual(JSON.parse(answer.message.content), things.ADA);
}

export async function toolsAndResult() {
  const messages = [...things.ASK_WEATHER];
  const answer = await client.chat({ model, messages, tools });
  const [call] = answer.message.tool_calls;
  const content = things.getWeather(call.function.arguments.city);
  messages.push(answer.message, { role: "tool", tool_name: call.function.name, content });
  const last = await client.chat({ model, messages, tools });
  assert.equal(last.message.content, things.WEATHER_ANSWER);
}

export async function errors() {
  await assert.rejects(client.chat({ model: "other", messages: things.USER }), /serves the model/);
  await assert.rejects(client.delete({ model }), /this server serves one model/);
}
