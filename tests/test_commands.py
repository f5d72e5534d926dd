"""The everyday commands: add, list, tools, call. Nearly all of it is our choice."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from conftest import COMMAND, PATIENCE, RawHost, Terminal, is_running, server_table
from test_cli import FAKE_TOOLS, Done, run, written

import mcpmux

needs_pty = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals in Python's library")
SECRET = "word-of-ada"


@pytest.fixture
def config(tmp_path: Path, home: dict[str, str]) -> Path:
    """Where the config of `home` is; nothing is there yet."""
    home["MCPMUX_CONFIG"] = str(tmp_path / "mcpmux.toml")
    return tmp_path / "mcpmux.toml"


# ── add ──

COMMENTED = """\
# What I use every day.
[mux]
log_level = "debug"   # while I look for something

[mcp_servers.time]    # the first
command = "uvx"
args = [
    "mcp-server-time",  # from PyPI
]
"""


SCHEMA = "#:schema ./mcpmux.schema.json\n\n"  # how a file of ours begins


@pytest.mark.parametrize(
    "before",
    [
        COMMENTED.encode(),
        COMMENTED.rstrip().encode(),
        COMMENTED.replace("\n", "\r\n").encode(),
        b"\xef\xbb\xbf" + COMMENTED.encode(),
        b"# nothing yet",
        b"\n\n",
        b"",
    ],
    ids=["commented", "no newline at its end", "CRLF", "byte order mark", "a comment", "blank lines", "empty"],
)
def test_add_keeps_every_byte_and_appends_one_block(before: bytes, config: Path, home: dict[str, str]):
    config.write_bytes(before)
    done = run(home, "add", "git", "-e", "A=b", "--", "uvx", "mcp-server-git", "--repository", "/x y")
    assert (done.returncode, done.stderr) == (0, "")
    assert str(config) in done.stdout
    after = config.read_bytes()
    assert after.startswith(before)
    newline = b"\r\n" if b"\r\n" in before else b"\n"
    block = [
        b"[mcp_servers.git]",
        b'command = "uvx"',
        *(b"args = [", b'    "mcp-server-git",', b'    "--repository",', b'    "/x y",', b"]"),
        *(b"", b"[mcp_servers.git.env]", b'A = "b"'),
    ]
    assert after[len(before) :].removeprefix(SCHEMA.encode()).strip().split(newline) == block
    assert after.endswith(newline)
    assert mcpmux.load_config(config).servers["git"].env == {"A": "b"}


def test_add_begins_the_file_where_it_is_looked_for(home: dict[str, str]):
    done = run(home, "add", "git", "--", "uvx", "mcp-server-git")
    path = re.match(r"added git to (.+mcpmux\.toml)\n", done.stdout)
    assert path
    assert path[1].startswith(home["HOME"])
    assert (
        Path(path[1]).read_text() == f'{SCHEMA}[mcp_servers.git]\ncommand = "uvx"\nargs = [\n    "mcp-server-git",\n]\n'
    )
    assert "git" in run(home, "list").stdout


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["time", "--", "x"], "has a server time already"),
        (["off", "--", "x"], "has a server off already"),
        (["wrong", "--", "x"], "has a server wrong already"),
        (["a b", "--", "x"], "A-Z a-z 0-9 _ - only"),
        (["", "--", "x"], "A-Z a-z 0-9 _ - only"),
        (["new"], "mcpmux add new -- uvx mcp-server-time"),
        (["new", "--"], "mcpmux add new -- uvx mcp-server-time"),
        (["new", "--url", "https://x.example", "--", "x"], "a command or a --url"),
        (["new", "uvx", "mcp-server-git"], "stands after --"),
        (["new", "--env", "TOKEN", "--", "x"], "KEY=VALUE is expected"),
        (["new", "--", "x", "${env:HOME}"], "write ${HOME}"),
    ],
)
def test_add_refuses_what_would_not_load_and_leaves_the_file(
    words: list[str], says: str, config: Path, home: dict[str, str]
):
    written(config, COMMENTED, server_table("off", enabled=False), server_table("wrong", comand="x"))
    before = config.read_bytes()
    done = run(home, "add", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr
    assert config.read_bytes() == before


@pytest.mark.parametrize("before", ['mcp_servers = { a = { command = "x" } }\n', "[mux", "mcp_servers = 1\n"])
def test_add_leaves_a_file_that_a_block_does_not_fit_to(before: str, config: Path, home: dict[str, str]):
    written(config, before)
    done = run(home, "add", "new", "--", "x")
    assert (done.returncode, done.stdout) == (2, "")
    assert str(config) in done.stderr
    assert config.read_text() == before


def test_add_writes_whatever_a_word_holds(config: Path, home: dict[str, str]):
    words = ['"quoted"', "back\\slash", "line\nbreak", "\x7f\x01", "é😀", "--", "--json", "-e", "", "$${x}"]
    assert run(home, "add", "odd", "-e", "a.b=c=d", "--", "x", *words).returncode == 0
    table = tomllib.loads(config.read_text(encoding="utf-8"))["mcp_servers"]["odd"]
    assert table == {"command": "x", "args": words, "env": {"a.b": "c=d"}}


def test_add_says_that_a_secret_is_better_read_from_the_environment(config: Path, home: dict[str, str]):
    done = run(home, "add", "a", "--env", f"API_KEY={SECRET}", "--", "x")
    assert "--env 'API_KEY=${API_KEY}'" in done.stdout
    assert "secret" in run(home, "add", "b", "--", "x", "--token", SECRET).stdout
    assert "note" not in run(home, "add", "c", "--env", "API_KEY=${API_KEY}", "--", "x", "--token", "${T}").stdout
    assert SECRET not in done.stdout + done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has neither these modes nor links for everybody")
def test_add_keeps_the_files_modes_and_the_link_to_it(tmp_path: Path, config: Path, home: dict[str, str]):
    real = written(tmp_path / "dotfiles" / "mcpmux.toml", COMMENTED)
    real.chmod(0o640)
    config.symlink_to(real)
    assert run(home, "add", "git", "--", "x").returncode == 0
    assert config.is_symlink()
    assert real.stat().st_mode & 0o777 == 0o640
    assert "git" in real.read_text()
    assert [path.name for path in real.parent.iterdir()] == ["mcpmux.toml"]


def test_adding_an_address_writes_a_url_or_leaves_the_file(config: Path, home: dict[str, str]):
    done = run(home, "add", "far", "--url", "https://mcp.example/mcp")
    if done.returncode == 0:
        assert config.read_text() == f'{SCHEMA}[mcp_servers.far]\nurl = "https://mcp.example/mcp"\n'
    else:
        assert "far.url" in done.stderr
        assert not config.exists()


# ── list ──


def test_list_shows_each_server_and_starts_none(tmp_path: Path, config: Path, home: dict[str, str]):
    pids = tmp_path / "pids"
    written(
        config,
        server_table("fake", "--pid-file", str(pids)),
        server_table("off", enabled=False),
        server_table("wrong", comand="x"),
    )
    done = run(home, "list")
    assert done.returncode == 0
    rows = {line.split()[0]: line.split()[1:4] for line in done.stdout.splitlines()[:4]}
    assert rows == {
        "SERVER": ["STATE", "REVISION", "TOOLS"],
        "fake": ["enabled", "-", "-"],
        "off": ["disabled", "-", "-"],
        "wrong": ["broken", "-", "-"],
    }
    assert 'did you mean "command"?' in done.stdout
    assert not pids.exists()
    run(home, "check")
    count = pids.read_text()
    assert re.search(rf"^fake +enabled +2025-11-25 +{len(FAKE_TOOLS)} ", run(home, "list").stdout, re.MULTILINE)
    told = json.loads(run(home, "list", "--json").stdout)
    assert told["config"] == str(config)
    fake, off, wrong = told["servers"]
    assert (fake["era"], fake["revision"]) == ("legacy", "2025-11-25")
    assert fake["tools"] == [f"fake__{tool}" for tool in FAKE_TOOLS]
    assert (off["state"], off["tools"], wrong["state"]) == ("disabled", None, "broken")
    assert pids.read_text() == count


def test_list_shows_a_remote_server_by_its_address_and_no_header(config: Path, home: dict[str, str]):
    written(
        config,
        f'[mcp_servers.far]\nurl = "https://ada:{SECRET}@x.example/mcp?api_key={SECRET}"',
        f'http_headers = {{ X-Key = "{SECRET}", X-Other = "value-of-a-header" }}',
    )
    for words in (["list"], ["list", "--json"]):
        done = run(home, *words)
        assert "***@x.example/mcp?api_key=***" in done.stdout
        assert SECRET not in done.stdout
        assert "value-of-a-header" not in done.stdout


def test_list_without_servers_says_how_to_add_one(config: Path, home: dict[str, str]):
    for _ in range(2):
        done = run(home, "list")
        assert done.returncode == 0
        assert "mcpmux add NAME -- COMMAND" in done.stdout
        written(config, "")


HIDDEN_WORDS = [
    (["--token", SECRET], ["--token", "***"]),
    (["--api-key=" + SECRET], ["--api-key=***"]),
    (["--openai_api_key", SECRET, "x"], ["--openai_api_key", "***", "x"]),
    (["-e", f"GITHUB_TOKEN={SECRET}"], ["-e", "GITHUB_TOKEN=***"]),
    (["-H", f"Authorization: Bearer {SECRET}"], ["-H", "Authorization: Bearer ***"]),
    ([f"postgres://ada:{SECRET}@db/x"], ["postgres://ada:***@db/x"]),
    ([f"https://x.example/mcp?api_key={SECRET}&a=b"], ["https://x.example/mcp?api_key=***&a=b"]),
    (["ghp_0123456789abcdef"], ["***"]),
    (["--token", "${TOKEN}"], ["--token", "${TOKEN}"]),
    (["--api-key=${cmd:op read x}"], ["--api-key=${cmd:op read x}"]),
    (["--repository", "/home/ada", "--verbose"], ["--repository", "/home/ada", "--verbose"]),
    (["--keyboard", "qwerty", "https://x.example/?q=key"], ["--keyboard", "qwerty", "https://x.example/?q=key"]),
    (["--token", "a", "--name", "ada"], ["--token", "***", "--name", "ada"]),
]


def test_what_a_server_says_cannot_steer_the_terminal_nor_turn_its_text_round():
    said = "a\x1b[2J\x9b\u202egpj.exe\u2066 café\u00a0\U0001f469\u200d\U0001f680\n\tb"
    shown = "a\\x1b[2J\\x9b\\u202egpj.exe\\u2066 café\u00a0\U0001f469\u200d\U0001f680\n\tb"
    assert mcpmux.harmless(said) == shown


@pytest.mark.parametrize(("words", "shown"), HIDDEN_WORDS)
def test_what_is_secret_of_a_command_line_is_not_shown(words: list[str], shown: list[str]):
    assert mcpmux.without_secrets(words) == shown


def test_no_command_tells_a_secret(config: Path, home: dict[str, str]):
    """Neither one of the environment, nor of the variables, nor one that stands in the arguments; the server says them
    all on stderr."""
    secrets = {"OUTSIDE": "outside-of-ada", "A_TOKEN": "variable-of-ada", "--api-key": "argument-of-ada"}
    last_words = "import os, sys; print('it was', sys.argv, os.environ['A_TOKEN'], file=sys.stderr); sys.exit(3)"
    args = ["-c", last_words, "--api-key", secrets["--api-key"], "${OUTSIDE}"]
    written(
        config,
        f"[mcp_servers.dies]\ncommand = {json.dumps(sys.executable)}\nargs = {json.dumps(args)}",
        f'env = {{ A_TOKEN = "{secrets["A_TOKEN"]}" }}',
    )
    said = ""
    for words in (["list"], ["list", "--json"], ["check"], ["check", "--json"], ["tools"], ["call", "dies__x"]):
        done = run(home | {"OUTSIDE": secrets["OUTSIDE"]}, *words)
        said += done.stdout + done.stderr
    assert "it was" in said
    assert "${OUTSIDE}" in said
    for log in Path(home["HOME"]).rglob("*.log"):
        said += log.read_text()
    for secret in secrets.values():
        assert secret not in said


# ── tools ──


def fake_list(*tools: dict[str, Any]) -> list[str]:
    return ["--list", json.dumps({"tools": list(tools)})]


SEARCH = {
    "name": "search",
    "title": "Search it all",
    "description": "\n  Finds what there is.\n\nAnd more that is not shown.",
    "inputSchema": {
        "type": "object",
        "properties": {
            "query": {"type": "string"},
            "limit": {"type": ["integer", "null"]},
            "kind": {"enum": ["a", "b"]},
            "tags": {"type": "array", "items": {"type": "string"}},
        },
        "required": ["query"],
    },
}


def test_tools_shows_names_arguments_and_the_first_line_of_each(config: Path, home: dict[str, str]):
    written(config, server_table("one", *fake_list(SEARCH)), server_table("two", *fake_list({"name": "nothing"})))
    done = run(home, "tools")
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        'one__search(query: string, limit?: integer | null, kind?: "a" | "b", tags?: string[])',
        "    Search it all: Finds what there is.",
        "two__nothing()",
        "    nothing",
    ]
    one, two = json.loads(run(home, "tools", "--json").stdout)["tools"]
    assert one == {"server": "one", **SEARCH, "name": "one__search"}
    assert two["server"] == "two"


def test_tools_starts_only_what_it_has_never_heard_of(tmp_path: Path, config: Path, home: dict[str, str]):
    pids = [tmp_path / "one", tmp_path / "two"]
    written(config, *(server_table(path.name, "--pid-file", str(path)) for path in pids))
    assert "one__echo" in run(home, "tools", "one").stdout
    assert pids[0].exists()
    assert not pids[1].exists()
    done = run(home, "tools")
    assert "one__echo" in done.stdout
    assert "two__echo" in done.stdout
    assert "one: " not in done.stderr
    assert [len(path.read_text().split()) for path in pids] == [1, 1]
    assert "one__echo" not in run(home, "tools", "two").stdout
    assert [len(path.read_text().split()) for path in pids] == [1, 1]


def test_tools_says_why_a_server_has_none_and_shows_the_others(config: Path, home: dict[str, str]):
    written(config, server_table("good"), server_table("dies", "--exit", "3"), server_table("wrong", comand="x"))
    done = run(home, "tools")
    assert done.returncode == 1
    assert "good__echo" in done.stdout
    assert "mcpmux: dies exited with code 3" in done.stderr
    assert 'did you mean "command"?' in done.stderr
    told = json.loads(run(home, "tools", "--json").stdout)
    assert list(told["failed"]) == ["dies", "wrong"]


@pytest.mark.parametrize(
    ("server", "says"),
    [
        ("githib", "has no server githib; did you mean github?"),
        ("zzz", "there are: github"),
        ("off", "enabled = false"),
        ("wrong", 'did you mean "command"?'),
    ],
)
def test_tools_of_a_server_that_is_none_says_which_one_is_near(
    server: str, says: str, config: Path, home: dict[str, str]
):
    written(config, server_table("github"), server_table("off", enabled=False), server_table("wrong", comand="x"))
    done = run(home, "tools", server)
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr


def test_a_reader_that_goes_away_is_no_traceback(config: Path, home: dict[str, str]):
    big = {"name": "big", "description": "x" * 50_000}
    written(config, server_table("one", *fake_list(*({**big, "name": f"big{n}"} for n in range(20)))))
    with subprocess.Popen(
        [*COMMAND, "tools", "--json"], env=home, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.read(10)
        process.stdout.close()
        said = process.stderr.read()
    assert b"Traceback" not in said
    assert b"Exception" not in said


def test_accept_shows_what_has_changed_and_takes_it(config: Path, home: dict[str, str]):
    def says(description: str) -> None:
        tools = fake_list({"name": "log", "description": description}, {"name": "other"})
        written(config, server_table("git", *tools, pin=True), server_table("free", *tools))

    says("Shows the log")
    assert run(home, "accept", "git").stdout == "Nothing has changed: all tools of git are as they were accepted.\n"
    says("Sends \x1b[2Jyour keys away")
    shown = run(home, "accept", "git")
    assert shown.returncode == 1
    assert '-  "description": "Shows the log"' in shown.stdout and '+  "description": "Sends' in shown.stdout
    assert "\x1b" not in shown.stdout
    assert shown.stdout.endswith(
        "Use 1 tool of git as above? Say --yes where nobody can be asked.\nNothing was accepted.\n"
    )
    assert run(home, "accept", "git", "--yes").stdout.endswith(
        "Accepted: log. A running mcpmux hears of it within seconds.\n"
    )
    assert run(home, "accept", "git").returncode == 0
    free = run(home, "accept", "free")
    assert free.returncode == 2
    assert "free has no pin = true in its table" in free.stderr


# ── call ──


def call(env: dict[str, str], tool: str, *words: str, **arguments: Any) -> Done:
    return run(env, "call", tool, json.dumps(arguments), *words)


def result_of(config: Path, home: dict[str, str], result: dict[str, Any], *words: str) -> Done:
    """What is made of a result, byte for byte as it is given."""
    if not config.exists():
        written(config, server_table("fake"))
    return call(home, "fake__raw", *words, result=json.dumps(result))


def test_call_prints_text_as_it_is(config: Path, home: dict[str, str]):
    written(config, server_table("fake"))
    done = call(home, "fake__echo", said="héllo")
    assert (done.returncode, done.stdout) == (0, '{"said": "h\\u00e9llo"}\n')


def test_call_starts_only_the_tools_server(tmp_path: Path, config: Path, home: dict[str, str]):
    pids = [tmp_path / "one", tmp_path / "two"]
    written(config, *(server_table(path.name, "--pid-file", str(path)) for path in pids))
    for warm in (False, True):
        if warm:
            run(home, "check")
            pids[1].unlink()
        assert call(home, "one__echo").returncode == 0
        assert pids[0].exists()
        assert not pids[1].exists()


def test_call_finds_a_tool_by_the_name_that_the_host_sees(config: Path, home: dict[str, str]):
    """Two servers collide, one is bare, one renames: what `tools` prints is what `call` takes."""
    written(
        config,
        server_table("one", prefix="x"),
        server_table("two", prefix="x"),
        server_table("bare", *fake_list({"name": "echo"}), prefix=""),
        server_table("new", *fake_list({"name": "echo"})) + '[mcp_servers.new.tools.echo]\nname = "repeat"\n',
    )
    names = [tool["name"] for tool in json.loads(run(home, "tools", "--json").stdout)["tools"]]
    assert {"x__echo", "two__echo", "echo", "new__repeat"} <= set(names)
    for name in ("x__pid", "two__echo", "echo", "new__repeat"):
        assert call(home, name).returncode == 0, name


def test_call_of_a_bare_tool_that_nobody_knows_yet_asks_the_servers_without_a_prefix(
    tmp_path: Path, config: Path, home: dict[str, str]
):
    other = tmp_path / "other"
    written(config, server_table("fake", prefix=""), server_table("other", "--pid-file", str(other)))
    assert call(home, "echo", a=1).stdout == '{"a": 1}\n'
    assert not other.exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["fake__ehco"], "there is no tool fake__ehco; did you mean fake__echo?"),
        (["echo"], "did you mean fake__echo?"),
        (["fkae__echo"], "did you mean fake__echo?"),
        (["zzz__yyy"], "there is no server zzz"),
        (["off__echo"], "enabled = false"),
        (["wrong__echo"], 'did you mean "command"?'),
        (["fake__echo", "{"], "are not JSON"),
        (["fake__echo", "[1]"], "or a JSON object"),
        (["fake__echo", "said:=x"], "are not JSON"),
    ],
)
def test_what_cannot_be_called_is_refused_with_what_is_near(
    words: list[str], says: str, config: Path, home: dict[str, str]
):
    written(config, server_table("fake"), server_table("off", enabled=False), server_table("wrong", comand="x"))
    run(home, "check")
    done = run(home, "call", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr


def test_a_misspelt_tool_is_refused_with_what_is_near_also_before_the_server_is_known(
    config: Path, home: dict[str, str]
):
    written(config, server_table("fake"))
    done = run(home, "call", "fake__ehco")
    assert done.returncode == 2
    assert "did you mean fake__echo?" in done.stderr


def test_a_misspelt_command_is_refused_with_the_nearest(home: dict[str, str]):
    assert "did you mean tools?" in run(home, "tolls").stderr


def test_arguments_may_come_from_stdin(config: Path, home: dict[str, str]):
    written(config, server_table("fake"))
    command = [*COMMAND, "call", "fake__echo", "-"]
    done = subprocess.run(command, input=b'{"a": [1]}', env=home, capture_output=True, timeout=PATIENCE)
    assert done.stdout == b'{"a": [1]}' + os.linesep.encode()


def test_a_failure_of_the_tool_is_told_on_stderr_and_by_1(config: Path, home: dict[str, str]):
    content = [{"type": "text", "text": "no such file"}]
    done = result_of(config, home, {"content": content, "isError": True})
    assert (done.returncode, done.stdout) == (1, "")
    assert "no such file" in done.stderr


def test_a_server_that_dies_in_the_call_is_told_with_its_reason(config: Path, home: dict[str, str]):
    written(config, server_table("fake"), server_table("dies", "--exit", "4"))
    done = call(home, "fake__crash")
    assert (done.returncode, done.stdout) == (1, "")
    assert 'exited with code 3; its last words: "about to crash"' in done.stderr
    for _ in range(2):  # cold, and with the failure remembered
        done = call(home, "dies__x")
        assert (done.returncode, done.stdout) == (1, "")
        assert "dies exited with code 4" in done.stderr


def test_an_error_of_the_protocol_is_told_with_its_code(config: Path, home: dict[str, str]):
    written(config, server_table("fake", "--also", "write"))
    reply = '{"jsonrpc":"2.0","id":$ID,"error":{"code":-32602,"message":"not like this"}}\n'
    done = call(home, "fake__write", text=reply)
    assert (done.returncode, done.stdout) == (1, "")
    assert "mcpmux: not like this (-32602)" in done.stderr
    done = call(home, "fake__write", "--json", text=reply)
    assert (done.returncode, json.loads(done.stdout)) == (1, {"error": {"code": -32602, "message": "not like this"}})


def test_json_is_the_result_as_it_came(config: Path, home: dict[str, str]):
    result = '{"content": [ ], "structuredContent": {"n": 1.0}, "x-unknown": [1e2]}'
    written(config, server_table("fake"))
    done = call(home, "fake__raw", "--json", result=result)
    assert (done.returncode, done.stdout) == (0, result + "\n")


PNG = b"\x89PNG\r\n\x1a\n"
IMAGE = {"type": "image", "data": base64.b64encode(PNG).decode(), "mimeType": "image/png"}
BLOB = {"uri": "mem://b", "mimeType": "application/gzip", "blob": base64.b64encode(b"zip").decode()}


@pytest.mark.parametrize(
    ("result", "shown"),
    [
        ({"content": [], "structuredContent": {"a": [1]}}, '{\n  "a": [\n    1\n  ]\n}\n'),
        ({"content": [{"type": "text", "text": "t"}], "structuredContent": {"a": 1}}, "t\n"),
        ({"content": [IMAGE]}, "(image/png, 8 bytes; --output FILE keeps it)\n"),
        ({"content": [{"type": "resource", "resource": {"uri": "mem://t", "text": "tt"}}]}, "mem://t\ntt\n"),
        (
            {"content": [{"type": "resource", "resource": BLOB}]},
            "mem://b\n(application/gzip, 3 bytes; --output FILE keeps it)\n",
        ),
        (
            {"content": [{"type": "resource_link", "uri": "mem://l", "name": "n", "mimeType": "text/plain"}]},
            "mem://l (n, text/plain)\n",
        ),
        ({"content": [{"type": "hologram", "x": 1}]}, '{"type": "hologram", "x": 1}\n'),
        ({"content": [{**IMAGE, "data": "!"}]}, None),
    ],
)
def test_each_kind_of_content_is_shown_sensibly(
    result: dict[str, Any], shown: str | None, config: Path, home: dict[str, str]
):
    done = result_of(config, home, result)
    assert done.returncode == 0
    assert done.stdout == shown or (shown is None and "image/png" in done.stdout)


def test_output_keeps_what_is_no_text(tmp_path: Path, config: Path, home: dict[str, str]):
    one = tmp_path / "one.png"
    done = result_of(config, home, {"content": [IMAGE, {"type": "text", "text": "t"}]}, "--output", str(one))
    assert done.stdout == f"(image/png, 8 bytes: {one})\nt\n"
    assert one.read_bytes() == PNG
    folder = tmp_path / "new folder"
    done = result_of(config, home, {"content": [IMAGE, {"type": "resource", "resource": BLOB}]}, "-o", str(folder))
    assert sorted(path.name for path in folder.iterdir()) == ["image-1.png", "resource-2.gz"]
    assert (folder / "resource-2.gz").read_bytes() == b"zip"
    done = result_of(config, home, {"content": [IMAGE]}, "-o", str(folder))
    assert (folder / "image-1.png").read_bytes() == PNG
    done = result_of(config, home, {"content": []}, "-o", str(tmp_path / "none"))
    assert "nothing to save" in done.stderr
    assert not (tmp_path / "none").exists()
    done = result_of(config, home, {"content": [IMAGE]}, "-o", str(one / "below a file"))
    assert done.returncode == 2
    assert "cannot be written" in done.stderr


def test_log_messages_and_progress_go_to_stderr(config: Path, home: dict[str, str]):
    written(config, server_table("fake"))
    done = call(home, "fake__log", logger="deep")
    assert done.stdout == "logged\n"
    assert "fake/deep: info: hello\n" in done.stderr
    done = call(home, "fake__progress", values=[1, 3])
    assert done.stdout == "done\n"
    assert [line for line in done.stderr.splitlines() if "/3" in line] == [
        "fake__progress: [######              ] 1/3",
        "fake__progress: [####################] 3/3",
    ]
    assert "\x1b" not in done.stderr


FORM = {
    "message": "Who are you?",
    "requestedSchema": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "title": "Your name", "minLength": 2},
            "age": {"type": "integer", "minimum": 0, "maximum": 150, "description": "in years"},
            "colour": {"type": "string", "oneOf": [{"const": "r", "title": "Red"}, {"const": "g", "title": "Green"}]},
            "sure": {"type": "boolean", "default": True},
            "nick": {"type": "string"},
        },
        "required": ["name", "colour"],
    },
}


def test_where_stdin_is_no_terminal_questions_are_declined_and_it_is_said(config: Path, home: dict[str, str]):
    written(config, server_table("fake"))
    done = call(home, "fake__ask", method="elicitation/create", params=FORM)
    assert json.loads(done.stdout) == {"result": {"action": "decline"}}
    assert "mcpmux: declined, because stdin is no terminal: [fake] Who are you?" in done.stderr


def test_roots_are_those_of_the_config(tmp_path: Path, config: Path, home: dict[str, str]):
    written(config, server_table("fake", roots=[str(tmp_path)]))
    done = call(home, "fake__ask", method="roots/list")
    assert json.loads(done.stdout)["result"]["roots"][0]["uri"] == tmp_path.as_uri()


CANCELLABLE = """
import json, sys
for line in sys.stdin:
    m = json.loads(line)
    match m.get("method"):
        case "initialize":
            r = {"protocolVersion": m["params"]["protocolVersion"], "capabilities": {"tools": {}, "logging": {}},
                 "serverInfo": {"name": "x", "version": "1"}}
        case "tools/list":
            r = {"tools": [{"name": "wait", "inputSchema": {"type": "object"}}]}
        case "tools/call":
            called = m["id"]
            print(json.dumps({"jsonrpc": "2.0", "method": "notifications/message",
                              "params": {"level": "info", "data": "I wait"}}), flush=True)
            continue
        case "notifications/cancelled":
            if m["params"]["requestId"] == called:
                open(sys.argv[1], "w").write("cancelled")
            continue
        case _:
            r = {}
    if "id" in m:
        print(json.dumps({"jsonrpc": "2.0", "id": m["id"], "result": r}), flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="a process cannot be sent Ctrl-C alone on Windows")
