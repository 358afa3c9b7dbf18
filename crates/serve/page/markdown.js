// ---- markdown.js: the Markdown that models write, as nodes. Text of the model only ever becomes a text node or the
// ---- address of a link that `safeAddress` passed; HTML in it is shown as it was written.

/** Quotes and lists deeper than this are shown as plain text, so that no text can exhaust the stack. */
const DEEPEST = 8;

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^`\s]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*\s*$/;
const RULE = /^ {0,3}([-*_])(?:\s*\1){2,}\s*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])(\s+)(?=\S)/;
const TABLE_LINE = /^\s*\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?\s*$/;

// Emphasis has no flanking rule: `**"강조"**는` is bold here, where CommonMark, made for spaces between words, says no.
const INLINE = new RegExp([
  /\\(?<escaped>[!-'*-/:-@\\^-`{-~])/,
  /(?<ticks>`{1,3})(?!`)(?<code>[^]{0,1000}?[^`])\k<ticks>(?!`)/,
  /!?\[(?<label>[^\]\n]{1,300})\]\(\s*<?(?<address>[^\s<>()]*(?:\([^\s<>()]*\)[^\s<>()]*)*)>?(?:\s+"[^"\n]*")?\s*\)/,
  /\*\*(?=\S)(?<strong>[^]{0,1000}?\S)\*\*(?!\*)/,
  /(?<![\p{L}\p{N}_])__(?=\S)(?<strong2>[^]{0,1000}?\S)__(?![\p{L}\p{N}_])/,
  /\*(?=[^\s*])(?<em>[^]{0,1000}?[^\s*])\*(?!\*)/,
  /(?<![\p{L}\p{N}_])_(?=[^\s_])(?<em2>[^]{0,1000}?[^\s_])_(?![\p{L}\p{N}_])/,
  /~~(?=\S)(?<del>[^]{0,1000}?\S)~~/,
  /(?<bare>https?:\/\/[^\s<>"'`\])]*[^\s<>"'`\]).,:;!?])/,
  /(?<line>\n)/,
].map((part) => part.source).join("|"), "gu");

/** The address when it is one that a click may follow: http, https or mailto, spelled out; else null. */
function safeAddress(address) {
  return /^(https?:\/\/|mailto:)/i.test(address) && URL.canParse(address) ? address : null;
}

function link(address, ...children) {
  const safe = safeAddress(address);
  return safe ? h("a", { href: safe, target: "_blank", rel: "noopener noreferrer" }, ...children) : h("span", {}, ...children);
}

/** The nodes of a run of text inside a block. */
function inline(text, depth = 0) {
  if (depth > DEEPEST) return [text];
  const nodes = [];
  let end = 0;
  for (const match of text.matchAll(INLINE)) {
    const g = match.groups;
    const inner = (tag, content) => h(tag, {}, ...inline(content, depth + 1));
    nodes.push(text.slice(end, match.index));
    end = match.index + match[0].length;
    if (g.escaped) nodes.push(g.escaped);
    else if (g.code) nodes.push(h("code", {}, g.code));
    else if (g.label) nodes.push(link(g.address, ...inline(g.label, depth + 1)));
    else if (g.strong ?? g.strong2) nodes.push(inner("strong", g.strong ?? g.strong2));
    else if (g.em ?? g.em2) nodes.push(inner("em", g.em ?? g.em2));
    else if (g.del) nodes.push(inner("del", g.del));
    else if (g.bare) nodes.push(link(g.bare, g.bare));
    else nodes.push(h("br"));
  }
  nodes.push(text.slice(end));
  return nodes.filter((node) => node !== "");
}

function codeBlock(name, code) {
  return h("figure", { class: "code" },
    h("figcaption", {}, h("span", {}, name || "text"), iconButton("copy", t("copyCode"), () => copyText(code))),
    h("pre", { tabindex: "0" }, h("code", {}, code)));
}

function table(lines) {
  const cells = (line) => line.trim().replace(/^\||(?<!\\)\|$/g, "").split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
  const align = cells(lines[1]).map((mark) => (/^:.*:$/.test(mark) ? "center" : mark.endsWith(":") ? "right" : null));
  const row = (tag, line) => h("tr", {}, ...cells(line).slice(0, align.length).map((cell, i) => h(tag, { class: align[i] }, ...inline(cell))));
  return h("div", { class: "table", tabindex: "0" }, h("table", {},
    h("thead", {}, row("th", lines[0])), h("tbody", {}, ...lines.slice(2).map((line) => row("td", line)))));
}

/** A list out of its lines; what is indented below an item is Markdown of its own. */
function list(lines, depth) {
  const items = [];
  let base = 0; // Columns before the first mark of this list.
  let content = 0; // Columns before the text of the item.
  for (const line of lines) {
    const mark = ITEM.exec(line);
    if (mark && (items.length === 0 || mark[1].length < Math.max(base + 2, Math.min(content, base + 4)))) {
      if (items.length === 0) base = mark[1].length;
      content = mark[0].length;
      items.push([line.slice(content)]);
    } else {
      items.at(-1).push(line.slice(Math.min(content, line.search(/\S|$/))));
    }
  }
  const first = ITEM.exec(lines[0])[2];
  const isOrdered = /\d/.test(first);
  const start = isOrdered && parseInt(first, 10) !== 1 ? String(parseInt(first, 10)) : null;
  return h(isOrdered ? "ol" : "ul", { start }, ...items.map((item) => h("li", {}, ...blocks(item, depth + 1).map((block) => block.build()))));
}

/** Whether a paragraph ends before line `i`. */
function startsBlock(lines, i) {
  const line = lines[i];
  return line.trim() === "" || FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line) || ITEM.test(line) || startsTable(lines, i);
}

