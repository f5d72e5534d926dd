"""What README.md and mcpmux.toml.example state is true: every command, key and default."""

from __future__ import annotations

import html
import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import make_picture
import make_readme
import msgspec
import pytest
from conftest import COMMAND, ROOT
from make_readme import TABLES_OF_THEIR_OWN, defaults

import mcpmux
from mcpmux import (
    HostOptions,
    ModelOptions,
    MuxOptions,
    OAuthOptions,
    SamplingLimits,
    SamplingOptions,
    ServerOptions,
    ToolOverride,
)

README = (ROOT / "README.md").read_text()
# What can stand as it is, and the part on sampling, which is commented as a whole.
EXAMPLE, EXAMPLE_OF_SAMPLING = (ROOT / "mcpmux.toml.example").read_text().split("\n# A model of your own ")


def block(language: str, nth: int = 0) -> str:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)[nth]


def table(heading: str) -> dict[str, str]:
    """The first two columns of the table after a heading or sentence."""
    rows = re.match(r"[^|]*((?:\|.*\n)+)", README[README.index(heading) + len(heading) :])
    assert rows
    cells = [[cell.strip().strip("`") for cell in row.strip("|").split("|")] for row in rows[1].splitlines()[2:]]
    return {row[0]: row[1] for row in cells}


OPTIONS = [
    ServerOptions,
    ToolOverride,
    OAuthOptions,
    MuxOptions,
    HostOptions,
    SamplingOptions,
    ModelOptions,
    SamplingLimits,
]


def test_pictures_are_shown_by_the_index_too() -> None:
    """The package index shows README.md without the files beside it, so that a relative address leads nowhere."""
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]
    pictures = urls["Repository"].replace("//github.com/", "//raw.githubusercontent.com/") + "/main/"
    addresses = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", README)
    assert len(addresses) >= 4
    for address in addresses:
        assert address.startswith(pictures)
        assert (ROOT / address.removeprefix(pictures)).is_file()


def test_each_link_of_the_readme_has_a_whole_address_or_leads_to_one_of_its_headings() -> None:
    headings = [re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in re.findall(r"(?m)^#+ (.+)$", README)]
    for link in re.findall(r"\]\(([^)]*)\)", README):
        assert link.startswith("https://") or link.removeprefix("#") in headings


def test_the_tables_of_keys_are_those_of_the_structs():
    """If this fails: `uv run python tests/make_readme.py`."""
    assert re.findall(r"<!-- (\w+): written by tests/make_readme.py -->\n\| key ", README) == [
        *(
            "OAuthOptions",
            "ServerOptions",
            "ToolOverride",
            "MuxOptions",
            "HostOptions",
            "SamplingOptions",
            "ModelOptions",
        ),
        "SamplingLimits",
    ]
    assert "<!-- Bars: written by tests/make_readme.py -->\n| | |\n" in README
    assert make_readme.rewritten(README) == README


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals in Python's library")
@pytest.mark.parametrize("name", make_picture.PICTURES)
def test_a_picture_shows_what_a_command_prints(name: str):
    """But for the milliseconds. If this fails: `uv run python tests/make_picture.py`."""

    def without_times(lines: list[str]) -> list[str]:
        return [
            re.sub(r" +([\d,]+|MS)$", "", " ".join(text for _, _, text in make_picture.runs(line))) for line in lines
        ]

    drawn: dict[str, list[str]] = {}
    picture = (make_picture.FOLDER / f"{name}.svg").read_text(encoding="utf-8")
    for line, text in re.findall(r'<text x="[\d.]+" y="(\d+)"[^>]*>([^<]*)</text>', picture):
        drawn.setdefault(line, []).append(html.unescape(text))
    printed = without_times(make_picture.PICTURES[name]())
    words = [re.sub(r" +([\d,]+|MS)$", "", " ".join(words)) for words in drawn.values()]
    assert words == [line for line in printed if line]
    assert f"/tests/{name}.svg)" in README


