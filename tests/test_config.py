"""The TOML file, the environment, and what becomes of them. Nearly all of it is our choice."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import io
import logging
import math
import os
import select
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import mcpmux
from mcpmux import Command, Config, ConfigError, Journal, MuxOptions, StartError

FILE = Path("/home/ada/mcp/mcpmux.toml").absolute()
FOLDER = FILE.parent
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="Windows starts no scripts by their first line")


def check(
    text: str, *, fatal: tuple[str, ...] = (), notes: tuple[str, ...] = (), **broken: str | tuple[str, ...]
) -> Any:
    """Reads `text` as the config: all that is wrong outside the servers' tables, or with each server, and the notes."""
    try:
        config = mcpmux.read_config(tomllib.loads(text), FILE)
    except ConfigError as wrong:
        lines = str(wrong).splitlines()
        assert lines == [f"{FILE}: {problem}" for problem in fatal]
        return None
    assert not fatal
    expected = {name: (what,) if isinstance(what, str) else what for name, what in broken.items()}
    assert config.broken == {
        name: "; ".join(f"mcpmux.toml: {problem}" for problem in problems) for name, problems in expected.items()
    }
    assert tuple(config.notes) == notes
    return config


def server(*lines: str) -> Any:
    """The options of a server with a command and these lines, which are right."""
    return check("\n".join(["[mcp_servers.x]", 'command = "a"', *lines])).servers["x"]


def run_expand(
    text: str, environment: Mapping[str, str] | None = None, *, secrets: set[str] | None = None, within: float = 10.0
) -> str:
    async def run() -> str:
        async with asyncio.timeout(within):
            return await mcpmux.expand(text, "the.path", environment or {}, set() if secrets is None else secrets)

    try:
        return asyncio.run(run())
    except TimeoutError:
        pass  # with all that its frames hold
    gc.collect()  # what was left behind is told of now, and not in the middle of another test
    pytest.fail(f"{text} is still being expanded after {within} s", pytrace=False)


def prepared(table: str, environment: Mapping[str, str], file: Path = FILE) -> Command:
    """Server x, ready to be run by an mcpmux with this environment."""
    config = mcpmux.read_config(tomllib.loads(f"[mcp_servers.x]\n{table}"), file)
    assert config.broken == {}
    config = msgspec.structs.replace(config, environment=dict(environment), inherited=dict(environment))
    return asyncio.run(mcpmux.prepare("x", config.servers["x"], config))


def refused(table: str, environment: Mapping[str, str], file: Path = FILE) -> tuple[str, str]:
    """Why server x cannot be started, and what to do."""
    with pytest.raises(StartError) as caught:
        prepared(table, environment, file)
    what, todo = caught.value.args
    return what, todo


def toml(path: str | Path) -> str:
    return "'" + str(path) + "'"


ME = f"command = {toml(sys.executable)}"


def script(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)
    return path


# ── what the file may say ──


def test_an_empty_file_is_a_config_with_the_defaults():
    config = check("")
    assert config.options == MuxOptions()
    assert config.servers == {}
    assert config.exists


def test_a_server_of_codexs_documentation_pastes_straight_in():
    """https://github.com/openai/codex/blob/main/docs/config.md#mcp_servers"""
    config = check(
        """
        [mcp_servers.docs]
        command = "npx"
        args = ["-y", "mcp-server"]
        env = { "API_KEY" = "value" }
        env_vars = ["A", { name = "B", source = "local" }]
        cwd = "/srv"
        startup_timeout_sec = 20
        tool_timeout_sec = 30.5
        enabled = true
        enabled_tools = ["search"]
        disabled_tools = ["delete*"]
        required = true
        supports_parallel_tool_calls = true
        scopes = ["read"]

        [mcp_servers.docs.tools.search]
        approval_mode = "approve"
        """,
        notes=(
            "mcp_servers.docs.required: means nothing here and is ignored",
            "mcp_servers.docs.supports_parallel_tool_calls: means nothing here and is ignored",
            "mcp_servers.docs.scopes: means nothing here and is ignored",
            "mcp_servers.docs.tools.search.approval_mode: means nothing here and is ignored",
        ),
    )
    docs = config.servers["docs"]
    assert (docs.command, docs.args, docs.env) == ("npx", ["-y", "mcp-server"], {"API_KEY": "value"})
    assert docs.env_vars == ["A", "B"]
    assert (docs.startup_timeout_sec, docs.tool_timeout_sec) == (20, 30.5)
    assert (docs.enabled_tools, docs.disabled_tools) == (["search"], ["delete*"])
    assert docs.tools["search"].enabled


def test_codexs_timeout_in_milliseconds_is_understood():
    assert server("startup_timeout_ms = 1500").startup_timeout_sec == 1.5
    assert server("startup_timeout_ms = 1500", "startup_timeout_sec = 7").startup_timeout_sec == 7


@pytest.mark.parametrize("value", ["-5", "0", '"5"', "true", "9" * 400])
def test_a_wrong_timeout_in_milliseconds_is_an_error_that_names_it(value: str):
    """The person looks for the key that he wrote."""
    text = f"[mcp_servers.x]\ncommand = 'a'\nstartup_timeout_ms = {value}"
    config = mcpmux.read_config(tomllib.loads(text), FILE)
    assert config.servers == {}
    assert config.broken["x"].startswith("mcpmux.toml: mcp_servers.x.startup_timeout_ms: ")


def test_a_disabled_server_is_not_looked_at_any_further():
    config = check("[mcp_servers.x]\nenabled = false\ncomand = 5\n[mcp_servers.y]\ncommand = 'a'")
    assert config.disabled == ["x"]
    assert list(config.servers) == ["y"]


def test_one_model_stands_in_the_sampling_table_itself():
    config = check('[sampling]\nmodel = "a/m"\napi_key = "${K}"\napi_base = "http://x"\nparams = { seed = 1 }')
    assert config.sampling == mcpmux.SamplingOptions(
        model="a/m",
        api_key="${K}",
        api_base="http://x",
        params={"seed": 1},
        models=[mcpmux.ModelOptions(model="a/m", api_key="${K}", api_base="http://x", params={"seed": 1})],
    )


def test_several_models_have_a_table_each():
    config = check(
        "[sampling]\ntimeout_sec = 5\n[sampling.limits]\nusd_per_day = 2\nmax_tokens = 100\n"
        '[[sampling.models]]\nmodel = "a/m"\nhints = ["small"]\ncost = 1\n[[sampling.models]]\nmodel = "b/n"'
    )
    assert config.sampling == mcpmux.SamplingOptions(
        timeout_sec=5.0,
        limits=mcpmux.SamplingLimits(usd_per_day=2.0, max_tokens=100),
        models=[mcpmux.ModelOptions(model="a/m", hints=["small"], cost=1.0), mcpmux.ModelOptions(model="b/n")],
    )


def test_without_a_sampling_table_there_is_no_model():
    assert check("[mux]").sampling is None


def test_relative_paths_start_at_the_config_file_and_not_where_the_host_happened_to_be():
    x = server('roots = ["src", "/abs/olute", "file:///as/it/is"]')
    assert x.roots == [
        (FOLDER / "src").as_uri(),
        Path("/abs/olute").absolute().as_uri(),
        "file:///as/it/is",
    ]


def test_a_root_with_a_space_becomes_a_uri():
    assert server('roots = ["/with a/space"]').roots[0].endswith("/with%20a/space")


@pytest.mark.requirement("roots-are-files")
def test_a_root_is_a_folder_or_a_file_uri():
    """2026-07-28, client/roots#root."""
    refused = "mcp_servers.x.roots: 'https://example.org/' is neither a folder nor a file:// URI"
    check('[mcp_servers.x]\ncommand = "a"\nroots = ["src", "https://example.org/"]', x=refused)


def test_a_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "a").mkdir()
    assert prepared(f'{ME}\ncwd = "~/a"', {}).cwd == str(tmp_path / "a")
    x = server('roots = ["~/b"]')
    assert x.roots == [(tmp_path / "b").as_uri()]