def test_ctrl_c_cancels_the_call_and_exits_with_130(tmp_path: Path, config: Path, home: dict[str, str]):
    told = tmp_path / "told"
    script = written(tmp_path / "server.py", CANCELLABLE)
    written(
        config,
        f"[mcp_servers.x]\ncommand = {json.dumps(sys.executable)}\nargs = {json.dumps([str(script), str(told)])}",
    )
    command = [*COMMAND, "call", "x__wait"]
    with subprocess.Popen(command, env=home, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stderr
        for line in process.stderr:
            if b"I wait" in line:
                break
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=PATIENCE)
    assert (process.returncode, rest) == (130, b"")
    assert told.read_text() == "cancelled"


@pytest.mark.skipif(sys.platform == "win32", reason="a process cannot be sent Ctrl-C alone on Windows")
def test_ctrl_c_ends_check_with_130_and_leaves_no_process(tmp_path: Path, config: Path, home: dict[str, str]):
    pids = tmp_path / "pids"
    written(config, server_table("silent", "--silent", "--stderr", "here", "--pid-file", str(pids)))
    with subprocess.Popen([*COMMAND, "check"], env=home, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stderr
        assert process.stderr.readline() == b"silent: starting\n"
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=PATIENCE)
    assert (process.returncode, stdout) == (130, b"")
    assert b"Traceback" not in stderr
    assert not any(is_running(int(pid)) for pid in (pids.read_text().split() if pids.exists() else []))


