"""Files that a person got wrong, and what is said of each: the place, and what to write there. All of it is our choice."""

# ruff: noqa: E501 - whole messages, each in a line

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from conftest import COMMAND, PATIENCE

import mcpmux
from mcpmux import ConfigError

# What stands in the file, and the whole message; {file} is its path.
FILES: dict[str, tuple[str | bytes, str]] = {
    "JSON": (
        '{\n  "mcpServers": { "a": { "command": "npx" } }\n}\n',
        "{file}: this is JSON, not TOML; rename it to {json}, and `mcpmux import {json}` takes its servers over",
    ),
    "JSON without its braces": (
        '"mcpServers": {\n  "a": { "command": "npx" }\n}\n',
        "{file}: this is JSON, not TOML; rename it to {json}, and `mcpmux import {json}` takes its servers over",
    ),
    "YAML": (
        "mcp_servers:\n  a:\n    command: npx\n",
        "{file}: this is YAML, not TOML; write [mcp_servers.NAME] above a server's keys",
    ),
    "a web page": ("<!DOCTYPE html>\n<title>404</title>\n", "{file}: this is a web page, not TOML"),
    "UTF-16": (
        b'\xff\xfe[\x00m\x00c\x00p\x00_\x00s\x00e\x00r\x00v\x00e\x00r\x00s\x00.\x00a\x00]\x00\n\x00c\x00o\x00m\x00m\x00a\x00n\x00d\x00 \x00=\x00 \x00"\x00n\x00p\x00x\x00"\x00\n\x00',
        "{file}: is UTF-16; save the file as UTF-8",
    ),
    "UTF-16 without a mark": (
        b'[\x00m\x00c\x00p\x00_\x00s\x00e\x00r\x00v\x00e\x00r\x00s\x00.\x00a\x00]\x00\n\x00c\x00o\x00m\x00m\x00a\x00n\x00d\x00 \x00=\x00 \x00"\x00n\x00p\x00x\x00"\x00\n\x00',
        "{file}: is UTF-16; save the file as UTF-8",
    ),
    "Latin-1": (b'[mcp_servers.a]\ncwd = "/home/zo\xe9"\n', "{file}: line 2 is not UTF-8; save the file as UTF-8"),
    "a Windows path": (
        '[mcp_servers.a]\ncommand = "C:\\Users\\ada\\server.exe"\n',
        "{file}:2: put a Windows path in single quotes: 'C:\\…'\n    command = \"C:\\Users\\ada\\server.exe\"\n              ^",
    ),
    "a Windows path among others": (
        '[mcp_servers.a]\ncommand = "npx"\nargs = ["-y", "D:\\Work"]\n',
        '{file}:3: put a Windows path in single quotes: \'C:\\…\'\n    args = ["-y", "D:\\Work"]\n                  ^',
    ),
    "a Windows share": (
        '[mcp_servers.a]\ncommand = "\\\\box\\tools\\x"\n',
        "{file}:2: put a Windows path in single quotes: 'C:\\…'\n    command = \"\\\\box\\tools\\x\"\n              ^",
    ),
    "a regular expression": (
        '[mcp_servers.a]\ncommand = "npx"\nargs = ["a\\d+"]\n',
        '{file}:3: in double quotes a \\ begins an escape such as \\n; use single quotes\n    args = ["a\\d+"]\n                ^',
    ),
    "curly quotes": (
        "[mcp_servers.a]\ncommand = “npx”\n",
        '{file}:2: these are curly quotes; use straight ones: "\n    command = “npx”\n              ^',
    ),
    "curly quotes in a list": (
        '[mcp_servers.a]\ncommand = "npx"\nargs = [“-y”]\n',
        '{file}:3: these are curly quotes; use straight ones: "\n    args = [“-y”]\n            ^',
    ),
    "no quotes": (
        "[mcp_servers.a]\ncommand = npx\n",
        '{file}:2: put text in quotes: "…"\n    command = npx\n              ^',
    ),
    "no quotes round a variable": (
        '[mcp_servers.a]\ncommand = "npx"\nenv = { TOKEN = ${TOKEN} }\n',
        '{file}:3: put text in quotes: "…"\n    env = { TOKEN = ${TOKEN} }\n                    ^',
    ),
    "no first quote": (
        '[mcp_servers.a]\ncommand = npx"\n',
        '{file}:2: put text in quotes: "…"\n    command = npx"\n              ^',
    ),
    "no last quote": (
        '[mcp_servers.a]\ncommand = "npx\nargs = []\n',
        '{file}:2: this string is never closed\n    command = "npx\n              ^',
    ),
    "no last quote of a secret": (
        '[mcp_servers.a]\ncommand = "npx"\nenv = { API_TOKEN = "hunter2\'s dog }\n',
        '{file}:3: this string is never closed\n    env = { API_TOKEN = "***\n                        ^',
    ),
    "no last single quote": (
        "[mcp_servers.a]\ncommand = 'npx\nargs = []\n",
        "{file}:2: this string is never closed\n    command = 'npx\n              ^",
    ),
    "no quote in a list": (
        '[mcp_servers.a]\ncommand = "npx"\nargs = ["-y, "x"]\n',
        '{file}:3: a comma or a quote is missing before this\n    args = ["-y, "x"]\n                  ^',
    ),
    "three quotes": (
        '[mcp_servers.a]\ncommand = """npx\nargs = []\n',
        '{file}:2: this string is never closed\n    command = """npx\n              ^',
    ),
    "a key twice": (
        '[mcp_servers.a]\ncommand = "npx"\nargs = []\ncommand = "uvx"\n',
        '{file}:4: command is already defined in line 2; merge the two\n    command = "uvx"\n    ^',
    ),
    "a table twice": (
        '[mcp_servers.a]\ncommand = "npx"\n\n[mcp_servers.b]\ncommand = "b"\n\n[mcp_servers.a]\ncommand = "uvx"\n',
        "{file}:7: [mcp_servers.a] is already defined in line 1; merge the two\n    [mcp_servers.a]\n    ^",
    ),
    "a table and a key": (
        '[mcp_servers.a]\ncommand = "npx"\nenv = { A = "1" }\n\n[mcp_servers.a.env]\nB = "2"\n',
        "{file}:5: [mcp_servers.a.env] is already defined in line 3; merge the two\n    [mcp_servers.a.env]\n    ^",
    ),
    "a key twice in braces": (
        '[mcp_servers.a]\ncommand = "npx"\nenv = { A = "1", A = "2" }\n',
        '{file}:3: the same key is here twice; delete one\n    env = { A = "1", A = "2" }\n    ^',
    ),
    "no bracket of a table": (
        '[mcp_servers.a\ncommand = "npx"\n',
        "{file}:1: a ] is missing at the end of this table's name\n    [mcp_servers.a\n                  ^",
    ),
    "no bracket of a list": (
        '[mcp_servers.a]\ncommand = "npx"\nargs = ["-y", "x"\nenv = {}\n',
        '{file}:3: this list is never closed; add ] after its last item\n    args = ["-y", "x"\n           ^',
    ),
    "no bracket at the end": (
        '[mcp_servers.a]\ncommand = "npx"\nargs = ["-y", "x"\n',
        '{file}:3: this list is never closed; add ] after its last item\n    args = ["-y", "x"\n           ^',
    ),
    "no comma": (
        '[mcp_servers.a]\ncommand = "npx"\nargs = ["-y" "x"]\n',
        '{file}:3: a comma or a quote is missing before this\n    args = ["-y" "x"]\n                 ^',
    ),
    "no comma in braces": (
        '[mcp_servers.a]\ncommand = "npx"\nenv = { A = "1" B = "2" }\n',
        '{file}:3: a comma or a quote is missing before this\n    env = { A = "1" B = "2" }\n                    ^',
    ),
    "a comma at the end": (
        '[mcp_servers.a]\ncommand = "npx",\n',
        '{file}:2: delete the comma at the end of the line\n    command = "npx",\n                   ^',
    ),
    "a colon": (
        '[mcp_servers.a]\ncommand: "npx"\n',
        '{file}:2: write = in place of :\n    command: "npx"\n           ^',
    ),
    "a comment of JavaScript": (
        '// mine\n[mcp_servers.a]\ncommand = "npx"\n',
        "{file}:1: comments start with #\n    // mine\n    ^",
    ),
    "a comment of JavaScript behind": (
        '[mcp_servers.a]\ncommand = "npx" // mine\n',
        '{file}:2: comments start with #\n    command = "npx" // mine\n                    ^',
    ),
    "a comment of an INI file": (
        '; mine\n[mcp_servers.a]\ncommand = "npx"\n',
        "{file}:1: comments start with #\n    ; mine\n    ^",
    ),
    "True": (
        '[mcp_servers.a]\ncommand = "npx"\nenabled = True\n',
        "{file}:3: write true or false in lower case\n    enabled = True\n              ^",
    ),
    "yes": (
        '[mcp_servers.a]\ncommand = "npx"\nenabled = yes\n',
        "{file}:3: write true or false\n    enabled = yes\n              ^",
    ),
    "null": (
        '[mcp_servers.a]\ncommand = "npx"\ncwd = null\n',
        "{file}:3: TOML has no null; leave the key out\n    cwd = null\n          ^",
    ),
    "no value": ("[mcp_servers.a]\ncommand =\n", "{file}:2: a value is missing here\n    command =\n             ^"),
    "a name with a space": (
        '[mcp_servers.my server]\ncommand = "npx"\n',
        "{file}:1: a server's name may have A-Z a-z 0-9 _ - only (64 at most)\n    [mcp_servers.my server]\n                    ^",
    ),
    "a shell's line": ("export TOKEN=1\n", "{file}:1: write NAME = value, without export\n    export TOKEN=1\n    ^"),
    "seconds with a unit": (
        '[mcp_servers.a]\ncommand = "npx"\nstartup_timeout_sec = 60s\n',
        "{file}:3: write a plain number of seconds\n    startup_timeout_sec = 60s\n                            ^",
    ),
    "a number with zeros": (
        '[mcp_servers.a]\ncommand = "npx"\nstartup_timeout_sec = 060\n',
        "{file}:3: delete the 0 in front of this number\n    startup_timeout_sec = 060\n                           ^",
    ),
    "a merge": (
        '<<<<<<< HEAD\n[mcp_servers.a]\ncommand = "npx"\n',
        "{file}:1: this is left over from a merge; keep one of the two versions\n    <<<<<<< HEAD\n    ^",
    ),
    "a no-break space": (
        '[mcp_servers.a]\ncommand\xa0= "npx"\n',
        '{file}:2: this is a no-break space; type a plain one\n    command\xa0= "npx"\n           ^',
    ),
    "a NUL": (
        '[mcp_servers.a]\ncommand = "a\x00b"\n',
        '{file}:2: delete this control character\n    command = "a\\x00b"\n                ^',
    ),
    "a line of words": (
        "my servers\n",
        "{file}:1: expected KEY = value, a [table] or a # comment\n    my servers\n       ^",
    ),
    "nested without end": ("a = " + "[" * 5000, "{file}: not TOML: it is nested too deeply"),
    "another host's table": (
        '[mcpServers.a]\ncommand = "npx"\n',
        "{file}: mcpServers: unknown key; write [mcp_servers.NAME]",
    ),
    "a server at the top": ('[time]\ncommand = "npx"\n', "{file}: time: unknown key; write [mcp_servers.time]"),
}

