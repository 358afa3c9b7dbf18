// Browser test of the page: `npm install && npm test`, with Chromium at /usr/bin/chromium or $CHROMIUM.
//
// With KANANA_URL, the page comes from that server, and so do the answers of the tests named "server: …". The other
// tests need answers of a certain kind: their requests to /v1/ go to the mock, which also serves the page by default.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { chromium } from "playwright-core";
import { requests, startMock } from "./mock.mjs";
import { cspHashes, joinPage } from "./page-text.mjs";

let mock;
let browser;
let base;

before(async () => {
  mock = await startMock();
  base = process.env.KANANA_URL?.replace(/\/$/, "") ?? mock.url;
  browser = await chromium.launch({
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    args: ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
  });
});

after(async () => {
  await browser?.close();
  mock?.close();
});

/** Opens the page for `act`; fails on an error of the script and on a request to another host. */
async function visit(act, { locale = "en-US", width = 1280, height = 800, scripted = true, ...options } = {}) {
  const context = await browser.newContext({ locale, viewport: { width, height }, permissions: ["clipboard-read", "clipboard-write"], ...options });
  const page = await context.newPage();
  const wrong = [];
  page.on("pageerror", (error) => wrong.push(String(error)));
  page.on("console", (entry) => { if (/Content Security Policy|TrustedHTML/.test(entry.text())) wrong.push(entry.text()); });
  page.on("request", (request) => { if (!/^(blob|data):/.test(request.url()) && new URL(request.url()).origin !== new URL(base).origin) wrong.push(`request to ${request.url()}`); });
  if (scripted && base !== mock.url) await page.route("**/v1/**", (route) => route.continue({ url: mock.url + new URL(route.request().url()).pathname }));
  page.setDefaultTimeout(base === mock.url ? 6000 : 120000);
  try {
    await page.goto(base);
    await act(page);
    assert.deepEqual(wrong, []);
  } finally {
    await context.close();
  }
}

const input = (page) => page.locator("#input");
const answers = (page) => page.locator(".message.assistant .body");
const isDone = (page) => page.locator("#stop").waitFor({ state: "hidden" });

/** Sends `text` and waits for the end of the answer. */
async function ask(page, text) {
  const messages = page.locator(".message.assistant");
  const count = await messages.count();
  await input(page).fill(text);
  await input(page).press("Enter");
  await messages.nth(count).waitFor();
  await isDone(page);
}

/** Waits until `read` gives what `isFine` accepts; node's own, as the page's policy forbids evaluating text in it. */
async function until(read, isFine, name) {
  for (let tries = 0; tries < 160; tries++) {
    const value = await read();
    if (isFine(value)) return value;
    await new Promise((done) => setTimeout(done, 50));
  }
  assert.fail(`${name}: never, last ${JSON.stringify(await read())}`);
}

async function setSettings(page, values) {
  await page.locator("#openSettings").click();
  for (const [name, value] of Object.entries(values)) await page.locator(`#set-${name}`).fill(value);
  await page.locator("#settings [type=submit]").click();
}

const TOOLS = JSON.stringify([{ type: "function", function: { name: "get_weather", parameters: { type: "object" } } }]);

test("the policy's hashes are those of the style and the script", () => {
  const page = joinPage();
  for (const [directive, hash] of Object.entries(cspHashes(page))) {
    assert.ok(page.includes(`${directive} '${hash}'`), `${directive} is stale: run npm run csp`);
  }
  assert.equal(page.match(/<\/script/gi).length, 1, "a file of the script holds an end tag");
});

test("server: an answer streams and is measured", () => visit(async (page) => {
  await until(() => page.locator("#model option").first().getAttribute("value"), Boolean, "a model");
  await ask(page, "안녕? Answer in a few words.");
  assert.ok((await answers(page).last().textContent()).length > 0);
  assert.match(await page.locator("#answerTokens").textContent(), /^\d+$/);
  assert.match(await page.locator("#promptTokens").textContent(), /^\d+$/);
  assert.equal(await page.locator("[role=log]").getAttribute("aria-live"), "off"); // Tokens are not announced, the answer is.
  assert.match(await page.locator("#announcer").textContent(), /^Answer finished: ./);
}, { scripted: false }));

