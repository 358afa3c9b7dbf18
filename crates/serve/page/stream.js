// ---- stream.js: the server's OpenAI-compatible API: models, and an answer as a stream of chunks.

/** A failed request. `kind` names what to do (the strings error_…); `text` is the server's own message. */
class ApiError extends Error {
  constructor(kind, text = "") {
    super(text);
    this.kind = kind;
  }
}

function kindOfStatus(status) {
  if (status === 401 || status === 403) return "key";
  if (status === 404) return "missing";
  if (status === 429 || status === 503) return "busy";
  return status >= 500 ? "server" : "request";
}

/** The same for an error inside a stream, which has no status of its own. */
const KIND_OF_TYPE = { authentication_error: "key", rate_limit_error: "busy", invalid_request_error: "request" };

async function request(path, { key, ...options } = {}) {
  const headers = { "Content-Type": "application/json" };
  if (key) headers.Authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    throw error.name === "AbortError" ? error : new ApiError("network");
  }
  if (!response.ok) {
    const body = await response.text().catch(() => "");
    const text = parseJson(body, (value) => value.error?.message ?? value.message) ?? body.slice(0, 500);
    throw new ApiError(kindOfStatus(response.status), `${response.status} ${text}`.trim());
  }
  return response;
}

/** Names of the models that the server offers. */
async function fetchModels(key) {
  const body = await (await request("/v1/models", { key })).json().catch(() => ({}));
  return (body.data ?? []).map((model) => String(model.id));
}

/** Server-sent events out of text that may be cut anywhere: `push` gives the data of the events now complete. */
class EventParser {
  rest = "";
  data = [];

  push(text) {
    // A \r at the very end may be half of \r\n, so it waits for what follows.
    const lines = (this.rest + text).split(/\r\n|\n|\r(?!$)/);
    this.rest = lines.pop();
    const events = [];
    for (const line of lines) {
      if (line === "") {
        if (this.data.length) events.push(this.data.join("\n"));
        this.data = [];
      } else if (line.startsWith("data:")) {
        this.data.push(line.slice(5).replace(/^ /, ""));
      }
    }
    return events;
  }
}

/** The chunks of one answer. Throws ApiError, and AbortError when `signal` stops it. */
async function* streamAnswer(body, key, signal) {
  const response = await request("/v1/chat/completions", { method: "POST", body: JSON.stringify(body), key, signal });
  const reader = response.body.getReader();
  const decoder = new TextDecoder(); // With `stream`, it keeps the first bytes of a character that a chunk cuts.
  const parser = new EventParser();
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      throw error.name === "AbortError" ? error : new ApiError("cut");
    }
    const text = part.done ? "\n\n" : decoder.decode(part.value, { stream: true });
    for (const event of parser.push(text)) {
      if (event === "[DONE]") return;
      const chunk = parseJson(event, (value) => value);
      if (!chunk) throw new ApiError("server", event.slice(0, 500));
      if (chunk.error) throw new ApiError(KIND_OF_TYPE[chunk.error.type] ?? "server", String(chunk.error.message ?? ""));
      yield chunk;
    }
    if (part.done) throw new ApiError("cut");
  }
}
