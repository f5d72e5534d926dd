"""The command line: what a person types and reads. Nearly all of it is our choice."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import time
import tomllib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conftest import COMMAND, FAKE, MCPMUX, PATIENCE, ROOT, RawHost, empty_home, is_running, server_table
from fake_site import FakeSite, legacy_server

import mcpmux

Done = subprocess.CompletedProcess[str]


def run(env: dict[str, str], *arguments: str, **keys: Any) -> Done:
    """mcpmux as a person would start it, with a wide terminal and its stdin closed."""
    env = env | {"COLUMNS": "200", "NO_COLOR": "1"}
    command = [*COMMAND, *arguments]
    done = subprocess.run(command, input="", capture_output=True, encoding="utf-8", env=env, timeout=PATIENCE, **keys)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def written(path: Path, *tables: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(tables), encoding="utf-8")
    return path


# What the fake server offers. It reads its command line when imported, so its list is read from its source.
FAKE_TOOLS: list[str] = next(
    ast.literal_eval(node.value)
    for node in ast.parse(FAKE.read_text(encoding="utf-8")).body
    if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "TOOLS"
)


SAMPLING = """
[[sampling.models]]
model = "anthropic/claude-sonnet-4-5"
hints = ["middle", "sonnet"]
[[sampling.models]]
model = "openai/gpt-4o-mini"
intelligence = 0.25
[[sampling.models]]
model = "ollama_chat/nobody-knows"
params = { input_cost_per_token = 0, output_cost_per_token = 0 }
[[sampling.models]]
model = "openai/nobody-knows"
"""
LIMITS = "[sampling.limits]\nusd_per_request = 0.01"


# ── --version and --help ──


def test_the_version_is_told(home: dict[str, str]):
    done = run(home, "--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"mcpmux {mcpmux.__version__}\n", "")


def commands_in_help(env: dict[str, str]) -> list[str]:
    """Each command that `mcpmux --help` lists."""
    listed = run(env, "--help").stdout.partition("\ncommands:\n")[2].partition("\n\n")[0]
    return re.findall(r"^    (\w\S*)  ", listed, re.MULTILINE)


def examples_in(text: str) -> list[str]:
    return re.findall(r"^example: (mcpmux.*)$", text, re.MULTILINE)


def test_help_lists_the_commands_with_a_word_on_each(home: dict[str, str]):
    done = run(home, "--help")
    assert done.returncode == 0
    assert {"add", "list", "tools", "call", "check", "models", "usage", "demo"} <= set(commands_in_help(home))
    assert "_demo_server" not in done.stdout  # the demo's own business
    assert "_sampler" not in done.stdout
    assert "MCPMUX_CONFIG" in done.stdout


@pytest.fixture
def site() -> Iterator[FakeSite]:
    site = FakeSite(legacy_server)
    yield site
    site.close()


def test_each_help_has_an_example_and_the_example_runs(tmp_path: Path, home: dict[str, str], site: FakeSite):
    """An example that does not run is worse than none. This one place runs them all, the demo too, two at once."""
    time = [
        "[mcp_servers.time]",
        f"command = {json.dumps(sys.executable)}",
        'args = ["-m", "mcp_server_time"]\npin = true',
    ]
    remote = f'[mcp_servers.github]\nurl = "{site.url}"\n'

    def examples_run(command: list[str]) -> None:
        home = empty_home(tmp_path / f"home of {' '.join(command)}".strip())
        env = home | {"MCPMUX_CONFIG": str(Path(home["HOME"]) / "mcpmux.toml"), "NO_PROXY": "127.0.0.1"}
        env |= {"ANTHROPIC_API_KEY": "a", "OPENAI_API_KEY": "b"}
        if command == ["setup"]:  # it needs a host
            written(Path(home["HOME"]) / ".cursor/mcp.json", '{"mcpServers": {"x": {"command": "x"}}}')
        text = run(home, *command, "--help").stdout
        examples = examples_in(text)
        assert examples, f"mcpmux {' '.join(command)} --help has no example"
        for example in examples:
            words = [os.path.expanduser(word.replace("~", home["HOME"])) for word in shlex.split(example)[1:]]
            assert words[: len(command)] == command
            written(Path(home["HOME"]) / "mcpmux.toml", *time, remote, SAMPLING, LIMITS)
            done = run(env, *words)
            assert done.returncode == 0, example
            assert "error" not in done.stderr, example

    with ThreadPoolExecutor(2) as pool:
        commands = [
            one for one in commands_in_help(home) if one != "page"
        ]  # which a person has to answer: test_page.py
        list(pool.map(examples_run, [[], *([one] for one in commands)]))


def test_the_help_of_check_stands_alone(home: dict[str, str]):
    """Nothing stands above it that `as above` could mean."""
    text = run(home, "check", "--help").stdout
    assert "as above" not in text
    assert "--config PATH" in text
    assert "--json" in text


def test_an_unknown_command_or_option_is_refused_with_the_known_ones(home: dict[str, str]):
    done = run(home, "chekc")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "check" in done.stderr
    assert "demo" in done.stderr
    assert run(home, "check", "--jsn").returncode == 2


# ── check ──

SECRET = "s3cret-of-ada"
TROUBLED = [
    server_table("good"),
    server_table("exits", "--exit", "3", "--stderr", "boom: ${TEST_SECRET} is refused", env={"K": "${TEST_SECRET}"}),
    server_table("silent", "--silent", "--stderr", "waiting for a login", startup_timeout_sec=1),
    server_table("garbage", "--garbage"),
    server_table("missing", command="no-such-program-here"),
    server_table("unset", env={"A_KEY": "${MCPTEST_UNSET}"}),
    server_table("misspelt", comand="x"),
    server_table("off", enabled=False),
]


class Checked:
    """What `mcpmux check` says of a config, in both forms."""

    def __init__(self, folder: Path, *tables: str) -> None:
        self.folder = folder
        self.config = written(folder / "mcpmux.toml", *tables)
        env = empty_home(folder) | {"TEST_SECRET": SECRET}
        self.plain = run(env, "check", "--config", str(self.config))
        self.json = run(env, "--config", str(self.config), "check", "--json")
        head, *lines = self.plain.stdout.split("\n\n")[1].splitlines()
        cut = [line.split() for line in [head, *lines]]
        self.heads, self.rows = cut[0], {row[0]: row[1:] for row in cut[1:]}

    def trouble(self, server: str) -> tuple[str, str]:
        """The reason and the next step."""
        found = re.search(rf"^{server}: (.+)\n  next: (.+)$", self.plain.stdout, re.MULTILINE)
        assert found, self.plain.stdout
        return found[1], found[2]

    @property
    def parsed(self) -> dict[str, dict[str, Any]]:
        return {row["server"]: row for row in json.loads(self.json.stdout)["servers"]}


@pytest.fixture(scope="module")
def troubled(tmp_path_factory: pytest.TempPathFactory) -> Checked:
    return Checked(tmp_path_factory.mktemp("troubled"), *TROUBLED)


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Checked:
    return Checked(tmp_path_factory.mktemp("healthy"), server_table("one"), server_table("two"))


def test_check_has_a_row_for_every_server(troubled: Checked):
    assert troubled.plain.stdout.startswith(f"{troubled.config}\n\n")
    assert troubled.heads == ["SERVER", "STATE", "REVISION", "TOOLS", "PROMPTS", "RESOURCES", "TOKENS", "MS"]
    assert list(troubled.rows) == ["good", "exits", "silent", "garbage", "missing", "unset", "misspelt", "off"]
    ready = ["ready", "2025-11-25", str(len(FAKE_TOOLS)), "1", "2"]
    failed = ["failed", *"------"]
    for name in ("good", "garbage"):
        assert troubled.rows[name][:-2] == ready
        assert 100 < int(troubled.rows[name][-2]) < 1000
        assert 0 < int(troubled.rows[name][-1].replace(",", "")) < PATIENCE * 1000
    for name in ("exits", "silent", "missing", "unset", "misspelt"):
        assert troubled.rows[name] == failed, name
    assert troubled.rows["off"] == ["disabled", *"------"]


def test_check_says_in_a_line_how_many_servers_and_tools_there_are_and_what_they_cost(troubled: Checked):
    """Their names are for `mcpmux tools`: 800 of them hide everything else."""
    names = [f"{server}__{tool}" for server in ("good", "garbage") for tool in FAKE_TOOLS]
    tokens = sum(int(troubled.rows[name][-2]) for name in ("good", "garbage"))
    assert f"\n2 of 8 ready, {len(names)} tools, about {tokens} tokens\n" in troubled.plain.stdout
    assert names[0] not in troubled.plain.stdout
    assert json.loads(troubled.json.stdout)["tools"] == names


def test_check_says_what_to_do_next(troubled: Checked, healthy: Checked):
    again = f"mcpmux --config {troubled.config} check exits silent missing unset misspelt"
    assert troubled.plain.stdout.endswith(f"\nNext: mend what failed, then {again}\n")
    tools, install = (f"`mcpmux --config {healthy.config} {word}`" for word in ("tools", "install HOST"))
    assert healthy.plain.stdout.endswith(f"\nNext: {tools} shows the tools, {install} gives them to a host.\n")


@pytest.mark.parametrize(
    ("server", "reason"),
    [
        ("exits", 'exits exited with code 3; its last words: "boom: *** is refused"'),
        ("silent", 'silent did not answer `initialize` within 4 s; its last words: "waiting for a login"'),
        ("missing", "'no-such-program-here' was not found on PATH"),
        ("unset", "${MCPTEST_UNSET} is not set (mcp_servers.unset.env.A_KEY)"),
        ("misspelt", 'mcpmux.toml: mcp_servers.misspelt.comand: unknown key; did you mean "command"?'),
    ],
)
def test_check_gives_the_reason_for_each_failure(server: str, reason: str, troubled: Checked):
    assert troubled.trouble(server)[0] == reason


@pytest.mark.parametrize(
    ("server", "says"),
    [
        ("exits", "exits.log"),
        ("silent", "startup_timeout_sec"),
        ("missing", "install it, or give its full path as `command`"),
        ("unset", "set MCPTEST_UNSET in env_file, or in the host's environment if it hands that on"),
        ("misspelt", "correct its table"),
    ],
)
def test_check_says_what_to_do_about_each_failure(server: str, says: str, troubled: Checked):
    step = troubled.trouble(server)[1]
    assert says in step
    assert "mcpmux check" not in step, "that is what the person has just done"


def test_a_log_that_check_names_is_there_and_holds_no_secret(troubled: Checked):
    named = re.search(r"its log is (\S+\.log)", troubled.trouble("exits")[1])
    assert named
    words = Path(named[1]).read_text(encoding="utf-8")
    assert "boom: *** is refused" in words
    assert SECRET not in words


def test_check_tells_no_secret(troubled: Checked):
    for done in (troubled.plain, troubled.json):
        assert SECRET not in done.stdout + done.stderr


def test_check_exits_with_1_if_a_server_failed_and_0_if_none_did(troubled: Checked, healthy: Checked):
    assert troubled.plain.returncode == troubled.json.returncode == 1
    assert healthy.plain.returncode == healthy.json.returncode == 0
    assert [row[0] for row in healthy.rows.values()] == ["ready", "ready"]
    assert "  next:" not in healthy.plain.stdout


def test_check_says_on_stderr_whom_it_waits_for_and_nothing_else(troubled: Checked, healthy: Checked):
    """The table says the rest."""
    for checked in (troubled, healthy):
        for done in (checked.plain, checked.json):
            said = [line.split(": ", 1) for line in done.stderr.splitlines()]
            assert {name for name, _ in said} == checked.rows.keys() - {"off"}
            ends = {name: text.partition(",")[0] for name, text in said}
            assert ends == {name: row[0] for name, row in checked.rows.items() if name != "off"}


def test_check_for_machines_has_the_same_in_full(troubled: Checked, healthy: Checked):
    whole = json.loads(troubled.json.stdout)
    assert whole["config"] == str(troubled.config)
    assert list(troubled.parsed) == list(troubled.rows)
    keys = ["server", "state", "revision", "tools", "prompts", "resources", "resourceTemplates", "tokens", "ms"]
    keys += ["unread", "leftOut", "reason", "next"]
    for name, row in troubled.parsed.items():
        assert list(row) == (["server", "state"] if name == "off" else keys)
        assert row["state"] == troubled.rows[name][0]
    good = troubled.parsed["good"]
    del good["ms"], good["tokens"]
    assert good == {
        "server": "good",
        "state": "ready",
        "revision": "2025-11-25",
        "reason": None,
        "next": None,
        "tools": len(FAKE_TOOLS),
        "prompts": 1,
        "resources": 1,
        "resourceTemplates": 1,
        "unread": [],
        "leftOut": [],
    }
    for name in ("exits", "silent", "missing", "unset", "misspelt"):
        row = troubled.parsed[name]
        assert (row["reason"].removeprefix(f"{name}: "), row["next"]) == troubled.trouble(name)
        assert (row["revision"], row["ms"]) == (None, None)
    assert [row["state"] for row in healthy.parsed.values()] == ["ready", "ready"]


def test_check_of_a_file_without_servers_says_how_to_add_one(home: dict[str, str], tmp_path: Path):
    config = written(tmp_path / "mcpmux.toml", "[mux]")
    done = run(home, "check", "--config", str(config))
    assert done.returncode == 0
    assert f"No servers yet: add a [mcp_servers.NAME] table to {config}." in done.stdout


def test_check_names_the_models_of_sampling(home: dict[str, str], tmp_path: Path):
    config = written(tmp_path / "mcpmux.toml", server_table("fake"), SAMPLING)
    models = ["anthropic/claude-sonnet-4-5", "openai/gpt-4o-mini", "ollama_chat/nobody-knows", "openai/nobody-knows"]
    keys = {"ANTHROPIC_API_KEY": "a", "OPENAI_API_KEY": "b"}
    done = run(home | keys, "check", "--config", str(config))
    assert done.returncode == 1
    assert "\nsampling: does not work: openai/nobody-knows has no price that litellm knows" in done.stdout
    config = written(tmp_path / "mcpmux.toml", server_table("fake"), SAMPLING, LIMITS)
    done = run(home, "check", "--json", "--config", str(config))
    told = json.loads(done.stdout)["sampling"]
    assert (done.returncode, told["models"]) == (1, models)
    todo = 'write api_key = "${OPENAI_API_KEY}" beside it, and set OPENAI_API_KEY where the host starts mcpmux'
    assert f"openai/gpt-4o-mini has no key; {todo}" in told["reason"]
    done = run(home | keys, "check", "--config", str(config))
    assert done.returncode == 0
    assert f"\nsampling: {', '.join(models)}\n" in done.stdout


def test_check_says_why_sampling_would_not_work_and_checks_the_servers_even_so(home: dict[str, str], tmp_path: Path):
    config = written(
        tmp_path / "mcpmux.toml",
        server_table("fake"),
        '[sampling]\nmodel = "openai/gpt-4o-mini"\napi_key = "${MCPTEST_UNSET}"',
    )
    done = run(home, "check", "--config", str(config))
    todo = "set MCPTEST_UNSET in env_file, or in the host's environment if it hands that on"
    reason = "${MCPTEST_UNSET} is not set (sampling.api_key); " + todo
    assert done.returncode == 1
    assert f"\nsampling: does not work: {reason}\n" in done.stdout
    assert re.search(r"^fake +ready ", done.stdout, re.MULTILINE)
    told = json.loads(run(home, "check", "--json", "--config", str(config)).stdout)
    assert told["sampling"] == {"models": ["openai/gpt-4o-mini"], "reason": reason}
    assert [row["state"] for row in told["servers"]] == ["ready"]


def test_check_without_sampling_says_nothing_of_it(healthy: Checked):
    assert "sampling" not in healthy.plain.stdout
    assert json.loads(healthy.json.stdout)["sampling"] is None


def test_check_leaves_no_process(home: dict[str, str], tmp_path: Path):
    pids = tmp_path / "pids"
    config = written(
        tmp_path / "mcpmux.toml",
        server_table("one", "--pid-file", str(pids)),
        server_table("stubborn", "--pid-file", str(pids), "--ignore-eof", "--ignore-term"),
    )
    assert run(home, "check", "--config", str(config)).returncode == 0
    started = pids.read_text().split()
    assert len(started) == 2
    assert not any(is_running(int(pid)) for pid in started)


PYTHON_TRACEBACK = """Starting.
Traceback (most recent call last):
  File "/x/server.py", line 3, in <module>
    import nowhere
