// ---- message.js: one message on the screen: its text, its tokens, its tool calls, its buttons.

/** Percent of a natural logarithm of a probability. */
function percent(logprob) {
  const value = 100 * Math.exp(logprob);
  return value >= 99.95 ? "100 %" : value < 0.1 ? "< 0.1 %" : `${value.toFixed(1)} %`;
}

/** Which colour of the legend. */
function shade(logprob) {
  const p = Math.exp(logprob);
  return p >= 0.9 ? "p0" : p >= 0.6 ? "p1" : p >= 0.3 ? "p2" : p >= 0.1 ? "p3" : "p4";
}

/** A token as text. One that is a part of a character, as is common in Hangul and emoji, is shown as its bytes. */
function tokenText({ token, bytes }) {
  if (!Array.isArray(bytes)) return String(token);
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(new Uint8Array(bytes));
  } catch {
    return bytes.map((byte) => (byte < 128 ? String.fromCharCode(byte) : `\\x${byte.toString(16)}`)).join("");
  }
}

/** White space made visible. */
function visible(text) {
  return text === "" ? "∅" : text.replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll(" ", "␣");
}

function hideTip() {
  $("tip").hidden = true;
}

/** Shows the alternatives of a token beside its span. */
function showTip(span, entry) {
  const rows = entry.top_logprobs?.length ? entry.top_logprobs : [entry];
  const tip = $("tip");
  tip.replaceChildren(h("p", {}, h("b", {}, visible(tokenText(entry))), ` ${percent(entry.logprob)}`), h("ol", {}, ...rows.map((row) => {
    const bar = h("span", { class: "bar" });
    bar.style.width = `${100 * Math.exp(row.logprob)}%`;
    return h("li", { class: row.token === entry.token ? "chosen" : null }, h("code", {}, visible(tokenText(row))), h("span", {}, percent(row.logprob)), bar);
  })));
  tip.hidden = false;
  const at = span.getBoundingClientRect();
  const below = at.bottom + 6 + tip.offsetHeight < innerHeight;
  tip.style.left = `${Math.max(8, Math.min(at.left, innerWidth - tip.offsetWidth - 8))}px`;
  tip.style.top = `${below ? at.bottom + 6 : Math.max(8, at.top - tip.offsetHeight - 6)}px`;
}

/** The tokens of an answer, coloured. One stop for the Tab key; the arrow keys move within. */
class TokenView {
  entries = [];
  node = h("div", {
    class: "tokens", role: "listbox", "aria-orientation": "horizontal", "aria-label": t("tokenList"),
    pointerover: (event) => this.show(event.target), pointerout: hideTip,
    focusin: (event) => this.show(event.target), focusout: hideTip,
    keydown: (event) => this.move(event),
  });

  /** Appends the entries that are not shown yet. */
  update(entries) {
    for (const entry of entries.slice(this.entries.length)) {
      const text = tokenText(entry);
      this.node.append(h("span", {
        class: `token ${shade(entry.logprob)}`, role: "option", "aria-describedby": "tip", tabindex: this.entries.length ? "-1" : "0",
      }, text.replaceAll("\n", "↵\n") || "∅"));
      this.entries.push(entry);
    }
  }

  show(span) {
    const i = [...this.node.children].indexOf(span);
    if (i >= 0) showTip(span, this.entries[i]);
  }

  move(event) {
    const here = document.activeElement;
    const to = { ArrowRight: here.nextSibling, ArrowLeft: here.previousSibling, Home: this.node.firstChild, End: this.node.lastChild }[event.key];
    if (!to || here.parentNode !== this.node) return;
    event.preventDefault();
    here.tabIndex = -1;
    to.tabIndex = 0;
    to.focus();
  }
}