# ── at a terminal ──


def without_control(text: str) -> str:
    return re.sub(r"\x1b\[[\d;]*[A-Za-z]", "", text)


@needs_pty
def test_the_progress_bar_is_drawn_in_place(config: Path, home: dict[str, str]):
    written(config, server_table("fake"))
    home.pop("NO_COLOR", None)
    terminal = Terminal(home, "call", "fake__progress")
    terminal.until("[######              ] 1/3")
    terminal.until("\x1b[2A\x1b[J")  # the bar and the server's state are drawn again at their place
    terminal.until("[####################] 3/3")
    assert terminal.close() == 0
    assert terminal.shown.endswith("\x1b[2A\x1b[Jdone\n")
    assert "\x1b[32mready" in terminal.shown


@needs_pty
def test_a_log_message_stays_above_what_is_drawn_in_place(config: Path, home: dict[str, str]):
    written(config, server_table("fake"))
    terminal = Terminal(home | {"NO_COLOR": "1"}, "call", "fake__log")
    terminal.until("\x1b[2A\x1b[Jfake: info: hello\nfake")
    assert terminal.close() == 0
    assert terminal.shown.endswith("\x1b[2A\x1b[Jlogged\n")


@needs_pty
def test_without_colour_the_bar_still_moves(config: Path, home: dict[str, str]):
    """https://no-color.org is about colour only."""
    written(config, server_table("fake"))
    terminal = Terminal(home | {"NO_COLOR": "1"}, "call", "fake__progress")
    terminal.until("3/3")
    assert terminal.close() == 0
    assert not re.search(r"\x1b\[[\d;]*m", terminal.shown)
    assert "\x1b[J" in terminal.shown


