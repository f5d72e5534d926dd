"""Servers out of hosts' own files, and mcpmux into them. The shapes are the hosts'; the rest is our choice."""

from __future__ import annotations

import json
import os
import re
import shlex
import stat
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

import msgspec
import pytest
from conftest import COMMAND, MCPMUX, PATIENCE, ROOT, empty_home
from hypothesis import given
from hypothesis import strategies as st

import mcpmux
from mcpmux import ENTRY_NAME, HOSTS, Machine, Variables, host_named

HOST_NAMES = [host.name for host in HOSTS]


def machine(home: Path, platform: str = "linux", here: Path | None = None, **environment: str) -> Machine:
    return Machine(platform, environment, str(home), str(here or home / "nowhere"))


def brought(path: Path, at: Machine, **environment: str) -> mcpmux.Import:
    """What importing a file would do, into an empty TOML file."""
    host, folder = mcpmux.host_of_file(path, at)
    return mcpmux.plan_import(mcpmux.entries_of(host, path, folder), {}, Variables(environment), at)


def as_file(plan: mcpmux.Import) -> str:
    """What our file would be, if it was empty before."""
    return mcpmux.rewritten(
        Path("/h/mcpmux.toml"), None, lambda text: mcpmux.with_servers(text, plan.tables, plan.comments)
    )


def installed(file: Path, text: str, key: str, entry: dict[str, Any], moved: Iterable[str] = ()) -> str:
    """A host's file with our entry, and without the servers that moved into ours."""
    return mcpmux.edited(file, text, key, moved, {ENTRY_NAME: entry})


def append(path: Path, tables: dict[str, dict[str, Any]]) -> None:
    mcpmux.change_config(path, lambda text: mcpmux.with_servers(text, tables, {}))


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="")
    return path


# ── where hosts' files are ──

WINDOWS = {"APPDATA": r"C:\Users\ada\AppData\Roaming", "LOCALAPPDATA": r"C:\Users\ada\AppData\Local"}


@pytest.mark.parametrize(
    ("host", "platform", "files"),
    [
        ("claude-desktop", "darwin", ["/h/Library/Application Support/Claude/claude_desktop_config.json"]),
        ("claude-desktop", "linux", ["/h/.config/Claude/claude_desktop_config.json"]),
        (
            "claude-desktop",
            "win32",
            [
                r"C:\Users\ada\AppData\Local\Packages\Claude_*\LocalCache\Roaming\Claude\claude_desktop_config.json",
                r"C:\Users\ada\AppData\Roaming\Claude\claude_desktop_config.json",
            ],
        ),
        ("claude-code", "linux", ["/h/.claude.json", "/p/.mcp.json"]),
        ("vscode", "darwin", ["/h/Library/Application Support/Code/User/mcp.json", "/p/.vscode/mcp.json"]),
        ("vscode", "linux", ["/h/.config/Code/User/mcp.json", "/p/.vscode/mcp.json"]),
        ("vscode", "win32", [r"C:\Users\ada\AppData\Roaming\Code\User\mcp.json", r"\p\.vscode\mcp.json"]),
        ("cursor", "win32", [r"\h\.cursor\mcp.json", r"\p\.cursor\mcp.json"]),
        ("zed", "darwin", ["/h/.config/zed/settings.json"]),
        ("codex", "linux", ["/h/.codex/config.toml", "/p/.codex/config.toml"]),
        ("goose", "linux", ["/h/.config/goose/config.yaml"]),
        ("goose", "darwin", ["/h/.config/goose/config.yaml"]),
    ],
)
def test_each_platform_has_its_places(host: str, platform: str, files: list[str]):
    found = host_named(host)
    assert found
    environment = WINDOWS if platform == "win32" else {}
    at = Machine(platform, environment, "/h", "/p")
    path = PureWindowsPath if platform == "win32" else PurePosixPath
    assert mcpmux.host_files(found, at) == [path(file) for file in files]


def test_the_variables_that_move_a_hosts_files_are_followed():
    codex, zed = host_named("codex"), host_named("zed")
    assert codex
    assert zed
    at = Machine("linux", {"CODEX_HOME": "/c", "XDG_CONFIG_HOME": "/x"}, "/h", "/p")
    assert mcpmux.host_files(codex, at)[0] == PurePosixPath("/c/config.toml")
    assert mcpmux.host_files(zed, at)[0] == PurePosixPath("/x/zed/settings.json")


def test_the_msix_build_of_claude_desktop_is_found_before_the_other(tmp_path: Path):
    """It sees its own copy of the folder %APPDATA%."""
    host = HOSTS[0]
    at = machine(tmp_path, "win32", APPDATA=str(tmp_path / "Roaming"), LOCALAPPDATA=str(tmp_path / "Local"))
    plain = tmp_path / "Roaming/Claude/claude_desktop_config.json"
    assert mcpmux.real_files(host, at) == [plain]
    package = tmp_path / "Local/Packages/Claude_pzs8sxrjxfjjc"
    package.mkdir(parents=True)
    assert mcpmux.real_files(host, at) == [package / "LocalCache/Roaming/Claude/claude_desktop_config.json", plain]


def test_a_host_goes_by_its_names():
    names = {"Claude Desktop": "claude-desktop", "claude": "claude-desktop", "claude code": "claude-code"}
    names |= {"code": "vscode", "VS Code": "vscode", "gemini_cli": "gemini", "Amazon-Q": "amazon-q"}
    for name, meant in names.items():
        found = host_named(name)
        assert found
        assert found.name == meant
    assert host_named("emacs") is None
    every = [name for host in HOSTS for name in (host.name, *host.aliases.split())]
    assert len(every) == len(set(every))


# ── import, host by host ──


class Case(NamedTuple):
    file: str  # in the home folder
    text: str
    tables: dict[str, dict[str, Any]]
    needed: list[str] = []  # noqa: RUF012


NPX_TEXT = '"command": "npx", "args": ["-y", "server-github"]'
NPX_TABLE = {"command": "npx", "args": ["-y", "server-github"]}