ModuleNotFoundError: No module named 'nowhere'
[notice] A new release of pip is available"""
GROUP = """  + Exception Group Traceback (most recent call last):
  |   File "/x/server.py", line 3, in <module>
  | ExceptionGroup: unhandled errors in a TaskGroup (1 sub-exception)
  +-+---------------- 1 ----------------
    | Traceback (most recent call last):
    | ValueError: no token
    +------------------------------------"""
NODE_STACK = """node:internal/modules/esm/resolve:873
  throw new ERR_MODULE_NOT_FOUND(packageName, fileURLToPath(base), null);
        ^

Error [ERR_MODULE_NOT_FOUND]: Cannot find package 'zod' imported from /h/.npm/_npx/a1b2c3d4e5f60718/node_modules/x/i.js
    at packageResolve (node:internal/modules/esm/resolve:873:9) {
  code: 'ERR_MODULE_NOT_FOUND'
}

Node.js v22.1.0"""
NPM = """npm error code E404
npm error 404 Not Found - GET https://registry.example/@nobody%2fnothing - Not found
npm error 404
npm error A complete log of this run can be found in: /h/.npm/_logs/x.log"""


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (PYTHON_TRACEBACK, "ModuleNotFoundError: No module named 'nowhere'"),
        (GROUP, "ValueError: no token"),
        (NODE_STACK, NODE_STACK.splitlines()[4]),
        (NPM, NPM.splitlines()[1]),
        ("ready soon\nerror: the following required arguments were not provided\nUsage: x", "error: the following"),
        ("thread 'main' panicked at src/main.rs:2:5:\nat the disco", "thread 'main' panicked at src/main.rs:2:5:"),
        ("one\ntwo\nthree\nfour\nfive\nsix", "two | three | four | five | six"),
    ],
    ids=["Python", "a group of Python's", "Node", "npm", "clap", "Rust", "anything"],
)
def test_of_what_a_server_said_the_line_is_quoted_that_says_what_is_wrong(words: str, line: str):
    """Not the tail of a stack."""
    assert mcpmux.telling([one.strip() for one in words.splitlines() if one.strip()]).startswith(line)


@pytest.mark.parametrize(
    ("place", "folder"),
    [
        ("imported from /h/.npm/_npx/a1b2c3d4e5f60718/node_modules/x.js", "/h/.npm/_npx/a1b2c3d4e5f60718"),
        (
            "'C:\\Users\\Ada L\\npm-cache\\_npx\\a1b2c3d4e5f60718\\x'",
            "C:\\Users\\Ada L\\npm-cache\\_npx\\a1b2c3d4e5f60718",
        ),
        ("imported from /srv/app/x.js", None),
    ],
)
def test_a_broken_copy_of_npxs_is_known_by_its_folder(place: str, folder: str | None):
    assert mcpmux.broken_npx([f"Error [ERR_MODULE_NOT_FOUND]: Cannot find package 'zod' {place}"]) == folder


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for npx is a shell script")
def test_check_mends_a_broken_copy_of_npxs(home: dict[str, str], tmp_path: Path):
    copy = tmp_path / ".npm" / "_npx" / "a1b2c3d4e5f60718"
    copy.mkdir(parents=True)
    stand_in = tmp_path / "npx"
    said = f"Error [ERR_MODULE_NOT_FOUND]: Cannot find package 'zod' imported from {copy}/node_modules/x.js"
    serve = shlex.join([sys.executable, str(FAKE)])
    stand_in.write_text(f'#!/bin/sh\nif [ -e {copy} ]; then echo "{said}" >&2; exit 1; fi\nexec {serve}\n')
    stand_in.chmod(0o755)
    config = written(tmp_path / "mcpmux.toml", server_table("files", command=str(stand_in)))
    done = run(home, "check", "--config", str(config))
    assert done.returncode == 1
    mend = f"`mcpmux --config {config} check --repair` deletes {copy} and fetches it again"
    assert f'\nfiles: files exited with code 1; its last words: "{said}"\n' in done.stdout
    assert f"\n  next: npx has a broken copy of it: {mend}\n" in done.stdout
    assert copy.exists()
    done = run(home, "check", "--repair", "--config", str(config))
    assert done.returncode == 0
    assert "npx's copies of these were broken; they are fetched again: files\n" in done.stderr
    assert not copy.exists()
    assert copy.parent.exists()


FAILS_TO_LIST = """
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if "id" in message:
        answer = {"jsonrpc": "2.0", "id": message["id"]}
        if message["method"] == "initialize":
            about = {"capabilities": {"tools": {}, "resources": {}}, "serverInfo": {"name": "x", "version": "1"}}
            answer["result"] = {"protocolVersion": message["params"]["protocolVersion"], **about}
        elif message["method"] == "tools/list":
            answer["result"] = {"tools": [{"name": "a", "inputSchema": {"type": "object"}}, {"name": 5}]}
        else:
            answer["error"] = {"code": -32603, "message": "no database"}
        print(json.dumps(answer), flush=True)
