"""Before a server uses the person's model the person is asked: by the host, by the page, or by a round of a modern
host. Our choice, where the specification wants a person in the loop (README, "When a server asks you something")."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from script import Message, Script
from test_cli import run

import mcpmux
from mcpmux import MuxOptions, SamplingOptions, ServerOptions

FORM = {"elicitation": {"form": {}}}
GIT = ServerOptions(command="git")
ASKED: dict[str, Any] = {"messages": [{"role": "user", "content": {"type": "text", "text": "hi"}}], "maxTokens": 9}
SPOKEN = {"role": "assistant", "content": {"type": "text", "text": "ho"}, "model": "m"}
SAMPLE = {"method": "sampling/createMessage", "params": ASKED}


def script(
    approve: Any = "first", table: ServerOptions = GIT, host: dict[str, Any] | None = None, **more: Any
) -> Script:
    """A legacy host that has called a tool of git's."""
    consents = more.pop("consents", {})
    sampling = SamplingOptions(approve=approve)
    s = Script({"git": table}, sampling=sampling, consents=consents, capabilities=host or {}, **more)
    s.host_asks(1, "tools/call", name="git__log")
    return s


def modern(**more: Any) -> Script:
    s = Script({"git": GIT}, sampling=SamplingOptions(), consents={}, begin=False, capabilities=FORM, **more)
    s.host_asks_modern("first", "tools/list")
    s.advance(0.3)
    s.host_asks_modern(1, "tools/call", name="git__log")
    return s


def samples(s: Script, id: Any, **more: Any) -> None:
    s.server_sends("git", id=id, method="sampling/createMessage", params=ASKED | more)


def decides(s: Script, decision: str, **more: Any) -> None:
    s.page_says("accept", content={"decision": decision, **more})


def told_of_sampling(s: Script) -> bool:
    return "sampling" in s.server_hears("git", "initialize")["params"]["capabilities"]


def is_open(s: Script) -> bool:
    """Whether anything is, but for what mcpmux listens to."""
    return any(one.method != "subscriptions/listen" for one in s.core.in_flight)


def retries(s: Script, id: int, answer: Message, action: str = "accept", **content: Any) -> None:
    """A modern host comes back with this answer to all that it was asked."""
    asked = answer["result"]["inputRequests"]
    brought = {key: {"action": action, "content": content} for key in asked}
    state = answer["result"]["requestState"]
    s.host_asks_modern(id, "tools/call", name="git__log", inputResponses=brought, requestState=state)


# ── who is asked, and when ──


@pytest.mark.parametrize(
    ("approve", "table", "kept", "asks", "told"),
    [
        ("first", {}, "", True, True),
        ("first", {}, "always", False, True),
        ("first", {"sampling": "local"}, "", False, True),
        ("first", {"sampling": "local"}, "never", False, False),
        ("first", {}, "never", False, False),
        ("never", {}, "", False, True),
        ("never", {}, "never", False, False),
        ("always", {"sampling": "local"}, "always", True, True),
        ("always", {}, "never", False, False),
    ],
)
@pytest.mark.requirement("consents")
def test_the_config_and_what_was_decided_say_whether_the_person_is_asked(
    approve: str, table: dict[str, Any], kept: str, asks: bool, told: bool
):
    s = script(approve, ServerOptions(command="git", **table), page=True, consents={"git": kept} if kept else {})
    assert told_of_sampling(s) == told
    samples(s, "q")
    assert bool(s.asked_on_page()) == asks
    assert bool(s.model_asked()) == (told and not asks)


