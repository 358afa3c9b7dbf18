// The server as OpenAI's JavaScript client sees it. Run by run.sh.
//
// The model is too small to choose tools by itself: `tool_choice: required` makes it call, and where exactly two calls
// are needed, a grammar of two calls does.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import OpenAI from 'openai';
import { zodResponseFormat, zodTextFormat } from 'openai/helpers/zod';
import { z } from 'zod';

const baseURL = process.env.KANANA_BASE_URL ?? 'http://127.0.0.1:8000/v1';
const apiKey = process.env.KANANA_API_KEY ?? 'none';
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0, timeout: 60_000 });
const model = (await client.models.list()).data[0].id;
const hello = [{ role: 'user', content: '안녕하세요' }];

const chat = (options) =>
  client.chat.completions.create({ model, messages: hello, temperature: 0, max_tokens: 60, ...options });
const respond = (options) =>
  client.responses.create({ model, input: '안녕하세요', temperature: 0, max_output_tokens: 110, ...options });

async function all(stream) {
  const items = [];
  for await (const item of stream) items.push(item);
  return items;
}

const textOf = (chunks) => chunks.map((chunk) => chunk.choices[0]?.delta.content ?? '').join('');

test('models', async () => {
  assert.equal((await client.models.retrieve(model)).id, model);
});

test('a stream is the answer in pieces', async () => {
  const whole = await chat();
  assert.ok(whole.choices[0].message.content);
  assert.equal(whole.usage.prompt_tokens + whole.usage.completion_tokens, whole.usage.total_tokens);
  const chunks = await all(await chat({ stream: true, stream_options: { include_usage: true } }));
  assert.equal(textOf(chunks), whole.choices[0].message.content);
  assert.deepEqual(chunks.at(-1).choices, []);
  assert.equal(chunks.at(-1).usage.total_tokens, whole.usage.total_tokens);
  const final = await client.chat.completions
    .stream({ model, messages: hello, temperature: 0, max_tokens: 60 })
    .finalContent();
  assert.equal(final, whole.choices[0].message.content);
});

test('several answers, and stop strings', async () => {
  const options = { n: 3, seed: 7, temperature: 1.5, max_tokens: 20 };
  const texts = async () => (await chat(options)).choices.map((choice) => choice.message.content);
  const first = await texts();
  assert.equal(first.length, 3);
  assert.deepEqual(await texts(), first);
  const whole = (await chat()).choices[0].message.content;
  const stop = whole.slice(2, 4);
  const choice = (await chat({ stop: [stop] })).choices[0];
  assert.equal(choice.message.content, whole.slice(0, whole.indexOf(stop)));
  assert.equal(choice.finish_reason, 'stop');
});

test('log-probabilities', async () => {
  const { logprobs, message } = (await chat({ logprobs: true, top_logprobs: 2 })).choices[0];
  const bytes = logprobs.content.flatMap((token) => token.bytes);
  assert.ok(Buffer.from(bytes).toString().startsWith(message.content));
  assert.ok(logprobs.content.every((token) => token.logprob <= 0 && token.top_logprobs.length === 2));
  const echoed = await client.completions.create({ model, prompt: '하나 둘', echo: true, logprobs: 1, max_tokens: 2 });
  assert.ok(echoed.choices[0].text.startsWith('하나 둘'));
  assert.equal(echoed.choices[0].logprobs.token_logprobs[0], null);
});

test('text goes round', async () => {
  for (const text of ['한글과 English', '🙂👨‍👩‍👧 🇰🇷', 'ㅋㅋㅋ\n\t"\\ 끝']) {
    const chunks = await all(await chat({ stream: true, guided_choice: [text] }));
    assert.equal(textOf(chunks), text);
  }
  assert.match((await chat({ guided_regex: '[0-9]{3}', top_k: 5 })).choices[0].message.content, /^[0-9]{3}$/);
});

// Forms of the answer.

const Landmark = z.object({
  city: z.enum(['서울', '부산 🌊']),
  open: z.boolean(),
  floors: z.union([z.literal(1), z.literal(123)]),
  tags: z.array(z.enum(['가', '나'])).max(2),
});

test('zod, in chat and in responses', async () => {
  const response_format = zodResponseFormat(Landmark, 'landmark');
  const options = { model, messages: hello, response_format, temperature: 1, seed: 5, max_tokens: 120 };
  const parsed = (await client.chat.completions.parse(options)).choices[0].message.parsed;
  assert.deepEqual(Landmark.parse(parsed), parsed);
  const streamed = await client.chat.completions.stream(options).finalChatCompletion();
  assert.deepEqual(streamed.choices[0].message.parsed, parsed);
  const text = { format: zodTextFormat(Landmark, 'landmark') };
  const response = await client.responses.parse({ model, input: '어디?', text, max_output_tokens: 120, temperature: 0 });
  assert.deepEqual(Landmark.parse(response.output_parsed), response.output_parsed);
});

// Tools.

const schema = (name, values) => ({
  type: 'object',
  properties: { [name]: { type: 'string', enum: values } },
  required: [name],
  additionalProperties: false,
});
const functions = [
  { name: 'weather', description: '날씨', parameters: schema('city', ['서울', '부산 🌊']) },
  { name: 'clock', description: '시간', parameters: schema('zone', ['KST', 'UTC']) },
];
const tools = functions.map((fn) => ({ type: 'function', function: fn }));
const question = [{ role: 'user', content: '서울 날씨와 시간은?' }];
// One call of each tool, in the form in which Kanana writes them.
const call = (fn) => `"<function=${fn.name}>" %json ${JSON.stringify(fn.parameters)} "</function>"`;
const twoCalls = `start: first second\nfirst: ${call(functions[0])}\nsecond: ${call(functions[1])}\n`;
const run = {
  weather: ({ city }) => (assert.ok(['서울', '부산 🌊'].includes(city)), `${city} 맑음`),
  clock: ({ zone }) => (assert.ok(['KST', 'UTC'].includes(zone)), `12:00 ${zone}`),
};
const named = (calls) => calls.map(({ function: fn }) => [fn.name, fn.arguments]);

