"""FastMCP's proxy of the servers in a JSON file (`mcpServers`), in its two ways.

python fastmcp_proxy.py config|connected FILE
"""

import asyncio
import json
import sys
from pathlib import Path

from fastmcp import Client
from fastmcp.server import create_proxy


async def main(way: str, file: str) -> None:
    config = json.loads(Path(file).read_text())
    if way == "config":
        await create_proxy(config).run_stdio_async(show_banner=False, log_level="ERROR")
        return
    async with Client(config) as client:
        await create_proxy(client).run_stdio_async(show_banner=False, log_level="ERROR")


asyncio.run(main(sys.argv[1], sys.argv[2]))