CASES = {
    "claude-desktop": Case(
        ".config/Claude/claude_desktop_config.json",
        """{
  "globalShortcut": "",
  "mcpServers": {
    "github": {NPX, "env": {"GITHUB_PERSONAL_ACCESS_TOKEN": "ghp_0123456789", "HOST": "${NOT_REPLACED}"}},
    "mcpmux": {"command": "/usr/bin/uvx", "args": ["mcpmux==0.1.0"]}
  }
}""",
        {
            "github": {
                **NPX_TABLE,
                "env": {
                    "GITHUB_PERSONAL_ACCESS_TOKEN": "${GITHUB_PERSONAL_ACCESS_TOKEN}",
                    "HOST": "$${NOT_REPLACED}",
                },
            }
        },
        ["GITHUB_PERSONAL_ACCESS_TOKEN"],
    ),
    "claude-code": Case(
        ".claude.json",
        json.dumps(
            {
                "numStartups": 7,
                "mcpServers": {
                    "db": {
                        "type": "stdio",
                        "command": "uvx",
                        "args": ["db-server", "--url", "${DB_URL:-sqlite:///x}"],
                        "env": {"MODE": "${MODE}"},
                        "timeout": 90_000,
                    },
                    "hub": {
                        "type": "http",
                        "url": "https://example.org/mcp",
                        "headers": {"Authorization": "Bearer 1234abcd"},
                    },
                    "old": {"type": "sse", "url": "https://example.org/sse"},
                },
                "projects": {"/work/app": {"mcpServers": {"db": {"command": "./serve"}}}, "/work/none": {}},
            }
        ),
        {
            "db": {
                "command": "uvx",
                "args": ["db-server", "--url", "${DB_URL:-sqlite:///x}"],
                "env": {"MODE": "${MODE}"},
                "tool_timeout_sec": 90.0,
            },
            "hub": {"url": "https://example.org/mcp", "http_headers": {"Authorization": "Bearer ${HUB_AUTHORIZATION}"}},
            "old": {"url": "https://example.org/sse", "transport": "sse"},
            "db-2": {"command": "./serve", "cwd": "/work/app"},
        },
        ["MODE", "HUB_AUTHORIZATION"],
    ),
    "vscode": Case(
        ".config/Code/User/mcp.json",
        """{
  // what is asked for
  "inputs": [
    {"type": "promptString", "id": "github-token", "description": "A token of GitHub", "password": true},
    {"type": "promptString", "id": "region", "default": "eu"},
  ],
  "servers": {
    "com.github/mcp": {
      "type": "stdio", NPX, /* inline */
      "env": {"TOKEN": "${input:github-token}", "REGION": "${input:region}", "LANG": "${env:LANG}"},
      "cwd": "${userHome}/work",
      "dev": {"watch": "*"},
    },
    "web": {"type": "http", "url": "https://example.org/mcp"},
    "folder": {"command": "serve", "args": ["${workspaceFolder}//no comment", "a,]"]},
  },
}""",
        {
            "com-github-mcp": {
                **NPX_TABLE,
                "env": {"TOKEN": "${GITHUB_TOKEN}", "REGION": "${REGION:-eu}", "LANG": "${LANG}"},
                "cwd": "HOME/work",
            },
            "web": {"url": "https://example.org/mcp"},
            "folder": {"command": "serve", "args": ["${WORKSPACE_FOLDER}//no comment", "a,]"]},
        },
        ["GITHUB_TOKEN", "WORKSPACE_FOLDER"],
    ),
    "cursor": Case(
        ".cursor/mcp.json",
        """{"mcpServers": {
  "a": {NPX, "env": {"API_KEY": "${env:MY_KEY}", "PORT": 8080}, "envFile": "HOME/.env"},
  "b": {"url": "https://example.org/mcp", "headers": {"X-Api-Key": "0123456789"}}
}}""",
        {
            "a": {**NPX_TABLE, "env": {"FROM_FILE": "${FROM_FILE}", "API_KEY": "${MY_KEY}", "PORT": "8080"}},
            "b": {"url": "https://example.org/mcp", "http_headers": {"X-Api-Key": "${B_X_API_KEY}"}},
        },
        ["FROM_FILE", "MY_KEY", "B_X_API_KEY"],
    ),
    "codex": Case(
        ".codex/config.toml",
        """
model = "gpt-5"
[mcp_servers.a]
command = "npx"
args = ["-y", "server-github"]
startup_timeout_sec = 20
enabled_tools = []
env_vars = ["LANG"]
required = true
[mcp_servers.a.env]
LITERAL = "${X}"
[mcp_servers.a.tools.search]
approval_mode = "approve"
[mcp_servers.b]
url = "https://example.org/mcp"
bearer_token_env_var = "B_TOKEN"
env_http_headers = { X-Who = "WHO" }
enabled = false
""",
        {
            "a": {
                **NPX_TABLE,
                "startup_timeout_sec": 20,
                "enabled_tools": [],
                "env_vars": ["LANG"],
                "env": {"LITERAL": "$${X}"},
            },
            "b": {
                "url": "https://example.org/mcp",
                "bearer_token_env_var": "B_TOKEN",
                "env_http_headers": {"X-Who": "WHO"},
                "enabled": False,
            },
        },
    ),
    "gemini": Case(
        ".gemini/settings.json",
        """{"theme": "x", "mcpServers": {
  "a": {NPX, "env": {"K": "$GEMINI_VAR", "L": "${OTHER}"}, "timeout": 45000, "trust": true, "cwd": "/srv",
        "includeTools": ["x", "y"], "excludeTools": ["z"]},
  "events": {"url": "https://example.org/sse"},
  "stream": {"httpUrl": "https://example.org/mcp", "url": "https://example.org/sse"}
}}""",
        {
            "a": {
                **NPX_TABLE,
                "env": {"K": "${GEMINI_VAR}", "L": "${OTHER}"},
                "tool_timeout_sec": 45.0,
                "cwd": "/srv",
                "enabled_tools": ["x", "y"],
                "disabled_tools": ["z"],
            },
            "events": {"url": "https://example.org/sse", "transport": "sse"},
            "stream": {"url": "https://example.org/mcp"},
        },
        ["GEMINI_VAR", "OTHER"],
    ),
    "zed": Case(
        ".config/zed/settings.json",
        """// Zed settings
{
  "vim_mode": true, // yes
  "context_servers": {
    "a": {"source": "custom", NPX, "env": {}},
    "formerly": {"command": {"path": "serve", "args": ["--stdio"], "env": {"A": "b"}}, "settings": {}},
    "remote": {"url": "https://example.org/mcp", "enabled": false},
    "of-an-extension": {"settings": {"x": 1}},
  },
}""",
        {
            "a": NPX_TABLE,
            "formerly": {"command": "serve", "args": ["--stdio"], "env": {"A": "b"}},
            "remote": {"url": "https://example.org/mcp", "enabled": False},
        },
    ),
    "windsurf": Case(
        ".codeium/windsurf/mcp_config.json",
        """{"mcpServers": {
  "a": {NPX, "env": {"X": "${env:X}"}, "disabled": true, "disabledTools": ["drop"]},
  "b": {"serverUrl": "https://example.org/mcp"}
}}""",
        {
            "a": {**NPX_TABLE, "env": {"X": "${X}"}, "enabled": False, "disabled_tools": ["drop"]},
            "b": {"url": "https://example.org/mcp"},
        },
        ["X"],
    ),
    "goose": Case(
        ".config/goose/config.yaml",
        """GOOSE_PROVIDER: anthropic
extensions:
  developer:
    enabled: true
    type: builtin
    name: developer
    timeout: 300
  github:
    enabled: true
    type: stdio
    name: GitHub
    description: >-
      Issues
      and more
    cmd: npx
    args:
    - -y
    - "server-github"   # the official one
    envs: {REGION: 'it''s eu', "OTHER": x}
    env_keys:
      - GITHUB_TOKEN
    timeout: 120
    bundled: null
    available_tools: []
  'web search':
    enabled: false
    type: streamable_http
    uri: https://example.org/mcp#top
    headers: {}
    envs: {}
    env_keys: []
  events: {enabled: true, type: sse, uri: "https://example.org/sse", name: events}
slash_commands: []
""",
        {
            "github": {
                **NPX_TABLE,
                "env": {"REGION": "it's eu", "OTHER": "x", "GITHUB_TOKEN": "${GITHUB_TOKEN}"},
                "tool_timeout_sec": 120.0,
            },
            "web-search": {"url": "https://example.org/mcp#top", "enabled": False},
            "events": {"url": "https://example.org/sse", "transport": "sse"},
        },
        ["GITHUB_TOKEN"],
    ),
    "lm-studio": Case(".lmstudio/mcp.json", '{"mcpServers": {"a": {NPX}}}', {"a": NPX_TABLE}),
    "amazon-q": Case(
        ".aws/amazonq/mcp.json",
        '{"mcpServers": {"a": {NPX, "env": {"X": "${env:X}"}, "timeout": 60000, "disabled": false}}}',
        {"a": {**NPX_TABLE, "env": {"X": "${X}"}, "tool_timeout_sec": 60.0}},
        ["X"],
    ),
    "kiro": Case(
        ".kiro/settings/mcp.json",
        '{"mcpServers": {"a": {NPX, "env": {"X": "${X}"}, "timeout": 1500, "disabledTools": ["t"]}}}',
        {"a": {**NPX_TABLE, "env": {"X": "${X}"}, "tool_timeout_sec": 1.5, "disabled_tools": ["t"]}},
        ["X"],
    ),
    "cline": Case(
        ".cline/data/settings/cline_mcp_settings.json",
        """{"mcpServers": {
  "a": {NPX, "timeout": 30, "autoApprove": ["x"], "disabled": true},
  "b": {"url": "https://example.org/sse"},
  "c": {"type": "streamableHttp", "url": "https://example.org/mcp"}
}}""",
        {
            "a": {**NPX_TABLE, "tool_timeout_sec": 30.0, "enabled": False},
            "b": {"url": "https://example.org/sse", "transport": "sse"},
            "c": {"url": "https://example.org/mcp"},
        },
    ),
}


def test_every_host_has_a_case():
    assert list(CASES) == HOST_NAMES


def placed(case: Case, home: Path) -> Path:
    in_json = json.dumps(str(home))[1:-1]
    return written(home / case.file, case.text.replace("HOME", in_json).replace("NPX", NPX_TEXT))


@pytest.mark.parametrize("name", HOST_NAMES)
def test_a_hosts_servers_become_ours(name: str, tmp_path: Path):
    case, at = CASES[name], machine(tmp_path)
    written(tmp_path / ".env", "FROM_FILE=s3cret\n")
    file = placed(case, tmp_path)
    host, _ = mcpmux.host_of_file(file, at)
    assert host.name == name
    plan = brought(file, at)
    expected = json.loads(json.dumps(case.tables).replace("HOME", json.dumps(str(tmp_path))[1:-1]))
    assert plan.tables == expected
    assert list(plan.needed) == case.needed
    text = as_file(plan)
    assert tomllib.loads(text)["mcp_servers"] == expected
    for table in expected:
        assert f"# From {host.title}: {file}" in text.partition(f"[mcp_servers.{table}]")[0]


def said(plan: mcpmux.Import, name: str) -> str:
    """All that a person is told of an entry."""
    [outcome] = [one for one in plan.outcomes if one.entry.name == name]
    return "; ".join([outcome.said, *outcome.notes])