test("server: the stop button and Esc end an answer that goes on", () => visit(async (page) => {
  for (const stop of [() => page.locator("#stop").click(), () => page.keyboard.press("Escape")]) {
    await page.locator("#new").click();
    await input(page).fill("Tell me a very long story of a thousand words.");
    await input(page).press("Enter");
    await until(() => answers(page).last().textContent(), (text) => text.length > 10, "some text");
    await stop();
    await isDone(page);
    assert.match(await page.locator(".message.assistant").last().textContent(), /Stopped\./);
  }
}, { scripted: false }));

test("server: a conversation is kept after a reload", () => visit(async (page) => {
  await ask(page, "기억해 줘: 바다");
  const said = await answers(page).last().textContent();
  await page.reload();
  assert.equal(await answers(page).last().textContent(), said);
  assert.equal(await page.locator("#chats .title").textContent(), "기억해 줘: 바다");
}, { scripted: false }));

test("characters and lines cut by the network come out whole", () => visit(async (page) => {
  await ask(page, "가나다 👩‍👩‍👧‍👦");
  assert.equal(await answers(page).last().textContent(), "안녕하세요 👋 “가나다 👩‍👩‍👧‍👦”에 답합니다.");
}));

test("Enter that ends a Hangul syllable does not send; Shift+Enter starts a line", () => visit(async (page) => {
  const ime = await page.context().newCDPSession(page);
  const sent = requests.length;
  await input(page).focus();
  await ime.send("Input.imeSetComposition", { text: "한", selectionStart: 1, selectionEnd: 1 });
  const enter = { key: "Enter", code: "Enter", windowsVirtualKeyCode: 13, text: "\r" };
  await ime.send("Input.dispatchKeyEvent", { type: "rawKeyDown", ...enter });
  await ime.send("Input.dispatchKeyEvent", { type: "keyUp", ...enter });
  // Safari: the same key, after the composition, with the code of a key that the input method took.
  await input(page).evaluate((area) => area.dispatchEvent(new KeyboardEvent("keydown", { key: "Enter", keyCode: 229, bubbles: true, cancelable: true })));
  assert.equal(await answers(page).count(), 0);
  await ime.send("Input.insertText", { text: "한글" });
  await input(page).press("Shift+Enter");
  await page.keyboard.type("둘째 줄");
  assert.match(await input(page).inputValue(), /한글\n둘째 줄$/);
  assert.equal(requests.length, sent);
  await input(page).press("Enter");
  await answers(page).first().waitFor();
  assert.match(requests.at(-1).messages.at(-1).content, /한글\n둘째 줄$/);
}));

test("nothing that a model writes runs, loads or links out of http", () => visit(async (page) => {
  await ask(page, "attack");
  const body = answers(page).last();
  assert.equal(await page.evaluate(() => window.pwned), undefined);
  assert.equal(await body.locator("img, script, svg:not(.icon), iframe, [onerror], [onclick], [onload]").count(), 0);
  const links = await body.locator("a").evaluateAll((nodes) => nodes.map((a) => [new URL(a.href).protocol, a.rel]));
  for (const [protocol, rel] of links) assert.deepEqual([protocol, rel], ["https:", "noopener noreferrer"]);
  assert.match(await body.textContent(), /<img src=x onerror="window.pwned=1"> <\/script>/);
  await input(page).fill("<img src=x onerror=window.pwned=9>");
  await input(page).press("Enter");
  await isDone(page);
  assert.equal(await page.evaluate(() => window.pwned), undefined);
}));