@needs_pty
def test_a_dumb_terminal_gets_plain_lines(config: Path, home: dict[str, str]):
    written(config, server_table("fake"))
    terminal = Terminal(home | {"TERM": "dumb"}, "check")
    assert terminal.close() == 0
    assert "\x1b" not in terminal.shown
    assert "fake: ready" in terminal.shown


@needs_pty
def test_check_shows_whom_it_waits_for_and_then_the_table(config: Path, home: dict[str, str]):
    home.pop("NO_COLOR", None)
    written(config, server_table("good"), server_table("dies", "--exit", "3"))
    terminal = Terminal(home, "check")
    terminal.until("good")
    assert terminal.close() == 1
    assert "\x1b[33mstarting" in terminal.shown
    table = without_control(terminal.shown.rpartition("\x1b[J")[2])
    assert table.startswith(str(config))
    assert re.search(r"^good +ready ", table, re.MULTILINE)
    assert re.search(r"^dies +failed ", table, re.MULTILINE)


@needs_pty
def test_a_form_is_asked_field_by_field_until_each_is_valid(config: Path, home: dict[str, str]):
    written(config, server_table("fake"))
    arguments = json.dumps({"method": "elicitation/create", "params": FORM})
    terminal = Terminal(home, "call", "fake__ask", arguments)
    terminal.until("[fake] Who are you?")
    terminal.until("Your name (string, needed)")
    terminal.until("> ")
    terminal.types("")
    terminal.until("at least 2")
    terminal.until("> ")
    terminal.types("Ada")
    terminal.until("age (integer): in years")
    terminal.until("> ")
    terminal.types("old")
    terminal.until("an integer is expected")
    terminal.until("> ")
    terminal.types("151")
    terminal.until("at most 150")
    terminal.until("> ")
    terminal.types("36")
    terminal.until("1: Red (r)")
    terminal.until("> ")
    terminal.types("gren")
    terminal.until("did you mean Green?")
    terminal.until("> ")
    terminal.types("2")
    terminal.until("sure (boolean)")
    terminal.until("[true] > ")
    terminal.types("")
    terminal.until("nick (string)")
    terminal.until("> ")
    terminal.types("")
    terminal.until("send this? y: yes, n: decline, c: cancel, e: edit: ")
    terminal.types("")  # nothing is taken for granted
    terminal.until("send this?")
    terminal.types("y")
    terminal.until('{"result": {"action": "accept", "content": ')
    assert terminal.close() == 0
    answer = json.loads(terminal.shown[terminal.shown.index('{"result"') :])
    assert answer["result"]["content"] == {"name": "Ada", "age": 36, "colour": "g", "sure": True}