def test_what_cannot_be_taken_over_as_it_is_is_told(tmp_path: Path):
    written(tmp_path / ".env", "FROM_FILE=s3cret\n")
    plans = {name: brought(placed(case, tmp_path), machine(tmp_path)) for name, case in CASES.items()}
    assert "it is mcpmux itself" in said(plans["claude-desktop"], "mcpmux")
    assert said(plans["vscode"], "com.github/mcp").startswith("imported as com-github-mcp")
    assert f"${{userHome}} became {tmp_path}" in said(plans["vscode"], "com.github/mcp")
    assert "left out: dev (mcpmux has nothing like it)" in said(plans["vscode"], "com.github/mcp")
    assert plans["vscode"].needed["GITHUB_TOKEN"].endswith("in place of ${input:github-token}, A token of GitHub")
    assert "${workspaceFolder}" in plans["vscode"].needed["WORKSPACE_FOLDER"]
    assert f"its envFile {tmp_path}/.env has FROM_FILE" in said(plans["cursor"], "a")
    assert plans["cursor"].secrets["FROM_FILE"] == "s3cret"
    assert "left out: trust" in said(plans["gemini"], "a")
    assert "left out: required" in said(plans["codex"], "a")
    assert "it is a part of the host" in said(plans["zed"], "of-an-extension")
    assert "it is a part of the host" in said(plans["goose"], "developer")
    assert "Goose has it in its keyring" in plans["goose"].needed["GITHUB_TOKEN"]
    assert "left out: autoApprove" in said(plans["cline"], "a")


def test_a_projects_servers_run_in_their_project(tmp_path: Path):
    project = tmp_path / "app"
    file = written(
        project / ".cursor/mcp.json",
        '{"mcpServers": {"a": {"command": "./serve", "args": ["${workspaceFolder}", "${workspaceFolderBasename}"]}}}',
    )
    at = machine(tmp_path, here=project)
    plan = brought(file, at)
    assert plan.tables == {"a": {"command": "./serve", "args": [str(project), "app"], "cwd": str(project)}}
    assert file in mcpmux.real_files(host_named("cursor") or HOSTS[0], at)


@pytest.mark.parametrize(
    "entry",
    [
        {"command": "mcpmux"},
        {"command": "/home/ada/.local/bin/mcpmux", "args": ["--config", "x"]},
        {"command": r"C:\tools\Scripts\mcpmux.exe"},
        {"command": "uvx", "args": ["mcpmux"]},
        {"command": "uvx", "args": ["--from", "mcpmux[sampling]==0.1.0", "mcpmux"]},
        {"command": "uvx", "args": ["mcpmux@latest"]},
        {"command": "python3", "args": ["/src/mcpmux/mcpmux.py"]},
        {"command": "uvx", "args": ["--from", "git+https://example.org/x/mcpmux", "mcpmux"]},
    ],
)
def test_mcpmux_among_the_servers_is_recognised(entry: dict[str, Any]):
    assert mcpmux.why_not_ours(entry) == "it is mcpmux itself"


@pytest.mark.parametrize(
    "entry", [{"command": "npx", "args": ["server-filesystem", "/src/mcpmux"]}, {"command": "mcpmux-like"}, "x", {}]
)
def test_other_servers_are_not_taken_for_mcpmux(entry: Any):
    assert mcpmux.why_not_ours(entry) is None


# ── secrets ──


@pytest.mark.parametrize(
    ("entry", "secret", "becomes"),
    [
        ({"env": {"API_KEY": "abcdef"}}, "abcdef", {"env": {"API_KEY": "${API_KEY}"}}),
        ({"env": {"PLAIN": "sk-proj-0123456789"}}, "0123456789", {"env": {"PLAIN": "${PLAIN}"}}),
        ({"env": {"slack": "xoxb-123-456"}}, "xoxb", {"env": {"slack": "${S_SLACK}"}}),
        ({"args": ["--api-key", "abcdef1"]}, "abcdef1", {"args": ["--api-key", "${S_API_KEY}"]}),
        ({"args": ["--token=abcdef1"]}, "abcdef1", {"args": ["--token=${S_TOKEN}"]}),
        ({"args": ["-e", "GH_TOKEN=ghp_01234567"]}, "ghp_", {"args": ["-e", "GH_TOKEN=${GH_TOKEN}"]}),
        (
            {"args": ["--header", "Authorization: Bearer 0123abcd"]},
            "0123abcd",
            {"args": ["--header", "Authorization: Bearer ${S_AUTHORIZATION}"]},
        ),
        ({"args": ["github_pat_0123456789"]}, "0123456789", {"args": ["${S_TOKEN}"]}),
        (
            {"args": ["postgres://ada:pw1@db/x?mode=ro"]},
            "pw1",
            {"args": ["postgres://ada:${S_PASSWORD}@db/x?mode=ro"]},
        ),
        (
            {"args": ["https://example.org/mcp?a=b&api_key=zzz"]},
            "zzz",
            {"args": ["https://example.org/mcp?a=b&api_key=${S_API_KEY}"]},
        ),
    ],
)
def test_a_secret_moves_into_a_variable(entry: dict[str, Any], secret: str, becomes: dict[str, Any], tmp_path: Path):
    file = written(
        tmp_path / "claude_desktop_config.json", json.dumps({"mcpServers": {"s": {"command": "x", **entry}}})
    )
    plan = brought(file, machine(tmp_path))
    assert plan.tables["s"] == {"command": "x", **becomes}
    assert len(plan.needed) == 1
    assert secret not in repr([plan.needed, plan.comments, [msgspec.structs.astuple(one)[1:] for one in plan.outcomes]])


@pytest.mark.parametrize(
    "entry",
    [
        {"env": {"MAX_TOKENS": "4096", "AUTH_MODE": "none", "KEYBOARD": "de", "GIT_AUTHOR_NAME": "Ada"}},
        {"env": {"SSH_KEY_PATH": "/x", "TOKEN_LIMIT": "100", "USE_TOKEN": "true"}},
        {"args": ["sk-learn", "--token-file", "/x", "--auth", "oauth", "http://localhost:8080/x?y=z", "image:1.0"]},
        {"args": ["--token", "--verbose", "a=b", r"C:\x"]},
    ],
)
def test_what_is_no_secret_stays(entry: dict[str, Any], tmp_path: Path):
    file = written(
        tmp_path / "claude_desktop_config.json", json.dumps({"mcpServers": {"s": {"command": "x", **entry}}})
    )
    plan = brought(file, machine(tmp_path))
    assert plan.tables["s"] == {"command": "x", **entry}
    assert plan.needed == {}


def test_two_secrets_of_one_name_get_two_variables_and_one_secret_gets_one(tmp_path: Path):
    servers = {
        name: {"command": "x", "env": {"API_KEY": key}} for name, key in (("a", "1st"), ("b", "2nd"), ("c", "1st"))
    }
    file = written(tmp_path / "claude_desktop_config.json", json.dumps({"mcpServers": servers}))
    plan = brought(file, machine(tmp_path))
    assert [table["env"]["API_KEY"] for table in plan.tables.values()] == ["${API_KEY}", "${B_API_KEY}", "${API_KEY}"]
    other = brought(file, machine(tmp_path), API_KEY="someone else's")
    assert other.tables["a"]["env"]["API_KEY"] == "${A_API_KEY}"


