// anthropic, the official client for JavaScript.
import assert from "node:assert";
import Anthropic from "@anthropic-ai/sdk";
import { betaZodTool } from "@anthropic-ai/sdk/helpers/beta/zod";
import { zodOutputFormat } from "@anthropic-ai/sdk/helpers/zod";
import { z } from "zod";
import * as things from "./things.mjs";

const client = new Anthropic({ maxRetries: 0 });
const asked = { model: things.MODEL, max_tokens: 300 };
const schema = z.object({ name: z.string(), age: z.number().int() });
const tools = [
  betaZodTool({
    name: "get_weather",
    description: "Return the weather of a city.",
    inputSchema: z.object({ city: z.string() }),
    run: ({ city }) => things.getWeather(city),
  }),
];

export async function create() {
  const message = await client.messages.create({ ...asked, messages: things.USER });
  assert.equal(message.content[0].text, things.CAPITAL_ANSWER);
  assert.equal(message.stop_reason, "end_turn");
}

export async function stream() {
  const running = client.messages.stream({ ...asked, messages: things.USER });
  let text = "";
  running.on("text", (part) => (text += part));
  assert.equal(await running.finalText(), things.CAPITAL_ANSWER);
  assert.equal(text, things.CAPITAL_ANSWER);
}

export async function parse() {
  const output_config = { format: zodOutputFormat(schema) };
  const message = await client.messages.parse({ ...asked, messages: things.ASK_PERSON, output_config });
  assert.deepEqual(message.parsed_output, things.ADA);
}

export async function toolRunner() {
  const message = await client.beta.messages.toolRunner({ ...asked, messages: things.ASK_WEATHER, tools });
  assert.equal(message.content[0].text, things.WEATHER_ANSWER);
}

export async function toolRunnerStreamed() {
  let last;
  const streams = client.beta.messages.toolRunner({ ...asked, messages: things.ASK_WEATHER, tools, stream: true });
  for await (const stream of streams) last = await stream.finalMessage();
  assert.equal(last.content[0].text, things.WEATHER_ANSWER);
}

export async function errors() {
  const messages = [{ role: "user", content: "a ".repeat(40000) }];
  await assert.rejects(client.messages.create({ ...asked, messages }), (error) => {
    return error instanceof Anthropic.BadRequestError && /prompt is too long: /.test(error.message);
  });
  const other = { ...asked, model: "another", messages: things.USER };
  await assert.rejects(client.messages.create(other), Anthropic.NotFoundError);
}
