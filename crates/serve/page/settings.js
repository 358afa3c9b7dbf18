// ---- settings.js: the values a user can set, their rules, their dialog, and the request that follows from them.

/** A number within a range; `above` excludes the lower end. Text that is empty leaves the value to the server. */
function number(from, to, { above = false, whole = false } = {}) {
  return (text, name) => {
    const value = Number(text);
    const isFine = Number.isFinite(value) && (above ? value > from : value >= from) && value <= to && (!whole || Number.isSafeInteger(value));
    return isFine ? null : t("badNumber", t(`hint_${name}`));
  };
}

function checkTools(text) {
  let value;
  try {
    value = JSON.parse(text);
  } catch (error) {
    return t("badJson", error.message);
  }
  const isTool = (tool) => tool?.type === "function" && /^[\w-]{1,64}$/.test(tool.function?.name);
  return Array.isArray(value) && value.every(isTool) ? null : t("badTools");
}

/** Every field of the dialog: its kind of input, and `check`, which says what is wrong with a text or gives null. */
const FIELDS = {
  system: { group: "model", kind: "area", label: "field_system" },
  key: { group: "model", kind: "password", label: "field_key", hint: "hint_key" },
  temperature: { group: "sampling", kind: "decimal", check: number(0, 2) },
  top_p: { group: "sampling", kind: "decimal", check: number(0, 1, { above: true }) },
  top_k: { group: "sampling", kind: "numeric", check: number(0, Infinity, { whole: true }) },
  min_p: { group: "sampling", kind: "decimal", check: number(0, 1) },
  max_tokens: { group: "sampling", kind: "numeric", check: number(1, Infinity, { whole: true }) },
  seed: { group: "sampling", kind: "numeric", check: number(0, Infinity, { whole: true }) },
  repetition_penalty: { group: "sampling", kind: "decimal", check: number(0, 2, { above: true }) },
  stop: { group: "sampling", kind: "area", label: "field_stop", hint: "hint_stop" },
  tools: { group: "tools", kind: "code", label: "field_tools", hint: "hint_tools", check: checkTools },
};

/** Settings out of what was stored, whatever it is: every value is a text, as typed. */
function readSettings(stored) {
  const settings = { model: "", language: browserLanguage(), probabilities: false };
  for (const name of ["model", ...Object.keys(FIELDS)]) settings[name] = typeof stored?.[name] === "string" ? stored[name] : "";
  if (["ko", "en"].includes(stored?.language)) settings.language = stored.language;
  settings.probabilities = stored?.probabilities === true;
  for (const [name, { check }] of Object.entries(FIELDS)) if (check && settings[name] && check(settings[name], name)) settings[name] = "";
  return settings;
}

/** The body of the request that continues `messages`. */
function requestBody(settings, model, messages) {
  const body = { model, messages: requestMessages(settings.system, messages), stream: true, stream_options: { include_usage: true } };
  for (const [name, { kind }] of Object.entries(FIELDS)) {
    if ((kind === "decimal" || kind === "numeric") && settings[name] !== "") body[name] = Number(settings[name]);
  }
  const stop = settings.stop.split("\n").filter((line) => line !== "").map((line) => line.replaceAll("\\n", "\n"));
  if (stop.length) body.stop = stop;
  const tools = settings.tools ? JSON.parse(settings.tools) : []; // Checked when it was saved and when it was read.
  if (tools.length) body.tools = tools;
  if (settings.probabilities) Object.assign(body, { logprobs: true, top_logprobs: 5 });
  return body;
}

/** The conversation as the API wants it: no empty answers, and a call goes back only together with its result. */
function requestMessages(system, messages) {
  const sent = system.trim() ? [{ role: "system", content: system }] : [];
  const results = new Set(messages.map((message) => message.tool_call_id));
  for (const { role, content, tool_calls, tool_call_id } of messages) {
    const calls = (tool_calls ?? []).filter((call) => results.has(call.id));
    if (role === "tool") sent.push({ role, tool_call_id, content });
    else if (calls.length) sent.push({ role, content: content || null, tool_calls: calls });
    else if (content) sent.push({ role, content });
  }
  return sent;
}

/** Fills the dialog with the fields in the shown language, with the values of `settings`. */
function drawFields(settings) {
  const groups = { model: h("fieldset"), sampling: h("fieldset", { class: "grid" }), tools: h("fieldset") };
  for (const [name, group] of Object.entries(groups)) group.append(h("legend", {}, t(`group_${name}`)));
  groups.sampling.append(h("p", { class: "muted wide" }, t("samplingHint")));
  for (const [name, field] of Object.entries(FIELDS)) {
    const isArea = field.kind === "area" || field.kind === "code";
    const id = `set-${name}`;
    const hint = field.hint ?? (`hint_${name}` in STRINGS ? `hint_${name}` : null);
    const common = { id, name, autocomplete: "off", spellcheck: "false", "aria-describedby": `${id}-hint ${id}-error`, input: () => checkField(name) };
    const input = isArea
      ? h("textarea", { ...common, rows: field.kind === "code" ? "6" : "2", class: field.kind === "code" ? "mono" : null })
      : h("input", { ...common, type: field.kind === "password" ? "password" : "text", inputmode: field.kind === "password" ? null : field.kind });
    input.value = settings[name];
    groups[field.group].append(h("div", { class: isArea ? "field wide" : "field" },
      h("label", { for: id }, field.label ? t(field.label) : name), input,
      h("p", { class: "muted", id: `${id}-hint` }, hint ? t(hint) : ""),
      h("p", { class: "wrong", id: `${id}-error` })));
  }
  $("fields").replaceChildren(...Object.values(groups));
}

/** Says below the field what is wrong with it; true when nothing is. */
function checkField(name) {
  const input = $(`set-${name}`);
  const text = input.value.trim();
  const wrong = text && FIELDS[name].check ? FIELDS[name].check(text, name) : null;
  input.setAttribute("aria-invalid", String(Boolean(wrong)));
  $(`set-${name}-error`).textContent = wrong ?? "";
  return !wrong;
}

/** The values of the dialog, or null (with the first wrong field focused) when one is wrong. */
function readFields() {
  const wrong = Object.keys(FIELDS).filter((name) => !checkField(name));
  if (wrong.length) {
    $(`set-${wrong[0]}`).focus();
    return null;
  }
  const exact = ["system", "stop"]; // White space counts in these.
  return Object.fromEntries(Object.keys(FIELDS).map((name) => [name, exact.includes(name) ? $(`set-${name}`).value : $(`set-${name}`).value.trim()]));
}