KEYS = {
    "disabled": (
        '[mcp_servers.a]\ncommand = "npx"\ndisabled = true\n',
        "mcpmux.toml: mcp_servers.a.disabled: unknown key; write enabled = false for a server that is left out",
    ),
    "timeout": (
        '[mcp_servers.a]\ncommand = "npx"\ntimeout = 60000\n',
        "mcpmux.toml: mcp_servers.a.timeout: unknown key; write tool_timeout_sec, in seconds (many hosts count milliseconds)",
    ),
    "type": (
        '[mcp_servers.a]\ncommand = "npx"\ntype = "stdio"\n',
        'mcpmux.toml: mcp_servers.a.type: unknown key; leave it out: a server with a command is local, one with a url is remote (over SSE: transport = "sse")',
    ),
    "headers": (
        '[mcp_servers.a]\nurl = "https://x.example"\nheaders = {}\n',
        "mcpmux.toml: mcp_servers.a.headers: unknown key; write http_headers",
    ),
    "httpUrl": (
        '[mcp_servers.a]\nhttpUrl = "https://x.example"\n',
        "mcpmux.toml: mcp_servers.a.httpUrl: unknown key; write url; mcpmux.toml: mcp_servers.a: needs a command or a url",
    ),
    "envFile": (
        '[mcp_servers.a]\ncommand = "npx"\nenvFile = ".env"\n',
        "mcpmux.toml: mcp_servers.a.envFile: unknown key; write env_file in [mux]",
    ),
    "autoApprove": (
        '[mcp_servers.a]\ncommand = "npx"\nautoApprove = []\n',
        "mcpmux.toml: mcp_servers.a.autoApprove: unknown key; leave it out: your host asks before it calls a tool; `approve` names tools that mcpmux asks about",
    ),
    "sandboxEnabled": (
        '[mcp_servers.a]\ncommand = "npx"\nsandboxEnabled = true\n',
        "mcpmux.toml: mcp_servers.a.sandboxEnabled: unknown key; leave it out: mcpmux runs servers without a sandbox",
    ),
    "disabledTools": (
        '[mcp_servers.a]\ncommand = "npx"\ndisabledTools = []\n',
        "mcpmux.toml: mcp_servers.a.disabledTools: unknown key; write disabled_tools",
    ),
    "a misspelt key": (
        '[mcp_servers.a]\ncommand = "npx"\narg = []\n',
        'mcpmux.toml: mcp_servers.a.arg: unknown key; did you mean "args"?',
    ),
    "a path whose backslash was an escape": (
        '[mcp_servers.a]\ncommand = "C:\\tools\\new.exe"\n',
        "mcpmux.toml: mcp_servers.a.command: \\t, \\n and the like in a path become control characters; write the path in single quotes",
    ),
}