"""


def test_check_says_which_list_failed_and_what_was_left_out(home: dict[str, str], tmp_path: Path):
    table = server_table("half", script=written(tmp_path / "half.py", FAILS_TO_LIST))
    config = written(tmp_path / "mcpmux.toml", table)
    done = run(home, "check", "--config", str(config))
    assert done.returncode == 1
    assert re.search(r"^half +ready +2025-11-25 +1 +0 +- ", done.stdout, re.MULTILINE)
    assert "\nhalf: resources/list failed: no database\n" in done.stdout
    assert "\nhalf: left out: an entry of tools/list without a name\n" in done.stdout
    [row] = json.loads(run(home, "check", "--json", "--config", str(config)).stdout)["servers"]
    assert (row["state"], row["tools"], row["resources"]) == ("ready", 1, None)
    assert row["leftOut"] == ["an entry of tools/list without a name"]
    assert row["unread"][0] == "resources/list failed: no database"


def test_check_starts_the_servers_that_it_is_told_and_no_others(home: dict[str, str], tmp_path: Path):
    pids = tmp_path / "pids"
    tables = [server_table("one"), server_table("two", "--pid-file", str(pids)), server_table("off", enabled=False)]
    config = written(tmp_path / "mcpmux.toml", *tables, server_table("wrong", comand="x"))
    done = run(home, "check", "one", "wrong", "--config", str(config))
    assert done.returncode == 1
    assert re.findall(r"^(\w+) +(?:ready|failed|disabled) ", done.stdout, re.MULTILINE) == ["one", "wrong"]
    assert not pids.exists()
    for name, says in (("tow", "did you mean two?"), ("off", "off is disabled")):
        done = run(home, "check", name, "--config", str(config))
        assert (done.returncode, done.stdout) == (2, "")
        assert says in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="hosts of Windows have the whole environment")
def test_check_runs_servers_as_the_host_will(home: dict[str, str], tmp_path: Path):
    config = written(tmp_path / "mcpmux.toml", server_table("one", env={"A_KEY": "${MCPTEST_KEY}"}))
    home = home | {"MCPTEST_KEY": "x"}
    assert run(home, "check", "--config", str(config)).returncode == 0
    done = run(home, "check", "--as-host", "--config", str(config))
    assert done.returncode == 1
    assert "\none: ${MCPTEST_KEY} is not set (mcp_servers.one.env.A_KEY)\n" in done.stdout
    assert "\nYour terminal sets what a host does not: MCPTEST_KEY." in done.stdout
    file = mcpmux.host_files(mcpmux.HOSTS[0], mcpmux.Machine(sys.platform, home, home["HOME"], ""), False)[-1]
    written(Path(file), json.dumps({"mcpServers": {"mcpmux": {"command": "x"}}}))
    done = run(home, "check", "--config", str(config))
    assert done.returncode == 1
    assert (
        "\nChecked with the environment that Claude Desktop gives; --no-as-host takes your terminal's.\n" in done.stdout
    )
    assert json.loads(run(home, "check", "--json", "--config", str(config)).stdout)["asHost"] == {
        "host": "Claude Desktop",
        "unset": ["MCPTEST_KEY"],
    }
    assert run(home, "check", "--no-as-host", "--config", str(config)).returncode == 0


CODEX = "[mcp_servers.mcpmux]\ncommand = 'x'\n"


@pytest.mark.skipif(sys.platform == "win32", reason="hosts of Windows have the whole environment")
@pytest.mark.parametrize(
    ("file", "text", "host", "unset"),
    [
        (".codex/config.toml", CODEX, "Codex", ["MCPTEST_KEY", "MCPTEST_PLAIN", "OPENAI_API_KEY"]),
        (".codex/config.toml", f"{CODEX}env_vars = ['MCPTEST_PLAIN']\n", "Codex", ["MCPTEST_KEY", "OPENAI_API_KEY"]),
        (".codex/config.toml", f"{CODEX}env_vars = 7\n", None, []),
        (".gemini/settings.json", "{'command': 'x'}", "Gemini CLI", ["MCPTEST_KEY", "OPENAI_API_KEY"]),
        (".gemini/settings.json", "{'env': {'MCPTEST_KEY': 'y'}}", "Gemini CLI", ["OPENAI_API_KEY"]),
        (".claude.json", "{'command': 'x'}", None, []),
    ],
)
def test_check_knows_what_hosts_keep_to_themselves(
    file: str, text: str, host: str | None, unset: list[str], home: dict[str, str], tmp_path: Path
):
    env = {"A_KEY": "${MCPTEST_KEY}", "B": "${MCPTEST_PLAIN}"}
    config = written(tmp_path / "mcpmux.toml", server_table("one", env=env), "[sampling]\nmodel = 'openai/x'\n")
    home = home | dict.fromkeys(("MCPTEST_KEY", "MCPTEST_PLAIN", "OPENAI_API_KEY"), "x")
    servers = text if file.endswith("toml") else f"{{'mcpServers': {{'mcpmux': {text}}}}}".replace("'", '"')
    path = Path(home["HOME"]) / file
    path.parent.mkdir(exist_ok=True)
    written(path, servers)
    found = json.loads(run(home, "check", "--json", "--config", str(config)).stdout)
    assert found["asHost"] == (host and {"host": host, "unset": unset})
    ready = not {"MCPTEST_KEY", "MCPTEST_PLAIN"} & {*unset}
    assert [row["state"] for row in found["servers"]] == ["ready" if ready else "failed"]


def test_check_says_that_the_machine_is_busy_if_many_servers_are_late_at_once(home: dict[str, str], tmp_path: Path):
    late = [server_table(name, "--silent", startup_timeout_sec=0.2) for name in ("a", "b", "c")]
    config = written(tmp_path / "mcpmux.toml", *late)
    done = run(home, "check", "--config", str(config))
    assert done.returncode == 1
    assert "\n3 servers were late at once, so this machine is probably busy. Check them one by one: " in done.stdout


def test_thirty_servers_end_with_what_matters_on_one_screen():
    rows = [{"server": f"s{n}", "state": "ready", "tools": 27, "tokens": 9000, "revision": "x"} for n in range(30)]
    config = mcpmux.Config(Path("/x.toml"))
    with contextlib.redirect_stdout(io.StringIO()) as out:
        mcpmux._print_check(config, mcpmux.Checked(rows, ["t"] * 810, None), "")
    last = out.getvalue().splitlines()[-1]
    assert last.startswith("30 of 30 ready, 810 tools, about 270,000 tokens; more than Cursor (40) and VS Code (128)")


@pytest.mark.parametrize(
    ("command", "seconds", "said"),
    [
        ("npx", None, "starting"),
        ("npx", 1.0, "starting"),
        ("npx", 18.0, "npx is fetching or starting it, 18 s"),
        ("node", 18.0, "starting, 18 s"),
    ],
)
def test_a_terminal_sees_how_long_a_server_takes_and_who_may_be_fetching(
    command: str, seconds: float | None, said: str
):
    server = mcpmux.Facts("files", mcpmux.ServerOptions(command=command, args=["-y", "x"]))
    server.state = mcpmux.State.STARTING
    server.run = mcpmux.Run(1, mcpmux.NOBODY, 100.0)
    assert mcpmux.how_it_goes(server, None if seconds is None else 100.0 + seconds) == said


def test_every_command_is_known_to_be_one_in_a_hint():
    assert {row.name for row in mcpmux.SUBCOMMANDS} <= set(mcpmux.COMMANDS.split("|"))


def test_hints_call_mcpmux_as_the_person_did(monkeypatch: pytest.MonkeyPatch):
    hint = "run `mcpmux check`, for mcpmux has no `mcpmux.toml`"
    monkeypatch.delenv("UV_RUN_RECURSION_DEPTH", raising=False)
    for prefix, words, called in (
        ("/usr", [], "mcpmux check"),
        ("/usr", ["check", "--config", "a b.toml"], f"mcpmux --config {mcpmux.command_line(['a b.toml'])} check"),
        ("/usr", ["--config=x.toml"], "mcpmux --config x.toml check"),
        ("/h/.cache/uv/archive-v0/abc", [], "uvx mcpmux check"),
    ):
        monkeypatch.setattr(sys, "prefix", prefix)
        monkeypatch.setattr(sys, "argv", ["mcpmux", *words])
        assert mcpmux.as_typed(hint) == f"run `{called}`, for mcpmux has no `mcpmux.toml`"
    monkeypatch.setenv("UV_RUN_RECURSION_DEPTH", "1")
    monkeypatch.setattr(sys, "prefix", "/usr")
    monkeypatch.setattr(sys, "argv", ["mcpmux"])
    assert mcpmux.as_typed(hint) == "run `uv run mcpmux check`, for mcpmux has no `mcpmux.toml`"


# ── models ──


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What `mcpmux models --prefer …` prints; litellm takes seconds to load, so all is looked at in one run."""
    folder = tmp_path_factory.mktemp("models")
    config = written(folder / "mcpmux.toml", SAMPLING)
    preferences = '{"hints": [{"name": "gemini"}], "costPriority": 1, "intelligencePriority": 0.5}'
    done = run(empty_home(folder), "models", "--config", str(config), "--prefer", preferences)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_models_shows_each_with_its_scores_and_prices_and_where_they_come_from(models: list[str]):
    rows = [re.split(r"  +", line) for line in models[: models.index("")]]
    assert rows[0] == ["MODEL", "COST", "SPEED", "INTELLIGENCE", "$/M IN", "$/M OUT", "HINTS"]
    sonnet, mini, free, unknown = rows[1:]
    assert sonnet[0] == "anthropic/claude-sonnet-4-5"
    assert all(re.fullmatch(r"0\.\d+ \(price(, length, thinking)?\)", cell) for cell in sonnet[1:4]), sonnet
    assert float(sonnet[4]) < float(sonnet[5])
    assert sonnet[6] == "middle, sonnet"
    assert mini[3] == "0.25 (config)"
    assert mini[1] == mini[2]
    assert float(mini[1].removesuffix(" (price)")) > float(sonnet[1].removesuffix(" (price)"))
    assert free[1:] == ["1 (local)", "0.5 (local)", "0.1 (local)", "?", "?", "-"]
    assert unknown[1:] == ["0.5 (unknown)"] * 3 + ["?", "?", "-"]