# ── what is wrong with it ──

KNOWN = (
    "allow_http, approve, args, bearer_token_env_var, command, cwd, disabled_tools, elicitation, enabled, "
    "enabled_tools, env, env_http_headers, env_vars, http_headers, idle_timeout_sec, oauth, pin, prefix, protocol, "
    "roots, sampling, scopes, "
    "start, startup_timeout_sec, tool_timeout_sec, tools, transport, url"
)


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        # Keys that nobody knows.
        ("comand = 'b'", '.comand: unknown key; did you mean "command"?'),
        ("enable = true", '.enable: unknown key; did you mean "enabled"?'),
        ("startup_timeout = 5", '.startup_timeout: unknown key; did you mean "startup_timeout_sec"?'),
        ("xyzzy = 1", f".xyzzy: unknown key; known keys: {KNOWN}"),
        ("tools.t.nam = 'b'", '.tools.t.nam: unknown key; did you mean "name"?'),
        # Types.
        ("args = 'b'", ".args: expected a list, got a string"),
        ("args = ['a', 1]", ".args[1]: expected a string, got an integer"),
        ("args = [['a']]", ".args[0]: expected a string, got a list"),
        ("args = [{}]", ".args[0]: expected a string, got a table"),
        ("cwd = 1.5", ".cwd: expected a string, got a number"),
        ("env = ['a']", ".env: expected a table, got a list"),
        ("env = { PORT = 8080 }", ".env.PORT: expected a string, got an integer"),
        ("env = { A = 'a', LIST = ['b'] }", ".env.LIST: expected a string, got a list"),
        ("env_vars = [{ source = 'local' }]", ".env_vars[0]: expected a string, got a table"),
        ("env_vars = [{ name = 5 }]", ".env_vars[0]: expected a string, got an integer"),
        ("enabled = 'no'", ".enabled: expected true or false, got a string"),
        ("elicitation = 1", ".elicitation: expected true or false or a string, got an integer"),
        ("startup_timeout_sec = '30'", ".startup_timeout_sec: expected a number, got a string"),
        ("tool_timeout_sec = true", ".tool_timeout_sec: expected a number, got true or false"),
        ("enabled_tools = 'all'", ".enabled_tools: expected a list, got a string"),
        ("roots = [false]", ".roots[0]: expected a string, got true or false"),
        ("tools = 5", ".tools: expected tables, as in [mcp_servers.x.tools.NAME]"),
        ("tools.t = 5", ".tools.t: expected a table, as in [mcp_servers.x.tools.t]"),
        ("tools.t.name = 5", ".tools.t.name: expected a string, got an integer"),
        # Values.
        ("startup_timeout_sec = -1", ".startup_timeout_sec: expected a number > 0.0"),
        ("startup_timeout_sec = 0", ".startup_timeout_sec: expected a number > 0.0"),
        ("tool_timeout_sec = nan", ".tool_timeout_sec: expected a number > 0.0"),
        ("tool_timeout_sec = " + "9" * 400, ".tool_timeout_sec: number out of range"),
        ("tools.t.name = ''", ".tools.t.name: expected a string of length >= 1"),
        ("prefix = 'a.b'", ".prefix: may have A-Z a-z 0-9 _ - only"),
        # Servers over HTTP.
        ("url = 'https://example.org/mcp'", ".url: stands beside command; a server has one of the two"),
        ("bearer_token_env_var = 'T'", ".bearer_token_env_var: goes with url; this server has a command"),
        ("oauth.client_id = 'a'", ".oauth: goes with url; this server has a command"),
        # Placeholders of other programs'.
        ("env = { K = '${env:KEY}' }", ".env.K: ${env:KEY} is no placeholder that mcpmux knows; write ${KEY}"),
        (
            "args = ['a', '-k=${input:key}']",
            ".args[1]: ${input:key} is no placeholder that mcpmux knows; write $${ for a plain ${",
        ),
        ("cwd = '${'", ".cwd: ${ is no placeholder that mcpmux knows; write $${ for a plain ${"),
        ("args = ['${1}']", ".args[0]: ${1} is no placeholder that mcpmux knows; write $${ for a plain ${"),
    ],
)
def test_what_is_wrong_in_a_servers_table_fails_that_server_alone(lines: str, problem: str):
    """The message names the file, the path in it, and the nearest key that there is."""
    text = (
        f"[mcp_servers.good]\ncommand = 'g'\n[mcp_servers.x]\ncommand = 'a'\n{lines}\n[mcp_servers.also]\ncommand = 'g'"
    )
    config = check(text, x=f"mcp_servers.x{problem}")
    assert list(config.servers) == ["good", "also"]


def test_a_server_over_http_has_a_url_and_what_goes_with_it():
    [x] = check("""
        [mcp_servers.x]
        url = "https://${HOST}/mcp"
        transport = "sse"
        http_headers = { X-Team = "${TEAM}" }
        env_http_headers = { X-Key = "KEY" }
        bearer_token_env_var = "TOKEN"
        scopes = ["read"]
        oauth = { client_id = "c", client_secret = "${SECRET}", callback_port = 8765 }
    """).servers.values()
    assert (x.url, x.transport, x.scopes) == ("https://${HOST}/mcp", "sse", ["read"])
    assert x.oauth == mcpmux.OAuthOptions(client_id="c", client_secret="${SECRET}", callback_port=8765)


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ("args = ['a']", ".args: goes with command; this server has a url"),
        ("env = { A = 'b' }", ".env: goes with command; this server has a url"),
        ("transport = 'htp'", '.transport: invalid enum value \'htp\'; one of "http", "sse" is expected'),
        ("http_header = { A = 'b' }", '.http_header: unknown key; did you mean "http_headers"?'),
        ("http_headers = { A = 5 }", ".http_headers.A: expected a string, got an integer"),
        ("http_headers = { 'A B' = 'c' }", ".http_headers: 'A B' is no name of a header"),
        (
            "http_headers = { A = '${env:B}' }",
            ".http_headers.A: ${env:B} is no placeholder that mcpmux knows; write ${B}",
        ),
        ("oauth.client_ids = 'a'", '.oauth.client_ids: unknown key; did you mean "client_id"?'),
        ("oauth.callback_port = 70000", ".oauth.callback_port: expected an integer <= 65535"),
        ("oauth = 5", ".oauth: expected a table, as in [mcp_servers.x.oauth]"),
    ],
)
def test_what_is_wrong_in_a_remote_servers_table_is_named(lines: str, problem: str):
    check(f"[mcp_servers.x]\nurl = 'http://a'\n{lines}", x=f"mcp_servers.x{problem}")


@pytest.mark.parametrize("url", ["example.org/mcp", "ftp://example.org", "http://", "https:///mcp"])
def test_a_url_is_one_of_http(url: str):
    check(f"[mcp_servers.x]\nurl = '{url}'", x="mcp_servers.x.url: expected an http:// or https:// address")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("mcp_server.x.command = 'a'", 'mcp_server: unknown key; did you mean "mcp_servers"?'),
        ("[muxx]", 'muxx: unknown key; did you mean "mux"?'),
        ("[servers.x]", "servers: unknown key; write [mcp_servers.NAME]"),
        ("colour = 1", "colour: unknown key; known keys: hosts, mcp_servers, mux, sampling"),
        ("mux = 5", "mux: expected a table, as in [mux]"),
        ("mcp_servers = 5", "mcp_servers: expected tables, as in [mcp_servers.NAME]"),
        ("[[mcp_servers]]", "mcp_servers: expected tables, as in [mcp_servers.NAME]"),
        ("[mux]\nseperator = '_'", 'mux.seperator: unknown key; did you mean "separator"?'),
        ("[mux]\nseparator = 5", "mux.separator: expected a string, got an integer"),
        ("[mux]\nseparator = '. '", "mux.separator: may have A-Z a-z 0-9 _ - only"),
        ("[mux]\nseparator = ''", "mux.separator: may have A-Z a-z 0-9 _ - only"),
        ("[mux]\nmax_message_mb = -1", "mux.max_message_mb: expected a number > 0.0"),
        ("[mux]\ninput_timeout_sec = 0", "mux.input_timeout_sec: expected a number > 0.0"),
        ("[mux]\nmax_name_length = 5", "mux.max_name_length: expected an integer >= 16"),
        ("[mux]\nmax_name_length = 500", "mux.max_name_length: expected an integer <= 128"),
        ("[mux]\nmax_name_length = 40.5", "mux.max_name_length: expected an integer, got a number"),
        ("[mux]\nenv_file = 5", "mux.env_file: expected a string, got an integer"),
    ],
)
def test_what_is_wrong_elsewhere_is_fatal(text: str, problem: str):
    """With half of the general options nobody would know what is served."""
    check(text, fatal=(problem,))