def said_of(content: str | bytes, folder: Path) -> str:
    """The file's error, or that of its server `a`."""
    file = folder / "mcpmux.toml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    try:
        return mcpmux.load_config(file).broken["a"]
    except ConfigError as wrong:
        return str(wrong)


@pytest.mark.parametrize(("content", "message"), FILES.values(), ids=FILES)
def test_a_file_that_cannot_be_used_says_where_it_is_wrong_and_what_to_write(
    content: str | bytes, message: str, tmp_path: Path
):
    expected = message.replace("{file}", str(tmp_path / "mcpmux.toml"))
    assert said_of(content, tmp_path) == expected.replace("{json}", str(tmp_path / "mcpmux.json"))


@pytest.mark.parametrize(("content", "message"), KEYS.values(), ids=KEYS)
def test_what_is_meant_for_another_host_is_translated(content: str, message: str, tmp_path: Path):
    assert said_of(content, tmp_path) == message


def test_every_place_is_named_before_anything_else():
    """The picture of the place follows in lines of its own, which the log leaves out."""
    for _, message in FILES.values():
        first, *picture = message.splitlines()
        assert re.match(r"\{file\}(:\d+)?: \S", first)
        assert len(picture) in (0, 2)
        assert all(line.startswith("    ") for line in picture)