test("Markdown becomes elements", () => visit(async (page) => {
  await ask(page, "markdown");
  const body = answers(page).last();
  const check = async (selector, expected) => assert.deepEqual((await body.locator(selector).allTextContents()).map((text) => text.trim()), expected, selector);
  await check("h5", ["제목 Heading"]);
  await check("strong", ['"강조"']);
  await check("em", ["기울임"]);
  await check("p code", ["code"]);
  await check("a", ["링크"]);
  await check("ol > li > ul > li", ["안쪽 항목", "second"]);
  await check("blockquote p", ["인용문 quote"]);
  await check("td.right", ["1", "22"]);
  await check("td code", ["a|b"]);
  await check("figcaption span", ["rust"]);
  await check("pre", ['fn main() { println!("<b>안녕</b>"); }']);
  assert.equal(await body.locator("a").getAttribute("href"), "https://example.com/a_(b)");
  assert.match(await body.textContent(), /끝 2 \* 3 \* 4 snake_case_name$/);
  await body.locator("figcaption button").click();
  assert.equal(await page.evaluate(() => navigator.clipboard.readText()), 'fn main() { println!("<b>안녕</b>"); }');
}));

test("the language follows the browser, can be switched, and is remembered", () => visit(async (page) => {
  const check = async (lang, placeholder) => {
    assert.equal(await page.locator("html").getAttribute("lang"), lang);
    assert.equal(await input(page).getAttribute("placeholder"), placeholder);
  };
  await check("ko", "메시지를 입력하세요");
  await page.locator("#language").click();
  await check("en", "Write a message");
  await page.reload();
  await check("en", "Write a message");
}, { locale: "ko-KR" }));

test("settings are checked, kept and sent", () => visit(async (page) => {
  await page.locator("#openSettings").click();
  await page.locator("#set-temperature").fill("3");
  await page.locator("#set-top_p").fill("0.9");
  await page.locator("#settings [type=submit]").click();
  assert.equal(await page.locator("#set-temperature").getAttribute("aria-invalid"), "true");
  assert.match(await page.locator("#set-temperature-error").textContent(), /0 to 2/);
  await page.locator("#set-tools").fill("[{}]");
  assert.match(await page.locator("#set-tools-error").textContent(), /function/);
  await page.locator("#set-tools").fill("");
  await page.locator("#set-temperature").fill("0");
  await page.locator("#set-seed").fill("7");
  await page.locator("#set-stop").fill("끝\n\\n\\n");
  await page.locator("#set-system").fill("짧게 답해.");
  await page.locator("#settings [type=submit]").click();
  await page.reload();
  await page.locator("#model").selectOption("pico");
  await ask(page, "hi");
  const { model, temperature, top_p, top_k, seed, stop, messages, stream_options } = requests.at(-1);
  assert.deepEqual({ model, temperature, top_p, top_k, seed, stop, stream_options }, { model: "pico", temperature: 0, top_p: 0.9, top_k: undefined, seed: 7, stop: ["끝", "\n\n"], stream_options: { include_usage: true } });
  assert.deepEqual(messages, [{ role: "system", content: "짧게 답해." }, { role: "user", content: "hi" }]);
}));

test("tool calls are shown, and their results go back", () => visit(async (page) => {
  await setSettings(page, { tools: TOOLS });
  await ask(page, "날씨?");
  const calls = page.locator(".call");
  assert.equal(await calls.count(), 2);
  assert.equal(await calls.first().locator("pre").textContent(), '{\n  "city": "서울",\n  "days": [\n    1,\n    2\n  ]\n}');
  await page.locator(".call textarea").nth(0).fill("맑음");
  await page.locator(".call textarea").nth(1).fill("비");
  await page.locator(".calls [type=submit]").click();
  await until(() => answers(page).last().textContent(), (text) => text === "도구의 답: 맑음, 비", "the answer to the results");
  const [, assistant, first, second] = requests.at(-1).messages;
  assert.deepEqual(assistant.tool_calls.map((call) => call.function.arguments), ['{"city": "서울", "days": [1, 2]}', '{"city": "부산", "days": [1, 2]}']);
  assert.deepEqual([first, second], [{ role: "tool", tool_call_id: "call_0", content: "맑음" }, { role: "tool", tool_call_id: "call_1", content: "비" }]);
  assert.equal(await page.locator(".call textarea").count(), 0);
}));