@needs_pty
def test_a_window_that_is_closed_at_a_question_ends_the_call(config: Path, home: dict[str, str]):
    written(config, server_table("fake"))
    terminal = Terminal(home, "call", "fake__ask", json.dumps({"method": "elicitation/create", "params": FORM}))
    terminal.until("> ")
    assert terminal.hang_up() != 0


@needs_pty
@pytest.mark.parametrize(("keys", "action"), [(b"n\n", "decline"), (b"c\n", "cancel"), (b"\x04", "decline")])
def test_a_question_can_be_declined_or_cancelled(keys: bytes, action: str, config: Path, home: dict[str, str]):
    written(config, server_table("fake"))
    params = {"message": "Delete \x1b[2Jit?", "requestedSchema": {"type": "object", "properties": {}}}
    terminal = Terminal(home, "call", "fake__ask", json.dumps({"method": "elicitation/create", "params": params}))
    terminal.until("[fake] Delete \\x1b[2Jit?")  # what would clear the screen is made visible
    terminal.until("send this? y: yes, n: decline, c: cancel: ")
    terminal.presses(keys)
    terminal.until(f'{{"result": {{"action": "{action}"}}}}')
    assert terminal.close() == 0


SPOOF = "x\x1b]0;pwn\x07\n\n[bank] Your PIN"
ODD_FIELDS: dict[str, Any] = {
    "f": {"type": "string", "format": SPOOF},
    "t": {"type": SPOOF},
    "s": "x",
    "e": {"type": "string", "enum": 5},
    "o": {"oneOf": [7, {"const": 1}]},
    "i": {"type": "array", "items": [7]},
    "l": {"type": "string", "title": SPOOF, "description": 7, "minLength": "zz", "enumNames": {}},
}