@pytest.mark.parametrize("kind", OPTIONS)
def test_every_key_has_a_word_said_about_it(kind: type[msgspec.Struct]):
    words = mcpmux.words_of(kind)
    assert list(words) == [field.name for field in msgspec.structs.fields(kind)]
    assert all(words[key] for key in words if key not in TABLES_OF_THEIR_OWN)


def test_every_command_of_the_readme_is_one():
    assert list(table("## Commands")) == [
        "mcpmux",
        "mcpmux add NAME -- COMMAND",
        "mcpmux list",
        "mcpmux tools SERVER",
        "mcpmux tools --search WORDS",
        "mcpmux call TOOL KEY=VALUE",
        "mcpmux check",
        "mcpmux check SERVER",
        "mcpmux check --json",
        "mcpmux page",
        "mcpmux import",
        "mcpmux import HOST",
        "mcpmux import --undo",
        "mcpmux install HOST",
        "mcpmux install HOST --replace",
        "mcpmux uninstall HOST",
        "mcpmux login SERVER",
        "mcpmux logout SERVER",
        "mcpmux consents",
        "mcpmux consents SERVER --forget",
        "mcpmux accept SERVER",
        "mcpmux models",
        "mcpmux models --prefer JSON",
        "mcpmux usage",
        "mcpmux usage --days 7 --json",
        "mcpmux logs SERVER",
        "mcpmux schema",
        "mcpmux demo",
        "mcpmux --profile NAME",
        "mcpmux setup",
        "mcpmux remove SERVER",
        "mcpmux enable SERVER",
        "mcpmux disable SERVER",
        "mcpmux --version",
    ]
    [everyday] = [text for text in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) if "mcpmux add" in text]
    for command in [*table("## Commands"), *everyday.splitlines()]:
        mcpmux.parse([word for word in shlex.split(command, comments=True)[1:] if word != "--version"])
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
    environment = home | {
        "PATH": f"{stand_in.parent}:{home['PATH']}",
        "BROWSER": "firefox",
        "MCPMUX_CONFIG": str(config),
    }
    command = [*COMMAND, "check"]
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    shown = block("console").split("\n", 1)[1].replace("`uvx mcpmux", "`mcpmux")

    def without_times(output: str) -> list[str]:
        return [re.sub(r" +([\d,]+|MS)$", "", line) for line in output.strip().splitlines()[1:]]

    assert without_times(printed) == without_times(shown)


def test_the_snippets_for_claude_desktop_are_json_with_one_entry():
    plain, with_extra = ["mcpmux"], ["--from", "mcpmux[sampling]", "mcpmux"]
    for nth, args in ((0, plain), (-1, with_extra)):
        assert json.loads(block("json", nth)) == {"mcpServers": {"mcpmux": {"command": "uvx", "args": args}}}


def test_the_messages_that_the_readme_explains_are_ours():
    """Word for word, but for names and numbers."""
    rows = README.split("### What a message means")[1].split("\n\n")[1].splitlines()[2:]
    messages = [one for row in rows for one in re.findall(r"`([^`]+)`", row.split(" | ")[0])]
    assert len(messages) > 15
    source = (ROOT / "mcpmux.py").read_text().replace("\\\\", "\\").replace('\\"', '"')
    names = r"…|'npx' |\$\{GITHUB_TOKEN\} |in line 7|30 s|Cursor \(40\)|resources/list|\^"
    for message in messages:
        for part in re.split(names, message):
            assert part.strip(" :;,") in source, message


# ── moving in ──

MOVING_IN = README[README.index("## Moving in") : README.index("## Commands")]


