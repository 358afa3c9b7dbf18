// ---- dom.js: making elements, notices, announcements. Text enters the document as text nodes only.

const $ = (id) => document.getElementById(id);

/** An element: a function among `props` listens to the event of that name, the rest are attributes. */
function h(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (typeof value === "boolean") node.toggleAttribute(name, value);
    else if (value != null) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child != null));
  return node;
}

function icon(name) {
  const make = (tag) => document.createElementNS("http://www.w3.org/2000/svg", tag);
  const svg = make("svg");
  svg.setAttribute("class", "icon");
  svg.append(make("use"));
  svg.firstChild.setAttribute("href", `#i-${name}`);
  return svg;
}

function iconButton(name, label, click, props = {}) {
  return h("button", { type: "button", class: "icon-button small", "aria-label": label, title: label, click, ...props }, icon(name));
}

/** Tells a screen reader, once. */
function announce(text) {
  $("announcer").textContent = text;
}

/** A notice that goes by itself, unless `stays`; `action` is [label, function]. The same text is shown once. */
function toast(text, { action, stays = false } = {}) {
  for (const old of $("toasts").children) if (old.dataset.text === text) old.remove();
  const close = () => node.remove();
  const node = h("div", { class: "toast", "data-text": text }, h("span", {}, text));
  if (action) node.append(h("button", { type: "button", click: () => { close(); action[1](); } }, action[0]));
  node.append(iconButton("close", t("close"), close));
  $("toasts").append(node);
  announce(text);
  if (!stays) setTimeout(close, 8000);
}

async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    toast(t("copied"));
  } catch {
    toast(t("copyFailed")); // A page that is not served by https or localhost has no clipboard.
  }
}

/** Enter that is meant: not the one that ends a Hangul syllable. Safari sends that one after the composition, as 229. */
function isPlainEnter(event) {
  return event.key === "Enter" && !event.shiftKey && !event.isComposing && event.keyCode !== 229;
}

/** Makes a textarea as high as its text; the stylesheet sets the limit. */
function fitHeight(area) {
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight + 2}px`;
}