def test_models_says_what_an_unknown_price_means(models: list[str]):
    told = "?: litellm knows no price; such a model is asked only if usd_per_request says what a request counts"
    assert told in models


def test_models_says_which_one_a_request_would_get_and_why(models: list[str]):
    """Nearly as cheap as what is free, and cleverer."""
    why = r"no hint names one; it scores most: 1 × cost 0\.9\d? \+ 0\.5 × intelligence 0\.25 = 1\.\d+"
    assert re.fullmatch(f"openai/gpt-4o-mini: {why}", models[-1]), models[-1]


def test_models_without_a_preference_chooses_none(home: dict[str, str], tmp_path: Path):
    config = written(tmp_path / "mcpmux.toml", '[sampling]\nmodel = "openai/nobody-knows"')
    done = run(home, "models", "--config", str(config))
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 4  # heads, the model, and what ? means


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("{", "--prefer: not a JSON object"),
        ("[1]", "--prefer: not a JSON object"),
        ('{"hints": 5}', "--prefer: hints: Input should be a valid list"),
        ('{"hints": [{"name": 5}]}', "--prefer: hints.0.name: Input should be a valid string"),
        ('{"costPriority": "much"}', "--prefer: costPriority: Input should be a valid number"),
    ],
)
def test_a_preference_that_no_server_could_send_is_refused(given: str, told: str, home: dict[str, str], tmp_path: Path):
    config = written(tmp_path / "mcpmux.toml", SAMPLING)
    done = run(home, "models", "--config", str(config), "--prefer", given)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"mcpmux: {told}")
    assert len(done.stderr.splitlines()) == 1