test("probabilities colour the tokens and name the alternatives", () => visit(async (page) => {
  await page.locator(".switch").click();
  await ask(page, "hi");
  const { logprobs, top_logprobs } = requests.at(-1);
  assert.deepEqual([logprobs, top_logprobs], [true, 5]);
  const tokens = page.locator(".tokens .token");
  assert.match(await tokens.nth(0).getAttribute("class"), /p0/);
  assert.match(await tokens.nth(4).getAttribute("class"), /p4/);
  assert.match(await page.locator(".tokens").textContent(), / \\xf0\\x9f/); // Half of 👋.
  await tokens.nth(0).focus();
  await page.keyboard.press("ArrowRight");
  assert.equal(await page.locator("#tip li").count(), 5);
  assert.match(await page.locator("#tip").textContent(), /70\.0 %/);
  await page.keyboard.press("Escape");
  assert.ok(await page.locator("#tip").isHidden());
  await tokens.nth(3).hover();
  assert.match(await page.locator("#tip p").textContent(), /15\.0 %/);
  await page.locator("[aria-label='Token probabilities']").click();
  assert.match(await answers(page).last().textContent(), /^안녕하세요 👋/);
}));

test("failures say what to do", () => visit(async (page) => {
  const said = () => page.locator(".note.bad").last().textContent();
  await ask(page, "secret");
  assert.match(await said(), /Enter it in the settings.*401 Invalid API key/s);
  await page.locator(".note.bad button", { hasText: "Open settings" }).click();
  await page.locator("#set-key").fill("key-1");
  await page.locator("#settings [type=submit]").click();
  await page.locator(".note.bad button", { hasText: "Try again" }).click();
  await until(() => answers(page).last().textContent(), (text) => text.startsWith("안녕하세요"), "an answer with the key");
  await ask(page, "refuse");
  assert.match(await said(), /400 max_tokens: expected at most 4096, got 9999/);
  await ask(page, "fault, after some of the answer");
  assert.match(await said(), /The server failed.*not ready after 5 seconds/s);
  await ask(page, "cut");
  assert.match(await said(), /connection ended/);
  await page.route("**/v1/chat/completions", (route) => route.abort());
  await ask(page, "hi");
  assert.match(await said(), /cannot be reached/);
}));

test("regenerate, edit, copy, delete, undo", () => visit(async (page) => {
  await ask(page, "one");
  await ask(page, "two");
  await page.getByRole("button", { name: "Regenerate" }).click();
  await isDone(page);
  assert.deepEqual(requests.at(-1).messages.map((m) => m.role), ["user", "assistant", "user"]);
  await page.locator(".message.user").first().getByRole("button", { name: "Edit and resend" }).click();
  await page.locator(".editor textarea").fill("three");
  await page.keyboard.press("Enter");
  await isDone(page);
  assert.deepEqual(requests.at(-1).messages, [{ role: "user", content: "three" }]);
  assert.equal(await page.locator(".message").count(), 2);
  await page.locator(".message.assistant").getByRole("button", { name: "Copy", exact: true }).click();
  assert.match(await page.evaluate(() => navigator.clipboard.readText()), /three/);
  await page.locator(".message.assistant").getByRole("button", { name: "Delete message" }).click();
  assert.equal(await page.locator(".message").count(), 1);
  await page.locator(".toast button", { hasText: "Undo" }).click();
  assert.equal(await page.locator(".message").count(), 2);
}));