@pytest.mark.parametrize(
    "secret",
    [
        "plain-0123",
        "has spaces 'and' \"quotes\"",
        "#hash # inside",
        "back\\slash\\n",
        "two\nlines",
        "= at = ",
        "ü€",
        "a$b",
    ],
)
def test_what_is_kept_is_read_again_as_it_was(
    secret: str, desk: Desk, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.delenv("TOKEN", raising=False)
    servers = {"a": {"command": "x", "env": {"TOKEN": secret}}}
    file = written(desk.file("cursor"), json.dumps({"mcpServers": servers}))
    written(desk.config.with_name("secrets.env"), "# mine\nMINE=1")
    assert desk.run("import", "cursor") == 0
    config = mcpmux.load_config(desk.config)
    assert config.environment["TOKEN"] == secret
    assert config.environment["MINE"] == "1"
    assert secret not in capsys.readouterr().out
    before = desk.config.read_text()
    assert desk.run("import", str(file)) == 0
    assert "is there already" in capsys.readouterr().out
    assert desk.config.read_text() == before
    assert desk.run("import", "--undo") == 0
    assert not desk.config.exists()
    assert desk.config.with_name("secrets.env").read_text() == "# mine\nMINE=1\n"


def test_a_value_that_no_file_of_variables_can_hold_is_asked_for(desk: Desk, capsys: pytest.CaptureFixture[str]):
    """`${…}` in such a file is replaced, however it is quoted."""
    servers = {"a": {"command": "x", "env": {"TOKEN": "pw${A}"}}}
    written(desk.file("claude-desktop"), json.dumps({"mcpServers": servers}))
    assert desk.run("import", "claude-desktop") == 0
    assert "TOKEN  a: env.TOKEN" in capsys.readouterr().out
    assert not desk.config.with_name("secrets.env").exists()


def test_without_secrets_it_says_which_variables_to_set_by_the_new_names(
    desk: Desk, capsys: pytest.CaptureFixture[str]
):
    for host, token in (("cursor", "1st-0123"), ("claude-desktop", "2nd-0123")):
        servers = {"github": {"command": "x", "env": {"TOKEN": token}}}
        written(desk.file(host), json.dumps({"mcpServers": servers}))
    assert desk.run("import", "all", "--no-secrets") == 0
    out = capsys.readouterr().out
    assert "github: env.TOKEN" in out
    assert "github-2: env.TOKEN" in out
    assert "0123" not in out + desk.config.read_text()
    assert not desk.config.with_name("secrets.env").exists()


def test_a_person_is_asked_once_where_secrets_shall_be_kept(desk: Desk, monkeypatch: pytest.MonkeyPatch):
    servers = {"a": {"command": "x", "env": {"TOKEN": "one-0123", "KEY": "two-0123"}}}
    written(desk.file("cursor"), json.dumps({"mcpServers": servers}))
    asked: list[str] = []
    monkeypatch.setattr(sys, "stdin", type("Terminal", (), {"isatty": lambda self: True})())
    monkeypatch.setattr("builtins.input", lambda question: asked.append(question) or "n")
    assert desk.run("import", "cursor") == 0
    assert len(asked) == 1
    assert "KEY" in asked[0]
    assert not desk.config.with_name("secrets.env").exists()
    assert desk.run("import", "--undo") == 0
    assert desk.run("import", "cursor", "--yes") == 0
    assert len(asked) == 1
    assert desk.config.with_name("secrets.env").exists()


@pytest.mark.parametrize(
    ("host", "text", "stands_for"),
    [
        ("cursor", "${workspaceFolder}{cmd:id}", "/p/a${cmd:id}"),
        ("cursor", "${workspaceFolder}${env:A}", "/p/a$1"),
        ("claude-code", "$${A}", "$1"),
        ("claude-code", "$$${A}$", "$$1$"),
        ("claude-code", "$${not a}", "$${not a}"),
        ("claude-desktop", "$${A}${cmd:id}$${", "$${A}${cmd:id}$${"),
    ],
)
def test_what_stands_for_itself_there_does_so_here(host: str, text: str, stands_for: str, tmp_path: Path):
    """A folder's name may end in `$`."""
    found = host_named(host)
    assert found
    entry = mcpmux.HostEntry(found, Path("/h/x.json"), "x", {"command": "x", "args": [text]}, "/p/a$")
    plan = mcpmux.plan_import([entry], {}, Variables({}), machine(tmp_path))
    [argument] = plan.tables["x"]["args"]
    values = {"A": "1"}

    def replaced(one: Any) -> str:
        assert one["cmd"] is None
        return one[1] or values.get(one["var"], one["default"])

    assert re.sub(mcpmux.PLACEHOLDER, replaced, argument) == stands_for


def test_one_server_of_two_hosts_is_one_whatever_each_calls_it(desk: Desk):
    """The same command with the same arguments; what each sets, unless they differ in it, is set."""
    hub = {"command": "npx", "args": ["-y", "hub"]}
    written(desk.file("claude-desktop"), json.dumps({"mcpServers": {"hub": hub, "second": hub}}))
    theirs = {"hub": {**hub, "env": {"TOKEN": "1st-0123"}}, "centre": {**hub, "args": ["-y", "centre"]}}
    written(desk.file("cursor"), json.dumps({"mcpServers": theirs}))
    other = {"mitte": theirs["centre"], "hub": {**hub, "env": {"TOKEN": "2nd-0123"}}}
    written(desk.file("windsurf"), json.dumps({"mcpServers": other}))
    assert desk.run("import", "all") == 0
    tables = mcpmux.load_config(desk.config).tables
    assert tables == {
        "hub": {**hub, "env": {"TOKEN": "${TOKEN}"}},
        "second": hub,
        "centre": theirs["centre"],
        "hub-2": {**hub, "env": {"TOKEN": "${HUB_TOKEN}"}},
    }


# ── what is broken costs itself only ──


def test_a_broken_entry_costs_itself_only(tmp_path: Path):
    servers: dict[str, Any] = {
        "text": "x",
        "number": {"command": 7},
        "args": {"command": "x", "args": "y"},
        "socket": {"type": "ws", "url": "wss://example.org"},
        "timeout": {"command": "x", "timeout": "soon"},
        "surrogate": {"command": "\ud800"},
        "good": {"command": "x"},
    }
    file = written(tmp_path / "cline_mcp_settings.json", "")
    file = tmp_path / ".cline/data/settings/cline_mcp_settings.json"
    written(file, json.dumps({"mcpServers": servers}))
    plan = brought(file, machine(tmp_path))
    assert list(plan.tables) == ["number", "good"]
    assert [outcome.entry.name for outcome in plan.outcomes if outcome.failed] == [
        *("text", "args", "socket", "timeout", "surrogate")
    ]
    assert "args: expected a list" in said(plan, "args")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("mcp.json", '{"mcpServers": {'),
        ("mcp.json", "[]"),
        ("mcp.json", '{"mcpServers": []}'),
        ("mcp.json", "\xff"),
        ("config.toml", "[mcp_servers"),
        ("config.yaml", "extensions: &"),
        ("config.yaml", "extensions:\n\ta: b"),
        ("config.yaml", "extensions: [a]"),
    ],
)
def test_a_broken_file_is_one_line_that_names_it(name: str, text: str, tmp_path: Path):
    file = tmp_path / name
    file.write_bytes(text.encode("latin-1"))
    host = {".toml": "codex", ".yaml": "goose"}.get(file.suffix, "cursor")
    with pytest.raises(mcpmux.ConfigError) as wrong:
        mcpmux.entries_of(host_named(host) or HOSTS[0], file, None)
    assert str(wrong.value).startswith(f"{file}: ")
    assert "\n" not in str(wrong.value)


ENTRY_KEYS = ["command", "args", "env", "cwd", "url", "httpUrl", "headers", "type", "timeout", "oauth", "env_keys"]
ENTRY_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["", "a", "${A}", "${env:A}", "$A", "https://a/b"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["A", "TOKEN"]), inner, max_size=2),
    max_leaves=5,
)


@given(st.sampled_from(HOSTS), st.dictionaries(st.sampled_from(ENTRY_KEYS), ENTRY_VALUES) | ENTRY_VALUES)
def test_whatever_stands_in_an_entry_it_becomes_a_table_that_loads_or_it_is_said_why_not(host: mcpmux.Host, table: Any):
    at = Machine("linux", {}, "/h", "/p")
    entry = mcpmux.HostEntry(host, Path("/h/mcp.json"), "x", table)
    plan = mcpmux.plan_import([entry], {}, Variables({}), at)
    [outcome] = plan.outcomes
    assert outcome.moved is ("x" in plan.tables)
    if not outcome.moved:
        assert outcome.said.startswith(("cannot be imported: ", "left where it is: "))
        return
    assert tomllib.loads(as_file(plan)) == {"mcp_servers": plan.tables}


def test_yaml_without_its_package_is_refused_with_the_command_that_brings_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Our choice: of thirteen hosts one writes YAML, and nobody else's download should grow for it."""
    monkeypatch.setitem(sys.modules, "yaml", None)
    file = written(tmp_path / "config.yaml", "extensions: {}")
    with pytest.raises(mcpmux.ConfigError, match="uvx --with pyyaml mcpmux import goose") as wrong:
        mcpmux.entries_of(host_named("goose") or HOSTS[0], file, None)
    assert str(wrong.value).startswith(f"{file}: ")
    assert "`uvx --with pyyaml mcpmux import goose`" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_what_yaml_might_make_of_a_text_stays_text(tmp_path: Path):
    text = """extensions:
  a: {cmd: npx, args: [-y, 8080, 1.5, true], envs: {PORT: 8080, ON: yes, V: 1.10}, enabled: true, timeout: 300}
"""
    plan = brought(written(tmp_path / ".config/goose/config.yaml", text), machine(tmp_path))
    assert plan.tables["a"] == {
        "command": "npx",
        "args": ["-y", "8080", "1.5", "true"],
        "env": {"PORT": "8080", "ON": "yes", "V": "1.10"},
        "tool_timeout_sec": 300.0,
    }


# ── our own file ──


def test_what_stands_in_the_file_stays_byte_for_byte():
    text = "# mine\n[mux]\nlog_level  =  \"debug\"   # loud\n\n[mcp_servers.a]\ncommand = 'x'"
    new = mcpmux.with_servers(text, {"b": {"command": "y"}}, {"b": ["From there"]})
    assert new == text + '\n\n# From there\n[mcp_servers.b]\ncommand = "y"\n'
    crlf = mcpmux.with_servers(text.replace("\n", "\r\n"), {"b": {"command": "y"}}, {"b": ["From there"]})
    assert crlf == new.replace("\n", "\r\n")