def test_models_without_sampling_says_what_to_add(home: dict[str, str], tmp_path: Path):
    config = written(tmp_path / "mcpmux.toml", server_table("fake"))
    done = run(home, "models", "--config", str(config))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (f'mcpmux: {config}: no model is configured; add [sampling] with model = "provider/model"\n')


# ── usage ──


def spent(home: dict[str, str], *rows: tuple[int, str, str, Any]) -> Path:
    """A ledger with a line for each (days ago, server, model, USD), each of 10 tokens in and 5 out."""
    path = Path(json.loads(run(home, "usage", "--json").stdout)["ledger"])
    assert str(path).startswith(home["HOME"])
    lines = [
        {"time": f"{day(ago)}T12:00:00Z", "server": server, "model": model, "in": 10, "out": 5, "usd": usd, "ms": 9}
        for ago, server, model, usd in rows
    ]
    return written(path, *map(json.dumps, lines), "")


def day(ago: int) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(time.time() - 86400 * ago))


def test_usage_adds_up_by_day_server_and_model(home: dict[str, str]):
    today = day(0)
    ledger = spent(
        home, (0, "git", "a/m", 0.25), (1, "git", "a/m", 1), (0, "fs", "a/m", 0.5), (0, "git", "b/n", None),
        (0, "git", "a/m", 0.125), (40, "old", "a/m", 8),
    )  # fmt: skip
    with ledger.open("a", encoding="utf-8") as file:
        file.write('no JSON\n{"time": 5}\n{"half')
    done = run(home, "usage")
    assert (done.returncode, done.stderr) == (0, "")
    assert day(0) == today, "a day has begun in the middle of this test"
    assert [line.split() for line in done.stdout.splitlines()] == [
        ["DAY", "SERVER", "MODEL", "REQUESTS", "TOKENS", "IN", "TOKENS", "OUT", "USD"],
        [day(1), "git", "a/m", "1", "10", "5", "1.0000"],
        [today, "fs", "a/m", "1", "10", "5", "0.5000"],
        [today, "git", "a/m", "2", "20", "10", "0.3750"],
        [today, "git", "b/n", "1", "10", "5", "unknown"],
        [],
        ["$1.8750", "in", "all", f"({ledger})"],
    ]
    assert [line.split()[1] for line in run(home, "usage", "--days", "1").stdout.splitlines()[1:4]] == [
        "fs",
        "git",
        "git",
    ]
    assert "old" in run(home, "usage", "--days", "50").stdout


