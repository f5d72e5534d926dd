// A browser, driven by lines of JavaScript: each line of input is the body of a function of `context`, `page` (the last
// tab) and `browser`; its result comes back as a line of JSON.
//
//     node page_driver.mjs FOLDER_OF_PACKAGES EXECUTABLE

import { createRequire } from "node:module";
import { createInterface } from "node:readline";

const [folder, executable] = process.argv.slice(2);
const { chromium } = createRequire(`${folder}/`)("playwright-core");

// Our own flags and no others: those that packages use for tests switch off what keeps pages apart.
const args = ["--headless=new", "--remote-debugging-pipe", "--no-first-run", "--no-default-browser-check"];
if (process.getuid?.() === 0) args.push("--no-sandbox");
const browser = await chromium.launch({ executablePath: executable, args, ignoreDefaultArgs: true });
const tools = { browser, context: null, page: null };
console.log(JSON.stringify({ result: browser.version() }));

for await (const line of createInterface({ input: process.stdin })) {
  let said;
  try {
    const body = new Function("tools", `return (async () => { const { browser, context, page } = tools; ${JSON.parse(line)} })()`);
    said = { result: (await body(tools)) ?? null };
  } catch (error) {
    said = { error: String(error) };
  }
  console.log(JSON.stringify(said));
}
await browser.close();