@needs_pty
@pytest.mark.parametrize("schema", [{"properties": ODD_FIELDS, "required": 7}, {"properties": ["a"]}, "zz"])
def test_a_form_that_is_none_is_filled_in_as_far_as_it_can_be_and_cannot_look_like_mcpmux(
    schema: Any, config: Path, home: dict[str, str]
):
    written(config, server_table("fake"))
    params = {"message": SPOOF, "requestedSchema": schema}
    terminal = Terminal(home, "call", "fake__ask", json.dumps({"method": "elicitation/create", "params": params}))
    for name in ODD_FIELDS if isinstance(schema, dict) and isinstance(schema["properties"], dict) else ():
        terminal.until("    > ")
        terminal.types("" if name == "i" else "1")
    terminal.until("send this? ")
    terminal.types("y")
    terminal.until('"action": "accept"')
    assert terminal.close() == 0
    assert "\x1b]" not in terminal.shown and "Traceback" not in terminal.shown
    assert not re.search(r"^\[bank\]", terminal.shown, re.MULTILINE)


def test_what_peers_say_is_harmless_on_a_screen_whoever_prints_it(monkeypatch: pytest.MonkeyPatch):
    shown = io.StringIO()
    screen: Any = mcpmux.Screen(shown)
    monkeypatch.setattr(mcpmux, "moves", lambda stream: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    print(mcpmux.painted("good\x1b[2J", "green"), file=screen)
    assert shown.getvalue() == "\x1b[32mgood\\x1b[2J\x1b[0m\n"


ODD_RESULTS = [
    b'{"content":5}',
    b'{"content":[1e999,7,{"type":"image","data":5},{"type":"resource","resource":7},{"type":"resource_link"}]}',
    b'{"content":[],"structuredContent":1e999}',
    b'{"isError":1e999,"content":[{"type":"text","text":1e999},{"type":["x"]}]}',
]


@pytest.mark.parametrize("result", ODD_RESULTS)
def test_a_result_is_shown_as_far_as_it_can_be_read(result: bytes, capsys: pytest.CaptureFixture[str]):
    reply = mcpmux.Reply(mcpmux.Raw(result), None)
    assert mcpmux.show_reply(reply, None, as_it_came=False) == 0
    assert capsys.readouterr().err == ""


def test_a_bar_is_drawn_of_any_numbers():
    for done, total in (("9" * 400, "1"), ("1", "9" * 400), ("true", "null"), ("-5", "3"), ("1e300", "1e-300")):
        progress = {"progress": mcpmux.Raw(done.encode()), "total": mcpmux.Raw(total.encode())}
        assert len(mcpmux.bar_of(progress)) < 60


@needs_pty
@pytest.mark.parametrize("agrees", [True, False])
def test_an_address_is_shown_and_opened_only_if_the_person_agrees(
    agrees: bool, tmp_path: Path, config: Path, home: dict[str, str]
):
    written(config, server_table("fake"))
    opened = tmp_path / "opened"
    browser = written(tmp_path / "browser", f'#!/bin/sh\necho "$1" > "{opened}"\n')
    browser.chmod(0o755)
    url = "https://example.org/sign-in?x=1"
    params = {"mode": "url", "message": "Sign in", "url": url, "elicitationId": "e"}
    arguments = json.dumps({"method": "elicitation/create", "params": params})
    terminal = Terminal(home | {"BROWSER": f"{browser} %s"}, "call", "fake__ask", arguments)
    terminal.until("[fake] Sign in")
    terminal.until(f"  {url}\n")
    terminal.until("open it in the browser? y: yes, n: decline, c: cancel: ")
    assert not opened.exists()
    terminal.types("y" if agrees else "n")
    terminal.until(f'{{"result": {{"action": "{"accept" if agrees else "decline"}"}}}}')
    assert terminal.close() == 0
    assert opened.exists() == agrees
    assert not agrees or opened.read_text() == f"{url}\n"


@needs_pty
def test_an_address_that_is_no_page_is_not_opened(config: Path, home: dict[str, str]):
    written(config, server_table("fake"))
    params = {"mode": "url", "message": "Sign in", "url": "file:///etc/passwd", "elicitationId": "e"}
    terminal = Terminal(home, "call", "fake__ask", json.dumps({"method": "elicitation/create", "params": params}))
    terminal.until("no address of a page")
    terminal.until('{"result": {"action": "decline"}}')
    assert terminal.close() == 0


def test_what_is_said_while_a_person_is_asked_waits(capsys: pytest.CaptureFixture[str]):
    waiting = mcpmux.Waiting()
    waiting.clear(paused=True)
    waiting.say("git: info: hello")
    waiting.show({"git": "1/2"})
    assert capsys.readouterr().err == ""
    waiting.clear()
    assert capsys.readouterr().err == "git: info: hello\ngit: 1/2\n"


@needs_pty
def test_ctrl_c_at_a_question_ends_the_command(config: Path, home: dict[str, str]):
    written(config, server_table("fake"))
    terminal = Terminal(home, "call", "fake__ask", json.dumps({"method": "elicitation/create", "params": FORM}))
    terminal.until("> ")
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.close() == 130
    assert "Fatal Python error" not in terminal.shown


# ── what a field of a form takes ──

CHOICES = [{"const": "a", "title": "First"}, {"const": "b", "title": "Second"}]


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("x", {"type": "string"}, "x"),
        ("7", {"type": "string"}, "7"),
        ("7", {"type": "integer"}, 7),
        ("7", {"type": "number"}, 7),
        ("7.5", {"type": "number"}, 7.5),
        ("Yes", {"type": "boolean"}, True),
        ("n", {"type": "boolean"}, False),
        ("b", {"type": "string", "enum": ["a", "b"]}, "b"),
        ("2", {"type": "string", "enum": ["a", "b"]}, "b"),
        ("2", {"type": "string", "enum": ["2", "1"]}, "2"),  # the value itself, not the number before it
        ("zwei", {"type": "string", "enum": ["a", "b"], "enumNames": ["Eins", "Zwei"]}, "b"),
        ("second", {"type": "string", "oneOf": CHOICES}, "b"),
        ("1, b", {"type": "array", "items": {"anyOf": CHOICES}}, ["a", "b"]),
        ("b,b", {"type": "array", "items": {"type": "string", "enum": ["a", "b"]}}, ["b"]),
        ("a@b.c", {"type": "string", "format": "email"}, "a@b.c"),
        ("https://x", {"type": "string", "format": "uri"}, "https://x"),
        ("2026-11-21", {"type": "string", "format": "date"}, "2026-11-21"),
        ("2026-11-21T10:00:00Z", {"type": "string", "format": "date-time"}, "2026-11-21T10:00:00Z"),
    ],
)
def test_a_persons_words_become_the_fields_value(text: str, field: dict[str, Any], value: Any):
    """https://modelcontextprotocol.io/specification/2025-11-25/client/elicitation#requested-schema"""
    assert mcpmux.typed(text, field) == value


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("x", {"type": "integer"}),
        ("7.5", {"type": "integer"}),
        ("nan", {"type": "number"}),
        ("inf", {"type": "number"}),
        ("3", {"type": "number", "minimum": 4}),
        ("maybe", {"type": "boolean"}),
        ("c", {"type": "string", "enum": ["a", "b"]}),
        ("3", {"type": "string", "enum": ["a", "b"]}),
        ("a", {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 2}),
        ("a,b", {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 1}),
        ("abc", {"type": "string", "maxLength": 2}),
        ("", {"type": "string", "minLength": 1}),
        ("ada", {"type": "string", "format": "email"}),
        ("tomorrow", {"type": "string", "format": "date"}),
    ],
)
def test_words_that_a_field_does_not_take_are_refused(text: str, field: dict[str, Any]):
    with pytest.raises(ValueError, match=r"\w"):
        mcpmux.typed(text, field)