test("conversations: rename, search, delete, undo, export, import", () => visit(async (page) => {
  const titles = () => page.locator("#chats .title").allTextContents();
  await ask(page, "사과");
  await page.locator("#new").click();
  await ask(page, "banana");
  await page.locator("#chats li").first().hover();
  await page.getByRole("button", { name: "Rename “banana”" }).click();
  await page.keyboard.type("과일");
  await page.keyboard.press("Enter");
  assert.deepEqual(await titles(), ["과일", "사과"]);
  await page.locator("#search").fill("BANANA");
  assert.deepEqual(await titles(), ["과일"]);
  await page.locator("#search").fill("");
  const [download] = await Promise.all([page.waitForEvent("download"), page.locator("#export").click()]);
  const path = await download.path();
  await page.locator("#chats li").first().hover();
  await page.getByRole("button", { name: "Delete “과일”" }).click();
  assert.deepEqual(await titles(), ["사과"]);
  await page.locator("#file").setInputFiles(path);
  await until(titles, (list) => list.join() === "과일,사과", "the imported conversation");
  assert.match(await page.locator("#toasts").textContent(), /1 conversations imported, 1 left out/);
  await page.locator("#file").setInputFiles({ name: "x.json", mimeType: "application/json", buffer: Buffer.from('{"conversations":[{"id":1},null,"x"]}') });
  await until(() => page.locator("#toasts").textContent(), (text) => /0 conversations imported, 3 left out/.test(text), "the count of bad ones");
}));

test("a full or broken storage is said, not suffered", () => visit(async (page) => {
  await page.evaluate(() => {
    localStorage.setItem("kanana.chat.bad", "{not json");
    localStorage.setItem("kanana.chat.worse", '{"id":"worse","messages":[{"role":"evil"}]}');
    localStorage.setItem("kanana.settings", "[[[");
  });
  await page.reload();
  assert.match(await page.locator("#toasts").textContent(), /2 stored entries cannot be read/);
  await page.evaluate(() => { Storage.prototype.setItem = () => { throw new DOMException("full", "QuotaExceededError"); }; });
  await ask(page, "hi");
  assert.match(await page.locator("#toasts").textContent(), /storage is full/);
  assert.match(await answers(page).last().textContent(), /안녕하세요/);
}));

test("server: everything is reached by keyboard", () => visit(async (page) => {
  await page.keyboard.type("hello");
  await page.keyboard.press("Enter");
  await answers(page).first().waitFor();
  await isDone(page);
  const seen = new Set();
  for (let i = 0; i < 60; i++) {
    await page.keyboard.press("Tab");
    const [name, isVisible] = await page.evaluate(() => {
      const node = document.activeElement;
      const { outlineStyle } = getComputedStyle(node);
      return [node.id || node.getAttribute("aria-label") || node.textContent, outlineStyle !== "none" || node.id === "input" || node === document.body];
    });
    assert.ok(isVisible, `focus is not visible on ${name}`);
    seen.add(name);
  }
  for (const name of ["new", "search", "export", "import", "help", "toggleSide", "model", "language", "togglePanel", "openSettings", "log", "input", "send", "probabilities", "Copy", "Regenerate", "Delete “hello”"]) {
    assert.ok(seen.has(name), `${name} is not reached by Tab; reached: ${[...seen].join(", ")}`);
  }
  await page.keyboard.press("Alt+S");
  assert.ok(await page.locator("#settings").isVisible());
  await page.keyboard.press("Escape");
  await page.keyboard.press("Alt+Slash");
  assert.ok(await page.locator("#shortcuts").isVisible());
  await page.keyboard.press("Escape");
  await page.keyboard.press("Alt+K");
  assert.equal(await page.evaluate(() => document.activeElement.id), "search");
  await page.keyboard.press("Alt+N");
  assert.ok(await page.locator("#empty").isVisible());
}, { scripted: false }));

