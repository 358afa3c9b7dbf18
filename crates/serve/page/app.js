// ---- app.js: the state of the page, what the user can do with it, and how it starts.

const settings = readSettings(store.loadSettings());
setLanguage(settings.language);
const chats = store.loadChats();
const narrow = matchMedia("(max-width: 900px)");

let current = null; // The conversation that is shown; null for a new one.
let run = null; // The answer that is being written: one at a time, also while another conversation is shown.
let models = [];
let views = new Map(); // Message to its view, of the shown conversation.
let follows = true; // Whether the log stays at its end while text arrives.

// ---- Conversations

function save(chat) {
  chat.updated = Date.now();
  store.saveChat(chat);
}

/** Shows `chat`, or an empty page for a new one. */
function openChat(chat) {
  current = chat;
  history.replaceState(null, "", chat ? `#${chat.id}` : location.pathname);
  if (narrow.matches) setDrawer("side", false);
  drawChats();
  drawChat();
  scrollToEnd();
  $("input").focus();
}

function titleOf(chat) {
  return chat.title || chat.messages.find((message) => message.role === "user")?.content.trim().split("\n")[0].slice(0, 80) || t("untitled");
}

function drawChats() {
  const fold = (text) => text.normalize("NFC").toLowerCase();
  const wanted = fold($("search").value.trim());
  const matches = (chat) => fold(titleOf(chat)).includes(wanted) || chat.messages.some((message) => fold(message.content).includes(wanted));
  const shown = [...chats.values()].filter(matches).sort((a, b) => b.updated - a.updated);
  $("chats").replaceChildren(...shown.map((chat) => {
    const title = titleOf(chat);
    return h("li", { class: run?.chat === chat ? "busy" : null },
      h("button", { type: "button", class: "title", "aria-current": chat === current ? "true" : null, title, click: () => openChat(chat) }, title),
      iconButton("edit", t("rename", title), (event) => renameChat(chat, event.currentTarget.parentNode)),
      iconButton("trash", t("deleteChat", title), () => deleteChat(chat)));
  }));
  $("noChats").hidden = shown.length > 0;
  $("noChats").textContent = t(wanted ? "noMatch" : "noChats");
}

function renameChat(chat, item) {
  let isDone = false;
  const finish = (isKept) => {
    if (isDone) return;
    isDone = true;
    if (isKept && input.value.trim()) {
      chat.title = input.value.trim();
      store.saveChat(chat);
    }
    drawChats();
    [...$("chats").querySelectorAll(".title")].find((button) => button.textContent === titleOf(chat))?.focus();
  };
  const input = h("input", { type: "text", "aria-label": t("newTitle"), maxlength: "120", blur: () => finish(true), keydown: (event) => {
    if (isPlainEnter(event)) finish(true);
    if (event.key === "Escape" && !event.isComposing) { event.stopPropagation(); finish(false); }
  } });
  input.value = titleOf(chat);
  item.replaceChildren(input);
  input.select();
}

function deleteChat(chat) {
  if (run?.chat === chat) run.controller.abort();
  chats.delete(chat.id);
  store.removeChat(chat.id);
  if (chat === current) openChat(null);
  else drawChats();
  toast(t("deleted"), { action: [t("undo"), () => {
    chats.set(chat.id, chat);
    store.saveChat(chat);
    openChat(chat);
  }] });
}

// ---- Messages

const actions = {
  regenerate(message) {
    if (run) return;
    current.messages.splice(current.messages.indexOf(message));
    answer(current);
  },
  resend(message, text) {
    if (run) return;
    current.messages.splice(current.messages.indexOf(message));
    current.messages.push({ role: "user", content: text });
    answer(current);
  },
  sendResults(message, results) {
    if (run) return;
    current.messages.splice(current.messages.indexOf(message) + 1);
    current.messages.push(...results);
    answer(current);
  },
  /** Removes the message; a call's results go with it. */
  remove(message) {
    const chat = current;
    if (run?.chat === chat) return;
    const before = [...chat.messages];
    const calls = new Set(message.tool_calls?.map((call) => call.id));
    chat.messages = before.filter((m) => m !== message && !(m.role === "tool" && calls.has(m.tool_call_id)));
    const redraw = () => {
      save(chat);
      if (chat === current) drawChat();
    };
    redraw();
    $("input").focus();
    toast(t("deleted"), { action: [t("undo"), () => { chat.messages = before; redraw(); }] });
  },
  openSettings,
};