def test_a_server_that_is_overwritten_leaves_the_others_alone():
    text = """# top
[mcp_servers.a]
command = "x"
args = [
    "[mcp_servers.b]",
]
[mcp_servers.a.env]
A = "b"

# of b
[mcp_servers.b]
command = "y"

# From Cursor: /x
# a note
[mcp_servers."a".tools.t]
name = "u"
# the end
"""
    new = mcpmux.with_servers(text, {"a": {"command": "z"}}, {})
    assert new == '# top\n\n# of b\n[mcp_servers.b]\ncommand = "y"\n\n\n[mcp_servers.a]\ncommand = "z"\n'
    assert tomllib.loads(new) == {"mcp_servers": {"a": {"command": "z"}, "b": {"command": "y"}}}


@pytest.mark.parametrize(
    "text",
    [
        "mcp_servers = { a = { command = 'x' } }\n",
        "[mcp_servers]\na.command = 'x'\n",
        "[mcp_servers.a]\ncommand = 'x'\nargs = [\n['y'],\n]\n",
        "[mcp_servers.a]\ncommand = '''\n[mcp_servers.b]\n'''\n",
    ],
)
def test_a_file_that_cannot_be_changed_safely_is_refused(text: str):
    assert tomllib.loads(text)
    with pytest.raises(mcpmux.ConfigError, match="by hand"):
        mcpmux.with_servers(text, {"a": {"command": "z"}}, {})


def test_a_comment_cannot_leave_its_line():
    block = mcpmux.server_block("a", {"command": "x"}, ["From \n[mux]\x00\u2028 ü"])
    assert tomllib.loads(block) == {"mcp_servers": {"a": {"command": "x"}}}
    assert "ü" in block


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no modes")
def test_files_are_written_whole_and_their_modes_kept(tmp_path: Path):
    file = tmp_path / "deep" / "mcpmux.toml"
    append(file, {"a": {"command": "x"}})
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.chmod(0o644)
    append(file, {"b": {"command": "x"}})
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    append(file, {"c": {"command": "x"}})
    mcpmux.write_text(file, file.read_text(), file.read_text(), private=True)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    link = tmp_path / "link.toml"
    link.symlink_to(file)
    append(link, {"d": {"command": "x"}})
    assert link.is_symlink()
    assert list(tomllib.loads(file.read_text())["mcp_servers"]) == ["a", "b", "c", "d"]
    assert sorted(os.listdir(file.parent)) == ["mcpmux.schema.json", "mcpmux.toml"]
    with pytest.raises(mcpmux.ConfigError, match="changed meanwhile"):
        mcpmux.write_text(file, "", "what was read")


# ── a host's JSON ──

JSON_TEXTS = {
    "none": None,
    "empty": "",
    "blank": "\n",
    "an empty object": "{}",
    "no servers": '{\n  "theme": "dark"\n}\n',
    "null": '{"mcpServers": null}',
    "empty servers": '{\n  "mcpServers": {}\n}',
    "two": """{
  "globalShortcut": "",
  "mcpServers": {
    "b": {"command": "b",   "args": ["1"]},
    "a": {
      "command": "a",
      "env": {"TOKEN": "s3cret-0123456789"}
    }
  },
  "last": [1.0, 2e3]
}
""",
    "tabs": '{\n\t"mcpServers": {\n\t\t"a": {"command": "x"}\n\t}\n}\n',
    "Windows": '{\r\n    "mcpServers": {\r\n        "a": {"command": "x"}\r\n    }\r\n}\r\n',
    "a byte order mark": '\ufeff{"mcpServers": {"a": {"command": "x"}}}',
    "one line": '{"mcpServers":{"a":{"command":"x"},"b":{"command":"y"}},"z":"ü\\u00fc"}',
    "comments": """// top
{
  "mcpServers": { // mine: { "x": 1 }
    "a": {"command": "http://x"}, /* off: "b": {} */
  }, // }
}
""",
}
PLATFORMS = ["linux", "darwin", "win32", "msix"]
EDITED = ["claude-desktop", "cursor"]