def test_codexs_keys_for_servers_mean_nothing_in_the_mux_table_and_are_unknown_there():
    with pytest.raises(ConfigError, match=r"mux\.required: unknown key"):
        mcpmux.read_config({"mux": {"required": True}}, FILE)


@pytest.mark.parametrize(
    ("document", "path", "choices"),
    [
        (
            {"mcp_servers": {"x": {"command": "a", "sampling": "sometimes"}}},
            "mcp_servers.x.sampling",
            "auto host local off",
        ),
        ({"mux": {"log_level": "loud"}}, "mux.log_level", "error warning info debug trace"),
    ],
)
def test_a_wrong_choice_is_answered_with_the_right_ones(document: dict[str, Any], path: str, choices: str):
    try:
        text = mcpmux.read_config(document, FILE).broken["x"]
    except ConfigError as wrong:
        text = str(wrong)
    assert f"mcpmux.toml: {path}: " in text
    for choice in choices.split():
        assert choice in text.partition(path)[2]


@pytest.mark.parametrize("kind", [[], [{"command": "a"}], 5, "a", True, 1.5, None, date(2026, 1, 2)])
def test_a_server_that_is_no_table_is_broken_in_words(kind: Any):
    config = mcpmux.read_config({"mcp_servers": {"x": kind, "good": {"command": "g"}}}, FILE)
    assert config.broken == {"x": "mcpmux.toml: mcp_servers.x: expected a table, as in [mcp_servers.x]"}
    assert list(config.servers) == ["good"]


@pytest.mark.parametrize("name", ["a b", "a.b", "", "ä", "x" * 65, "a\n"])
def test_a_servers_name_is_part_of_tools_names(name: str):
    config = mcpmux.read_config({"mcp_servers": {name: {"command": "a"}, "a-Z_9": {"command": "a"}}}, FILE)
    problem = f"mcp_servers.{name}: a server's name may have A-Z a-z 0-9 _ - only (64 at most)"
    assert config.broken == {name: f"mcpmux.toml: {problem}"}
    assert list(config.servers) == ["a-Z_9"]


@pytest.mark.parametrize(
    ("name", "table", "at"), [("mcpmux", {}, ""), ("a", {"prefix": "mcpmux"}, ".prefix")], ids=["name", "prefix"]
)
def test_nobody_is_called_what_mcpmux_calls_itself(name: str, table: dict[str, str], at: str):
    config = mcpmux.read_config({"mcp_servers": {name: {"command": "a"} | table}}, FILE)
    problem = f"mcp_servers.{name}{at}: mcpmux is what mcpmux calls itself"
    assert config.broken == {name: f"mcpmux.toml: {problem}"}


@pytest.mark.parametrize(
    "document",
    [{"mux": {"separator": "_\n"}}, {"mcp_servers": {"x": {"command": "a", "prefix": "p\n"}}}],
)
def test_a_newline_is_in_no_name(document: dict[str, Any]):
    """Python's `$` matches before a last newline too."""
    try:
        assert "x" in mcpmux.read_config(document, FILE).broken
    except ConfigError as wrong:
        assert "separator" in str(wrong)


def test_a_server_needs_a_command():
    check("[mcp_servers.x]\nargs = ['a']", x="mcp_servers.x: needs a command or a url")
    check("[mcp_servers.x]\ncommand = ''", x="mcp_servers.x.command: expected a string of length >= 1")
    check(
        "[mcp_servers.x]\ncomand = 'a'",
        x=(
            'mcp_servers.x.comand: unknown key; did you mean "command"?',
            'mcp_servers.x: needs a command or a url ("comand" is unknown)',
        ),
    )


def test_a_servers_problems_are_told_all_at_once():
    check(
        "[mcp_servers.x]\ncommand = 5\nargs = [1, 2]\nprefix = 'a b'\nbogus = 1\ntools.t.enabled = 'no'",
        x=(
            "mcp_servers.x.command: expected a string, got an integer",
            "mcp_servers.x.args[0]: expected a string, got an integer",
            "mcp_servers.x.prefix: may have A-Z a-z 0-9 _ - only",
            f"mcp_servers.x.bogus: unknown key; known keys: {KNOWN}",
            "mcp_servers.x.tools.t.enabled: expected true or false, got a string",
        ),
    )


def test_what_a_value_says_is_told_together_with_what_its_table_lacks():
    """A problem of one kind does not hide those of another."""
    check(
        "[mcp_servers.x]\nroots = ['ftp://a']\nbogus = 1\nenv = { K = '${env:K}' }\nhttp_headers = { 'A B' = 'c' }",
        x=(
            "mcp_servers.x.roots: 'ftp://a' is neither a folder nor a file:// URI",
            f"mcp_servers.x.bogus: unknown key; known keys: {KNOWN}",
            "mcp_servers.x.env.K: ${env:K} is no placeholder that mcpmux knows; write ${K}",
            "mcp_servers.x.http_headers: 'A B' is no name of a header",
            "mcp_servers.x: needs a command or a url",
        ),
    )


def test_every_placeholder_that_is_unknown_is_told():
    check(
        "[mcp_servers.x]\ncommand = '${env:A}'\nargs = ['${input:b} ${ok} ${input:c}']",
        x=(
            "mcp_servers.x.command: ${env:A} is no placeholder that mcpmux knows; write ${A}",
            "mcp_servers.x.args[0]: ${input:b} is no placeholder that mcpmux knows; write $${ for a plain ${",
            "mcp_servers.x.args[0]: ${input:c} is no placeholder that mcpmux knows; write $${ for a plain ${",
        ),
    )


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("sampling = 5", ["sampling: expected a table, as in [sampling]"]),
        ("[sampling]", ['sampling: needs a model, as in model = "anthropic/claude-sonnet-4-5"']),
        ("sampling.models = []", ['sampling: needs a model, as in model = "anthropic/claude-sonnet-4-5"']),
        ("[sampling]\nmodel = 5", ["sampling.model: expected a string, got an integer"]),
        ("[sampling]\nmodel = ''", ["sampling.model: expected a string of length >= 1"]),
        (
            "[sampling]\nmodle = 'm'",
            [
                'sampling.modle: unknown key; did you mean "model"?',
                'sampling: needs a model, as in model = "anthropic/claude-sonnet-4-5"',
            ],
        ),
        (
            "[sampling]\nmodel = 'm'\ncost = 1",
            [
                "sampling.cost: unknown key; known keys: api_base, api_key, approve, fallback, guard, limits, model, "
                "models, params, redact, timeout_sec"
            ],
        ),
        (
            "[sampling]\nmodel = 'm'\ntimeout_sec = 0\nparams = 5\napi_key = ['k']\napi_base = '${'",
            [
                "sampling.timeout_sec: expected a number > 0.0",
                "sampling.params: expected a table, got an integer",
                "sampling.api_key: expected a string, got a list",
                "sampling.api_base: ${ is no placeholder that mcpmux knows; write $${ for a plain ${",
            ],
        ),
        (
            "[sampling]\nmodel = 'm'\n[[sampling.models]]\nmodel = 'n'",
            ["sampling.model: stands beside [[sampling.models]]; each of those has its own model"],
        ),
        (
            "[sampling]\napi_key = 'k'\n[[sampling.models]]\nmodel = 'n'",
            ["sampling.api_key: stands beside [[sampling.models]]; each of those has its own api_key"],
        ),
        ("[sampling.models]\nmodel = 'm'", ["sampling.models: expected tables, as in [[sampling.models]]"]),
        ("sampling.models = ['m']", ["sampling.models: expected tables, as in [[sampling.models]]"]),
        ("[[sampling.models]]\nhints = ['a']", ["sampling.models[0]: needs a model"]),
        (
            "[[sampling.models]]\nmodel = 'm'\n[[sampling.models]]\nmodel = 5\nhints = 'a'\ncost = 2\nspeeed = 1\n"
            "api_key = '${env:K}'",
            [
                "sampling.models[1].model: expected a string, got an integer",
                "sampling.models[1].hints: expected a list, got a string",
                "sampling.models[1].cost: expected a number <= 1.0",
                'sampling.models[1].speeed: unknown key; did you mean "speed"?',
                "sampling.models[1].api_key: ${env:K} is no placeholder that mcpmux knows; write ${K}",
            ],
        ),
        (
            "[sampling]\nmodel = 'm'\n[sampling.limits]\nmax_tokens = 0\nrequests_per_minute = 1.5\n"
            "usd_per_day = inf\nmax_concurency = 2",
            [
                "sampling.limits.max_tokens: expected an integer >= 1",
                "sampling.limits.requests_per_minute: expected an integer, got a number",
                "sampling.limits.usd_per_day: expected a number <= 1000000000.0",
                'sampling.limits.max_concurency: unknown key; did you mean "max_concurrency"?',
            ],
        ),
        ("[sampling]\nmodel = 'm'\nlimits = 5", ["sampling.limits: expected a table, as in [sampling.limits]"]),
    ],
)
def test_what_is_wrong_with_sampling_is_fatal_and_told_all_at_once(text: str, problems: list[str]):
    check(text, fatal=tuple(problems))