@pytest.mark.parametrize("host", ["Claude Desktop", "Claude Code", "VS Code", "Cursor", "Codex", "Gemini CLI", "Zed"])
def test_the_entry_for_each_host_is_what_install_writes_or_runs(host: str):
    """But for the path of uvx, which is that of a machine."""
    found = mcpmux.host_named(host)
    assert found
    shown = re.findall(r"```\w+\n(.*?)\n```", MOVING_IN[MOVING_IN.index(f"**{host}** (") :], re.DOTALL)[:2]
    for text, sampling in zip(shown, (False, True), strict=True):
        entry = {"command": "uvx", "args": mcpmux.run_by_uvx({}, sampling)}
        if found.name in mcpmux.OWN_COMMANDS:
            assert shlex.split(text) == mcpmux.own_command(found, 0, "mcpmux", entry)
        else:
            assert json.loads(text) == {found.key: {"mcpmux": entry}}


def test_the_hosts_that_are_imported_from_are_named_and_their_places_are_so():
    words = " ".join(MOVING_IN.split())
    *most, last = [host.title for host in mcpmux.HOSTS]
    named = re.search(r"knows the files of (.+?) and (\w+), and their projects' files", words)
    assert named
    assert sorted([*named[1].split(", "), named[2]]) == sorted([*most, last])
    at = mcpmux.Machine("linux", {}, "~", "/p")
    for name, file in re.findall(r"\*\*([\w ]+)\*\* \((?:`[^`]+` edits )?`(~[^`]+)`\)", words):
        host = mcpmux.host_named(name)
        assert host
        assert mcpmux.host_files(host, at)[0].as_posix() == file
    assert all(mcpmux.host_named(name) for name in re.findall(r"mcpmux install ([a-z-]+)", MOVING_IN))


# ── sampling ──


def sampling_of(text: str) -> SamplingOptions:
    sampling = mcpmux.read_config(tomllib.loads(text), Path("/x/mcpmux.toml")).sampling
    assert sampling
    return sampling


def test_the_extra_of_the_readme_is_the_one_that_mcpmux_asks_for():
    command = "uvx --from 'mcpmux[sampling]' mcpmux"
    assert f"`{command}`" in README
    assert any(command in text for text in mcpmux.NO_LITELLM)
    assert list(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]) == [
        "sampling"
    ]


def test_the_two_configs_of_sampling_load_as_they_are():
    one, several = sampling_of(block("toml", 1)), sampling_of(block("toml", 2))
    assert one.model == "anthropic/claude-sonnet-4-5"
    assert [model.model for model in several.models] == [one.model, "ollama_chat/llama3.2"]


def test_the_readmes_choice_of_a_model_is_the_one_that_is_made():
    """Its scores are all given, so that no price that litellm knows today decides."""
    command, printed = block("console", 1).splitlines()
    arguments = mcpmux._parser().parse_args(shlex.split(command)[2:])
    models = [mcpmux.rate(model, {}) for model in sampling_of(block("toml", 2)).models]
    order, why = mcpmux.ranked_models(models, json.loads(arguments.prefer))
    assert printed == f"{order[0].name}: {why}"


def test_every_policy_of_a_server_is_explained():
    [policies] = [one.type for one in msgspec.structs.fields(ServerOptions) if one.name == "sampling"]
    assert list(table("exactly that.\n")) == [f'"{policy}"' for policy in get_args(policies)]


def test_what_the_readme_says_of_sampling_in_words_is_so():
    assert mcpmux.SAMPLER_IDLE == 300
    assert "after five idle minutes" in " ".join(README.split())
    assert len(mcpmux.RETRY_WAITS) == 2
    assert "up to three times" in " ".join(README.split())
    assert f"`mcpmux/{mcpmux.LEDGER_NAME}`" in README
    assert mcpmux._parser().parse_args(["usage"]).days == 30
    assert "in the last 30 days" in README
    said = mcpmux.limit_reached("requests_per_minute", "", 1).data
    assert list(said) == ["limit", "retryAfterSeconds"]
    assert all(f"`{key}`" in README for key in said)


