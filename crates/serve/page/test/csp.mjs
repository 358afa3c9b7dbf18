// Writes into index.html the hashes by which its policy lets the style and the script run: `npm run csp`.

import { readFileSync, writeFileSync } from "node:fs";
import { cspHashes, indexPath, joinPage } from "./page-text.mjs";

let text = readFileSync(indexPath, "utf8");
for (const [directive, hash] of Object.entries(cspHashes(joinPage()))) {
  text = text.replace(new RegExp(`${directive} '[^']*'`), `${directive} '${hash}'`);
}
writeFileSync(indexPath, text);