# ── many tools ──


def test_a_search_shows_what_a_host_would_find_and_why(config: Path, home: dict[str, str]):
    written(config, server_table("fake"))
    done = run(home, "tools", "--search", "echoes")
    assert re.search(r"^fake__echo +\d+\.\d +echoes ~ echo", done.stdout, re.MULTILINE)
    told = json.loads(run(home, "tools", "fake", "--search", "echoes", "--json").stdout)
    assert told["tools"][0]["name"] == "fake__echo" and told["tools"][0]["words"] == {"echoes": "echo"}
    nothing = run(home, "tools", "--search", "xylophone")
    assert nothing.returncode == 1 and "No tool fits" in nothing.stdout


def test_a_profile_holds_whatever_the_host_calls_itself(config: Path, home: dict[str, str]):
    hosts = '[hosts.few]\nservers = []\n[hosts.other]\nexpose = "search"\n'
    config.write_text(hosts + server_table("fake"))
    for words, tools in (([], len(FAKE_TOOLS)), (["--profile", "few"], 0), (["--profile", "Other"], 2)):
        host = RawHost([*COMMAND, *words], home)
        try:
            host.initialize()
            assert len(host.tools()) == tools
        finally:
            host.close()
    wrong = run(home, "--profile", "othr")
    assert wrong.returncode == 2 and "has no [hosts.othr]; did you mean other?" in wrong.stderr
    dry = run(home, "install", "cursor", "--profile", "few", "--dry-run")
    assert "--profile few" in dry.stdout


