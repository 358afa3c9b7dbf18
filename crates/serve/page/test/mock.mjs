// A server with the API of the real one and answers made up from the question, for the browser test.
// `node mock.mjs` serves it at port 8080, to look at the page without a model.

import { createServer } from "node:http";
import { joinPage } from "./page-text.mjs";

const MARKDOWN = [
  "### 제목 Heading", "", "문장에 **\"강조\"**는 굵게, *기울임*, ~~취소~~, `code` 그리고 [링크](https://example.com/a_(b)).", "",
  "1. 첫째", "   - 안쪽 항목", "   - second", "2. 둘째", "", "> 인용문 quote", "",
  "| 이름 | 값 |", "|:--|--:|", "| `a\\|b` | 1 |", "| 나 | 22 |", "", "```rust", "fn main() { println!(\"<b>안녕</b>\"); }", "```", "", "끝 2 * 3 * 4 snake_case_name",
].join("\n");

/** What an attacker would have the model say. */
export const ATTACKS = [
  "<img src=x onerror=\"window.pwned=1\"> </script><script>window.pwned=2</script>", "",
  "[a](javascript:window.pwned=3) [b](JaVaScRiPt:window.pwned=3) [c](data:text/html,<script>1</script>) [d](//evil.example/x) [e](vbscript:x)", "",
  "![pic](https://evil.example/pixel.png) <https://evil.example/\" onclick=\"window.pwned=4>", "",
  "| <svg onload=window.pwned=5> | b |", "|---|---|", "| `<iframe src=javascript:window.pwned=6>` | 2 |", "",
  "```html\"><script>window.pwned=7</script>", "<script>window.pwned=8</script>", "```", "", ">".repeat(3000) + " deep", "", "- ".repeat(2000) + "deep", "", "**".repeat(2000),
].join("\n");

/** Text for what the user asks; some words have answers of their own. */
function answerTo(body) {
  const asked = body.messages.at(-1);
  const question = String(asked.content);
  if (asked.role === "tool") return `도구의 답: ${body.messages.filter((m) => m.role === "tool").map((m) => m.content).join(", ")}`;
  if (question.includes("markdown")) return MARKDOWN;
  if (question.includes("attack")) return ATTACKS;
  if (question.includes("long")) return "길고 긴 이야기가 이어집니다. ".repeat(300);
  const system = body.messages[0].role === "system" ? ` [${body.messages[0].content}]` : "";
  return `안녕하세요 👋 “${question}”에 답합니다.${system}`;
}

/** Pieces of `text`; a character beyond ASCII may lie in two of them, as with real tokens, when `cutsBytes`. */
function tokensOf(text, cutsBytes) {
  const pieces = text.match(/\s*[^\s]{1,4}|\s+/gu) ?? [];
  if (!cutsBytes) return pieces.map((piece) => Buffer.from(piece));
  return pieces.flatMap((piece) => {
    const bytes = Buffer.from(piece);
    return piece.includes("👋") ? [bytes.subarray(0, 2), bytes.subarray(2)] : [bytes];
  });
}

function logprobsOf(bytes, i) {
  const p = [0.98, 0.7, 0.4, 0.15, 0.05][i % 5];
  const entry = (text, share) => ({ token: text.toString(), bytes: [...text], logprob: Math.log(share) });
  const rest = [" the", "은", "\n", "한글"].map((text, k) => entry(Buffer.from(text), (1 - p) / (k + 2)));
  return { content: [{ ...entry(bytes, p), top_logprobs: [entry(bytes, p), ...rest].sort((a, b) => b.logprob - a.logprob) }] };
}