function drawChat() {
  hideTip();
  const messages = (current?.messages ?? []).filter((message) => message.role !== "tool"); // Results are shown with their calls.
  views = new Map(messages.map((message) => [message, new MessageView(current, message, actions)]));
  if (run && views.has(run.message)) views.get(run.message).update(true);
  $("log").replaceChildren(...[...views.values()].map((view) => view.node));
  $("log").hidden = messages.length === 0;
  $("empty").hidden = messages.length > 0;
  drawRun();
}

function scrollToEnd() {
  follows = true;
  $("log").scrollTop = $("log").scrollHeight;
}

/** The parts that depend on whether an answer is being written. */
function drawRun() {
  const hadFocus = [$("send"), $("stop")].includes(document.activeElement);
  $("send").hidden = Boolean(run);
  $("stop").hidden = !run;
  if (hadFocus) $("input").focus();
  $("log").setAttribute("aria-busy", String(Boolean(run)));
}

function submit() {
  const text = $("input").value.trim();
  if (!text || run) return;
  if (!current) {
    current = { id: newId(), title: "", updated: Date.now(), messages: [] };
    chats.set(current.id, current);
    history.replaceState(null, "", `#${current.id}`);
  }
  current.messages.push({ role: "user", content: text });
  $("input").value = "";
  fitHeight($("input"));
  answer(current);
}

/** Asks the server to continue `chat` and shows the answer as it comes. */
async function answer(chat) {
  const before = [...chat.messages];
  const message = { role: "assistant", content: "", showTokens: settings.probabilities };
  chat.messages.push(message);
  run = { chat, message, controller: new AbortController(), start: performance.now(), first: NaN, last: NaN, parts: 0 };
  const mine = run;
  save(chat);
  drawChats();
  drawChat();
  scrollToEnd();
  announce(t("answering"));
  const clock = setInterval(() => measure(mine), 200);
  const saver = setInterval(() => store.saveChat(chat), 3000);
  try {
    if (!models.length) await loadModels();
    for await (const chunk of streamAnswer(requestBody(settings, settings.model, before), settings.key, mine.controller.signal)) {
      take(mine, chunk);
      requestDraw();
    }
  } catch (error) {
    if (error.name === "AbortError") message.finish = "stopped";
    else if (error instanceof ApiError) {
      // A server that ends without [DONE] has still ended when it said why.
      if (!(error.kind === "cut" && message.finish)) message.error = { kind: error.kind, text: error.message };
    } else {
      message.error = { kind: "server", text: String(error) };
      console.error(error);
    }
  }
  clearInterval(clock);
  clearInterval(saver);
  measure(mine);
  run = null;
  if (chats.get(chat.id) === chat) save(chat); // It may have been deleted meanwhile.
  views.get(message)?.update(false);
  keepEnd();
  drawChats();
  drawRun();
  if (message.error) announce(`${t("error")}: ${t(`error_${message.error.kind}`)}`);
  else announce(message.finish === "stopped" ? t("stopped") : t("finished", message.content || message.tool_calls?.map((call) => `${t("call")} ${call.function.name}`).join(", ") || ""));
}

/** Adds a chunk of the stream to the message. */
function take(run, chunk) {
  const { message } = run;
  if (chunk.usage) run.usage = chunk.usage;
  const choice = chunk.choices?.[0];
  if (!choice) return;
  const delta = choice.delta ?? {};
  const reasoning = delta.reasoning_content ?? delta.reasoning;
  if (delta.content) message.content += delta.content;
  if (reasoning) message.reasoning = (message.reasoning ?? "") + reasoning;
  for (const part of delta.tool_calls ?? []) {
    const calls = (message.tool_calls ??= []);
    const i = Math.min(part.index ?? 0, calls.length);
    calls[i] ??= { id: part.id ?? newId(), type: "function", function: { name: "", arguments: "" } };
    calls[i].function.name += part.function?.name ?? "";
    calls[i].function.arguments += part.function?.arguments ?? "";
  }
  const tokens = choice.logprobs?.content ?? [];
  if (tokens.length) (message.tokens ??= []).push(...tokens);
  if (choice.finish_reason) message.finish = choice.finish_reason;
  if (delta.content || reasoning || delta.tool_calls || tokens.length) {
    run.last = performance.now();
    if (run.parts === 0) run.first = run.last;
    run.parts += tokens.length || 1;
  }
}