def test_if_the_file_cannot_be_used_the_servers_problems_are_told_too():
    check(
        "colour = 1\n[mux]\nseperator = '_'\nlog_level = 5\n"
        "[mcp_servers.x]\ncomand = 'a'\ncommand = 'a'\n[mcp_servers.y]",
        fatal=(
            "colour: unknown key; known keys: hosts, mcp_servers, mux, sampling",
            'mux.seperator: unknown key; did you mean "separator"?',
            "mux.log_level: expected a string, got an integer",
            'mcp_servers.x.comand: unknown key; did you mean "command"?',
            "mcp_servers.y: needs a command or a url",
        ),
    )


@pytest.mark.parametrize("key", ["max_message_mb", "host_message_mb", "outbox_mb"])
def test_a_limit_of_infinity_is_refused_and_not_fallen_over_later(key: str):
    with pytest.raises(ConfigError, match=rf"mcpmux\.toml: mux\.{key}: "):
        mcpmux.read_config({"mux": {key: math.inf}}, FILE)


@pytest.mark.parametrize(
    "name", ["nowhere.env", "~nobody-of-that-name/x.env", "a\0b", "."], ids=["missing", "nobody's", "NUL", "folder"]
)
def test_an_env_file_that_cannot_be_read_is_fatal(name: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"mcpmux\.toml: mux\.env_file: .*cannot be read: ."):
        mcpmux.read_config({"mux": {"env_file": name}}, tmp_path / "mcpmux.toml")


@POSIX
def test_a_config_that_is_a_pipe_is_refused_and_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "mcpmux.toml")
    with pytest.raises(ConfigError, match="is a pipe or a device, which cannot be read again; save it as a file"):
        mcpmux.load_config(tmp_path / "mcpmux.toml")


# Most of these are no TOML file that anybody writes, but whatever stands there gets an answer and no traceback.
TEXTS = st.text(max_size=8) | st.sampled_from(
    [
        "a",
        "~",
        "~nobody-of-that-name",
        "${A}",
        "${A:-",
        "${cmd:a}",
        "${",
        "$${",
        "\0",
        "file://",
        "://",
        "*",
        "..",
        "x\n",
    ]
)
NUMBERS = st.integers() | st.floats() | st.sampled_from([10**400, -(10**400), math.inf, math.nan, 0, -1, 1500])
LEAVES = TEXTS | NUMBERS | st.booleans() | st.dates() | st.datetimes() | st.times()
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=8
)


def tables(likely: dict[str, st.SearchStrategy[Any]], *others: str) -> st.SearchStrategy[dict[str, Any]]:
    """Tables with known keys, mostly right or of any type, and sometimes with keys that nobody knows."""
    right = st.fixed_dictionaries({}, optional=likely)
    wrong = st.fixed_dictionaries({}, optional={key: value | VALUES for key, value in likely.items()})
    unknown = st.dictionaries(st.sampled_from(["comand", *others]) | TEXTS, VALUES, max_size=2)
    return right | wrong | st.builds(lambda *two: two[0] | two[1], wrong, unknown)


SIZES = st.sampled_from([1, 64.0, 1000, math.inf, 10**400])
MUX_TABLES = tables(
    dict.fromkeys(["max_message_mb", "host_message_mb", "outbox_mb", "input_timeout_sec"], SIZES)
    | {"max_name_length": st.integers(16, 128), "env_file": TEXTS}
    | {"separator": st.sampled_from(["_", ".", "x\n"]), "log_level": st.sampled_from(["info", "loud"])},
    "required",
)
TOOL_TABLES = tables(dict.fromkeys(["name", "title", "description"], TEXTS) | {"enabled": st.booleans()})
SERVER_TABLES = tables(
    dict.fromkeys(["args", "enabled_tools", "disabled_tools", "roots"], st.lists(TEXTS, max_size=2))
    | dict.fromkeys(["startup_timeout_sec", "tool_timeout_sec", "startup_timeout_ms"], SIZES)
    | dict.fromkeys(["elicitation", "required", "enabled"], st.booleans())
    | {"command": st.just("a") | TEXTS, "cwd": TEXTS, "env": st.dictionaries(TEXTS, TEXTS, max_size=2)}
    | {"prefix": st.sampled_from(["", "a", "x\n"]), "sampling": st.sampled_from(["auto", "off", "x"])}
    | {"env_vars": st.lists(TEXTS | st.fixed_dictionaries({}, optional={"name": TEXTS}), max_size=2)}
    | {"tools": st.dictionaries(TEXTS, TOOL_TABLES, max_size=2)},
    *sorted({*mcpmux.CODEX_KEYS, *mcpmux.REMOTE_KEYS}),
)
REMOTE_TABLES = tables(
    {"url": st.sampled_from(["https://example.org/mcp", "ftp://x", "http://"]) | TEXTS, "transport": TEXTS}
    | dict.fromkeys(["http_headers", "env_http_headers"], st.dictionaries(TEXTS, TEXTS, max_size=2))
    | {"bearer_token_env_var": TEXTS, "scopes": st.lists(TEXTS, max_size=2), "enabled": st.booleans()}
    | {"oauth": tables({"client_id": TEXTS, "client_secret": TEXTS, "callback_port": NUMBERS}) | VALUES},
    *mcpmux.LOCAL_KEYS,
)
MODEL_TABLES = tables(
    dict.fromkeys(["model", "api_key", "api_base"], TEXTS)
    | dict.fromkeys(["cost", "speed", "intelligence"], st.floats(0, 1))
    | {"hints": st.lists(TEXTS, max_size=2), "params": st.dictionaries(TEXTS, LEAVES, max_size=2)},
)
SAMPLING = tables(
    dict.fromkeys(["model", "api_key", "api_base"], TEXTS)
    | {"models": st.lists(MODEL_TABLES | VALUES, max_size=2), "params": st.dictionaries(TEXTS, LEAVES, max_size=2)}
    | {"limits": tables(dict.fromkeys(["max_tokens", "usd_per_day"], NUMBERS)), "timeout_sec": NUMBERS},
)
SERVERS = st.dictionaries(
    st.sampled_from([*"abcdefgh", "", "a b", "é"]),
    SERVER_TABLES.map(lambda table: {"command": "a"} | table) | REMOTE_TABLES | VALUES,
    max_size=3,
)
DOCUMENTS = st.fixed_dictionaries(
    {},
    optional={"mux": MUX_TABLES | VALUES, "mcp_servers": SERVERS | VALUES, "sampling": SAMPLING | VALUES, "é": VALUES},
)