/** JSON, complete or still arriving, with line breaks and indentation. */
function prettyJson(text) {
  let out = "";
  let depth = 0;
  let inString = false;
  let escaped = false;
  for (const c of text) {
    const line = () => `\n${"  ".repeat(depth)}`;
    if (inString) {
      out += c;
      inString = escaped || c !== '"';
      escaped = c === "\\" && !escaped;
    } else if (c === '"') {
      out += c;
      inString = true;
    } else if (c === "{" || c === "[") {
      depth++;
      out += c + line();
    } else if (c === "}" || c === "]") {
      depth = Math.max(0, depth - 1);
      out = /[{[]\s*$/.test(out) ? out.trimEnd() + c : out + line() + c;
    } else if (c === ",") {
      out += c + line();
    } else if (c === ":") {
      out += ": ";
    } else if (!/\s/.test(c)) {
      out += c;
    }
  }
  return out;
}

function isComplete(call) {
  return parseJson(call.function.arguments, () => true) === true;
}

/** A message of a conversation. `actions` are the functions of the page that its buttons call. */
class MessageView {
  constructor(chat, message, actions) {
    Object.assign(this, { chat, message, actions });
    const isUser = message.role === "user";
    this.reasoning = h("details", { class: "reasoning", hidden: true }, h("summary", {}, t("thinking")), h("p"));
    this.body = h("div", { class: "body" });
    this.calls = h("form", { class: "calls", hidden: true, submit: (event) => this.sendResults(event) });
    this.note = h("div", { class: "note", hidden: true });
    this.foot = h("footer");
    this.node = h("article", { class: `message ${message.role}`, "aria-label": t(isUser ? "you" : "assistant") },
      this.reasoning, this.body, this.calls, this.note, this.foot);
    this.update(false);
  }

  /** Shows the message as it is now; `isLive` while it is being written. */
  update(isLive) {
    const { message } = this;
    this.node.classList.toggle("live", isLive);
    this.reasoning.hidden = !message.reasoning;
    this.reasoning.lastChild.textContent = message.reasoning ?? "";
    this.updateBody(isLive);
    this.updateCalls(isLive);
    this.updateNote();
    this.updateFoot(isLive);
  }

  updateBody(isLive) {
    const { message } = this;
    if (message.role === "user") {
      this.body.textContent = message.content;
    } else if (message.tokens?.length && message.showTokens) {
      if (this.tokens?.node.parentNode !== this.body) {
        this.tokens = new TokenView();
        this.body.replaceChildren(this.tokens.node);
      }
      this.tokens.update(message.tokens);
    } else if (isLive && !message.content && !message.reasoning && !message.tool_calls) {
      this.body.replaceChildren(h("span", { class: "waiting", role: "img", "aria-label": t("waiting") }, h("i"), h("i"), h("i")));
    } else {
      renderMarkdown(this.body, message.content);
    }
  }

  updateCalls(isLive) {
    const calls = this.message.tool_calls ?? [];
    this.calls.hidden = !calls.length;
    if (!calls.length) return;
    const results = new Map(this.chat.messages.filter((m) => m.role === "tool").map((m) => [m.tool_call_id, m.content]));
    const isBroken = !calls.every(isComplete);
    const isAsked = !isLive && !isBroken && !calls.every((call) => results.has(call.id));
    this.calls.replaceChildren(...calls.map((call) => {
      const { name, arguments: text } = call.function;
      const result = results.get(call.id);
      return h("section", { class: "call", "aria-label": `${t("call")}: ${name}` },
        h("p", {}, `${t("call")} `, h("code", {}, name)),
        h("pre", { tabindex: "0" }, prettyJson(text)),
        result !== undefined ? h("div", { class: "result" }, h("p", {}, t("result", name)), h("pre", { tabindex: "0" }, result)) : null,
        isAsked && result === undefined
          ? h("label", {}, t("result", name), h("textarea", { name: call.id, rows: "2", class: "mono", placeholder: t("resultHint"), spellcheck: "false" })) : null);
    }));
    if (isAsked) this.calls.append(h("button", { type: "submit", class: "primary" }, t("sendResults")));
    if (isBroken && !isLive) this.calls.append(h("p", { class: "wrong" }, t("brokenCall")));
  }

  sendResults(event) {
    event.preventDefault();
    const results = [...new FormData(this.calls)].map(([id, content]) => ({ role: "tool", tool_call_id: id, content }));
    this.actions.sendResults(this.message, results);
  }

  /** Below the text: what went wrong and what to do, or why the answer ended. */
  updateNote() {
    const { message, note, actions } = this;
    const isLast = this.chat.messages.at(-1) === message; // Trying again drops what follows.
    note.hidden = !(message.error || message.finish === "stopped" || message.finish === "length");
    note.classList.toggle("bad", Boolean(message.error));
    if (note.hidden) return;
    if (message.error) {
      const { kind, text } = message.error;
      const button = (label, click) => h("button", { type: "button", class: "quiet", click }, label);
      note.replaceChildren(h("p", {}, t(`error_${kind}`)), text ? h("p", { class: "mono" }, text) : "",
        h("div", { class: "row" }, isLast ? button(t("retry"), () => actions.regenerate(message)) : "",
          kind === "key" || kind === "request" ? button(t("openSettings"), () => actions.openSettings(kind === "key" ? "set-key" : null)) : ""));
    } else {
      note.replaceChildren(h("p", {}, t(message.finish === "stopped" ? "stopped" : "cutByLength")));
    }
  }

  updateFoot(isLive) {
    const { message, actions } = this;
    if (isLive) return this.foot.replaceChildren();
    const buttons = [];
    const isLast = this.chat.messages.findLast((m) => m.role !== "tool") === message;
    if (message.content) buttons.push(iconButton("copy", t("copy"), () => copyText(message.content)));
    if (message.role === "user") buttons.push(iconButton("edit", t("edit"), () => this.edit()));
    if (message.role === "assistant" && isLast) buttons.push(iconButton("again", t("regenerate"), () => actions.regenerate(message)));
    if (message.tokens?.length) {
      buttons.push(iconButton("tokens", t("showTokens"), () => {
        message.showTokens = !message.showTokens;
        this.body.replaceChildren();
        this.update(false);
        this.foot.querySelector("[aria-pressed]").focus();
      }, { "aria-pressed": String(Boolean(message.showTokens)) }));
    }
    buttons.push(iconButton("trash", t("remove"), () => actions.remove(message)));
    const { stats } = message;
    const line = stats?.tokens ? t("stats", stats.tokens, stats.rate?.toFixed(1) ?? "–", seconds(stats.ttft)) : "";
    this.foot.replaceChildren(h("div", { class: "row" }, ...buttons), h("span", { class: "muted" }, line));
  }

  /** A box in the place of the text; what follows the message is dropped when it is sent again. */
  edit() {
    const area = h("textarea", { "aria-label": t("edit"), rows: "1", input: () => fitHeight(area), keydown: (event) => {
      if (event.key === "Escape" && !event.isComposing) { event.stopPropagation(); this.cancelEdit(); }
      if (isPlainEnter(event)) { event.preventDefault(); form.requestSubmit(); }
    } });
    const form = h("form", { class: "editor", submit: (event) => {
      event.preventDefault();
      if (area.value.trim()) this.actions.resend(this.message, area.value.trim());
    } }, area, h("div", { class: "row" },
      h("button", { type: "button", class: "quiet", click: () => this.cancelEdit() }, t("cancel")), h("button", { type: "submit", class: "primary" }, t("resend"))));
    area.value = this.message.content;
    this.body.replaceChildren(form);
    this.foot.replaceChildren();
    fitHeight(area);
    area.focus();
  }

  cancelEdit() {
    this.update(false);
    this.foot.querySelector("button")?.focus();
  }
}

/** Seconds, for people. */
function seconds(value) {
  if (!Number.isFinite(value)) return "–";
  return value < 1 ? `${Math.round(1000 * value)} ms` : `${value.toFixed(1)} s`;
}