@pytest.mark.parametrize(
    ("decision", "goes", "asks_again", "saved"),
    [
        ("once", True, True, None),
        ("run", True, False, None),
        ("always", True, False, "always"),
        ("no", False, True, None),
        ("never", False, False, "never"),
        ("what?", False, True, None),
    ],
)
@pytest.mark.requirement("consents")
def test_what_the_person_decides(decision: str, goes: bool, asks_again: bool, saved: str | None):
    s = script(page=True)
    samples(s, "q")
    [asked] = s.asked_on_page()
    shows = asked["params"]["sampling"]
    assert (asked["params"]["asker"], asked["params"]["mode"], asked["params"]["call"]) == (
        "mcpmux",
        "sampling",
        "git__log",
    )
    assert (shows["server"], shows["params"], shows["models"], shows["usd"]) == ("git", ASKED, ["m"], 0)
    decides(s, decision)
    assert len(s.model_asked()) == goes
    if goes:
        assert s.model_asked()[0]["params"]["allowed"] == "person"
        s.model_answers(SPOKEN)
        assert s.answer_to_server("git", "q")["result"] == SPOKEN
    else:
        assert s.answer_to_server("git", "q")["error"] == {"code": -1, "message": "User rejected sampling request"}
    assert s.consents.get("git") == saved
    samples(s, "again")
    assert bool(s.asked_on_page()) == asks_again
    assert len(s.model_asked()) == goes + (goes and not asks_again)


@pytest.mark.parametrize("ending", ["cancel", "dies", "late"])
@pytest.mark.requirement("consents")
def test_no_answer_is_no_consent(ending: str):
    s = script(page=True)
    samples(s, "q")
    match ending:
        case "cancel":
            s.page_says("cancel", reason="no browser could be opened")
        case "dies":
            s.page_dies()
        case _:
            s.advance(600)
    told = s.answer_to_server("git", "q")["error"]["message"]
    assert told.startswith("mcpmux: git may not use your model before you are asked, and nobody could be: ")
    assert 'sampling = "local" in [mcp_servers.git]' in told
    assert ("no browser could be opened" in told) == (ending == "cancel")
    assert not s.model_asked() and not s.asked_on_page()


@pytest.mark.requirement("consents")
def test_without_anybody_to_ask_a_server_is_not_told_of_the_model():
    s = script()
    assert not told_of_sampling(s)
    samples(s, "q")
    told = s.answer_to_server("git", "q")["error"]["message"]
    assert told.startswith(
        "sampling is not offered to git: the host declared none, and you can be asked nowhere whether"
    )


@pytest.mark.requirement("consents")
def test_one_question_of_a_server_at_a_time_and_what_lasts_is_for_all_that_wait():
    s = script(page=True)
    samples(s, "a")
    samples(s, "b")
    samples(s, "c")
    assert len(s.asked_on_page()) == 1
    decides(s, "once")
    assert (len(s.asked_on_page()), len(s.model_asked())) == (1, 1)
    decides(s, "run")
    assert (len(s.asked_on_page()), len(s.model_asked())) == (0, 3)


@pytest.mark.requirement("consents")
def test_a_deny_that_lasts_is_for_all_that_wait():
    s = script(page=True)
    for id in "abc":
        samples(s, id)
    decides(s, "never")
    assert [s.answer_to_server("git", id)["error"]["code"] for id in "abc"] == [-1, -1, -1]
    assert not s.asked_on_page()


def test_time_stands_still_while_the_person_is_asked():
    s = script(page=True, options=MuxOptions(input_timeout_sec=3600), host={})
    s.server_sends("git", method="notifications/progress", params={})  # nothing comes of it
    samples(s, "q")
    s.advance(50)
    decides(s, "once")
    assert s.model_asked()[0]["params"]["seconds"] == 120


@pytest.mark.parametrize("how", ["cancelled", "died", "removed", "changed"])
@pytest.mark.requirement("consents")
def test_what_is_no_longer_wanted_is_no_longer_asked(how: str):
    s = script(page=True)
    samples(s, "q")
    samples(s, "r")
    match how:
        case "cancelled":
            s.server_sends("git", method="notifications/cancelled", params={"requestId": "q"})
            assert len(s.asked_on_page()) == 1  # the next one's
            s.server_sends("git", method="notifications/cancelled", params={"requestId": "r"})
        case "died":
            s.server_dies("git")
        case "removed":
            s.feed(mcpmux.ConfigChanged(MuxOptions(), {}, {}, SamplingOptions()))
        case _:
            s.feed(mcpmux.ConfigChanged(MuxOptions(), {"git": GIT}, {}, SamplingOptions(timeout_sec=5)))
    assert not s.asked_on_page() and not s.model_asked()
    if how == "changed":
        assert "the models of the config have changed" in s.answer_to_server("git", "q")["error"]["message"]