class Desk:
    """A home with a host's file, and the commands run on it in this process."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, platform: str = "linux") -> None:
        self.starts: list[Any] = []  # the entries that were tried
        self.home = folder / "home"
        self.config = folder / "mcpmux.toml"
        environment = {"APPDATA": f"{self.home}/Roaming", "LOCALAPPDATA": f"{self.home}/Local"}
        if platform == "msix":
            (self.home / "Local/Packages/Claude_x").mkdir(parents=True)
        at = machine(self.home, "win32" if platform == "msix" else platform, **environment)
        monkeypatch.setattr(mcpmux, "this_machine", lambda: at)
        monkeypatch.setenv("MCPMUX_CONFIG", str(self.config))
        monkeypatch.setattr(mcpmux, "user_folder", lambda kind: folder / kind)
        monkeypatch.setattr(mcpmux, "expect_start", self.starts.append)
        self.at = at

    def file(self, host: str) -> Path:
        found = host_named(host)
        assert found
        return mcpmux.real_files(found, self.at, projects=False)[0]

    def run(self, *words: str) -> int:
        return mcpmux.main(list(words))


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    return Desk(tmp_path, monkeypatch)


@pytest.mark.parametrize("replace", [[], ["--replace"]], ids=["install", "install --replace"])
@pytest.mark.parametrize("text", JSON_TEXTS.values(), ids=JSON_TEXTS)
@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("host", EDITED)
def test_uninstall_gives_back_the_same_bytes(
    host: str, platform: str, text: str | None, replace: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    desk = Desk(tmp_path, monkeypatch, platform)
    file = desk.file(host)
    assert ("Claude_x" in str(file)) == (platform == "msix" and host == "claude-desktop")
    if text is not None:
        written(file, text)
    former = mcpmux.servers_in(file, text or "", "mcpServers")
    assert desk.run("install", host, *replace) == 0
    servers = mcpmux.servers_in(file, file.read_bytes().decode(), "mcpServers")
    entry = servers.pop(ENTRY_NAME)
    assert Path(entry["command"]).is_absolute()
    assert entry["args"][-2:] == ["--config", str(desk.config)]
    assert servers == ({} if replace else former)
    moved = mcpmux.load_config(desk.config).servers if replace else {}
    assert list(moved) == (list(former) if replace else [])
    assert desk.run("install", host, *replace) == 0, "again"
    assert desk.run("uninstall", host) == 0
    assert file.exists() == (text is not None)
    if text is not None:
        assert file.read_bytes() == text.encode()
    assert [path for path in file.parent.glob("*") if path != file and path.is_file()] == []
    assert desk.run("uninstall", host) == 0, "again"


def test_install_leaves_what_is_not_its_own_byte_for_byte(desk: Desk):
    text = JSON_TEXTS["two"]
    assert text
    file = written(desk.file("cursor"), text)
    assert desk.run("install", "cursor") == 0
    head, tail = text.split("    }\n  },\n")
    new = file.read_text()
    assert new.startswith(f'{head}    }},\n    "mcpmux": {{\n      "command": ')
    assert new.endswith(f"    }}\n  }},\n{tail}")
    backup = file.with_name("mcp.json.before-mcpmux")
    assert backup.read_text() == text
    if sys.platform != "win32":
        assert stat.S_IMODE(backup.stat().st_mode) == 0o600


def test_a_file_that_was_written_anew_with_the_same_content_is_given_back_as_it_was(desk: Desk):
    """Claude Desktop writes its file at each change of a setting."""
    text = JSON_TEXTS["two"]
    assert text
    file = written(desk.file("claude-desktop"), text)
    assert desk.run("install", "claude-desktop", "--replace") == 0
    file.write_text(json.dumps(json.loads(file.read_text())))
    assert desk.run("uninstall", "claude-desktop") == 0
    assert file.read_text() == text


def test_a_file_that_was_changed_since_keeps_the_change_and_has_its_servers_back(
    desk: Desk, capsys: pytest.CaptureFixture[str]
):
    text = JSON_TEXTS["two"]
    assert text
    file = written(desk.file("claude-desktop"), text)
    assert desk.run("install", "claude-desktop", "--replace") == 0
    changed = json.loads(file.read_text())
    changed["mcpServers"]["new"] = {"command": "n"}
    changed["theme"] = "dark"
    file.write_text(json.dumps(changed, indent=2))
    capsys.readouterr()
    assert desk.run("uninstall", "claude-desktop") == 0
    assert "was changed since: mcpmux is out of it, and these are back: b, a" in capsys.readouterr().out
    now = json.loads(file.read_text())
    assert now == json.loads(text) | {
        "theme": "dark",
        "mcpServers": {"new": {"command": "n"}, **json.loads(text)["mcpServers"]},
    }


def test_a_server_added_after_replace_moves_at_the_next_and_comes_back_too(desk: Desk):
    text = JSON_TEXTS["two"]
    assert text
    file = written(desk.file("cursor"), text)
    assert desk.run("install", "cursor", "--replace") == 0
    file.write_text(mcpmux.edited(file, file.read_text(), "mcpServers", (), {"new": {"command": "n"}}))
    assert desk.run("install", "cursor", "--replace") == 0
    assert list(mcpmux.servers_in(file, file.read_text(), "mcpServers")) == [ENTRY_NAME]
    assert list(mcpmux.load_config(desk.config).servers) == ["b", "a", "new"]
    assert desk.run("uninstall", "cursor") == 0
    assert list(mcpmux.servers_in(file, file.read_text(), "mcpServers")) == ["new", "b", "a"]


def test_replace_leaves_what_it_cannot_import_where_it_is(desk: Desk, capsys: pytest.CaptureFixture[str]):
    written(desk.config, '[mcp_servers.taken]\ncommand = "mine"\n')
    servers = {"good": {"command": "x"}, "bad": {"command": 7, "args": 8}, "taken": {"command": "theirs"}}
    file = written(desk.file("cursor"), json.dumps({"mcpServers": servers}))
    assert desk.run("install", "cursor", "--replace") == 0
    assert list(mcpmux.servers_in(file, file.read_text(), "mcpServers")) == ["bad", "taken", ENTRY_NAME]
    config = mcpmux.load_config(desk.config)
    assert {name: server.command for name, server in config.servers.items()} == {"taken": "mine", "good": "x"}
    assert "there is another taken" in capsys.readouterr().out


def test_secrets_move_with_their_servers(desk: Desk, capsys: pytest.CaptureFixture[str]):
    text = JSON_TEXTS["two"]
    assert text
    written(desk.file("cursor"), text)
    assert desk.run("install", "cursor", "--replace") == 0
    out = capsys.readouterr().out
    secrets = desk.config.with_name("secrets.env")
    assert f"What was secret is in {secrets}; env_file in [mux] names it." in out
    assert "s3cret" not in out + desk.config.read_text()
    assert secrets.read_text() == "TOKEN=s3cret-0123456789\n"
    config = mcpmux.load_config(desk.config)
    assert config.options.env_file == "secrets.env"
    assert config.environment["TOKEN"] == "s3cret-0123456789"
    if sys.platform != "win32":
        assert stat.S_IMODE(secrets.stat().st_mode) == 0o600


def test_half_of_a_surrogate_pair_comes_back_as_it_was(desk: Desk):
    text = '{"mcpServers": {"a": {"command": "x\\ud800"}, "ü": {"command": "ü"}}}'
    file = written(desk.file("cursor"), text)
    assert desk.run("install", "cursor", "--replace") == 0
    assert list(mcpmux.servers_in(file, file.read_text("utf-8"), "mcpServers")) == ["a", ENTRY_NAME]
    assert desk.run("uninstall", "cursor") == 0
    assert file.read_text("utf-8") == text


def test_a_dry_run_says_what_would_change_without_secrets_and_writes_nothing(
    desk: Desk, capsys: pytest.CaptureFixture[str]
):
    text = """{
  // was "OLD_KEY": "gone-0123", ghp_commented0123
  "apiKey": "root-0123",
  "mcpServers": {
    "a": {"command": "x", "args": ["--token", "flag-0123", "--password=eq-0123", "sk-live-0123"],
          "env": {"TOKEN": "in-env-0123", "B": "${X}{in-env}"}},
    "b": {"url": "https://u:pw-0123@x/?key=query-0123", "headers": {"X-Auth": "header-0123"}},
    "c": {"command": "keep-this"}
  }
}
"""
    file = written(desk.file("claude-desktop"), text)
    for words in (["--replace"], []):
        assert desk.run("install", "claude-desktop", "--dry-run", *words) == 0
        shown = capsys.readouterr().out
        assert "  + mcpmux: " in shown
        assert ("  - c" in shown) == bool(words)
        assert "0123" not in shown
        assert str(file) in shown
    assert file.read_text() == text
    assert not desk.config.exists()
    assert desk.starts == []
    assert desk.run("install", "claude-desktop") == 0
    assert desk.run("uninstall", "claude-desktop", "--dry-run") == 0
    shown = capsys.readouterr().out
    assert "  - mcpmux" in shown
    assert "0123" not in shown
    assert "mcpmux" in file.read_text()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.dictionaries(st.text(), json_values, max_size=3),
    st.none() | st.dictionaries(st.text(min_size=1).filter(ENTRY_NAME.__ne__), json_values, max_size=4),
    st.sampled_from([None, 0, 1, 4, "\t"]),
    st.booleans(),
    st.booleans(),
    st.data(),
)
def test_whatever_a_hosts_file_holds_only_our_entry_comes_and_goes(
    document: dict[str, Any], servers: dict[str, Any] | None, indent: Any, ascii: bool, crlf: bool, data: st.DataObject
):
    if servers is not None:
        document["mcpServers"] = servers
    text = json.dumps(document, indent=indent, ensure_ascii=ascii).replace("\n", "\r\n" if crlf else "\n")
    moved = data.draw(st.lists(st.sampled_from(list(servers)), unique=True)) if servers else []
    entry = {"command": "/bin/uvx", "args": ["mcpmux"]}
    file = Path("/h/mcp.json")
    new = installed(file, text, "mcpServers", entry, moved)
    rest = {name: value for name, value in (servers or {}).items() if name not in moved}
    assert json.loads(new) == document | {"mcpServers": rest | {ENTRY_NAME: entry}}
    assert installed(file, new, "mcpServers", entry) == new
    assert mcpmux.uninstalled(file, new, text, "mcpServers") == (text, [])
    changed = json.dumps(json.loads(new) | {"changed": 1})
    back, restored = mcpmux.uninstalled(file, changed, text, "mcpServers")
    assert back
    assert json.loads(back) == document | {"mcpServers": servers or {}, "changed": 1}
    assert sorted(restored) == sorted(moved)


@pytest.mark.parametrize("text", ["{", "[]", '{"mcpServers": 7}', '{"mcpServers": {"mcpmux": 1}}', '"x"'])
def test_a_file_that_cannot_be_edited_stays_as_it_is(text: str, desk: Desk, capsys: pytest.CaptureFixture[str]):
    file = written(desk.file("cursor"), text)
    code = desk.run("install", "cursor")
    err = capsys.readouterr().err
    if "mcpmux" in text:
        assert code == 0
        return
    assert code == 2
    assert err.startswith(f"mcpmux: {file}: ")
    assert err.count("\n") == 1
    assert file.read_text() == text


# ── how a host starts mcpmux ──


class Placed(NamedTuple):
    """An environment of Python's, as `sys.prefix` and this file are in it."""

    prefix: Path
    uvx: Path

    def entry(self, sampling: bool = False) -> dict[str, Any]:
        return mcpmux.entry_for_hosts(mcpmux.config_path(None), sampling)


@pytest.fixture
def placed_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`placed_in("folder", origin)`: as if mcpmux ran in an environment there, into which it came from `origin`."""

    def place(folder: str, origin: dict[str, Any] | None = None, is_cache: bool = False) -> Placed:
        for variable in ("MCPMUX_CONFIG", "XDG_CONFIG_HOME"):
            monkeypatch.delenv(variable, raising=False)
        here = tmp_path / folder
        uvx = written(tmp_path / "bin" / ("uvx.exe" if sys.platform == "win32" else "uvx"), "")
        uvx.chmod(0o755)
        monkeypatch.setenv("PATH", str(uvx.parent))
        written(here / ("Scripts/mcpmux.exe" if sys.platform == "win32" else "bin/mcpmux"), "")
        site = here / "lib/site-packages"
        info = site / "mcpmux-0.1.0.dist-info"
        written(info / "METADATA", "Metadata-Version: 2.1\nName: mcpmux\nVersion: 0.1.0\n")
        if origin:
            written(info / "direct_url.json", json.dumps(origin))
        if is_cache:
            written(here.parents[1] / "CACHEDIR.TAG", "Signature: 8a477f597d28d172789f06886806bc55")
        monkeypatch.setattr(sys, "path", [str(site)])
        monkeypatch.setattr(sys, "prefix", str(here))
        monkeypatch.setattr(mcpmux, "__file__", str(written(site / "mcpmux.py", "")))
        return Placed(here, uvx)

    return place


@pytest.mark.parametrize(
    ("origin", "args"),
    [
        (None, ["mcpmux==0.1.0"]),
        (
            {"url": "file:///w/mcpmux-0.1.0-py3-none-any.whl", "archive_info": {}},
            ["--from", "mcpmux @ file:///w/mcpmux-0.1.0-py3-none-any.whl", "mcpmux"],
        ),
        (
            {"url": "https://example.org/x.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}, "subdirectory": "p"},
            ["--from", "mcpmux @ git+https://example.org/x.git@abc#subdirectory=p", "mcpmux"],
        ),
        ({"url": "file:///src/mcpmux", "dir_info": {}}, ["--from", "mcpmux @ file:///src/mcpmux", "mcpmux"]),
    ],
    ids=["an index", "a wheel", "git", "a folder"],
)
def test_run_by_uvx_the_entry_names_what_runs_now_and_has_whole_paths(origin: Any, args: list[str], placed_in: Any):
    """An environment of uvx's is swept with its cache, so uvx has to make it again."""
    run = placed_in("any/archive-v0/x1", origin, is_cache=True)
    assert run.entry() == {"command": str(run.uvx), "args": args}
    [spec] = [word for word in run.entry(sampling=True)["args"] if "[sampling]" in word]
    assert spec.replace("[sampling]", "") in args
    assert mcpmux.why_not_ours(run.entry()) == "it is mcpmux itself"
    assert mcpmux.why_not_ours(run.entry(sampling=True)) == "it is mcpmux itself"
    other = mcpmux.entry_for_hosts(Path("/x/m.toml"), False)
    assert other["args"] == [*args, "--config", str(Path("/x/m.toml"))]


