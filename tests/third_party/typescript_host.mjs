// A host written with the official TypeScript client, told what to do in JSON lines on stdin.
//
//     node typescript_host.mjs NODE_MODULES legacy|modern ROOT COMMAND ARGUMENT…
//
// Each line has one answer, {"result"} or {"error"}; what comes in between is written as {"event", "value"}.

import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

const [modules, era, root, command, ...args] = process.argv.slice(2);
const load = (file) => import(pathToFileURL(`${modules}/@modelcontextprotocol/client/dist/${file}.mjs`).href);
const { Client } = await load("index");
const { StdioClientTransport } = await load("stdio");

const write = (message) => process.stdout.write(`${JSON.stringify(message)}\n`);
const tell = (event, value) => write({ event, value });

const client = new Client(
  { name: "typescript", version: "1" },
  {
    capabilities: { sampling: { tools: {} }, elicitation: { form: {}, url: {} }, roots: {} },
    versionNegotiation: { mode: era === "modern" ? "auto" : "legacy" },
  },
);

client.setRequestHandler("sampling/createMessage", async ({ method, params }) => {
  tell("asked", { method, params });
  const reply = { role: "assistant", model: "m-1" };
  if (params.tools) {
    const use = { type: "tool_use", id: "u-1", name: params.tools[0].name, input: { a: 2, b: 2 } };
    return { ...reply, content: [use], stopReason: "toolUse" };
  }
  const text = `${params.messages[0].content.text} in ${params.maxTokens}`;
  return { ...reply, content: { type: "text", text }, stopReason: "endTurn" };
});
client.setRequestHandler("elicitation/create", async ({ method, params }) => {
  tell("asked", { method, params });
  const last = params.message.split(" ").at(-1);
  const action = ["decline", "cancel"].includes(last) ? last : "accept";
  return action === "accept" && params.mode !== "url" ? { action, content: { name: "Ada" } } : { action };
});
client.setRequestHandler("roots/list", async ({ method }) => {
  tell("asked", { method, params: {} });
  return { roots: [{ uri: root, name: "home" }] };
});
client.setNotificationHandler("notifications/message", ({ params }) => tell("log", params));
client.setNotificationHandler("notifications/tools/list_changed", () => tell("changed", "ToolsListChanged"));
client.setNotificationHandler("notifications/resources/list_changed", () => tell("changed", "ResourcesListChanged"));
client.setNotificationHandler("notifications/resources/updated", ({ params }) => tell("changed", params.uri));
client.onerror = (error) => console.error("onerror:", error);

let subscription;
const ways = {
  call({ method, params }) {
    if (method === "tools/call") return client.callTool(params);
    return method === "prompts/get" ? client.getPrompt(params) : client.readResource(params);
  },
  together({ calls }) {
    return Promise.all(calls.map((params) => client.callTool(params)));
  },
  async list() {
    const { tools } = await client.listTools(undefined, { cacheMode: "refresh" });
    const { resources } = await client.listResources(undefined, { cacheMode: "refresh" });
    return [...tools, ...resources].map(({ name }) => name);
  },
  async level({ level }) {
    await client.setLoggingLevel(level);
    return null;
  },
  async abandon({ tool, arguments: given }) {
    const cancel = new AbortController();
    let steps = 0;
    const onprogress = ({ progress, total, message }) => {
      tell("progress", [progress, total, message ?? null]);
      if (++steps === 3) cancel.abort();
    };
    await client.callTool({ name: tool, arguments: given }, { signal: cancel.signal, onprogress }).catch((error) => {
      if (!cancel.signal.aborted) throw error;
    });
    return null;
  },
  async watch({ uri }) {
    const filter = { toolsListChanged: true, resourcesListChanged: true, resourceSubscriptions: [uri] };
    if (era === "modern") subscription = await client.listen(filter);
    else await client.subscribeResource({ uri });
    return null;
  },
  async unwatch({ uri }) {
    if (era === "modern") await subscription.close();
    else await client.unsubscribeResource({ uri });
    return null;
  },
};

await client.connect(new StdioClientTransport({ command, args, env: process.env, stderr: "inherit" }));
write({ result: client.getNegotiatedProtocolVersion() });
for await (const line of createInterface({ input: process.stdin })) {
  const { do: way, ...rest } = JSON.parse(line);
  try {
    write({ result: await ways[way](rest) });
  } catch (error) {
    write({ error: { code: error.code ?? 0, message: String(error.message ?? error) } });
  }
}
await client.close();