@pytest.mark.requirement("consents")
def test_what_another_mcpmux_or_a_command_decides_is_heard():
    s = script(page=True)
    samples(s, "q")
    samples(s, "r")
    s.feed(mcpmux.ConsentsRead({"git": "never"}))
    decides(s, "always")
    assert s.answer_to_server("git", "q")["error"]["code"] == -1
    assert s.answer_to_server("git", "r")["error"]["code"] == -1
    s.feed(mcpmux.ConsentsRead({}))
    samples(s, "t")
    assert len(s.asked_on_page()) == 1


# ── what the person changes, and sees of the answer ──


@pytest.mark.requirement("consents")
def test_a_text_that_was_changed_is_prepared_again_and_not_asked_again():
    s = script(page=True)
    samples(s, "q")
    edited = ASKED | {"messages": [{"role": "user", "content": {"type": "text", "text": "bye"}}]}
    decides(s, "once", params=edited)
    prepared = [one["params"]["params"] for one in s.to_model if one.get("method") == "prepare"]
    assert prepared == [ASKED, edited]
    assert [one["params"]["params"] for one in s.model_asked()] == [edited]


@pytest.mark.parametrize("decision", ["once", "no", "never"])
@pytest.mark.requirement("consents")
def test_under_always_the_answer_is_shown_before_its_server_has_it(decision: str):
    s = script("always", page=True)
    samples(s, "q")
    [asked] = s.asked_on_page()
    choices = asked["params"]["requestedSchema"]["properties"]["decision"]["oneOf"]
    assert [one["const"] for one in choices] == ["once", "no", "never"]
    decides(s, "once")
    s.model_answers(SPOKEN)
    [review] = s.asked_on_page()
    assert review["params"]["sampling"]["reply"] == SPOKEN
    assert not any(one.get("id") == "q" for one in s.to_server["git"])
    decides(s, decision)
    answer = s.answer_to_server("git", "q")
    assert answer["result"] == SPOKEN if decision == "once" else answer["error"]["code"] == -1
    assert s.consents.get("git") == ("never" if decision == "never" else None)


# ── a legacy host ──


@pytest.mark.requirement("consents")
def test_a_legacy_host_shows_it_whole_and_its_person_may_change_the_text():
    s = script(host=FORM)
    assert told_of_sampling(s)
    tools = [{"name": "look", "inputSchema": {"type": "object"}}]
    samples(s, "q", systemPrompt="Be\x1b[2J brief", tools=tools)
    [asked] = s.host_told("elicitation/create")
    message = asked["params"]["message"]
    for part in ("[mcpmux] May git use your model?", "Model: m", "9 tokens", "Tools: look", "brief", "user: hi"):
        assert part in message
    assert "\x1b" not in message
    fields = asked["params"]["requestedSchema"]["properties"]
    assert fields["text"]["default"] == "hi"
    s.host_sends(id=asked["id"], result={"action": "accept", "content": {"decision": "once", "text": "bye"}})
    [sent] = s.model_asked()
    assert sent["params"]["params"]["messages"] == [{"role": "user", "content": {"type": "text", "text": "bye"}}]
    assert sent["params"]["params"]["systemPrompt"] == "Be\x1b[2J brief"


@pytest.mark.parametrize("action", ["decline", "cancel"])
@pytest.mark.requirement("consents")
def test_a_host_that_accepts_nothing(action: str):
    s = script(host=FORM)
    samples(s, "q")
    [asked] = s.host_told("elicitation/create")
    s.host_sends(id=asked["id"], result={"action": action})
    assert (s.answer_to_server("git", "q")["error"]["code"] == -1) == (action == "decline")
    assert not s.model_asked()


@pytest.mark.parametrize("page", [True, False])
@pytest.mark.requirement("consents")
def test_what_a_host_would_not_show_whole_is_for_the_page_or_nobody(page: bool):
    s = script(host=FORM, page=page)
    samples(s, "q", systemPrompt="x" * 5000)
    assert not s.host_told("elicitation/create")
    assert bool(s.asked_on_page()) == page
    if not page:
        assert "too long for the host to show" in s.answer_to_server("git", "q")["error"]["message"]