function* chunksOf(body) {
  const chunk = (delta, more = {}) => ({ id: "chatcmpl-1", object: "chat.completion.chunk", model: body.model, choices: [{ index: 0, delta, finish_reason: null, ...more }] });
  yield chunk({ role: "assistant", content: "" });
  const question = String(body.messages.at(-1).content);
  let count = 0;
  if (body.tools && body.messages.at(-1).role === "user") {
    for (const [index, city] of ["서울", "부산"].entries()) {
      yield chunk({ tool_calls: [{ index, id: `call_${index}`, type: "function", function: { name: body.tools[0].function.name, arguments: "" } }] });
      for (const part of [`{"city": "${city}`, `", "days": [1,`, " 2]}"]) yield chunk({ tool_calls: [{ index, function: { arguments: part } }] });
    }
    yield chunk({}, { finish_reason: "tool_calls" });
  } else {
    if (question.includes("think")) for (const part of ["먼저 ", "생각해 ", "봅니다."]) yield chunk({ reasoning_content: part });
    const decoder = new TextDecoder();
    for (const bytes of tokensOf(answerTo(body), body.logprobs)) {
      yield chunk({ content: decoder.decode(bytes, { stream: true }) }, body.logprobs ? { logprobs: logprobsOf(bytes, count) } : {});
      count++;
      if (count === 5 && question.includes("cut")) return;
      if (count === 5 && question.includes("fault")) return yield { error: { message: "the answer was not ready after 5 seconds", type: "server_error", param: null, code: "timeout" } };
    }
    yield chunk({}, { finish_reason: question.includes("longest") ? "length" : "stop" });
  }
  yield { choices: [], usage: { prompt_tokens: 12, completion_tokens: count, total_tokens: 12 + count } };
}

const pause = (ms) => new Promise((done) => setTimeout(done, ms));

function fail(response, status, message) {
  response.writeHead(status, { "Content-Type": "application/json" });
  response.end(JSON.stringify({ error: { message, type: "invalid_request_error", param: null, code: null } }));
}

async function complete(request, response) {
  let text = "";
  for await (const part of request) text += part;
  const body = JSON.parse(text);
  requests.push(body);
  const question = String(body.messages.at(-1).content);
  if (question.includes("secret") && request.headers.authorization !== "Bearer key-1") return fail(response, 401, "Invalid API key");
  if (question.includes("refuse")) return fail(response, 400, "max_tokens: expected at most 4096, got 9999");
  response.writeHead(200, { "Content-Type": "text/event-stream" });
  const isSlow = question.includes("long");
  for (const chunk of chunksOf(body)) {
    // Cut in the middle of lines and of characters.
    const bytes = Buffer.from(`: comment\r\ndata: ${JSON.stringify(chunk)}\r\n\r\n`);
    for (let i = 0; i < bytes.length; i += 97) response.write(bytes.subarray(i, i + 97));
    if (isSlow) await pause(20);
    if (response.destroyed) return;
  }
  if (question.includes("cut")) {
    await pause(100); // So that the answer has begun on the other side.
    return response.destroy();
  }
  response.end("data: [DONE]\n\n");
}

/** Bodies of the chat requests so far. */
export const requests = [];

/** Starts the server; gives its base URL and a function that ends it. */
export async function startMock(port = 0) {
  const server = createServer((request, response) => {
    if (request.url === "/") return response.writeHead(200, { "Content-Type": "text/html; charset=utf-8" }).end(joinPage());
    if (request.url === "/v1/models") return response.writeHead(200, { "Content-Type": "application/json" }).end(JSON.stringify({ object: "list", data: [{ id: "kanana-1.5-2.1b-instruct", object: "model" }, { id: "pico", object: "model" }] }));
    if (request.url === "/v1/chat/completions") return complete(request, response);
    fail(response, 404, `no such address: ${request.url}`);
  });
  await new Promise((done) => server.listen(port, "127.0.0.1", done));
  return { url: `http://127.0.0.1:${server.address().port}`, close: () => { server.closeAllConnections(); server.close(); } };
}

if (process.argv[1] === new URL(import.meta.url).pathname) console.log((await startMock(8080)).url);
