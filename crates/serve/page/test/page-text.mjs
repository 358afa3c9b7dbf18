// The page as the server sends it: index.html with the files it names in double braces.

import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";

const folder = new URL("../", import.meta.url);
export const indexPath = new URL("index.html", folder);

export function joinPage() {
  return readFileSync(indexPath, "utf8").replace(/\{\{([\w.-]+)\}\}/g, (_, name) => readFileSync(new URL(name, folder), "utf8"));
}

/** The policy's sources for the style and the script of `page`: SHA-256 of the text of the element, in Base64. */
export function cspHashes(page) {
  const hash = (tag) => {
    const [, text] = page.match(new RegExp(`<${tag}[^>]*>([^]*?)</${tag}>`));
    return `sha256-${createHash("sha256").update(text).digest("base64")}`;
  };
  return { "script-src": hash("script"), "style-src": hash("style") };
}