@pytest.mark.requirement("consents")
def test_while_a_server_lists_the_host_is_not_asked():
    s = Script(
        {"git": GIT}, sampling=SamplingOptions(), consents={}, capabilities=FORM, offers={"git": {"tools/list": ...}}
    )
    samples(s, "q")
    assert "nobody could be" in s.answer_to_server("git", "q")["error"]["message"]


# ── a modern host ──


@pytest.mark.parametrize("decision", ["once", "no"])
@pytest.mark.requirement("consents")
def test_a_modern_host_carries_the_question_for_a_legacy_server(decision: str):
    s = modern()
    samples(s, "q")
    s.advance(0.1)
    first = s.host_hears(1)
    [question] = first["result"]["inputRequests"].values()
    assert question["params"]["message"].startswith("May git use your model?")
    retries(s, 2, first, decision=decision)
    if decision == "once":
        s.model_answers(SPOKEN)
        assert s.answer_to_server("git", "q")["result"] == SPOKEN
    else:
        assert s.answer_to_server("git", "q")["error"]["code"] == -1
    s.server_answers("git", "tools/call", {"content": []})
    assert s.host_hears(2)["result"]["content"] == []
    assert len(s.core.rounds) == 0


@pytest.mark.parametrize("decision", ["once", "no"])
@pytest.mark.requirement("consents")
def test_a_modern_host_carries_the_question_for_a_modern_server(decision: str):
    s = modern(modern=("git",))
    s.server_answers("git", "tools/call", {"resultType": "input_required", "inputRequests": {"a": SAMPLE}})
    first = s.host_hears(1)
    [question] = first["result"]["inputRequests"].values()
    assert question["method"] == "elicitation/create"
    retries(s, 2, first, decision=decision)
    if decision == "once":
        s.model_answers(SPOKEN)
        again = s.server_hears("git", "tools/call")
        assert again["params"]["inputResponses"] == {"a": SPOKEN}
        s.server_answers("git", "tools/call", {"resultType": "complete", "content": []})
        assert s.host_hears(2)["result"]["content"] == []
    else:
        assert "User rejected sampling request" in s.host_hears(2).text
    assert len(s.core.rounds) == 0 and not is_open(s)


@pytest.mark.requirement("consents")
def test_beside_a_question_of_the_servers_own_ours_waits_for_the_same_host():
    """The host is asked the server's, then ours too; its model is asked only then, and the call is made again once."""
    s = modern(modern=("git",))
    ask = {"method": "elicitation/create", "params": {"message": "?", "requestedSchema": {"type": "object"}}}
    s.server_answers("git", "tools/call", {"resultType": "input_required", "inputRequests": {"a": SAMPLE, "b": ask}})
    first = s.host_hears(1)
    retries(s, 2, first, decision="once")
    answer = s.host_hears(2) if any(one.get("id") == 2 for one in s.to_host) else None
    if answer:
        retries(s, 3, answer, decision="once")
    s.model_answers(SPOKEN)
    again = s.server_hears("git", "tools/call")["params"]["inputResponses"]
    assert again["a"] == SPOKEN and again["b"]["action"] == "accept"
    assert len(s.server_heard("git", "tools/call")) == 2


@pytest.mark.requirement("consents")
def test_a_modern_host_that_never_comes_back():
    for era in ((), ("git",)):
        s = modern(modern=era)
        if era:
            s.server_answers("git", "tools/call", {"resultType": "input_required", "inputRequests": {"a": SAMPLE}})
        else:
            samples(s, "q")
        s.advance(3600)
        assert not s.model_asked()
        assert not is_open(s) and len(s.core.rounds) == 0


@pytest.mark.requirement("consents")
def test_a_call_that_ends_first_leaves_the_question_to_the_next_one():
    s = modern()
    samples(s, "q")
    s.server_answers("git", "tools/call", {"content": []})  # before its host was asked
    assert "result" in s.host_hears(1)
    told = s.answer_to_server("git", "q")["error"]["message"]
    assert "the host can be asked only while it calls this server" in told
    assert not is_open(s)