function startsTable(lines, i) {
  return lines[i].includes("|") && i + 1 < lines.length && lines[i + 1].includes("|") && TABLE_LINE.test(lines[i + 1]);
}

/** The blocks of `lines`: each its source and a function that makes its node. A fence without an end runs to the end. */
function blocks(lines, depth = 0) {
  const found = [];
  for (let i = 0; i < lines.length;) {
    const line = lines[i];
    const start = i++;
    const isPlain = depth > DEEPEST;
    let build;
    if (line.trim() === "") continue;
    const fence = FENCE.exec(line);
    const heading = HEADING.exec(line);
    if (fence) {
      const isEnd = (text) => text.trim().startsWith(fence[1]) && text.trim().replaceAll(fence[1][0], "") === "";
      while (i < lines.length && !isEnd(lines[i])) i++;
      const code = lines.slice(start + 1, i++).join("\n");
      build = () => codeBlock(fence[2], code);
    } else if (heading) {
      build = () => h(`h${Math.min(6, heading[1].length + 2)}`, {}, ...inline(heading[2])); // h1 and h2 are the page's.
    } else if (RULE.test(line)) {
      build = () => h("hr");
    } else if (QUOTE.test(line) && !isPlain) {
      while (i < lines.length && QUOTE.test(lines[i])) i++;
      const inside = lines.slice(start, i).map((text) => text.replace(QUOTE, ""));
      build = () => h("blockquote", {}, ...blocks(inside, depth + 1).map((block) => block.build()));
    } else if (ITEM.test(line) && !isPlain) {
      const isOrdered = (text) => /^\s*\d/.test(text);
      const belongs = (text, before) => /^\s{2,}\S/.test(text) || (ITEM.test(text) && !RULE.test(text) && isOrdered(text) === isOrdered(line))
        || (before.trim() !== "" && text.trim() !== "" && !startsBlock([text], 0));
      while (i < lines.length && (belongs(lines[i], lines[i - 1]) || (lines[i].trim() === "" && i + 1 < lines.length && belongs(lines[i + 1], "")))) i++;
      const inside = lines.slice(start, i);
      build = () => list(inside, depth);
    } else if (startsTable(lines, start)) {
      while (i < lines.length && lines[i].includes("|")) i++;
      const inside = lines.slice(start, i);
      build = () => table(inside);
    } else {
      while (i < lines.length && !startsBlock(lines, i)) i++;
      const text = lines.slice(start, i).join("\n").trim();
      build = () => h("p", {}, ...inline(text));
    }
    found.push({ source: lines.slice(start, i).join("\n"), build });
  }
  return found;
}

/** Source of a block that is shown, by its node. */
const sources = new WeakMap();

/** Shows `text` in `container`. Blocks that did not change keep their nodes: a growing answer costs its last block only. */
function renderMarkdown(container, text) {
  const wanted = blocks(text.split(/\r\n|\n/));
  wanted.forEach(({ source, build }, i) => {
    const old = container.childNodes[i];
    const key = `${language} ${source}`;
    if (old && sources.get(old) === key) return;
    const node = build();
    sources.set(node, key);
    if (old) old.replaceWith(node);
    else container.append(node);
  });
  while (container.childNodes.length > wanted.length) container.lastChild.remove();
}