/** Speed and counts of a run, in tokens and seconds. Parts stand for tokens until the server's count comes. */
function measure(run) {
  const { usage, message } = run;
  const tokens = usage?.completion_tokens ?? run.parts;
  const spent = (run.last - run.first) / 1000;
  const stats = {
    tokens, ttft: (run.first - run.start) / 1000, elapsed: ((Number.isNaN(run.last) || !message.finish ? performance.now() : run.last) - run.start) / 1000,
    rate: tokens > 1 && spent > 0.005 ? (tokens - 1) / spent : NaN, prompt: usage?.prompt_tokens ?? NaN,
  };
  message.stats = Object.fromEntries(Object.entries(stats).filter(([, value]) => Number.isFinite(value)));
  drawStats(message.stats);
}

function drawStats(stats) {
  $("rate").textContent = stats.rate === undefined ? "–" : stats.rate.toFixed(1);
  $("ttft").textContent = seconds(stats.ttft);
  $("elapsed").textContent = seconds(stats.elapsed);
  $("promptTokens").textContent = stats.prompt ?? "–";
  $("answerTokens").textContent = stats.tokens || "–";
}

let isDrawAsked = false;

/** Shows the message of the run at the next frame: chunks come faster than frames. */
function requestDraw() {
  if (isDrawAsked) return;
  isDrawAsked = true;
  requestAnimationFrame(() => {
    isDrawAsked = false;
    if (!run) return;
    views.get(run.message)?.update(true);
    keepEnd();
  });
}

function keepEnd() {
  if (follows) $("log").scrollTop = $("log").scrollHeight;
  watchScroll();
}

function watchScroll() {
  const log = $("log");
  $("latest").hidden = log.hidden || log.scrollHeight - log.scrollTop - log.clientHeight < 80;
}

// ---- Models, settings, drawers

async function loadModels() {
  models = await fetchModels(settings.key);
  if (!models.includes(settings.model)) settings.model = models[0] ?? "";
  drawModels();
}

function drawModels() {
  const option = (name, text) => h("option", { value: name }, text);
  $("model").replaceChildren(...(models.length ? models.map((name) => option(name, name)) : [option("", t("noModels"))]));
  $("model").value = settings.model;
  $("model").disabled = !models.length;
}

/** Asks for the models where a failure needs no message: sending shows it. */
function tryModels() {
  loadModels().catch(drawModels);
}

function openSettings(focus) {
  if (narrow.matches) setDrawer("panel", false);
  drawFields(settings);
  $("settings").showModal();
  if (focus) $(focus).focus();
}

function setDrawer(name, isOpen) {
  const button = $(name === "side" ? "toggleSide" : "togglePanel");
  const hadFocus = $(name).contains(document.activeElement);
  $(name).hidden = !isOpen;
  button.setAttribute("aria-expanded", String(isOpen));
  // On a narrow screen an open drawer covers the rest, which then takes no focus.
  const covers = narrow.matches && (!$("side").hidden || !$("panel").hidden);
  $("shade").hidden = !covers;
  $("middle").inert = covers;
  if (covers && isOpen) $(name).querySelector("button").focus();
  if (!isOpen && hadFocus) button.focus();
}

function fitDrawers() {
  setDrawer("side", !narrow.matches);
  setDrawer("panel", !narrow.matches && innerWidth > 1150);
}

function drawAll() {
  setLanguage(settings.language);
  const other = language === "ko" ? "en" : "ko";
  $("language").textContent = other === "ko" ? "한국어" : "English";
  $("language").lang = other;
  $("examples").replaceChildren(...["example1", "example2", "example3"].map((key) => h("li", {},
    h("button", { type: "button", click: () => { $("input").value = t(key); fitHeight($("input")); $("input").focus(); } }, t(key)))));
  $("keys").replaceChildren(...KEYS.flatMap(([name, keys]) => [h("dt", {}, h("kbd", {}, keys)), h("dd", {}, t(name))]));
  drawModels();
  drawChats();
  drawChat();
}

// ---- Keyboard

const KEYS = [
  ["key_send", "Enter"], ["key_line", "Shift+Enter"], ["key_stop", "Esc"], ["key_new", "Alt+N"], ["key_input", "Alt+M"],
  ["key_search", "Alt+K"], ["key_panel", "Alt+P"], ["key_settings", "Alt+S"], ["key_help", "Alt+/"], ["key_tokens", "← → Home End"],
];