@given(DOCUMENTS)
@example({"mcp_servers": {"a": {"command": "a", "cwd": "~nobody-of-that-name"}}})
@example({"mcp_servers": {"a": {"command": "a", "roots": ["~nobody-of-that-name"]}}})
@settings(max_examples=400)
def test_whatever_the_file_says_it_is_a_config_or_a_config_error(document: dict[str, Any]):
    try:
        config = mcpmux.read_config(document, FILE)
    except ConfigError as wrong:
        assert all(str(FILE) in line for line in str(wrong).split("\n") if line.startswith("/"))
        return
    told = [*config.servers, *config.broken, *config.disabled]
    assert sorted(told) == sorted(document.get("mcp_servers", {}))
    assert all(config.broken.values()), "a server is broken and nobody knows why"
    mcpmux.Core(config.options, config.servers, broken=config.broken)
    if config.sampling:
        assert all(model.model for model in config.sampling.models)
        setup = mcpmux.SamplerSetup(config.sampling.models, config.sampling.limits, config.sampling.timeout_sec, "x")
        mcpmux.msgspec.json.decode(mcpmux.encode(setup), type=mcpmux.SamplerSetup)


# ── the file itself ──


def test_a_missing_file_is_an_empty_config(tmp_path: Path):
    config = mcpmux.load_config(tmp_path / "none.toml")
    assert not config.exists
    assert config.servers == {}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"[mux", ":1: a ] is missing at the end of this table's name\n    [mux\n        ^"),
        (b"a = 1\na = 2", ":2: a is already defined in line 1; merge the two\n    a = 2\n    ^"),
        (b"\xff\xfe[\0m\0", ": is UTF-16; save the file as UTF-8"),
        (b"a = " + b"1" * 5000, ": not TOML: "),
    ],
    ids=["syntax", "twice", "UTF-16", "an endless number"],
)
def test_a_file_that_is_no_toml_is_one_problem_with_the_files_name(content: bytes, problem: str, tmp_path: Path):
    file = tmp_path / "mcpmux.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        mcpmux.load_config(file)
    assert str(caught.value).startswith(f"{file}{problem}")
    assert [line for line in str(caught.value).splitlines()[1:] if not line.startswith(" ")] == []


def test_a_folder_is_no_config_file(tmp_path: Path):
    with pytest.raises(ConfigError) as caught:
        mcpmux.load_config(tmp_path)
    assert str(caught.value) == f"{tmp_path}: is a folder; name the file in it"


def test_windows_line_ends_are_line_ends(tmp_path: Path):
    file = tmp_path / "mcpmux.toml"
    file.write_bytes(b'[mcp_servers.x]\r\ncommand = "a"\r\n')
    assert list(mcpmux.load_config(file).servers) == ["x"]


def test_the_config_is_the_one_named_else_the_variables_else_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("MCPMUX_CONFIG", str(tmp_path / "variable.toml"))
    assert mcpmux.config_path("~/named.toml") == tmp_path / "named.toml"
    assert mcpmux.config_path(None) == tmp_path / "variable.toml"
    monkeypatch.delenv("MCPMUX_CONFIG")
    usual = mcpmux.config_path(None)
    assert usual.name == "mcpmux.toml"
    assert usual.parent.name == "mcpmux"
    monkeypatch.chdir(tmp_path)
    assert mcpmux.config_path("relative.toml") == tmp_path / "relative.toml"


# ── placeholders ──


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("plain", "plain"),
        ("${VAR}", "value"),
        ("a${VAR}b${VAR}c", "avaluebvaluec"),
        ("${VAR:-default}", "value"),
        ("${NONE:-default}", "default"),
        ("${NONE:-}", ""),
        ("${NONE:-a:-b c/d}", "a:-b c/d"),
        ("${EMPTY}", ""),
        ("${EMPTY:-default}", "default"),
        ("$${VAR}", "${VAR}"),
        ("$${", "${"),
        ("$VAR $$ $", "$VAR $$ $"),
        ("${NESTED}", "${VAR}"),
    ],
)
def test_placeholders_become_their_values(text: str, expanded: str):
    """As a shell has it: an empty variable takes the default; a value is not read again."""
    assert run_expand(text, {"VAR": "value", "EMPTY": "", "NESTED": "${VAR}"}) == expanded


def test_a_variable_that_is_not_set_is_named_and_no_value_is():
    what, todo = refused('command = "a"\nenv = { KEY = "${SET}-${UNSET}" }', {"SET": "s3cret-value"})
    assert what == "${UNSET} is not set (mcp_servers.x.env.KEY)"
    assert todo == "set UNSET in env_file, or in the host's environment if it hands that on"


@pytest.mark.parametrize("key", ["command = '%s'", "command = 'a'\nargs = ['b', '%s']", "command = 'a'\ncwd = '%s'"])
def test_placeholders_are_read_in_command_args_env_and_cwd(key: str):
    what, _ = refused(key % "${UNSET}", {})
    path = {"com": "command", "arg": "args[1]", "cwd": "cwd"}[key.splitlines()[-1][:3]]
    assert what == f"${{UNSET}} is not set (mcp_servers.x.{path})"


def test_what_comes_from_outside_is_a_secret_and_what_the_file_says_is_none():
    secrets: set[str] = set()
    environment = {"TOKEN_A": "from-outside", "HOME": "/home/ada", "EMPTY": ""}
    run_expand("${TOKEN_A} ${HOME} ${NONE:-production} ${EMPTY} plain", environment, secrets=secrets)
    assert secrets - {""} == {"from-outside"}


def test_a_value_under_a_secrets_name_is_a_secret_wherever_it_stands():
    command = prepared(f'{ME}\nenv = {{ API_KEY = "literal-key", my_password = "word", PORT = "8080" }}', {})
    assert command.secrets == {"literal-key", "word"}


@POSIX
def test_an_assignment_in_an_assignment_is_looked_through_however_deep_it_is():
    assert mcpmux.without_secrets(["--env", "env=API_KEY=sk-0123"]) == ["--env", "env=API_KEY=***"]
    assert mcpmux.without_secrets(["a=" * 3000 + "TOKEN=abcdefgh"]) == ["a=" * 3000 + "TOKEN=***"]


def test_a_command_is_run_for_a_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WHO", "ada")
    secrets: set[str] = set()
    tool = script(tmp_path / "vault", 'echo "word of $1 for $WHO"', "echo noise >&2")
    text = run_expand(f"-k=${{cmd:{tool} 'op://a vault/item'}}!", {"WHO": "of env_file"}, secrets=secrets)
    assert text == "-k=word of op://a vault/item for ada!"
    assert secrets == {"word of op://a vault/item for ada"}


@POSIX
def test_a_secrets_command_is_looked_for_where_servers_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".local/bin").mkdir(parents=True)
    script(tmp_path / ".local/bin/vault-tool", "echo found")
    assert run_expand("${cmd:vault-tool}") == "found"


@POSIX
@pytest.mark.parametrize(
    ("content", "wrong"),
    [
        ("#!/bin/sh\necho half-a-secret; exit 3\n", "exited with code 3"),
        ("neither a script nor a program\n", "cannot be run"),
        (None, "was not found"),
    ],
    ids=["exit code", "no program", "not found"],
)
def test_a_secrets_command_that_fails_fails_the_server_by_name(content: str | None, wrong: str, tmp_path: Path):
    tool = tmp_path / "vault"
    if content:
        tool.write_text(content)
        tool.chmod(0o755)
    what, todo = refused(f"command = 'a'\nargs = ['${{cmd:{tool} read}}']", {"PATH": "/usr/bin:/bin"})
    assert what.startswith(f"the command of ${{cmd:…}} {wrong}")
    assert what.endswith("(mcp_servers.x.args[0])")
    assert todo == f"try it in a terminal: {tool} read"
    assert "half-a-secret" not in what


