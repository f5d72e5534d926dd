"""Records the tools of real servers into tools.json.xz, for test_found.py. No account is needed: what a server wants to
have before it says what it offers is made up here, and nothing is called.

    uv run python tests/record_tools.py [NAME…]     # all, or these again; needs node's npx and uvx
"""

from __future__ import annotations

import json
import lzma
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any, NamedTuple

FILE = Path(__file__).parent / "tools.json.xz"
PATIENCE = 240.0  # seconds for a server to be downloaded, started and listed


class Source(NamedTuple):
    name: str  # as a person would call it in the config
    package: str  # `npm:` or `pypi:`, with its version
    args: str = ""  # `{tmp}` is a folder of its own
    env: str = ""


NOWHERE = "http://127.0.0.1:9"
SOURCES = [
    Source("filesystem", "npm:@modelcontextprotocol/server-filesystem@2026.8.31", "{tmp}"),
    Source("memory", "npm:@modelcontextprotocol/server-memory@2026.8.31"),
    Source("github", "npm:@modelcontextprotocol/server-github@2025.4.8", "", "GITHUB_PERSONAL_ACCESS_TOKEN=x"),
    Source("gitlab", "npm:@zereight/mcp-gitlab@2.1.64", "", "GITLAB_PERSONAL_ACCESS_TOKEN=x"),
    Source("slack", "npm:@modelcontextprotocol/server-slack@2025.4.25", "", "SLACK_BOT_TOKEN=xoxb-1 SLACK_TEAM_ID=T1"),
    Source("maps", "npm:@modelcontextprotocol/server-google-maps@0.6.2", "", "GOOGLE_MAPS_API_KEY=x"),
    Source("playwright", "npm:@playwright/mcp@0.0.83"),
    Source("chrome", "npm:chrome-devtools-mcp@1.11.0"),
    Source("notion", "npm:@notionhq/notion-mcp-server@2.5.2", "", "NOTION_TOKEN=ntn_x"),
    Source("sentry", "npm:@sentry/mcp-server@0.39.0", "--access-token=x"),
    Source("mongodb", "npm:mongodb-mcp-server@3.0.4"),
    Source("firecrawl", "npm:firecrawl-mcp@3.26.0", "", "FIRECRAWL_API_KEY=fc-x"),
    Source("tavily", "npm:tavily-mcp@0.2.22", "", "TAVILY_API_KEY=x"),
    Source("kubernetes", "npm:mcp-server-kubernetes@4.1.7"),
    Source("airtable", "npm:airtable-mcp-server@1.14.0", "", "AIRTABLE_API_KEY=x"),
    Source("desktop", "npm:@wonderwhy-er/desktop-commander@0.2.52"),
    Source("circleci", "npm:@circleci/mcp-server-circleci@0.20.0", "", "CIRCLECI_TOKEN=x"),
    Source("mapbox", "npm:@mapbox/mcp-server@0.14.0", "", "MAPBOX_ACCESS_TOKEN=pk.eyJ1IjoieCJ9.x"),
    Source(
        "gmail",
        "npm:@gongrzhe/server-gmail-autoauth-mcp@1.1.11",
        "",
        "HOME={tmp} GMAIL_OAUTH_PATH={tmp}/gcp-oauth.keys.json",
    ),
    Source("asana", "npm:@roychri/mcp-server-asana@1.8.0", "", "ASANA_ACCESS_TOKEN=x"),
    Source("trello", "npm:@delorenj/mcp-server-trello@1.8.1", "", "TRELLO_API_KEY=x TRELLO_TOKEN=x"),
    Source("postman", "npm:@postman/postman-mcp-server@2.13.0", "", "POSTMAN_API_KEY=PMAK-x"),
    Source("mobile", "npm:@mobilenext/mobile-mcp@1.0.4"),
    Source("charts", "npm:@antv/mcp-server-chart@0.9.10"),
    Source("elastic", "npm:@elastic/mcp-server-elasticsearch@0.3.1", "", f"ES_URL={NOWHERE} ES_API_KEY=x"),
    Source("figma", "npm:figma-developer-mcp@0.13.2", "--stdio --figma-api-key=x"),
    Source(
        "calendar", "npm:@cocal/google-calendar-mcp@2.6.3", "", "GOOGLE_OAUTH_CREDENTIALS={tmp}/gcp-oauth.keys.json"
    ),
    Source("git", "pypi:mcp-server-git@2026.10.19"),
    Source("time", "pypi:mcp-server-time@2026.10.19"),
    Source("fetch", "pypi:mcp-server-fetch@2026.10.24"),
    Source(
        "atlassian",
        "pypi:mcp-atlassian@0.23.1",
        "",
        " ".join(
            f"{one}_URL=https://x.atlassian.net {one}_USERNAME=x {one}_API_TOKEN=x" for one in ("JIRA", "CONFLUENCE")
        ),
    ),
    Source("redis", "pypi:redis-mcp-server@0.5.1"),
    Source("neo4j", "pypi:mcp-neo4j-cypher@0.6.0"),
    Source("arxiv", "pypi:arxiv-mcp-server@0.8.2", "--storage-path {tmp}"),
    Source("wikipedia", "pypi:wikipedia-mcp@2.0.1"),
    Source("excel", "pypi:excel-mcp-server@2.2.2", "stdio"),
    Source("word", "pypi:office-word-mcp-server@1.1.11"),
    Source("powerpoint", "pypi-v1:office-powerpoint-mcp-server@2.0.7"),
    Source("finance", "pypi:mcp-yahoo-finance@0.2.0"),
    Source("weather", "pypi-v1:mcp-weather-server@0.6.1"),
    Source("home", "pypi-v1:ha-mcp@8.7.0", "", f"HOMEASSISTANT_URL={NOWHERE} HOMEASSISTANT_TOKEN=x"),
    Source("youtube", "pypi-v1:mcp-youtube-transcript@0.3.5"),
    Source("obsidian", "pypi:mcp-obsidian@0.2.3", "", "OBSIDIAN_API_KEY=x"),
    Source("prometheus", "pypi-v1:prometheus-mcp-server@1.6.2", "", f"PROMETHEUS_URL={NOWHERE}"),
    Source("zotero", "pypi-v1:zotero-mcp@0.3.1", "", "ZOTERO_LOCAL=true"),
    Source("sqlite", "pypi-v1:mcp-server-sqlite@2025.4.25", "--db-path {tmp}/x.db"),
]
COMMANDS = {
    "npm": "npx -y --prefer-offline {package}",
    "pypi": "uvx --quiet --from {package} {command}",
    "pypi-v1": "uvx --quiet --with mcp<2 --from {package} {command}",  # it does not say itself which SDK it needs
}
KEYS = {"installed": {"client_id": "x", "client_secret": "x", "redirect_uris": ["http://localhost"]}}
SCRIPTS = {
    "office-word-mcp-server": "word_mcp_server",
    "office-powerpoint-mcp-server": "ppt_mcp_server",
    "mcp-weather-server": "mcp_weather_server",
}