def test_usage_for_machines_has_the_same(home: dict[str, str]):
    ledger = spent(home, (0, "git", "a/m", 0.25))
    told = json.loads(run(home, "usage", "--json").stdout)
    row = {"server": "git", "model": "a/m", "requests": 1, "tokensIn": 10, "tokensOut": 5, "usd": 0.25}
    row["priceUnknown"] = 0
    assert told == {"ledger": str(ledger), "usage": [{"day": day(0), **row}]}


def test_usage_without_a_ledger_says_where_it_would_be(home: dict[str, str]):
    done = run(home, "usage", "--days", "7")
    assert done.returncode == 0
    assert re.fullmatch(r"No sampling in 7 days \(.+usage\.jsonl\)\.\n", done.stdout)


@pytest.mark.parametrize("days", ["0", "-3", "x", "9" * 30])
def test_usage_of_a_number_of_days_that_is_none_is_refused(days: str, home: dict[str, str]):
    done = run(home, "usage", "--days", days)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--days" in done.stderr


# ── a config that cannot be used ──


@pytest.mark.parametrize("command", [["check"], ["check", "--json"], []], ids=["check", "check --json", "serve"])
def test_a_config_that_cannot_be_used_is_told_in_full(command: list[str], home: dict[str, str], tmp_path: Path):
    config = written(
        tmp_path / "mcpmux.toml",
        'colour = 1\n[mux]\nseperator = "_"\nmax_message_mb = -1\n[mcp_servers.x]\ncommand = "a"\narg = []',
    )
    done = run(home, "--config", str(config), *command)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        f"mcpmux: {config}: colour: unknown key; known keys: hosts, mcp_servers, mux, sampling",
        f'mcpmux: {config}: mux.seperator: unknown key; did you mean "separator"?',
        f"mcpmux: {config}: mux.max_message_mb: expected a number > 0.0",
        f'mcpmux: {config}: mcp_servers.x.arg: unknown key; did you mean "args"?',
    ]