@pytest.mark.parametrize("command", ["", "   ", "echo 'half", 'echo "half'])
def test_a_secrets_command_that_cannot_be_read_fails_the_server_by_name(command: str):
    """Anything but a StartError would leave the server starting for ever."""
    what, _ = refused(f"command = 'a'\nargs = ['''${{cmd:{command}}}''']", {"PATH": os.defpath})
    assert what.startswith("the command of ${cmd:…} ")
    assert what.endswith("(mcp_servers.x.args[0])")


@POSIX
@pytest.mark.parametrize("body", ["exec sleep 20", "sleep 20 & wait"], ids=["itself", "with a child"])
def test_a_secrets_command_that_never_ends_is_ended_with_all_that_it_started(
    body: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """Its end is seen by the pipe that all of its processes hold. A wrapper (a shim of a version manager, say) has a
    child that holds the output too."""
    alive = tmp_path / "alive"
    os.mkfifo(alive)
    reader = os.open(alive, os.O_RDONLY | os.O_NONBLOCK)
    try:
        tool = script(tmp_path / "vault", f"exec 3>{alive}", "echo started >&3", body)
        monkeypatch.setattr(mcpmux, "SECRET_COMMAND_TIMEOUT", 1.0)
        with pytest.raises(StartError) as caught:
            run_expand(f"${{cmd:{tool} read}}", {"PATH": "/usr/bin:/bin"})
        assert caught.value.args[0] == "the command of ${cmd:…} took over 1 s (the.path)"
        assert os.read(reader, 100) == b"started\n"
        readable, _, _ = select.select([reader], [], [], 10.0)
        assert readable, "something that it started is still there"
        assert os.read(reader, 100) == b""
    finally:
        os.close(reader)


# ── env_file ──


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("KEY=value", {"KEY": "value"}),
        ("KEY = spaced  ", {"KEY": "spaced"}),
        ("export KEY=value", {"KEY": "value"}),
        ("KEY=a=b", {"KEY": "a=b"}),
        ("KEY=", {"KEY": ""}),
        ('KEY="quoted value"', {"KEY": "quoted value"}),
        ("KEY='it''s'", {}),
        ('KEY="only\'one"', {"KEY": "only'one"}),
        ('KEY="', {}),
        ("KEY=abc # for the demo", {"KEY": "abc"}),
        ("KEY='a b' # for the demo", {"KEY": "a b"}),
        ("KEY= # for the demo", {"KEY": ""}),
        (r'KEY="a\n\"b\"\c"', {"KEY": 'a\n"b"\\c'}),
        (r"KEY='a\n\'b'", {"KEY": r"a\n'b"}),
        ('KEY="-----BEGIN\nline\n-----END"', {"KEY": "-----BEGIN\nline\n-----END"}),
        ("KEY=${A}/${NONE:-b}/${NONE}", {"KEY": "1/b/"}),
        ("KEY=1\nKEY", {}),
        ("# KEY=value", {}),
        ("", {}),
        ("no equals sign", {}),
        ("KEY=#no comment", {"KEY": "#no comment"}),
    ],
)
def test_a_line_of_an_env_file(line: str, found: dict[str, str]):
    assert mcpmux.parse_env_file(f"\ufeffA=1\n{line}") == {"A": "1", **found}
    if '"' not in line or found:  # else the line does not end here
        assert mcpmux.parse_env_file(f"\nA=1\r\n{line}\r\nB=2") == {"A": "1", **found, "B": "2"}


@given(st.lists(st.sampled_from([*"AB=\n'#\\\t:é\"", *" =\n", "\r\n", "export ", "${A}", "${B:-d}", "\x0b", "\u2028"])))
@settings(max_examples=300)
def test_an_env_file_is_read_as_python_dotenv_reads_it(pieces: list[str]):
    from dotenv.main import DotEnv

    text, level = "".join(pieces), logging.getLogger("dotenv.main").setLevel
    level("CRITICAL")
    theirs = DotEnv(None, stream=io.StringIO(text, newline=""), override=False).dict()
    assert mcpmux.parse_env_file(text, dict(os.environ)) == {key: one for key, one in theirs.items() if one is not None}


def test_the_env_file_gives_what_the_environment_lacks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A host with a window knows nothing of a shell's variables; what was set for this very start is nearer."""
    monkeypatch.setenv("MCPTEST_BOTH", "environment")
    monkeypatch.delenv("MCPTEST_FILE", raising=False)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/secrets.env").write_text("MCPTEST_BOTH=file\nMCPTEST_FILE=file\n")
    config = mcpmux.read_config({"mux": {"env_file": "sub/secrets.env"}}, tmp_path / "mcpmux.toml")
    assert run_expand("${MCPTEST_BOTH} ${MCPTEST_FILE}", config.environment) == "environment file"


def test_a_server_gets_of_the_env_file_only_what_its_table_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It is nobody's environment: `PYTHONPATH` in it would run code."""
    monkeypatch.delenv("JAVA_HOME", raising=False)
    lines = "MCPTEST_A=a\nMCPTEST_B=b\nMCPTEST_C=c\nUV_X=u\nLC_X=l\nXDG_X=x\nJAVA_HOME=/evil\n"
    (tmp_path / "secrets.env").write_text(lines)
    server = {"command": sys.executable, "env_vars": ["MCPTEST_A"], "env": {"B": "${MCPTEST_B}"}}
    document = {"mux": {"env_file": "secrets.env"}, "mcp_servers": {"x": server}}
    config = mcpmux.read_config(document, tmp_path / "mcpmux.toml")
    env = asyncio.run(mcpmux.prepare("x", config.servers["x"], config)).env
    names = ("B", "JAVA_HOME")
    assert {key: value for key, value in env.items() if key in names or "MCPTEST" in key or key.endswith("_X")} == {
        "MCPTEST_A": "a",
        "B": "b",
    }


# ── what a server is started with ──