/** What a key with Alt does, by its place on the keyboard: the letter differs while Hangul is typed. */
const SHORTCUTS = {
  KeyN: () => openChat(null),
  KeyM: () => $("input").focus(),
  KeyK: () => { setDrawer("side", true); $("search").focus(); },
  KeyP: () => setDrawer("panel", $("panel").hidden),
  KeyS: () => openSettings(),
  Slash: () => $("shortcuts").showModal(),
};

function onKey(event) {
  if (event.isComposing || document.querySelector("dialog[open]")) return;
  if (event.key === "Escape") {
    if (!$("tip").hidden) hideTip();
    else if (!$("shade").hidden) closeDrawers();
    else run?.controller.abort();
  } else if (event.altKey && !event.ctrlKey && !event.metaKey && SHORTCUTS[event.code]) {
    event.preventDefault();
    SHORTCUTS[event.code]();
  }
}

function closeDrawers() {
  for (const name of ["side", "panel"]) if (!$(name).hidden) setDrawer(name, false);
}

// ---- Start

function listen() {
  const on = (id, type, act) => $(id).addEventListener(type, act);
  on("composer", "submit", (event) => { event.preventDefault(); submit(); });
  on("input", "input", () => fitHeight($("input")));
  on("input", "keydown", (event) => {
    if (!isPlainEnter(event)) return;
    event.preventDefault();
    submit();
  });
  on("stop", "click", () => run?.controller.abort());
  on("log", "scroll", () => {
    const log = $("log");
    follows = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
    watchScroll();
    hideTip();
  });
  on("latest", "click", () => { scrollToEnd(); $("input").focus(); });
  on("new", "click", () => openChat(null));
  on("search", "input", drawChats);
  on("export", "click", () => exportChats([...chats.values()]));
  on("import", "click", () => $("file").click());
  on("file", "change", async () => {
    if ($("file").files[0]) await importChats($("file").files[0], chats);
    $("file").value = "";
    drawChats();
  });
  on("help", "click", () => { if (narrow.matches) setDrawer("side", false); $("shortcuts").showModal(); });
  on("toggleSide", "click", () => setDrawer("side", $("side").hidden));
  on("togglePanel", "click", () => setDrawer("panel", $("panel").hidden));
  on("shade", "click", closeDrawers);
  on("openSettings", "click", () => openSettings());
  on("resetSettings", "click", () => drawFields({ ...readSettings({}), key: settings.key }));
  on("settings", "submit", (event) => {
    event.preventDefault();
    const values = readFields();
    if (!values) return;
    Object.assign(settings, values);
    store.saveSettings(settings);
    $("settings").close();
    toast(t("saved"));
    tryModels();
  });
  on("model", "change", () => { settings.model = $("model").value; store.saveSettings(settings); });
  on("probabilities", "change", () => { settings.probabilities = $("probabilities").checked; store.saveSettings(settings); });
  on("language", "click", () => {
    settings.language = language === "ko" ? "en" : "ko";
    store.saveSettings(settings);
    drawAll();
  });
  for (const button of document.querySelectorAll("[data-close]")) {
    const target = $(button.dataset.close);
    button.addEventListener("click", () => (target.matches("dialog") ? target.close() : setDrawer(target.id, false)));
  }
  document.querySelector(".skip").addEventListener("click", (event) => { event.preventDefault(); $("input").focus(); });
  document.addEventListener("keydown", onKey);
  narrow.addEventListener("change", fitDrawers);
  addEventListener("focus", () => { if (!models.length) tryModels(); });
  addEventListener("pagehide", () => run && store.saveChat(run.chat));
  addEventListener("hashchange", () => { if (chats.has(location.hash.slice(1))) openChat(chats.get(location.hash.slice(1))); });
  addEventListener("storage", onStorage);
}

/** Another tab changed something. */
function onStorage({ key, newValue }) {
  const id = key?.startsWith(CHAT_KEY) ? key.slice(CHAT_KEY.length) : null;
  if (!id || run?.chat.id === id) return;
  const chat = newValue && parseJson(newValue, readChat);
  if (chat) chats.set(id, chat);
  else chats.delete(id);
  if (current?.id === id) {
    current = chat || null;
    drawChat();
  }
  drawChats();
}

listen();
$("probabilities").checked = settings.probabilities;
current = chats.get(location.hash.slice(1)) ?? null;
drawAll();
fitDrawers();
tryModels();
fitHeight($("input"));
scrollToEnd();
if (!narrow.matches) $("input").focus(); // On a phone this would raise the keyboard.