test("every control and region has a name", () => visit(async (page) => {
  await ask(page, "markdown");
  await page.locator("#openSettings").click();
  const nameless = await page.locator("button, input, textarea, select, nav, aside, dialog, article, [role=log]").evaluateAll((nodes) => nodes
    .filter((node) => !(node.getAttribute("aria-label") || node.labels?.length || node.textContent.trim() || node.getAttribute("aria-labelledby") || node.type === "file"))
    .map((node) => node.outerHTML.slice(0, 120)));
  assert.deepEqual(nameless, []);
  for (const landmark of ["nav", "header", "main", "aside"]) assert.equal(await page.locator(landmark).count(), 1, landmark);
}));

for (const colorScheme of ["light", "dark"]) {
  test(`the contrast of text is 4.5 or more: ${colorScheme}`, () => visit(async (page) => {
    await page.locator(".switch").click();
    await ask(page, "hi");
    await page.locator(".switch").click();
    await ask(page, "markdown");
    await ask(page, "secret");
    await page.locator(".tokens .token").first().focus();
    await page.locator(".message.user").last().hover();
    const faint = await page.evaluate(() => {
      const channels = (color) => color.match(/[\d.]+/g).map(Number);
      const luminance = (rgb) => rgb.slice(0, 3).map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)).reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
      const ground = (node) => {
        for (; node; node = node.parentElement) {
          const color = channels(getComputedStyle(node).backgroundColor);
          if (color[3] !== 0) return color;
        }
      };
      const found = [];
      for (const node of document.querySelectorAll("body *")) {
        if (![...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim()) || !node.checkVisibility({ opacityProperty: true }) || node.closest("script, option")) continue;
        const [a, b] = [luminance(channels(getComputedStyle(node).color)), luminance(ground(node))].sort((x, y) => y - x);
        if ((a + 0.05) / (b + 0.05) < 4.5) found.push(`${node.className || node.id || node.tagName} ${((a + 0.05) / (b + 0.05)).toFixed(2)}: ${node.textContent.slice(0, 30)}`);
      }
      return found;
    });
    assert.deepEqual(faint, []);
  }, { colorScheme }));
}

test("every text of the page exists in both languages", () => {
  const page = joinPage();
  const used = [...page.matchAll(/data-(?:t|label|placeholder)="(\w+)"|\bt\("(\w+)"/g)].map((match) => match[1] ?? match[2]);
  const strings = new Map([...page.matchAll(/^  (\w+): \["(.*)", "(.*)"\],$/gm)].map((match) => [match[1], match.slice(2)]));
  for (const key of used) assert.ok(strings.has(key), `no text ${key}`);
  const holes = (text) => (text.match(/\{\d\}/g) ?? []).sort().join();
  for (const [key, [english, korean]] of strings) assert.equal(holes(english), holes(korean), key);
});

test("on a phone nothing scrolls sideways and the drawers work", () => visit(async (page) => {
  const checkWidth = async (name) => assert.deepEqual(await page.evaluate(() => [document.documentElement.scrollWidth, document.getElementById("log").scrollWidth - document.getElementById("log").clientWidth]), [360, 0], name);
  await checkWidth("empty");
  await ask(page, "markdown");
  await checkWidth("markdown");
  await ask(page, "a".repeat(300));
  await checkWidth("a long word");
  await page.locator("#toggleSide").click();
  assert.ok(await page.locator("#new").isVisible());
  await page.keyboard.press("Escape");
  assert.ok(await page.locator("#side").isHidden());
  await page.locator("#togglePanel").click();
  await page.locator(".switch").click();
  await checkWidth("panel");
  await page.locator("#shade").click({ position: { x: 10, y: 300 } });
  await ask(page, "hi");
  await page.locator(".tokens .token").first().click();
  const tip = await page.locator("#tip").boundingBox();
  assert.ok(tip.x >= 0 && tip.x + tip.width <= 360, "the tooltip is on the screen");
  await page.locator("#openSettings").click();
  await checkWidth("settings");
}, { width: 360, height: 740, hasTouch: true, isMobile: true }));