def test_an_argument_that_names_a_file_beside_the_config_is_that_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`args = ["server.py"]` is what every README shows, and a host may start mcpmux anywhere. What the server finds
    itself where it starts is meant so, and what names no file is a word: neither is touched."""
    elsewhere, beside = tmp_path / "elsewhere", tmp_path / "config"
    for name in ("config/server.py", "config/both.py", "config/sub/x.py", "elsewhere/both.py", "config/work/own.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (beside / "own.py").touch()
    monkeypatch.chdir(elsewhere)
    words = ["server.py", "sub/x.py", "both.py", "sub", "--x=server.py", "", "~", "x" * 5000, "-y", "--", "own.py"]
    found = prepared(f"{ME}\nargs = {msgspec.json.encode(words).decode()}", os.environ, beside / "mcpmux.toml").args
    assert found == [str(beside / "server.py"), str(beside / "sub/x.py"), *words[2:10], str(beside / "own.py")]
    found = prepared(
        f"{ME}\nargs = {msgspec.json.encode(words).decode()}\ncwd = 'work'", os.environ, beside / "mcpmux.toml"
    ).args
    assert found[2:] == [str(beside / "both.py"), *words[3:]]


SAFE = {
    "HOME": "/home/ada",
    "LOGNAME": "ada",
    "SHELL": "/bin/sh",
    "TERM": "dumb",
    "USER": "ada",
    "TMPDIR": "/tmp",
    "LANG": "de_DE.UTF-8",
    "LANGUAGE": "de",
    "LC_ALL": "C",
    "LC_TIME": "C",
    "TZ": "UTC",
    "XDG_RUNTIME_DIR": "/run/1",
    "XDG_CONFIG_HOME": "/home/ada/.config",
    "HTTP_PROXY": "p:1",
    "HTTPS_PROXY": "p:1",
    "NO_PROXY": "*",
    "ALL_PROXY": "p:1",
    "http_proxy": "p:1",
    "https_proxy": "p:1",
    "no_proxy": "*",
    "all_proxy": "p:1",
    "SSL_CERT_FILE": "/c",
    "SSL_CERT_DIR": "/c",
    "REQUESTS_CA_BUNDLE": "/c",
    "NODE_EXTRA_CA_CERTS": "/c",
    "DOCKER_HOST": "unix:///run/docker.sock",
    "KUBECONFIG": "/k",
    "AWS_PROFILE": "work",
    "JAVA_HOME": "/j",
    "SSH_AUTH_SOCK": "/s",
    "DISPLAY": ":0",
    "WAYLAND_DISPLAY": "w",
    "UV_INDEX_URL": "https://packages.example/simple",
    "UV_KEYRING_PROVIDER": "subprocess",
    "npm_config_registry": "https://packages.example",
}
PRIVATE = {
    "GITHUB_TOKEN": "t0ken",
    "OPENAI_API_KEY": "k3y",
    "LD_PRELOAD": "/evil.so",
    "PYTHONPATH": "/p",
    "NODE_ENV": "x",
    "LCD": "x",
    "XDGX": "x",
    "UV_DEFAULT_INDEX": "https://ada:s3cret-word@packages.example/simple",
    "UV_INDEX_WORK_PASSWORD": "w0rd",
    "UV_PUBLISH_TOKEN": "t0ken",
    "npm_config__authToken": "t0ken",
    "npm_config_//packages.example/:_password": "w0rd",
    "AWS_SESSION_TOKEN": "t0ken",
}
OURS = {"MCPMUX_CONFIG": "/c.toml", "MCPMUX_LOG": "trace"}
FUNCTIONS = {"BASH_FUNC_x%%": "() { evil; }", "LC_EVIL": "() { evil; }"}


def passed(table: str) -> dict[str, str]:
    env = dict(prepared(f"{ME}\n{table}", SAFE | PRIVATE | OURS | FUNCTIONS | {"PATH": "/usr/bin"}).env)
    assert env.pop("PATH").startswith("/usr/bin")
    return env


def test_a_server_gets_what_is_safe_of_the_environment_and_no_more():
    """As the official SDKs do, plus locale, time zone, proxies and certificates, and where the person's tools look."""
    assert passed("") == SAFE


def test_a_server_gets_what_its_table_names():
    assert passed('env_vars = ["GITHUB_TOKEN", "NOT_SET"]') == SAFE | {"GITHUB_TOKEN": "t0ken"}


def test_a_star_passes_all_but_mcpmuxs_own_and_shell_functions():
    assert passed('env_vars = ["*"]') == SAFE | PRIVATE


def test_mcpmuxs_own_variables_are_passed_by_no_name():
    """A server that is itself an mcpmux would read this one's config, and so start itself for ever."""
    assert passed('env_vars = ["MCPMUX_CONFIG"]') == SAFE


def test_env_stands_above_the_environment():
    assert passed('env = { LANG = "en", MCPMUX_CONFIG = "/other.toml", NEW = "${USER}-1" }') == SAFE | {
        "LANG": "en",
        "MCPMUX_CONFIG": "/other.toml",
        "NEW": "ada-1",
    }


@POSIX
def test_path_gets_the_usual_places_that_exist_at_its_end(tmp_path: Path):
    """A host with a window is not started by a shell: `npx` of a version manager is not on its PATH."""
    present = [".cargo/bin", ".local/bin", ".nvm/versions/node/v9.11.2/bin", ".nvm/versions/node/v22.1.0/bin"]
    for name in [*present, ".bun", ".volta"]:
        (tmp_path / name).mkdir(parents=True)
    path = mcpmux.extended_path({"HOME": str(tmp_path), "PATH": f"/usr/bin:/none:{tmp_path}/.cargo/bin"}).split(":")
    assert path[:3] == ["/usr/bin", "/none", f"{tmp_path}/.cargo/bin"]
    added = path[3:]
    assert [one for one in added if one.startswith(str(tmp_path))] == [
        f"{tmp_path}/.local/bin",
        f"{tmp_path}/.nvm/versions/node/v22.1.0/bin",
        f"{tmp_path}/.nvm/versions/node/v9.11.2/bin",
    ]
    assert all(os.path.isdir(one) for one in added)
    assert len(set(path)) == len(path)


@POSIX
@pytest.mark.parametrize(
    "place",
    [
        *(".pyenv/shims", ".asdf/shims", ".local/share/mise/shims", ".volta/bin", "miniconda3/bin", ".nix-profile/bin"),
        *(".linuxbrew/bin", ".local/share/fnm/aliases/default/bin", ".bun/bin", ".deno/bin", "Library/pnpm"),
    ],
)
def test_the_places_of_version_managers_are_usual(place: str, tmp_path: Path):
    (tmp_path / place).mkdir(parents=True)
    assert f"{tmp_path / place}" in mcpmux.extended_path({"HOME": str(tmp_path), "PATH": "/usr/bin"}).split(":")


@POSIX
def test_variables_of_version_managers_name_their_places_and_the_uv_that_runs_us_is_found(tmp_path: Path):
    moved = {
        "PYENV_ROOT": "p/shims",
        "VOLTA_HOME": "v/bin",
        "ASDF_DATA_DIR": "a/shims",
        "NVM_DIR": "n/versions/node/v1/bin",
    }
    for place in (*moved.values(), "u"):
        (tmp_path / place).mkdir(parents=True)
    named = {variable: str(tmp_path / place[0]) for variable, place in moved.items()} | {"UV": str(tmp_path / "u/uv")}
    path = mcpmux.extended_path({"HOME": "/none", "PATH": "/usr/bin"} | named).split(":")
    assert {str(tmp_path / place) for place in (*moved.values(), "u")} <= set(path)
    assert mcpmux.extended_path({"HOME": "/none", "UV": "uv", "PATH": "/usr/bin"}).split(":")[0] == "/usr/bin"


@POSIX
def test_a_path_of_the_tables_own_is_extended_too(tmp_path: Path):
    """`PATH = "/x:${PATH}"` must not lose `npx`."""
    (tmp_path / ".local/bin").mkdir(parents=True)
    tool = script(tmp_path / ".local/bin/only-there")
    command = prepared(
        'command = "only-there"\nenv = { PATH = "/x:${PATH}" }', {"HOME": str(tmp_path), "PATH": "/usr/bin"}
    )
    assert command.program == str(tool)
    assert command.env["PATH"].startswith("/x:/usr/bin:")


@pytest.mark.parametrize("line", ["{} -m server --flag", '{} "a b"', "{} -y @a/server"])
def test_a_command_line_in_command_is_known_as_one(line: str):
    what, todo = refused(f"command = {toml(line.format('python3'))}", {"PATH": os.environ["PATH"]})
    assert what == "command holds a whole command line; it is the program alone"
    assert todo == 'write command = "python3" and put the rest into args'


@POSIX
def test_programs_are_found_in_the_usual_places(tmp_path: Path):
    (tmp_path / ".local/bin").mkdir(parents=True)
    tool = script(tmp_path / ".local/bin/only-there")
    assert prepared('command = "only-there"', {"HOME": str(tmp_path), "PATH": "/usr/bin"}).program == str(tool)


@POSIX
def test_a_command_with_a_slash_is_relative_to_the_config_file(tmp_path: Path):
    (tmp_path / "bin").mkdir()
    tool = script(tmp_path / "bin/server")
    file = tmp_path / "mcpmux.toml"
    for command in ("bin/server", "./bin/server", "${WHERE}/server"):
        assert Path(prepared(f'command = "{command}"', {"WHERE": "./bin"}, file).program) == tool


def test_a_cwd_with_a_placeholder_is_relative_to_the_config_file_too(tmp_path: Path):
    (tmp_path / "sub").mkdir()
    command = prepared(f'{ME}\ncwd = "${{WHERE}}"', {"WHERE": "sub"}, tmp_path / "mcpmux.toml")
    assert command.cwd == str(tmp_path / "sub")


