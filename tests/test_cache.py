"""What servers last said of themselves: lists without a server, and starts that are not waited for. Our choice."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from script import TOOL, Script

import mcpmux
from mcpmux import Config, Known, ServerOptions


def learned(*servers: str, **more: Any) -> dict[str, list[Known]]:
    """What the cache has after a first run."""
    s = Script(list(servers), **more)
    return {name: [known] for name, known in s.saved.items()}


def offering(*names: str) -> dict[str, Any]:
    return {"git": {"tools/list": [{**TOOL, "name": name} for name in names]}}


def test_with_a_warm_cache_nothing_is_started_until_it_is_called():
    known = learned("git", "time")
    s = Script(["git", "time"], known=known)
    assert s.tools() == ["git__log", "time__log"]
    assert s.started == []
    s.host_asks(1, "tools/call", name="git__log")
    s.advance(0.2)
    s.server_answers("git", "tools/call", {"content": []})
    assert s.host_hears(1)["result"] == {"content": []}
    assert s.started == ["git"]
    assert not s.saved


@pytest.mark.parametrize("modern", [(), ("git",)])
def test_the_era_that_worked_is_remembered(modern: tuple[str, ...]):
    known = learned("git", modern=modern)
    s = Script(["git"], known=known, modern=modern)
    assert s.tools() == ["git__log"]
    s.host_asks(1, "tools/call", name="git__log")
    hellos = [m["method"] for m in s.to_server["git"] if m.get("method") in ("initialize", "server/discover")]
    assert hellos == ["server/discover" if modern else "initialize"]


@pytest.mark.requirement("era-remembered")
def test_what_is_remembered_of_a_server_is_by_the_era_of_its_host():
    """WIRE 10. A server of both eras offers in each what it can, and one is not decided by the other."""
    [legacy] = learned("git")["git"]
    s = Script(["git"], known={"git": [legacy]}, modern=("git",), begin=False)
    assert s.asks_modern(1, "tools/list")["result"]["tools"][0]["name"] == "git__log"  # served meanwhile
    s.advance(0.3)
    assert next(m["method"] for m in s.to_server["git"]) == "server/discover"
    modern = s.saved["git"]
    assert (legacy.host, modern.host) == ("legacy", "modern")
    for known in ([legacy, modern], [modern, legacy]):
        again = Script(["git"], known={"git": known})
        assert again.tools() == ["git__log"] and again.started == []
        again.host_asks(1, "tools/call", name="git__log")
        assert again.to_server["git"][0]["method"] == "initialize"
        again = Script(["git"], known={"git": known}, modern=("git",), begin=False)
        assert again.asks_modern(1, "tools/list")["result"]["tools"] and again.started == []


def test_a_warm_initialize_has_the_instructions_and_the_capabilities():
    s = Script(["git"], known=learned("git"), begin=False)
    result = s.initialize()["result"]
    assert "use git well" in result["instructions"]
    assert "tasks" in result["capabilities"]
    assert s.started == []


def test_at_its_next_start_a_server_is_listed_again_and_the_host_told_of_changes_once():
    s = Script(["git"], known=learned("git"), offers=offering("log", "new"))
    assert s.tools() == ["git__log"]
    s.host_asks(1, "tools/call", name="git__log")
    s.advance(0.3)
    assert len(s.host_told("notifications/tools/list_changed")) == 1
    assert s.tools() == ["git__log", "git__new"]
    assert len(s.saved["git"].lists["tools/list"]) == 2


def test_for_a_host_with_other_capabilities_it_is_served_meanwhile_and_the_truth_is_learnt():
    s = Script(["git"], known=learned("git"), capabilities={"roots": {}}, offers=offering("log", "with_roots"))
    assert s.started == ["git"]
    assert s.tools() == ["git__log", "git__with_roots"]
    silent = Script(["git"], known=learned("git"), capabilities={"roots": {}}, silent=("git",))
    assert silent.tools() == ["git__log"]


def test_a_modern_servers_lists_serve_every_host():
    s = Script(["git"], known=learned("git", modern=("git",)), modern=("git",), capabilities={"roots": {}})
    assert s.tools() == ["git__log"]
    assert s.started == []


def test_another_table_is_another_server():
    s = Script({"git": ServerOptions(command="git", args=["x"])}, known=learned("git"))
    assert s.started == ["git"]


def test_eager_servers_are_started_with_the_host_and_a_probe_starts_none():
    table = {"git": ServerOptions(command="git", start="eager")}
    known = {name: [one] for name, one in Script(table).saved.items()}
    s = Script(table, known=known, begin=False)
    s.asks_modern("probe", "server/discover")
    assert s.started == []
    s.initialize()
    assert s.started == ["git"]


def test_lists_do_not_wait_a_second_time_for_a_server_that_hangs():
    s = Script(["git", "hung"], silent=("hung",))
    s.advance(31)
    assert s.saved["hung"].failed
    known = {name: [one] for name, one in s.saved.items()}
    s = Script(["git", "hung"], silent=("hung",), known=known)
    assert s.tools() == ["git__log"]
    assert s.started == ["hung"]
    s.silent.clear()
    s._server_gets("hung", s.server_hears("hung", "initialize"))
    s.advance(0.3)
    assert s.host_told("notifications/tools/list_changed")
    assert not s.saved["hung"].failed


# ── the first list ──


def test_a_list_waits_3_seconds_for_an_unknown_server_where_others_are_known():
    s = Script(["git", "slow"], known=learned("git"), silent=("slow",))
    s.host_asks(1, "tools/list")
    s.advance(1)
    s.host_asks(2, "tools/list")
    s.host_asks(3, "tools/call", name="slow__log")  # a call has time
    s.advance(1.9)
    assert 1 not in s.answered
    s.advance(0.2)
    assert [tool["name"] for tool in s.host_hears(1)["result"]["tools"]] == ["git__log"]
    assert 2 not in s.answered
    s.advance(1)
    assert [tool["name"] for tool in s.host_hears(2)["result"]["tools"]] == ["git__log"]
    s.silent.clear()
    s._server_gets("slow", s.server_hears("slow", "initialize"))
    s.advance(0.3)
    assert len(s.host_told("notifications/tools/list_changed")) == 1
    assert s.tools() == ["git__log", "slow__log"]
    s.server_answers("slow", "tools/call", {"content": []})
    assert s.host_hears(3)["result"] == {"content": []}


@pytest.mark.parametrize(("host", "seconds"), [("claude-ai", 30), ("codex-mcp-client", 8), ("Cline", 3)])
def test_a_host_that_heeds_no_change_waits_longer(host: str, seconds: float):
    s = Script(["git", "slow"], known=learned("git"), silent=("slow",), begin=False)
    s.initialize(clientInfo={"name": host, "version": "1"})
    s.host_asks(1, "tools/list")
    s.advance(seconds - 1)
    assert 1 not in s.answered
    s.advance(1)
    assert len(s.host_hears(1)["result"]["tools"]) == 1


def test_a_list_waits_for_all_where_nothing_is_known_and_for_none_if_so_wished():
    s = Script(["git", "slow"], silent=("slow", "git"))
    s.host_asks(1, "tools/list")
    s.advance(20)
    assert 1 not in s.answered
    options = mcpmux.MuxOptions(first_list_sec=0)
    s = Script(["git", "slow"], known=learned("git"), silent=("slow",), options=options)
    assert s.tools() == ["git__log"]


def test_lists_do_not_wait_a_second_time_for_a_list_that_never_ends():
    s = Script(["git", "hung"], offers={"hung": {"tools/list": ...}})
    s.advance(31)
    assert "hung has not listed all that it offers within 30 s" in s.saved["hung"].failed
    s = Script(["hung"], offers={"hung": {"tools/list": ...}}, known={"hung": [s.saved["hung"]]})
    assert s.tools() == []


def test_a_call_waits_for_a_server_that_is_still_listing_and_is_told_if_that_is_too_long():
    s = Script({"git": ServerOptions(command="git", startup_timeout_sec=5)}, offers={"git": {"tools/list": ...}})
    s.advance(6)
    s.host_asks(1, "tools/call", name="git__log")
    s.advance(4)
    assert 1 not in s.answered
    s.server_answers("git", "tools/list", {"tools": [TOOL]})
    s.server_answers("git", "tools/call", {"content": []})
    assert s.host_hears(1)["result"] == {"content": []}
    s = Script({"git": ServerOptions(command="git", startup_timeout_sec=5)}, offers={"git": {"tools/list": ...}})
    s.advance(6)
    s.host_asks(1, "tools/call", name="git__log")
    s.advance(6)
    assert "git has not listed all that it offers within 5 s (call again in a while" in s.host_hears(1).text


def test_while_servers_are_being_listed_the_host_is_told_of_changes_now_and_then():
    names = [f"s{number}" for number in range(40)]
    s = Script(["git", *names], known=learned("git"), silent=tuple(names))
    s.advance(31)
    assert s.tools() == ["git__log"]
    s.silent.clear()
    for name in names:
        s._server_gets(name, s.server_hears(name, "initialize"))
        s.advance(0.5)
    assert 3 <= len(s.host_told("notifications/tools/list_changed")) <= 6  # in 20 s
    assert len(s.tools()) == 41


def test_a_call_waits_for_a_server_that_is_tried_again_after_it_hung():
    s = Script(["git"], silent=("git",))
    s.advance(31)
    s = Script(["git"], silent=("git",), known={name: [one] for name, one in s.saved.items()})
    assert s.started == ["git"]
    s.host_asks(7, "tools/call", name="git__log")
    s.silent.clear()
    s._server_gets("git", s.server_hears("git", "initialize"))
    s.advance(0.3)
    s.server_answers("git", "tools/call", {"content": []})
    assert s.host_hears(7)["result"] == {"content": []}


def test_an_idle_server_is_stopped_and_started_again_by_the_next_call():
    table = {"git": ServerOptions(command="git", idle_timeout_sec=10)}
    s = Script(table)
    s.host_asks(1, "tools/call", name="git__log")
    s.advance(100)
    assert s.stopped == []
    s.server_answers("git", "tools/call", {"content": []})
    s.advance(21)
    assert s.stopped == ["git"]
    s.server_dies("git", 0)
    assert s.tools() == ["git__log"]
    s.host_asks(2, "tools/call", name="git__log")
    assert s.started == ["git", "git"]
    s.advance(0.2)
    s.server_answers("git", "tools/call", {"content": []})
    assert s.host_hears(2)["result"] == {"content": []}


# ── files ──

GIT = ServerOptions(command="git")


def saved_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_written_is_read_and_replaces_what_it_makes_old(tmp_path: Path):
    [known] = learned("git")["git"]
    config = Config(Path("x"), servers=dict.fromkeys(("git", "gitter"), GIT))
    mcpmux.write_known(tmp_path, "git", mcpmux.msgspec.structs.replace(known, key="0" * 16), config)
    mcpmux.write_known(tmp_path, "git", Known(known.key, failed="why"), config)
    mcpmux.write_known(tmp_path, "gitter", known, config)
    mcpmux.write_known(tmp_path, "git", known, config)
    end = f"legacy{known.told}.{known.key}.cache"
    assert saved_in(tmp_path) == [f"git.{end}", f"gitter.{end}"]
    assert mcpmux.read_known(tmp_path, Config(Path("x"), servers={"git": GIT})) == ({"git": [known]}, [])


@pytest.mark.parametrize(
    "more",
    [
        {"args": ["--only=${SETS}"]},
        {"env": {"A": "${SETS:-all}"}},
        {"env_vars": ["SETS"]},
        {"url": "https://x/${SETS}"},
        {"bearer_token_env_var": "SETS"},
        {"env_http_headers": {"X-Sets": "SETS"}},
    ],
)
def test_what_other_values_of_variables_led_to_is_not_listed(more: dict[str, Any], tmp_path: Path):
    """Two hosts may have different ones: each has its own lists, those of a week."""
    table = ServerOptions(**{"command": "git"} | more)
    one, other, unset = (Config(Path("x"), servers={"git": table}, environment=env) for env in SETS)
    knowns = [Known(mcpmux.table_key(table), instructions=words) for words in ("one", "other", "unset")]
    for known, config in zip(knowns, (one, other, unset), strict=True):
        assert mcpmux.read_known(tmp_path, config)[0] == {}
        mcpmux.write_known(tmp_path, "git", known, config)
    for known, config in zip(knowns, (one, other, unset), strict=True):
        assert mcpmux.read_known(tmp_path, config)[0] == {"git": [known]}
    assert not any("issues" in name for name in saved_in(tmp_path))
    for file in tmp_path.iterdir():
        os.utime(file, (0, 0))
    mcpmux.write_known(tmp_path, "git", knowns[0], one)
    assert len(saved_in(tmp_path)) == 1


SETS = {"SETS": "repos", "HOME": "/h"}, {"SETS": "repos,issues", "HOME": "/h"}, {"HOME": "/h"}


@pytest.mark.parametrize("content", [b"", b"\xff\x00", b"{}", json.dumps({"key": 1}).encode()])
def test_a_file_that_is_no_cache_costs_a_line_and_no_more(content: bytes, tmp_path: Path):
    (tmp_path / f"git.any.{mcpmux.table_key(GIT)}.cache").write_bytes(content)
    found, notes = mcpmux.read_known(tmp_path, Config(Path("x"), servers={"git": GIT}))
    assert found == {}
    assert len(notes) == 1


def test_a_failure_is_forgotten_after_ten_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = Config(Path("x"), servers={"git": GIT})
    mcpmux.write_known(tmp_path, "git", Known(mcpmux.table_key(GIT), failed="why"), config)
    assert mcpmux.read_known(tmp_path, config)[0]
    later = mcpmux.time.time() + 601
    monkeypatch.setattr(mcpmux.time, "time", lambda: later)
    assert mcpmux.read_known(tmp_path, config) == ({}, [])


def test_there_need_be_no_folder(tmp_path: Path):
    assert mcpmux.read_known(tmp_path / "none", Config(Path("x"))) == ({}, [])