@pytest.mark.parametrize(
    "line",
    [
        "API_TOKEN = hunter2-is-secret",
        'env = { A = "b", API_TOKEN = "hunter2-is-secret }',
        """env = { API_TOKEN = "it's hunter2-is-secret }""",
        'args = ["--api-key", "hunter2-is-secret]',
        'args = ["--api-key=hunter2-is-secret", x]',
        'url = "https://ada:hunter2-is-secret@example.com" x',
        'args = ["ghp_hunter2-is-secret0123456789abcdef" x]',
    ],
)
def test_a_line_that_is_shown_holds_no_secret(line: str, tmp_path: Path):
    said = said_of(f"[mcp_servers.a]\n{line}\n", tmp_path)
    assert ":2: " in said
    assert "hunter2" not in said
    assert "***" in said


def test_of_a_long_line_the_place_is_shown(tmp_path: Path):
    said = said_of("a = [" + '"x", ' * 500 + '"y" "z"]\n', tmp_path)
    _, line, caret = said.splitlines()
    assert len(line) < 120
    assert line[caret.index("^") :].startswith('"z"')


def test_the_place_is_shown_below_the_message(home: dict[str, str], tmp_path: Path):
    file = tmp_path / "mcpmux.toml"
    file.write_text("[mcp_servers.a]\ncommand = npx\n")
    done = subprocess.run(
        [*COMMAND, "check", "--config", str(file)], env=home, capture_output=True, encoding="utf-8", timeout=PATIENCE
    )
    expected = f'mcpmux: {file}:2: put text in quotes: "…"\n    command = npx\n              ^\n'
    assert (done.returncode, done.stdout, done.stderr) == (2, "", expected)