@pytest.mark.parametrize(
    "content",
    [b"[mux", b"\xff\xfe[\0", b"a = " + b"1" * 5000, b"a = " + b"[" * 50_000],
    ids=["syntax", "UTF-16", "an endless number", "endless nesting"],
)
def test_whatever_is_in_the_file_it_is_one_problem_and_no_traceback(
    content: bytes, home: dict[str, str], tmp_path: Path
):
    config = tmp_path / "mcpmux.toml"
    config.write_bytes(content)
    done = run(home, "check", "--config", str(config))
    assert done.returncode == 2
    assert re.match(rf"mcpmux: {re.escape(str(config))}(:1)?: ", done.stderr)
    assert len([line for line in done.stderr.splitlines() if not line.startswith("    ")]) == 1


@pytest.mark.parametrize("key", ["max_message_mb", "host_message_mb", "outbox_mb"])
def test_a_limit_of_infinity_is_no_traceback(key: str, home: dict[str, str], tmp_path: Path):
    config = written(tmp_path / "mcpmux.toml", f"[mux]\n{key} = inf", server_table("fake"))
    assert run(home, "--config", str(config)).returncode in (0, 2)


# ── no config ──


def test_check_without_a_config_says_where_to_put_one_and_that_is_where_it_is_read(home: dict[str, str]):
    done = run(home, "check")
    assert done.returncode == 1
    named = re.search(r"There is no config file at (.+mcpmux\.toml)\.$", done.stdout, re.MULTILINE)
    assert named
    assert named[1].startswith(home["HOME"])
    assert "mcpmux demo" in done.stdout
    written(Path(named[1]), server_table("fake"))
    done = run(home, "check")
    assert done.returncode == 0
    assert done.stdout.startswith(named[1])


def test_check_names_the_missing_file_that_it_was_told_of(home: dict[str, str], tmp_path: Path):
    for arguments, env in (
        (["--config", str(tmp_path / "a.toml")], {}),
        ([], {"MCPMUX_CONFIG": str(tmp_path / "a.toml")}),
    ):
        done = run(home | env, "check", *arguments)
        assert done.returncode == 1
        assert f"There is no config file at {tmp_path / 'a.toml'}." in done.stdout


def test_serving_without_a_config_offers_nothing_and_says_where_it_goes(home: dict[str, str]):
    """A host shows no more of a server that exits than "disconnected"."""
    host = RawHost([*COMMAND], home)
    try:
        told = host.initialize()
        named = re.search(r"put one at (.+mcpmux\.toml), then start", told["instructions"])
        assert named
        assert str(named[1]).startswith(home["HOME"])
        assert host.tools() == []
        for method, key in (
            ("prompts/list", "prompts"),
            ("resources/list", "resources"),
            ("resources/templates/list", "resourceTemplates"),
        ):
            assert host.request(method)["result"][key] == []
        assert "error" in host.request("tools/call", {"name": "x__y"}) or host.call("x__y")["isError"]
    finally:
        code = host.close()
    assert code == 0


# ── serving ──


def test_stdout_carries_nothing_but_messages(start: Callable[..., RawHost]):
    """Garbage of a server's, its stderr, the log at its most talkative: none of it is for the host's pipe.
    https://modelcontextprotocol.io/specification/2025-11-25/basic/transports#stdio"""
    host = start(
        '[mux]\nlog_level = "trace"',
        server_table("noisy", "--garbage", "--stderr", "a word on stderr"),
        server_table("gone", "--exit", "3", "--stderr", "gone"),
    )
    host.initialize()
    assert host.text("noisy__echo", said="x")
    assert host.call("noisy__crash")["isError"]
    assert host.close() == 0
    lines = [message["raw"] for message in host.seen]
    while raw := host.lines.get(timeout=PATIENCE):
        lines.append(raw)
    assert len(lines) >= 3
    for line in lines:
        assert json.loads(line)["jsonrpc"] == "2.0"
        assert line.endswith(b"\n")
        assert line.count(b"\n") == 1
    assert "mcpmux trace: < host initialize" in host.log()


def test_a_stray_print_goes_to_the_log(home: dict[str, str], tmp_path: Path):
    """By Python, by a C library or by a command that something starts."""
    config = written(tmp_path / "mcpmux.toml", server_table("fake"))
    code = textwrap.dedent("""
        import os, sys, mcpmux
        serve = mcpmux.Mux.run
        async def run(self):
            print("stray print", flush=True)
            os.write(1, b"stray write\\n")
            os.system("echo stray command")
            await serve(self)
        mcpmux.Mux.run = run
        sys.exit(mcpmux.main(sys.argv[1:]))
    """)
    host = RawHost([sys.executable, "-c", code, "--config", str(config)], home | {"PYTHONPATH": str(ROOT)})
    try:
        host.initialize()
        assert host.text("fake__echo", said="x")
    finally:
        assert host.close() == 0
    for stray in ("stray print", "stray write", "stray command"):
        assert stray in host.log()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals in Python's library")
def test_a_person_at_a_terminal_is_told_that_a_host_is_wanted(home: dict[str, str]):
    import pty

    ours, theirs = pty.openpty()
    command = [*COMMAND]
    process = subprocess.Popen(command, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=home)
    os.close(theirs)
    try:
        os.write(ours, b"\x04")  # Ctrl-D, read as the end once mcpmux reads
        stdout, stderr = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        os.close(ours)
    assert (process.returncode, stdout) == (0, b"")
    assert b"`mcpmux check`" in stderr
    assert b"`mcpmux demo`" in stderr


def test_a_host_is_told_no_such_thing(home: dict[str, str]):
    done = run(home)
    assert (done.returncode, done.stdout) == (0, "")
    assert "mcpmux check" not in done.stderr


# ── demo ──


