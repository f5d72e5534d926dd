// A server on the official TypeScript SDK whose one tool lets the client's model use tools of the server's own, until it
// has an answer: no published server does that yet. The SDK refuses to ask a client that did not declare sampling.tools,
// and checks each tool use and result. Usage: node tool_user.mjs NODE_MODULES

import { join } from "node:path";
import { pathToFileURL } from "node:url";

const sdk = (path) => import(pathToFileURL(join(process.argv[2], "@modelcontextprotocol/sdk/dist/esm/server", path)));
const [{ McpServer }, { StdioServerTransport }] = await Promise.all([sdk("mcp.js"), sdk("stdio.js")]);

const inputSchema = { type: "object", properties: { of: { type: "string" } }, required: ["of"] };
const tools = [
  { name: "city", description: "The city of a person", inputSchema },
  { name: "age", description: "The age of a person", inputSchema },
];
const known = { city: "London", age: "36" };

const server = new McpServer({ name: "tool-user", version: "1" });
server.registerTool("describe", { description: "Describes Ada" }, async () => {
  const messages = [{ role: "user", content: { type: "text", text: "Describe Ada." } }];
  for (let round = 0; round < 5; round++) {
    const toolChoice = { mode: round ? "auto" : "required" };
    const answer = await server.server.createMessage({ messages, tools, toolChoice, maxTokens: 50 });
    const blocks = [answer.content].flat();
    const uses = blocks.filter((block) => block.type === "tool_use");
    if (answer.stopReason !== "toolUse") {
      return { content: blocks };
    }
    messages.push({ role: "assistant", content: blocks });
    const results = uses.map((use) => ({
      type: "tool_result",
      toolUseId: use.id,
      content: [{ type: "text", text: `${use.input.of}: ${known[use.name]}` }],
    }));
    messages.push({ role: "user", content: results });
  }
  throw new Error("the model never came to an end");
});
await server.connect(new StdioServerTransport());