@pytest.mark.parametrize("folder", ["uv/tools/mcpmux", ".cache/uv/venv", "app/.venv"])
def test_in_an_environment_that_stays_the_entry_is_its_program(folder: str, placed_in: Any):
    """As of `uv tool install`; a folder's name says nothing."""
    run = placed_in(folder, {"url": "file:///w/mcpmux-0.1.0-py3-none-any.whl", "archive_info": {}})
    assert Path(run.entry()["command"]).parent.parent == run.prefix
    assert run.entry()["args"] == []
    assert mcpmux.why_not_ours(run.entry()) == "it is mcpmux itself"


def test_run_from_a_file_that_is_not_the_installed_one_the_entry_is_this_python_and_that_file(
    placed_in: Any, monkeypatch: pytest.MonkeyPatch
):
    placed_in("app/.venv")
    monkeypatch.setattr(mcpmux, "__file__", str(MCPMUX))
    assert mcpmux.entry_for_hosts(mcpmux.config_path(None), False) == {"command": sys.executable, "args": [str(MCPMUX)]}


def test_an_editable_checkout_is_run_by_its_environments_program(placed_in: Any, monkeypatch: pytest.MonkeyPatch):
    run = placed_in("app/.venv", {"url": MCPMUX.parent.as_uri(), "dir_info": {"editable": True}})
    monkeypatch.setattr(mcpmux, "__file__", str(MCPMUX))
    assert Path(run.entry()["command"]).parent.parent == run.prefix


def test_run_as_a_script_the_entry_is_uv_and_this_file(placed_in: Any, monkeypatch: pytest.MonkeyPatch):
    """The environment that uv makes for a script is swept with its cache."""
    placed_in("cache/environments-v2/mcpmux-0123", is_cache=True)
    monkeypatch.setattr(mcpmux, "__file__", str(MCPMUX))
    monkeypatch.setenv("UV", "/home/ada/.local/bin/uv")
    entry = mcpmux.entry_for_hosts(mcpmux.config_path(None), False)
    assert entry["command"] == "/home/ada/.local/bin/uv"
    assert entry["args"][:2] == ["run", str(MCPMUX)]
    assert mcpmux.why_not_ours(entry) == "it is mcpmux itself"


def test_what_a_host_will_run_is_run_once_as_the_host_does(tmp_path: Path):
    """With a bare PATH, in no folder of ours."""
    mcpmux.expect_start({"command": sys.executable, "args": [str(MCPMUX), "--config", str(tmp_path / "none.toml")]})
    for command, args, why in (
        (str(tmp_path / "gone"), [], "gone"),
        (sys.executable, ["-c", "raise SystemExit('no module named mcpmux')"], "no module named mcpmux"),
        (sys.executable, ["-c", ""], "exit code 0"),
    ):
        with pytest.raises(mcpmux.ConfigError, match=why) as wrong:
            mcpmux.expect_start({"command": command, "args": args})
        assert "nothing was changed" in str(wrong.value)


# ── the commands ──


PROGRAMS = {"claude-code": "claude", "codex": "codex", "vscode": "code"}