# ── a server's life; arguments by name ──

LIFE = """\
# mine
[mcp_servers.a]  # the first
command = "x"

# of b
[mcp_servers."b"]
command = "y"
enabled = true
[mcp_servers.b.env]
A = "1"
"""


def test_a_server_is_switched_off_and_on_and_removed_and_the_rest_stays(config: Path, home: dict[str, str]):
    config.write_text(LIFE)
    assert run(home, "disable", "a").returncode == 0
    assert config.read_text() == LIFE.replace("# the first\n", "# the first\nenabled = false\n")
    assert run(home, "enable", "a").returncode == 0
    assert config.read_text() == LIFE
    assert run(home, "disable", "b").returncode == 0
    assert config.read_text() == LIFE.replace("enabled = true", "enabled = false")
    done = run(home, "remove", "b")
    assert (done.returncode, done.stdout) == (0, f"b is gone, in {config}\n")
    assert config.read_text() == LIFE[: LIFE.index('[mcp_servers."b"]')]
    for command in ("remove", "enable", "disable"):
        done = run(home, command, "aa")
        assert done.returncode == 2
        assert "did you mean a?" in done.stderr


@pytest.mark.parametrize("text", ['mcp_servers = { a = { command = "x" } }\n', '[mcp_servers]\na.command = "x"\n'])
def test_a_server_that_has_no_table_of_its_own_is_left_to_the_person(text: str, config: Path, home: dict[str, str]):
    config.write_text(text)
    for command in ("remove", "disable"):
        done = run(home, command, "a")
        assert done.returncode == 2
        assert "do it by hand" in done.stderr
        assert config.read_text() == text


def test_add_takes_headers_and_overwrites_when_it_is_told_to(config: Path, home: dict[str, str]):
    done = run(
        home, "add", "far", "--url", "https://mcp.example/mcp", "-H", "Authorization: Bearer ${T}", "-H", "X-A:b"
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "note" not in done.stdout
    headers = {"Authorization": "Bearer ${T}", "X-A": "b"}
    assert tomllib.loads(config.read_text())["mcp_servers"]["far"]["http_headers"] == headers
    assert run(home, "add", "far", "--", "x").returncode == 2
    assert run(home, "add", "far", "--force", "--", "x").returncode == 0
    assert tomllib.loads(config.read_text())["mcp_servers"] == {"far": {"command": "x"}}
    for words in (
        ["--header", "A: b", "--", "x"],
        ["--url", "https://x/y", "--env", "A=b"],
        ["--url", "https://x/y", "-H", "A"],
    ):
        assert run(home, "add", "new", *words).returncode == 2
    noted = run(home, "add", "new", "--url", "https://x/y", "-H", f"Authorization: Bearer {SECRET}").stdout
    assert "note: Authorization looks like a secret" in noted
    assert SECRET not in noted


TYPED = {
    "name": "echo",
    "inputSchema": {
        "type": "object",
        "properties": {
            "text": {"type": "string"},
            "count": {"type": "integer"},
            "deep": {"type": ["object", "null"]},
            "any": {},
        },
        "required": ["text"],
        "additionalProperties": False,
    },
}


@pytest.mark.parametrize(
    ("given", "wrong"),
    [
        ({"text": "x"}, None),
        ({"text": "x", "count": 1, "deep": None, "any": [1]}, None),
        ({}, "text is missing"),
        ({"text": 1}, "text is expected as string"),
        ({"text": "x", "count": "5"}, "count is expected as integer; count:=5 gives one"),
        ({"text": "x", "count": True}, "count is expected as integer"),
        ({"text": "x", "deep": []}, "deep is expected as object | null"),
        ({"text": "x", "tex": 1}, "tex is no argument of it; did you mean text?"),
    ],
)
def test_a_wrong_argument_is_named(given: dict[str, Any], wrong: str | None):
    assert mcpmux.wrong_argument(given, TYPED["inputSchema"]) == wrong
    for schema in (None, True, {}, {"properties": {"text": True}}, {"properties": None, "required": None}):
        assert mcpmux.wrong_argument(given, schema) is None


def test_arguments_are_given_by_their_names(config: Path, home: dict[str, str]):
    listed = json.dumps({"tools": [TYPED]})
    config.write_text(server_table("fake", "--list", listed))
    done = run(home, "call", "fake__echo", "text=a=b", "count:=5", 'deep:={"x": [1]}')
    assert (done.returncode, json.loads(done.stdout)) == (0, {"text": "a=b", "count": 5, "deep": {"x": [1]}})
    done = run(home, "call", "fake__echo", "count:=5")
    assert done.returncode == 2
    signature = "fake__echo(text: string, count?: integer, deep?: object | null, any?: any)"
    assert done.stderr.splitlines()[-2:] == ["mcpmux: text is missing", f"  {signature}"]
    for words in (["text"], ["=x"], ["text=a", "b"], ["count:=x"]):
        assert run(home, "call", "fake__echo", *words).returncode == 2