def test_a_ledgers_line_holds_what_the_readme_says_and_nothing_else(tmp_path: Path):
    ledger = mcpmux.Ledger(tmp_path / "usage.jsonl")
    held = ledger.reserve(1, 0.5, server="git", model="m")
    ledger.settle(held, **{"in": 1, "out": 2}, usd=0.5, ms=3, ended="answered")
    [line] = ledger.lines()
    named = ["server", "model", "in", "out", "usd", "ms", "ended"]
    assert list(line) == ["time", "id", "day", *named]
    said = "time, server, model, tokens in and out, USD, milliseconds, how it ended, who allowed it"
    assert said in " ".join(README.split())


def test_the_examples_part_on_sampling_has_every_key_with_its_default_and_loads():
    uncommented = re.sub(r"^## ", "", EXAMPLE_OF_SAMPLING.split("\n", 1)[1], flags=re.MULTILINE)
    parts = re.split(r"^(?=# Several models)", uncommented, flags=re.MULTILINE)
    one, several = (tomllib.loads(part)["sampling"] for part in parts)
    limits, [model] = one.pop("limits"), several.pop("models")
    assert several == {}
    shown: list[tuple[dict[str, Any], type[msgspec.Struct]]] = [
        (one, SamplingOptions),
        (model, ModelOptions),
        (limits, SamplingLimits),
    ]
    for present, kind in shown:
        assert list(present) == [key for key in defaults(kind) if key not in TABLES_OF_THEIR_OWN]
    assert limits == msgspec.to_builtins(SamplingLimits(usd_per_request=0.05))
    assert all(one[key] == getattr(SamplingOptions(), key) for key in ("timeout_sec", "fallback"))
    for part in parts:
        assert sampling_of(part).limits == SamplingLimits(usd_per_request=0.05 if "limits" in part else None)


# ── places and the example ──


def test_the_two_commands_of_the_readme_are_what_ci_runs():
    assert "pip install uv && uv run --no-dev mcpmux demo\n" in README
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
    assert config.disabled == ["github", "remote"]
    assert config.broken == {}
    assert config.options == MuxOptions()
    assert config.sampling is None


def test_the_examples_commented_keys_are_the_defaults_and_there_is_no_other_key(tmp_path: Path):
    """A key with one # shows its default; with two it is an example, because there is none."""
    plain = mcpmux.read_config(tomllib.loads(EXAMPLE), tmp_path / "mcpmux.toml")
    uncommented = tomllib.loads(re.sub(r"^# (?=[a-z_]+ = )", "", EXAMPLE, flags=re.MULTILINE))
    assert mcpmux.read_config(uncommented, tmp_path / "mcpmux.toml").servers == plain.servers
    assert mcpmux.read_config(uncommented, tmp_path / "mcpmux.toml").options == plain.options
    everything = tomllib.loads(re.sub(r"^##? (?=[a-z_]+ = )", "", EXAMPLE, flags=re.MULTILINE))
    time, remote = (everything["mcp_servers"][name] for name in ("time", "remote"))
    keys: list[tuple[dict[str, Any], type[msgspec.Struct]]] = [
        (everything["mux"], MuxOptions),
        (everything["hosts"]["claude-ai"], HostOptions),
        (time | remote, ServerOptions),
        (remote["oauth"], OAuthOptions),
        (time["tools"]["get_current_time"], ToolOverride),
    ]
    for present, kind in keys:
        assert present.keys() == defaults(kind).keys()
    everything["mux"].pop("env_file")
    remote.pop("enabled")
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


def test_the_package_is_called_in_the_readme_what_it_is_called_where_it_is_published():
    named = re.findall(
        r"(?:uvx|uv tool \w+)(?: --with \w+)?(?: --from)? '?([\w-]*mux[\w-]*)", re.sub(r"\s*\n", " ", README)
    )
    assert len(named) > 15 and set(named) == {mcpmux.DISTRIBUTION}
    assert f"{mcpmux.BY_UVX} setup" in README
