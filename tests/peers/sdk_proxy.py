"""The plainest proxy that the official SDK makes: its server's handlers call its client. One server, tools only.

python sdk_proxy.py COMMAND ARGS…
"""

import sys
from typing import Any

import anyio
from mcp import Client, StdioServerParameters
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server
from mcp.types import CallToolRequestParams, CallToolResult, ListToolsResult, PaginatedRequestParams

Context = ServerRequestContext[Any]


async def main(command: str, *args: str) -> None:
    async with Client(StdioServerParameters(command=command, args=list(args)), mode="legacy") as client:

        async def list_tools(context: Context, params: PaginatedRequestParams | None) -> ListToolsResult:
            return await client.list_tools()

        async def call_tool(context: Context, params: CallToolRequestParams) -> CallToolResult:
            tell = context.session.report_progress if params.meta else None
            return await client.call_tool(params.name, params.arguments, progress_callback=tell)

        server = Server("sdk proxy", on_list_tools=list_tools, on_call_tool=call_tool)
        async with stdio_server() as (reading, writing):
            await server.run(reading, writing, server.create_initialization_options())


anyio.run(main, *sys.argv[1:])
