"""What README.md and mcpmux.toml.example state is true: every command, key and default."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from conftest import MCPMUX, ROOT

import mcpmux
from mcpmux import MuxOptions, ServerOptions, ToolOverride

README = (ROOT / "README.md").read_text()
EXAMPLE = (ROOT / "mcpmux.toml.example").read_text()


def block(language: str, nth: int = 0) -> str:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)[nth]


def table(heading: str) -> dict[str, str]:
    """The first two columns of the table after a heading or sentence."""
    rows = re.match(r"[^|]*((?:\|.*\n)+)", README[README.index(heading) + len(heading) :])
    assert rows
    cells = [[cell.strip().strip("`") for cell in row.strip("|").split("|")] for row in rows[1].splitlines()[2:]]
    return {row[0]: row[1] for row in cells}


def defaults(kind: type[msgspec.Struct]) -> dict[str, str]:
    """A struct's keys and defaults, as TOML; empty where there is none."""
    found: dict[str, str] = {}
    for field in msgspec.structs.fields(kind):
        value = field.default_factory() if field.default is msgspec.NODEFAULT else field.default
        found[field.name] = "" if value is None else json.dumps(value)
    return found


@pytest.mark.parametrize(
    ("heading", "kind"),
    [("### `[mcp_servers.NAME]`", ServerOptions), ("for it:\n", ToolOverride), ("### `[mux]`", MuxOptions)],
)
def test_the_reference_has_every_key_with_its_default(heading: str, kind: type[msgspec.Struct]):
    expected = defaults(kind)
    if kind is ServerOptions:
        expected.pop("tools")  # it has a table of its own
    assert table(heading) == expected


def test_every_command_of_the_readme_is_one():
    assert list(table("## Commands")) == [
        "mcpmux", "mcpmux check", "mcpmux check --json", "mcpmux demo", "mcpmux --version"
    ]  # fmt: skip
    for command in table("## Commands"):
        mcpmux._parser().parse_args([word for word in shlex.split(command)[1:] if word != "--version"])
    help_text = mcpmux._parser().format_help()
    named = set(
        re.findall(r"mcpmux (check|demo|[a-z]+)(?=[ `\n]|$)", " ".join(re.findall(r"`(mcpmux [^`]*)`", README)))
    )
    assert named
    for command in named:
        assert f"    {command} " in help_text


def test_the_first_screen_loads_and_prints_what_it_shows(tmp_path: Path, home: dict[str, str]):
    """The six lines, run with the servers of the development environment in uvx's place."""
    if sys.platform == "win32":
        pytest.skip("the stand-in for uvx is a shell script")
    stand_in = tmp_path / "bin" / "uvx"
    stand_in.parent.mkdir()
    stand_in.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m "$(echo "$1" | tr - _)"\n')
    stand_in.chmod(0o755)
    text = block("toml")
    assert len(text.splitlines()) == 6
    config = tmp_path / "mcpmux.toml"
    config.write_text(text)
    environment = home | {"PATH": f"{stand_in.parent}:{home['PATH']}"}
    command = [sys.executable, str(MCPMUX), "check", "--config", str(config)]
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    shown = block("console").split("\n", 1)[1]

    def without_times(output: str) -> list[str]:
        return [re.sub(r"\d+$", "", line) for line in output.strip().splitlines()[1:]]

    assert without_times(printed) == without_times(shown)


def test_the_snippet_for_claude_desktop_is_json_with_one_entry():
    assert json.loads(block("json")) == {"mcpServers": {"mcpmux": {"command": "uvx", "args": ["mcpmux"]}}}


def test_the_two_commands_of_the_readme_are_what_ci_runs():
    assert "pip install uv && uv run mcpmux demo\n" in README
    assert "pip install uv && uv run pytest\n" in README
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == "pip install uv && uv run pytest"


def test_the_places_of_files_are_the_ones_stated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    from platformdirs.macos import MacOS
    from platformdirs.unix import Unix

    for variable in ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "MCPMUX_CONFIG"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Unix("mcpmux", appauthor=False).user_config_path == tmp_path / ".config/mcpmux"
    assert Unix("mcpmux", appauthor=False).user_state_path == tmp_path / ".local/state/mcpmux"
    assert MacOS("mcpmux", appauthor=False).user_config_path == tmp_path / "Library/Application Support/mcpmux"
    assert MacOS("mcpmux", appauthor=False).user_state_path == tmp_path / "Library/Application Support/mcpmux"
    if sys.platform == "linux":
        assert mcpmux.config_path(None) == tmp_path / ".config/mcpmux/mcpmux.toml"
        assert mcpmux.state_folder() == tmp_path / ".local/state/mcpmux"
    monkeypatch.setenv("MCPMUX_CONFIG", str(tmp_path / "x.toml"))
    assert mcpmux.config_path(None) == tmp_path / "x.toml"
    assert mcpmux.config_path(str(tmp_path / "y.toml")) == tmp_path / "y.toml"


def test_the_example_loads_as_it_is(tmp_path: Path):
    config = mcpmux.read_config(tomllib.loads(EXAMPLE), tmp_path / "mcpmux.toml")
    assert list(config.servers) == ["time"]
    assert config.disabled == ["github"]
    assert config.broken == {}
    assert config.options == MuxOptions()


def test_the_examples_commented_keys_are_the_defaults_and_there_is_no_other_key(tmp_path: Path):
    """A key with one # shows its default; with two it is an example, because there is none."""
    plain = mcpmux.read_config(tomllib.loads(EXAMPLE), tmp_path / "mcpmux.toml")
    uncommented = tomllib.loads(re.sub(r"^# (?=[a-z_]+ = )", "", EXAMPLE, flags=re.MULTILINE))
    assert mcpmux.read_config(uncommented, tmp_path / "mcpmux.toml").servers == plain.servers
    assert mcpmux.read_config(uncommented, tmp_path / "mcpmux.toml").options == plain.options
    everything = tomllib.loads(re.sub(r"^##? (?=[a-z_]+ = )", "", EXAMPLE, flags=re.MULTILINE))
    time = everything["mcp_servers"]["time"]
    keys: list[tuple[dict[str, Any], type[msgspec.Struct]]] = [
        (everything["mux"], MuxOptions),
        (time, ServerOptions),
        (time["tools"]["get_current_time"], ToolOverride),
    ]
    for present, kind in keys:
        assert present.keys() == defaults(kind).keys()
    everything["mux"].pop("env_file")
    assert mcpmux.read_config(everything, tmp_path / "mcpmux.toml").broken == {}


def test_names_are_as_long_as_the_readme_says():
    assert f"and to {MuxOptions().max_name_length} characters" in README


def test_the_changelog_has_this_version():
    assert f"## {mcpmux.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_limits_name_the_revisions_that_are_spoken():
    assert f"{mcpmux.LEGACY_REVISIONS[-1]} to {mcpmux.LEGACY_REVISIONS[0]}" in README


def test_placeholders_of_the_readme_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import asyncio

    environment = {"VAR": "set", "PATH": "/usr/bin:/bin"}
    expand: Callable[[str], str] = lambda text: asyncio.run(mcpmux.expand(text, "x", environment, set()))  # noqa: E731
    assert expand("${VAR}") == "set"
    assert expand("${OTHER:-default}") == "default"
    assert expand("$${VAR}") == "${VAR}"