test('the whole loop with two parallel calls', async () => {
  const asked = { messages: question, tools, max_tokens: 110 };
  const { message, finish_reason } = (await chat({ ...asked, guided_grammar: twoCalls })).choices[0];
  assert.equal(finish_reason, 'tool_calls');
  assert.deepEqual(named(message.tool_calls).map(([name]) => name), ['weather', 'clock']);

  const results = message.tool_calls.map(({ id, function: fn }) => ({
    role: 'tool',
    tool_call_id: id,
    content: run[fn.name](JSON.parse(fn.arguments)),
  }));
  const messages = [...question, message, ...results];
  const final = await chat({ ...asked, messages, tool_choice: 'none', max_tokens: 30 });
  assert.ok(final.choices[0].message.content);

  const stream = client.chat.completions.stream({ model, temperature: 0, ...asked, guided_grammar: twoCalls });
  const streamed = await stream.finalMessage();
  assert.deepEqual(named(streamed.tool_calls), named(message.tool_calls));
});

test('a call that is required', async () => {
  const options = { tools, tool_choice: 'required', parallel_tool_calls: false, max_tokens: 110 };
  const { tool_calls } = (await chat({ messages: question, ...options })).choices[0].message;
  assert.equal(tool_calls.length, 1);
  run[tool_calls[0].function.name](JSON.parse(tool_calls[0].function.arguments));
});

// Responses.

test('responses, whole and streamed', async () => {
  const whole = await respond();
  assert.equal(whole.status, 'completed');
  const events = await all(await respond({ stream: true }));
  assert.deepEqual(events.map((event) => event.sequence_number), [...events.keys()]);
  assert.deepEqual(
    events.map((event) => event.type).filter((type, i, types) => type !== types[i - 1]),
    ['created', 'in_progress', 'output_item.added', 'content_part.added', 'output_text.delta', 'output_text.done',
      'content_part.done', 'output_item.done', 'completed'].map((type) => `response.${type}`),
  );
  const deltas = events.filter((event) => event.type === 'response.output_text.delta').map((event) => event.delta);
  assert.equal(deltas.join(''), whole.output_text);
});

test('tools of responses', async () => {
  const flat = functions.map((fn) => ({ type: 'function', ...fn }));
  const options = { input: '서울?', tools: flat, guided_grammar: twoCalls };
  const { output } = await respond(options);
  assert.deepEqual(output.map((item) => `${item.type} ${item.name}`), ['function_call weather', 'function_call clock']);
  const results = output.map((item) => ({
    type: 'function_call_output',
    call_id: item.call_id,
    output: run[item.name](JSON.parse(item.arguments)),
  }));
  const input = [{ role: 'user', content: '서울?' }, ...output, ...results];
  assert.ok((await respond({ input, tools: flat, tool_choice: 'none', max_output_tokens: 30 })).output_text);
  const streamed = await client.responses
    .stream({ model, temperature: 0, max_output_tokens: 110, ...options })
    .finalResponse();
  assert.deepEqual(streamed.output.map((item) => item.arguments), output.map((item) => item.arguments));
});

test('embeddings', async () => {
  const input = ['고양이가 잔다', '🙂'];
  const base64 = await client.embeddings.create({ model, input }); // what the client asks for by itself
  const float = await client.embeddings.create({ model, input, encoding_format: 'float' });
  for (const [i, { embedding }] of base64.data.entries()) {
    assert.ok(embedding.every((x, j) => Math.abs(x - float.data[i].embedding[j]) < 1e-6));
    assert.ok(Math.abs(embedding.reduce((sum, x) => sum + x * x, 0) - 1) < 1e-4);
  }
  const short = await client.embeddings.create({ model, input, dimensions: 8 });
  assert.equal(short.data[1].embedding.length, 8);
});

// Errors and ends.

test('errors', async () => {
  await assert.rejects(chat({ model: 'gpt-nothing' }), OpenAI.NotFoundError);
  await assert.rejects(chat({ temperature: 3 }), (error) => {
    assert.ok(error instanceof OpenAI.BadRequestError);
    assert.equal(error.param, 'temperature');
    return true;
  });
  await assert.rejects(chat({ temprature: 1 }), (error) => error.status === 400 && error.param === 'temprature');
  const stranger = new OpenAI({ baseURL, apiKey: 'wrong', maxRetries: 0 });
  await assert.rejects(stranger.models.list(), OpenAI.AuthenticationError);
});

test('a stream that is left is cancelled', async () => {
  const running = async () => {
    const url = baseURL.replace(/\/v1$/, '/metrics');
    const text = await (await fetch(url, { headers: { Authorization: `Bearer ${apiKey}` } })).text();
    return Number(text.match(/^vllm:num_requests_running\{.*\} (.*)$/m)[1]);
  };
  const stream = await chat({ stream: true, n: 16, max_tokens: 450, ignore_eos: true });
  for await (const chunk of stream) {
    if (chunk.choices[0].delta.content) break; // leaving the loop closes the connection
  }
  const end = Date.now() + 5000;
  while ((await running()) > 0 && Date.now() < end) await new Promise((done) => setTimeout(done, 50));
  assert.equal(await running(), 0);
});