def test_a_tilde_in_args_is_noted(tmp_path: Path):
    """Hosts start servers without a shell: nobody would make a folder of it."""
    file = tmp_path / "mcpmux.toml"
    file.write_text('[mcp_servers.a]\ncommand = "npx"\nargs = ["-y", "~/notes"]\n')
    where = "mcp_servers.a.args[1]"
    assert mcpmux.load_config(file).notes == [
        f"{where}: ~ reaches the server as it is, there is no shell; write ${{HOME}}/notes"
    ]


# ── the schema ──


def test_the_schema_knows_every_key_and_says_what_it_means():
    schema = json.loads(json.dumps(mcpmux.schema_of_config()))
    assert set(schema["properties"]) == {"mux", "hosts", "mcp_servers", "sampling"}
    for kind in (mcpmux.MuxOptions, mcpmux.ServerOptions, mcpmux.ToolOverride, mcpmux.SamplingLimits):
        table = schema["definitions"][kind.__name__]
        assert set(mcpmux.keys_of(kind)) <= set(table["properties"])
        assert table["additionalProperties"] is False
        assert all(table["properties"][key]["description"] for key, words in mcpmux.words_of(kind).items() if words)
    assert r"\Z" not in json.dumps(schema)
    assert "](#" not in json.dumps(schema)


def test_a_file_that_mcpmux_begins_names_its_schema_and_has_it_beside_it(home: dict[str, str], tmp_path: Path):
    file = tmp_path / "mcpmux.toml"
    command = [*COMMAND, "add", "a", "--config", str(file), "--", "npx"]
    subprocess.run(command, env=home, capture_output=True, check=True, timeout=PATIENCE)
    assert file.read_text().startswith("#:schema ./mcpmux.schema.json\n\n[mcp_servers.a]\n")
    assert json.loads((tmp_path / "mcpmux.schema.json").read_text()) == mcpmux.schema_of_config()
    printed = subprocess.run([*COMMAND, "schema"], env=home, capture_output=True, check=True, timeout=PATIENCE).stdout
    assert json.loads(printed) == mcpmux.schema_of_config()
