// ---- store.js: conversations and settings in localStorage, one entry a conversation, so that two tabs rarely collide.

const CHAT_KEY = "kanana.chat.";
const SETTINGS_KEY = "kanana.settings";

/** A conversation made from foreign JSON (storage, an import), or null when it is not one. Unknown fields are dropped. */
function readChat(value) {
  const isText = (text) => typeof text === "string";
  if (!value || !isText(value.id) || !Array.isArray(value.messages)) return null;
  const messages = [];
  for (const from of value.messages) {
    if (!from || !["user", "assistant", "tool"].includes(from.role) || !isText(from.content)) return null;
    const message = { role: from.role, content: from.content };
    for (const field of ["reasoning", "tool_call_id", "finish"]) if (isText(from[field])) message[field] = from[field];
    if (Array.isArray(from.tool_calls)) {
      message.tool_calls = from.tool_calls
        .filter((call) => isText(call?.id) && isText(call.function?.name) && isText(call.function.arguments))
        .map(({ id, function: { name, arguments: text } }) => ({ id, type: "function", function: { name, arguments: text } }));
    }
    if (isText(from.error?.kind) && `error_${from.error.kind}` in STRINGS) message.error = { kind: from.error.kind, text: String(from.error.text ?? "") };
    if (from.stats && Object.values(from.stats).every(Number.isFinite)) message.stats = { ...from.stats };
    messages.push(message);
  }
  return { id: value.id, title: isText(value.title) ? value.title : "", updated: Number(value.updated) || 0, messages };
}

/** What is kept of a conversation: the tokens with their probabilities would fill the storage and are left out. */
function writeChat(chat) {
  return JSON.stringify(chat, (key, value) => (key === "tokens" || key === "showTokens" ? undefined : value));
}

const store = {
  /** All conversations by id; entries that cannot be read stay where they are and are counted to the user. */
  loadChats() {
    const chats = new Map();
    let corrupt = 0;
    try {
      for (let i = 0; i < localStorage.length; i++) {
        const key = localStorage.key(i);
        if (!key.startsWith(CHAT_KEY)) continue;
        const chat = parseJson(localStorage.getItem(key), readChat);
        if (chat && key === CHAT_KEY + chat.id) chats.set(chat.id, chat);
        else corrupt++;
      }
    } catch {
      toast(t("storeOff"), { stays: true });
    }
    if (corrupt) toast(t("storeCorrupt", corrupt), { stays: true });
    return chats;
  },

  loadSettings() {
    try {
      return parseJson(localStorage.getItem(SETTINGS_KEY) ?? "{}", (value) => value) ?? {};
    } catch {
      return {};
    }
  },

  saveChat: (chat) => put(CHAT_KEY + chat.id, writeChat(chat)),
  saveSettings: (settings) => put(SETTINGS_KEY, JSON.stringify(settings)),

  removeChat(id) {
    try {
      localStorage.removeItem(CHAT_KEY + id);
    } catch { /* Storage is off: there is nothing to remove. */ }
  },
};

function put(key, text) {
  try {
    localStorage.setItem(key, text);
  } catch (error) {
    toast(t(error.name === "QuotaExceededError" ? "storeFull" : "storeOff"), { stays: true });
  }
}

/** `make` of the parsed text; null when it is not JSON. */
function parseJson(text, make) {
  try {
    return make(JSON.parse(text));
  } catch {
    return null;
  }
}

function newId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(8)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Saves the conversations as a file. */
function exportChats(chats) {
  const text = `{"kanana_conversations":1,"conversations":[${chats.map(writeChat).join(",\n")}]}`;
  const url = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  h("a", { href: url, download: `kanana-${new Date().toISOString().slice(0, 10)}.json` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

/** Adds the conversations of an exported file to `chats`; one that is there already, unchanged, is left out. */
async function importChats(file, chats) {
  const list = parseJson(await file.text(), (value) => value.conversations);
  if (!Array.isArray(list)) return toast(t("importBad"));
  let added = 0;
  for (const chat of list.map(readChat)) {
    if (!chat || chats.get(chat.id)?.updated === chat.updated) continue;
    if (chats.has(chat.id)) chat.id = newId();
    chats.set(chat.id, chat);
    store.saveChat(chat);
    added++;
  }
  toast(t("imported", added, list.length - added));
}