@pytest.mark.requirement("consents")
def test_a_question_that_comes_while_the_call_is_parked_goes_with_the_retry():
    s = modern()
    s.server_sends("git", id="e", method="elicitation/create", params={"message": "?", "requestedSchema": {}})
    s.advance(0.1)
    first = s.host_hears(1)
    samples(s, "q")
    assert not s.model_asked()
    retries(s, 2, first)
    s.advance(0.1)
    second = s.host_hears(2)
    retries(s, 3, second, decision="always")
    assert len(s.model_asked()) == 1 and s.consents == {"git": "always"}


# ── what lasts is kept, for what it was given to ──


def config_of(tmp_path: Path, **keys: Any) -> mcpmux.Config:
    given = {"command": "git", "args": ["hunter2"], "env": {"A": "${TOKEN}"}, "models": ["a/m"], "token": "1"} | keys
    models = [mcpmux.ModelOptions(model=name, api_base=given.get("base")) for name in given["models"]]
    table = ServerOptions(
        command=given["command"], args=given["args"], env=given["env"], tool_timeout_sec=given.get("timeout", 5.0)
    )
    return mcpmux.Config(
        tmp_path / given.get("path", "mcpmux.toml"),
        servers={given.get("name", "git"): table},
        sampling=SamplingOptions(models=models),
        environment={"TOKEN": given["token"]},
    )


@pytest.mark.parametrize(
    ("change", "holds"),
    [
        ({}, True),
        ({"timeout": 9.0}, True),
        ({"name": "hub"}, False),
        ({"command": "git2"}, False),
        ({"args": []}, False),
        ({"env": {}}, False),
        ({"token": "2"}, False),
        ({"models": ["b/m"]}, False),
        ({"base": "http://x"}, False),
        ({"path": "other.toml"}, False),
    ],
)
@pytest.mark.requirement("consents")
def test_what_lasts_is_kept_for_what_it_was_given_to(
    change: dict[str, Any], holds: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(mcpmux, "state_folder", lambda: tmp_path / "state")
    mcpmux.save(mcpmux.SaveConsent("git", "always"), config_of(tmp_path))
    config = config_of(tmp_path, **change)
    assert mcpmux.read_consents(config) == (dict.fromkeys(config.servers, "always") if holds else {})
    kept = mcpmux.kept_path("consents").read_text(encoding="utf-8")
    assert "hunter2" not in kept
    if sys.platform != "win32":
        assert {path.stat().st_mode & 0o077 for path in (tmp_path / "state").iterdir()} == {0}


def test_a_file_of_consents_that_cannot_be_read_is_no_consent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mcpmux, "state_folder", lambda: tmp_path)
    mcpmux.kept_path("consents").write_text("{", encoding="utf-8")
    assert mcpmux.read_consents(config_of(tmp_path)) == {}


def test_consents_are_listed_and_forgotten(home: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert run(home, "consents").stdout == "Nothing was decided for good.\n"
    for name in ("HOME", "XDG_STATE_HOME", "LOCALAPPDATA"):
        if name in home:
            monkeypatch.setenv(name, home[name])
    mcpmux.save(mcpmux.SaveConsent("git", "always"), config_of(tmp_path))
    mcpmux.save(mcpmux.SaveConsent("hub", "never"), config_of(tmp_path, name="hub"))
    listed = run(home, "consents").stdout
    assert "git" in listed and "always" in listed and "a/m" in listed and "never" in listed
    [one] = json.loads(run(home, "consents", "hub", "--json").stdout)
    assert (one["server"], one["decision"], one["models"]) == ("hub", "never", ["a/m"])
    assert run(home, "consents", "git", "--forget").stdout.endswith(
        "Forgotten: 1 decision. A running mcpmux hears of it within seconds.\n"
    )
    assert mcpmux.read_consents(config_of(tmp_path)) == {}
    assert mcpmux.read_consents(config_of(tmp_path, name="hub")) == {"hub": "never"}