class Demo:
    """`mcpmux demo` in an empty home, from an empty folder."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.home.mkdir()
        (folder / "empty").mkdir()
        self.done = run(empty_home(self.home), "demo", cwd=folder / "empty")
        shown, _, self.next_steps = self.done.stdout.partition("\nNow with your own servers:")
        self.parts = re.split(r"^\d\. ", shown, flags=re.MULTILINE)
        self.left_behind = list((folder / "empty").iterdir())


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    return Demo(tmp_path_factory.mktemp("demo"))


def test_the_demo_needs_nothing_and_runs_to_its_end(demo: Demo):
    assert (demo.done.returncode, demo.done.stderr) == (0, "")
    assert len(demo.parts) == 7
    assert demo.left_behind == []
    assert not list(demo.home.rglob("*.toml"))


def test_the_demo_shows_two_servers_as_one(demo: Demo):
    assert f"mcpmux {mcpmux.__version__}" in demo.parts[1]
    names = re.findall(r"^     (\w+__\w+) +\S", demo.parts[1], re.MULTILINE)
    assert names == ["notes__whoami", "notes__add_note", "notes__summarize", "clock__whoami", "clock__countdown"]
    calls = re.findall(r"^     (\w+)__whoami  ->  (\w+), process (\d+)$", demo.parts[2], re.MULTILINE)
    assert [(asked, answered) for asked, answered, _ in calls] == [("notes", "notes"), ("clock", "clock")]
    assert calls[0][2] != calls[1][2]


def test_the_demo_shows_progress(demo: Demo):
    bars = re.findall(r"^     \[(#+) *\] (\d+)/10$", demo.parts[3], re.MULTILINE)
    assert [(len(bar), done) for bar, done in bars] == [(2 * n, str(n)) for n in range(1, 11)]
    assert "clock__countdown  ->  Lift-off!" in demo.parts[3]


def test_the_demo_shows_servers_that_ask_the_person_and_the_model(demo: Demo):
    assert "the host shows  [notes] What shall I note?" in demo.parts[4]
    assert "notes__add_note  ->  Noted: water the plants" in demo.parts[4]
    assert "notes__summarize  ->  The model demo/model says: Milk, Ada, plants." in demo.parts[5]
    assert "here the demo plays it" in demo.parts[5]


def test_the_demo_shows_that_a_killed_server_hurts_nobody_else(demo: Demo):
    how = "exited with code" if sys.platform == "win32" else "was killed by SIGKILL"
    assert re.search(rf"clock__countdown  ->  mcpmux: clock {how}", demo.parts[6])
    before = dict(re.findall(r"(\w+), process (\d+)", demo.parts[2]))
    after = dict(re.findall(r"(\w+), process (\d+)", demo.parts[6]))
    assert after["notes"] == before["notes"]
    assert after["clock"] != before["clock"]
    assert not any(is_running(int(pid)) for pid in [*before.values(), *after.values()])


def test_a_log_that_the_demo_names_is_there(demo: Demo):
    """A server that never wrote to its stderr has no log to look into."""
    assert all(Path(name).is_file() for name in re.findall(r"its log is ([^;]+);", demo.done.stdout))


def test_the_demo_ends_with_what_to_do_next(demo: Demo):
    assert "mcpmux setup" in demo.next_steps
    text = demo.next_steps[demo.next_steps.index("[mcp_servers") :]
    config = mcpmux.read_config(tomllib.loads(text), demo.home / "mcpmux.toml")
    assert list(config.servers) == ["time"]


# ── one file ──


def inline_metadata(path: Path) -> dict[str, Any]:
    """https://peps.python.org/pep-0723/#reference-implementation"""
    pattern = r"(?m)^# /// (?P<type>[a-zA-Z0-9-]+)$\s(?P<content>(^#(| .*)$\s)+)^# ///$"
    (block,) = [one for one in re.finditer(pattern, path.read_text(encoding="utf-8")) if one["type"] == "script"]
    return tomllib.loads("".join(line[2:] for line in block["content"].splitlines(keepends=True)))


def test_the_inline_metadata_is_that_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert inline_metadata(MCPMUX) == {
        "requires-python": project["requires-python"],
        "dependencies": project["dependencies"],
    }


def test_copied_alone_it_runs_with_uv(tmp_path: Path):
    """With the machine's own home: uv's cache is there, and `--version` reads nothing else."""
    shutil.copy(MCPMUX, tmp_path)
    env = {key: value for key, value in os.environ.items() if key not in ("VIRTUAL_ENV", "PYTHONPATH")}
    done = subprocess.run(
        [os.environ.get("UV", "uv"), "run", "--quiet", "mcpmux.py", "--version"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, f"mcpmux {mcpmux.__version__}\n"), done.stderr


# ── mcpmux logs ──


def logs_of(home: dict[str, str]) -> Path:
    folder = Path(run(home, "logs").stdout.strip().rpartition(" in ")[2].rstrip("."))
    folder.mkdir(parents=True)
    return folder


def test_logs_shows_the_end_of_a_servers_log_also_across_its_rotation(home: dict[str, str]):
    folder = logs_of(home)
    (folder / "git.log.1").write_bytes(b"one\ntwo\n")
    (folder / "git.log").write_bytes(b"three\nfour\n")
    assert run(home, "logs", "git").stdout == "one\ntwo\nthree\nfour\n"
    assert run(home, "logs", "git", "-n", "3").stdout == "two\nthree\nfour\n"
    assert run(home, "logs").stdout == f"git  {folder / 'git.log'}\n"


def test_logs_of_an_unknown_server_suggests_the_nearest(home: dict[str, str]):
    (logs_of(home) / "github.log").write_bytes(b"x")
    wrong = run(home, "logs", "gihub")
    assert wrong.returncode == 2
    assert wrong.stderr == "mcpmux: gihub has written no log; did you mean github?\n"


def test_logs_follows_what_is_written_and_a_log_that_is_begun_anew(home: dict[str, str]):
    log = logs_of(home) / "git.log"
    log.write_bytes(b"past\n")
    with subprocess.Popen([*COMMAND, "logs", "git", "-f"], env=home, stdout=subprocess.PIPE) as tail:
        assert tail.stdout
        assert tail.stdout.readline() == b"past\n"
        with log.open("ab") as file:
            file.write(b"more\n")
        assert tail.stdout.readline() == b"more\n"
        log.replace(log.with_suffix(".log.1"))
        log.write_bytes(b"new\n")
        assert tail.stdout.readline() == b"new\n"
        tail.terminate()