@pytest.mark.parametrize(
    ("command", "todo"),
    [
        ("npx", "install Node.js, or give its full path as `command`"),
        ("node", "install Node.js, or give its full path as `command`"),
        ("uvx", "install uv, or give its full path as `command`"),
        ("docker", "install Docker, or give its full path as `command`"),
        ("some-server", "install it, or give its full path as `command`"),
    ],
)
def test_a_program_that_is_not_found_is_named_with_what_to_do(
    command: str, todo: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(mcpmux, "extended_path", lambda *_: str(tmp_path))
    assert refused(f"command = {toml(command)}", {}) == (f"'{command}' was not found on PATH", todo)


def test_a_program_with_a_folder_that_is_not_there_is_named_in_full(tmp_path: Path):
    """Its full path is what the person gave, so to ask for it is no help."""
    what, todo = refused(f"command = {toml(tmp_path / 'none')}", {})
    assert what == f"there is no program {tmp_path / 'none'}"
    assert "full path" not in todo
    assert refused("command = './none'", {}, tmp_path / "mcpmux.toml")[0] == f"there is no program {tmp_path / 'none'}"


@POSIX
def test_a_file_that_may_not_be_run_is_not_called_missing(tmp_path: Path):
    (tmp_path / "server").write_text("#!/bin/sh\n")
    what, _ = refused(f"command = {toml(tmp_path / 'server')}", {})
    assert str(tmp_path / "server") in what
    assert "there is no program" not in what


def test_a_cwd_that_is_no_folder_is_named(tmp_path: Path):
    what, todo = refused(f"{ME}\ncwd = {toml(tmp_path / 'none')}", {})
    assert what == f"its cwd {tmp_path / 'none'} is no folder"
    assert todo == "correct mcp_servers.x.cwd"


@pytest.mark.parametrize(
    "lines", [f"{ME}\ncwd = '/${{TOKEN}}'", "command = '/nowhere/${TOKEN}'"], ids=["cwd", "command"]
)
def test_no_error_tells_what_came_from_the_environment(lines: str):
    """It goes to the host, and so to a model."""
    what, todo = refused(lines, {"TOKEN": "s3cret-value"})
    assert "s3cret-value" not in what + todo


# ── secrets ──


def test_a_secret_is_in_no_line_of_the_log(capfd: pytest.CaptureFixture[str]):
    journal = Journal("info", None)
    journal.hide({"s3cret-value", "other-secret"})
    journal.log("info", "x=s3cret-value y=other-secret s3cret-value!")
    journal.close()
    assert capfd.readouterr().err == "mcpmux info: x=*** y=*** ***!\n"


def test_short_values_are_not_hidden():
    """Half of every line would be stars: `1`, `true`, `en`."""
    journal = Journal("info", None)
    journal.hide({"1", "true", "12345", "123456", ""})
    assert journal.redact("1 true 12345 123456") == "1 true 12345 ***"
    journal.close()


def test_of_secrets_within_secrets_nothing_is_left():
    """`token` and `token:password`: whichever is replaced first, no rest may stay."""
    journal = Journal("info", None)
    # Several, since sets are in no order: one could come right by chance.
    wholes = [first + "bcdefghijklmnopqrstuvwxyz0123456789" for first in "ABCDE"]
    journal.hide(whole[:size] for whole in wholes for size in range(6, len(whole) + 1))
    assert [journal.redact(f"<{whole}>") for whole in wholes] == ["<***>"] * 5
    journal.close()


def test_a_secret_is_not_in_a_servers_log_file(tmp_path: Path):
    journal = Journal("info", tmp_path)
    journal.keep("x", b"before s3cret-value\n")
    journal.hide({"s3cret-value"})
    journal.keep("x", b"after s3cret-value\xff\n")
    journal.close()
    assert (tmp_path / "x.log").read_bytes() == b"before s3cret-value\nafter ***\xff\n"


KEY = "-----BEGIN KEY-----\nAAAABBBBCCCCDDDD\nEEEEFFFFGGGG1111\n-----END KEY-----"


@pytest.mark.parametrize("size", [1, 2, 7, 100, 5000])
@pytest.mark.parametrize(
    "said", [b"tok s3cret-value\n", b"s3cret-value", b"p" * 490 + b"s3cret-value\n", b"x" * 4090 + b"s3cret-value" * 2]
)
def test_a_secret_that_comes_in_pieces_or_lines_is_hidden(said: bytes, size: int, tmp_path: Path):
    """Before anything is cut or split: what is left of half a secret is half a secret."""
    journal = Journal("info", tmp_path)
    journal.hide({"s3cret-value", KEY})
    said += f"\npem {KEY}\nEEEEFFFFGGGG1111 alone".encode()
    shown = b"".join(journal.keep("x", said[at : at + size]) for at in range(0, len(said), size)) + journal.rest("x")
    journal.close()
    plain = said.replace(b"s3cret-value", b"***")
    for line in KEY.encode().splitlines():
        plain = plain.replace(line, b"***")
    assert shown == plain == (tmp_path / "x.log").read_bytes()


def test_a_servers_log_file_is_open_only_while_it_has_a_process(tmp_path: Path):
    """A config that changes for weeks must not use up the file descriptors. Nor is one trouble with a disk for ever."""
    journal = Journal("info", tmp_path / "logs")
    (tmp_path / "logs").write_text("a file where the folder belongs")
    journal.keep("x", b"lost\n")
    journal.rest("x")
    journal.later((tmp_path / "logs").unlink)
    for words in (b"first\n", b"second\n"):
        journal.keep("x", words)
        journal.rest("x")
    journal.close()
    assert journal._files == journal._sizes == {}
    assert (tmp_path / "logs" / "x.log").read_bytes() == b"first\nsecond\n"


@POSIX
def test_what_mcpmux_keeps_is_its_owners_alone_whatever_the_umask_and_follows_no_link(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    former = os.umask(0)
    try:
        journal = Journal("info", tmp_path / "state" / "logs")
        journal.keep("x", b"words\n")
        journal.close()
        mcpmux.write_whole(tmp_path / "cache" / "servers" / "x.cache", b"lists")
    finally:
        os.umask(former)
    folders = [tmp_path / "state", tmp_path / "state/logs", tmp_path / "cache", tmp_path / "cache/servers"]
    assert [one.stat().st_mode & 0o777 for one in folders] == [0o700] * 4
    files = [tmp_path / "state/logs/x.log", tmp_path / "cache/servers/x.cache"]
    assert [one.stat().st_mode & 0o777 for one in files] == [0o600] * 2
    (tmp_path / "state/logs/y.log").symlink_to(tmp_path / "planted")
    journal = Journal("info", tmp_path / "state" / "logs")
    journal.keep("y", b"words\n")
    journal.close()
    assert not (tmp_path / "planted").exists()
    assert "y.log cannot be written" in capfd.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process cannot be read by others so")
def test_mcpmuxs_memory_and_environment_are_closed_to_other_processes():
    code = "import mcpmux, ctypes; mcpmux.close_memory(); print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split()[-1] == "0"
    assert ctypes.CDLL(None).prctl(3, 0, 0, 0, 0) == 1  # PR_GET_DUMPABLE, of a process that does nothing for it


@pytest.mark.parametrize("level", ["error", "warning", "info", "debug", "trace"])
def test_the_log_level_says_what_is_logged(level: str, capfd: pytest.CaptureFixture[str]):
    order = ["error", "warning", "info", "debug", "trace"]
    journal = Journal(level, None)
    for one in order:
        journal.log(one, one)
    journal.close()
    told = [line.split()[-1] for line in capfd.readouterr().err.splitlines()]
    assert told == order[: order.index(level) + 1]


def test_a_config_is_a_value():
    """Unchanged servers will be told from changed ones by comparing."""
    text = "[mcp_servers.x]\ncommand = 'a'\nargs = ['b']"
    assert check(text) == check(text)
    assert check(text) != check(text.replace("'b'", "'c'"))
    assert isinstance(check(text), Config)