@pytest.fixture
def programs(desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in PATH in which the hosts' own commands come to be."""
    folder = tmp_path / "bin"
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("HOME", str(tmp_path))
    return folder


def stand_in(desk: Desk, host: str, folder: Path) -> None:
    played = [sys.executable, str(ROOT / "tests/own_commands.py"), PROGRAMS[host], str(desk.file(host))]
    written(folder / PROGRAMS[host], f'#!/bin/sh\nexec {shlex.join(played)} "$@"\n').chmod(0o755)


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-ins are shell scripts")
@pytest.mark.parametrize("way", [["--replace"], []], ids=["install --replace", "install"])
@pytest.mark.parametrize("host", HOST_NAMES)
def test_every_host_gets_mcpmux_and_has_its_bytes_back(
    host: str, way: list[str], desk: Desk, programs: Path, capfd: pytest.CaptureFixture[str]
):
    """Claude Code, Codex and VS Code by their own commands, which write the file in looks of their own."""
    found = host_named(host)
    assert found
    case = CASES[host]
    written(desk.home / ".env", "FROM_FILE=s3cret\n")
    file = placed(case, desk.home)
    assert file == desk.file(host)
    if ENTRY_NAME in mcpmux.servers_in(file, file.read_text(), found.key):  # of another time
        file.write_text(mcpmux.edited(file, file.read_text(), found.key, [ENTRY_NAME], {}))
    if own := host in PROGRAMS:
        stand_in(desk, host, programs)
    before = file.read_bytes()
    former = mcpmux.servers_in(file, before.decode(), found.key)
    former.pop(ENTRY_NAME, None)
    projects = {name for name in case.tables if "cwd" in case.tables[name] and host == "claude-code"}
    ours = {name for name, table in former.items() if mcpmux.why_not_ours(table)}  # parts of the host
    assert desk.run("install", host, *way) == 0
    assert ("ran " in capfd.readouterr().out) == own
    servers = mcpmux.servers_in(file, file.read_text(), found.key)
    assert mcpmux.why_not_ours(servers.pop(ENTRY_NAME)) == "it is mcpmux itself"
    assert servers.keys() == (ours if way else former.keys())
    tables = mcpmux.load_config(desk.config).tables
    expected = json.loads(json.dumps(case.tables).replace("HOME", json.dumps(str(desk.home))[1:-1]))
    assert tables == {name: table for name, table in expected.items() if way and name not in projects}
    assert len(desk.starts) == 1
    installed = file.read_bytes()
    assert desk.run("install", host, *way) == 0
    assert "nothing to change" in capfd.readouterr().out
    assert file.read_bytes() == installed
    assert desk.run("uninstall", host) == 0
    assert file.read_bytes() == before
    assert not list(file.parent.glob("*before-mcpmux*"))


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-ins are shell scripts")
@pytest.mark.parametrize("host", HOST_NAMES)
def test_every_host_keeps_what_changed_since_and_has_its_servers_back(host: str, desk: Desk, programs: Path):
    found = host_named(host)
    assert found
    written(desk.home / ".env", "FROM_FILE=s3cret\n")
    file = placed(CASES[host], desk.home)
    if host in PROGRAMS:
        stand_in(desk, host, programs)
    former = mcpmux.servers_in(file, file.read_text(), found.key)
    former.pop(ENTRY_NAME, None)
    assert desk.run("install", host, "--replace") == 0
    new = {"command": "n", "args": ["1"]}
    changed = mcpmux.edited(file, file.read_text(), found.key, (), {"new": new})
    file.write_text(changed)
    assert desk.run("uninstall", host) == 0
    assert mcpmux.servers_in(file, file.read_text(), found.key) == {**former, "new": new}
    assert desk.run("uninstall", "all") == 0


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-ins are shell scripts")
@pytest.mark.parametrize("host", PROGRAMS)
def test_a_hosts_own_command_is_run(host: str, desk: Desk, programs: Path, capfd: pytest.CaptureFixture[str]):
    program, entry = PROGRAMS[host], mcpmux.entry_for_hosts(desk.config, False)
    words = {
        "claude": ["mcp", "add-json", "--scope", "user", "mcpmux", json.dumps(entry)],
        "codex": ["mcp", "add", "mcpmux", "--", entry["command"], *entry["args"]],
        "code": ["--add-mcp", json.dumps({"name": "mcpmux", **entry})],
    }[program]
    assert desk.run("install", host) == 0
    assert capfd.readouterr().out.startswith(f"{program} was not found")
    stand_in(desk, host, programs)
    assert desk.run("install", host, "--dry-run") == 0
    assert "ran " not in capfd.readouterr().out
    assert desk.run("install", host) == 0
    assert capfd.readouterr().out.splitlines()[:2] == [
        f"Running: {shlex.join([program, *words])}",
        " ".join(["ran", program, *words]),
    ]
    assert desk.run("uninstall", host) == 0
    assert not desk.file(host).exists(), "it was there for mcpmux alone"
    written(programs / program, "#!/bin/sh\nexit 7\n").chmod(0o755)
    assert desk.run("install", host) == 1


def test_a_host_whose_command_is_not_here_has_its_file_edited(desk: Desk, programs: Path):
    """VS Code brings its command to PATH only if it is asked to."""
    file = placed(CASES["vscode"], desk.home)
    before = file.read_text()
    assert desk.run("install", "vscode", "--replace") == 0
    assert list(mcpmux.servers_in(file, file.read_text(), "servers")) == ["mcpmux"]
    assert "// what is asked for" in file.read_text()
    assert desk.run("uninstall", "vscode") == 0
    assert file.read_text() == before


def test_yaml_on_one_line_is_left_to_the_person():
    """Goose never writes it so."""
    with pytest.raises(mcpmux.ConfigError, match="by hand"):
        installed(Path("/h/config.yaml"), 'extensions: {"a": {"cmd": "x"}}\n', "extensions", {"cmd": "x"})


YAML_TEXTS = {
    "none": "GOOSE_MODEL: x\n",
    "null": "extensions:\nlast: 1\n",
    "a word": "extensions: ~\nlast: 1\n",
    "empty": "extensions: {}\nlast: 1\n",
    "wide": "a: 1\nextensions:\n    # first\n    a:\n        cmd: x # why\n    b: {cmd: y}\n\n# the end\nlast: 1\n",
    "no end of line": "extensions:\n  a:\n    cmd: x",
    "Windows": "extensions:\r\n  a:\r\n    cmd: x\r\nlast: 1\r\n",
}


@pytest.mark.parametrize("text", YAML_TEXTS.values(), ids=YAML_TEXTS)
def test_yaml_is_edited_where_it_is_ours(text: str):
    file = Path("/h/config.yaml")
    former = mcpmux.servers_in(file, text, "extensions")
    entry = {"cmd": "/bin/uvx", "args": ["mcpmux", "--config", "ü: #"]}
    new = installed(file, text, "extensions", entry, former)
    assert mcpmux.servers_in(file, new, "extensions") == {ENTRY_NAME: entry}
    assert installed(file, new, "extensions", entry) == new
    assert mcpmux.uninstalled(file, new, text, "extensions") == (text, [])
    changed = "theme: dark\n" + new
    back, restored = mcpmux.uninstalled(file, changed, text, "extensions")
    assert back
    assert restored == list(former)
    assert mcpmux.servers_in(file, back, "extensions") == former
    for word in ("# first", "# the end", "last: 1"):
        assert (word in new) == (word in text) or word == "# first"


def run(home: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, *words]
    done = subprocess.run(command, input="", env=home, capture_output=True, encoding="utf-8", timeout=PATIENCE)
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.mark.skipif(sys.platform != "linux", reason="the places are those of Linux")
def test_import_shows_what_is_where_then_imports_it_and_nothing_twice(tmp_path: Path):
    home = empty_home(tmp_path)
    assert run(home, "import").stdout.startswith("None of these hosts has a file here: claude-desktop, ")
    written(tmp_path / ".cursor/mcp.json", '{"mcpServers": {"a": {"command": "x", "env": {"API_KEY": "zzz"}}}}')
    written(tmp_path / ".codex/config.toml", '[mcp_servers.b]\ncommand = "y"\n')
    written(tmp_path / ".gemini/settings.json", "{")
    shown = run(home, "import")
    assert shown.returncode == 0
    assert "mcpmux import HOST" in shown.stdout
    assert [line.split()[:2] for line in shown.stdout.splitlines()[1:4]] == [
        ["cursor", "a"],
        ["codex", "b"],
        ["gemini", "?"],
    ]
    dry = run(home, "import", "cursor", "--dry-run")
    assert "zzz" not in dry.stdout
    config = tmp_path / ".config/mcpmux/mcpmux.toml"
    assert not config.exists()
    done = run(home, "import", "all")
    assert done.returncode == 1, "a file is broken"
    assert "Gemini CLI: " in done.stdout
    assert "2 added" in done.stdout
    secrets = config.with_name("secrets.env")
    assert f"What was secret is in {secrets}" in done.stdout
    assert secrets.read_text() == "API_KEY=zzz\n"
    assert "zzz" not in done.stdout + config.read_text()
    assert list(tomllib.loads(config.read_text())["mcp_servers"]) == ["a", "b"]
    before = config.read_bytes()
    again = run(home, "import", "cursor")
    assert "is there already, as a" in again.stdout
    assert "Set these variables" not in again.stdout
    assert config.read_bytes() == before
    written(tmp_path / ".cursor/mcp.json", '{"mcpServers": {"a": {"command": "other"}}}')
    assert "there is another a, which --force overwrites" in run(home, "import", "cursor").stdout
    assert config.read_bytes() == before
    assert run(home, "import", "cursor", "--force").returncode == 0
    assert tomllib.loads(config.read_text())["mcp_servers"] == {"b": {"command": "y"}, "a": {"command": "other"}}
    assert run(home, "import", "--undo").returncode == 0
    assert config.read_bytes() == before
    assert run(home, "import", "--undo").returncode == 2


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals in Python's library")
def test_a_person_at_a_terminal_is_asked(tmp_path: Path):
    import pty

    home = empty_home(tmp_path)
    written(tmp_path / ".cursor/mcp.json", '{"mcpServers": {"a": {"command": "x"}}}')
    config = tmp_path / "mcpmux.toml"
    ours, theirs = pty.openpty()
    command = [*COMMAND, "import", "--config", str(config)]
    with subprocess.Popen(command, stdin=theirs, stdout=subprocess.PIPE, env=home) as process:
        os.write(ours, b"cursor\n")
        out, _ = process.communicate(timeout=PATIENCE)
    for end in (ours, theirs):
        os.close(end)
    assert b"Import from which host" in out
    assert list(mcpmux.load_config(config).servers) == ["a"]


def test_what_a_file_says_cannot_steer_the_terminal(desk: Desk, capsys: pytest.CaptureFixture[str]):
    """A project's file may be a stranger's."""
    servers = {"\x1b[31mred": {"command": "x", "\x07": 1}, "\x1b": {"type": "\x1b]0;", "url": "https://example.org"}}
    written(desk.file("cursor"), "// \x1b[2J\n" + json.dumps({"mcpServers": servers}, ensure_ascii=False))
    for words in (["import"], ["import", "cursor"], ["install", "cursor", "--replace", "--dry-run"]):
        desk.run(*words)
        out = capsys.readouterr().out
        assert "red" in out
        assert not {"\x1b", "\x07"} & set(out)


def test_a_file_is_imported_by_its_path(desk: Desk, tmp_path: Path):
    file = written(tmp_path / "some.json", '{"servers": {"a": {"command": "${userHome}/x"}}}')
    assert desk.run("import", str(file)) == 0
    assert mcpmux.load_config(desk.config).servers["a"].command == f"{desk.home}/x"


@pytest.mark.parametrize("command", ["import", "install", "uninstall"])
def test_a_misspelt_host_is_answered_with_the_nearest(command: str, desk: Desk, capsys: pytest.CaptureFixture[str]):
    assert desk.run(command, "cursr") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "did you mean cursor?" in err
    assert desk.run(command, "///") == 2
    assert "zed" in capsys.readouterr().err


def test_a_host_that_has_no_file_is_told_with_the_place(desk: Desk, capsys: pytest.CaptureFixture[str]):
    assert desk.run("import", "zed") == 2
    assert f"there is no {desk.file('zed')}" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["import", "install", "uninstall"])
def test_the_help_names_the_hosts(command: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        mcpmux.main([command, "--help"])
    out = "".join(capsys.readouterr().out.split())  # it breaks names, too, at their hyphens
    assert all(name in out for name in HOST_NAMES)
    assert "--dry-run" in out
    assert "example:mcpmux" in out


def test_vs_code_reads_a_tilde_in_arguments_as_the_home_and_others_do_not(tmp_path: Path, home: dict[str, str]):
    table = {"a": {"command": "x", "args": ["~/notes", "~", "--dir=~/x", "~you"]}}
    for folder, key, args in (
        (".vscode", "servers", [home["HOME"] + "/notes", home["HOME"]]),
        (".cursor", "mcpServers", ["~/notes", "~"]),
    ):
        file = written(tmp_path / folder / "mcp.json", json.dumps({key: table}))
        config = tmp_path / f"{key}.toml"
        assert run(home, "import", str(file), "--config", str(config)).returncode == 0
        assert tomllib.loads(config.read_text())["mcp_servers"]["a"]["args"] == [*args, "--dir=~/x", "~you"]