def ask(server: subprocess.Popen[bytes], id: int, method: str, params: dict[str, Any]) -> dict[str, Any]:
    """Its result; what the server says meanwhile is not for us."""
    assert server.stdin and server.stdout
    server.stdin.write(json.dumps({"jsonrpc": "2.0", "id": id, "method": method, "params": params}).encode() + b"\n")
    server.stdin.flush()
    for line in server.stdout:
        message = json.loads(line) if line.lstrip().startswith(b"{") else {}
        if message.get("id") == id and "method" not in message:
            return message["result"]
    raise EOFError(f"it has exited at {method}")


def listed(server: subprocess.Popen[bytes]) -> dict[str, Any]:
    hello = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "recorder", "version": "1"}}
    about = ask(server, 0, "initialize", hello)
    assert server.stdin
    server.stdin.write(b'{"jsonrpc":"2.0","method":"notifications/initialized"}\n')
    tools, page = list[dict[str, Any]](), dict[str, Any]()
    while True:
        result = ask(server, len(tools) + 1, "tools/list", page)
        tools += result["tools"]
        if not result.get("nextCursor"):
            kept = ("name", "title", "description", "inputSchema", "annotations", "_meta")
            tools = [{key: tool[key] for key in kept if key in tool} for tool in tools]
            return {"instructions": about.get("instructions", ""), "info": about["serverInfo"], "tools": tools}
        page = {"cursor": result["nextCursor"]}


def record(source: Source) -> dict[str, Any]:
    kind, _, package = source.package.partition(":")
    name = package.rpartition("@")[0]
    command = SCRIPTS.get(name, name)
    with tempfile.TemporaryDirectory(prefix="mcpmux-record-") as folder:
        words = [*COMMANDS[kind].format(package=package, command=command).split(), *source.args.split()]
        words = [word.replace("{tmp}", folder) for word in words]
        env = dict(one.replace("{tmp}", folder).split("=", 1) for one in source.env.split())
        env = os.environ | {"npm_config_cache": os.path.expanduser("~/.npm")} | env
        (Path(folder) / "gcp-oauth.keys.json").write_text(json.dumps(KEYS))
        server = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=folder, env=env
        )
        alarm = threading.Timer(PATIENCE, server.kill)
        alarm.start()
        try:
            return {"source": source.package, **listed(server)}
        finally:
            alarm.cancel()
            server.kill()
            server.wait()


def main(names: list[str]) -> None:
    found = json.loads(lzma.decompress(FILE.read_bytes())) if FILE.exists() else {}
    for source in SOURCES:
        if names and source.name not in names:
            continue
        try:
            found[source.name] = record(source)
            print(f"{source.name}: {len(found[source.name]['tools'])} tools", flush=True)
        except (OSError, EOFError, ValueError, KeyError) as wrong:
            print(f"{source.name}: left out: {wrong!r}", file=sys.stderr, flush=True)
        order = [one.name for one in SOURCES if one.name in found]
        lines = [f"{json.dumps(name)}: {json.dumps(found[name], ensure_ascii=False)}" for name in order]
        FILE.write_bytes(lzma.compress(("{\n" + ",\n".join(lines) + "\n}\n").encode(), preset=9))


if __name__ == "__main__":
    main(sys.argv[1:])
