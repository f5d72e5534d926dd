"""Sampling by a model of one's own: what servers ask of it, its limits and its endings.

https://modelcontextprotocol.io/specification/2025-11-25/client/sampling
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from script import (
    ASKED,
    PAYLOAD,
    SAMPLER,
    SPOKEN,
    TOOL,
    WITH_TOOLS,
    Script,
    nothing_is_open,
    sampler,
    samples,
    server,
    start_task,
    tools,
)

import mcpmux
from mcpmux import MuxOptions, State


def test_a_host_without_sampling_has_servers_that_are_told_of_the_models():
    """2025-11-25, client/sampling#capabilities."""
    s = Script({"a": server(), "b": server(sampling="host"), "c": server(sampling="off")}, sampling=sampler())
    told = {name: s.server_hears(name, "initialize")["params"]["capabilities"] for name in "abc"}
    assert told == {"a": {"sampling": {"tools": {}}}, "b": {}, "c": {}}


@pytest.mark.requirement("sampling-comes-back")
@pytest.mark.parametrize(
    "answer", [{"result": SPOKEN}, {"error": {"code": -1, "message": "refused", "data": {"x": 1}}}]
)
def test_the_models_answer_or_error_goes_to_the_server_that_asked(answer: dict[str, Any]):
    """Our choice: a host that cannot sample never hears of it. Also outside any call of the host's."""
    s = Script(["git", "hub"], sampling=sampler())
    before = len(s.to_host)
    samples(s, "git", "q", ASKED | {"x": 1.0})
    (asked,) = s.model_asked()
    told = {"models": ["m"], "usd": 0, "allowed": "person", "seconds": 120}
    assert asked["params"] == {"server": "git", "params": ASKED | {"x": 1.0}} | told
    s.model_sends(id=asked["id"], **answer)
    assert {k: v for k, v in s.answer_to_server("git", "q").items() if k in ("result", "error")} == answer
    assert [message for message in s.to_server["hub"] if "method" not in message] == []
    assert len(s.to_host) == before
    assert nothing_is_open(s)


def test_params_for_the_model_and_its_results_pass_byte_for_byte():
    """Our promise: unknown fields, _meta, key order and number spelling."""
    s = Script(["git"], sampling=sampler())
    s.server_sends("git", b'{"jsonrpc":"2.0","id":"q","method":"sampling/createMessage","params":%b}' % PAYLOAD)
    (asked,) = s.model_asked()
    assert b'"params":{"params":%b,"models":["m"],' % PAYLOAD in asked.raw
    s.model_sends(b'{"jsonrpc":"2.0","id":%d,"result":%b}' % (asked["id"], PAYLOAD))
    assert s.answer_to_server("git", "q").raw == b'{"jsonrpc":"2.0","id":"q","result":%b}' % PAYLOAD


@pytest.mark.requirement("sampling-comes-back")
@pytest.mark.parametrize("id", [b"0", b"7", b'"7"', b'""', b"-3", b"1.0"])
def test_the_models_answer_comes_under_the_servers_own_id(id: bytes):
    """2025-11-25, basic#responses."""
    s = Script(["git"], sampling=sampler())
    s.server_sends("git", b'{"jsonrpc":"2.0","id":%b,"method":"sampling/createMessage","params":{}}' % id)
    s.model_answers(SPOKEN)
    assert s.to_server["git"][-1].raw.startswith(b'{"jsonrpc":"2.0","id":%b,"result":' % id)


@pytest.mark.requirement("sampling-comes-back")
def test_questions_of_many_servers_to_the_model_with_one_id_are_kept_apart():
    names = [f"s{number}" for number in range(8)]
    s = Script(names, sampling=sampler())
    for name in names:
        samples(s, name, 1)
    for asked in reversed(s.model_asked()):
        s.model_sends(id=asked["id"], result={"for": asked["params"]["server"]})
    for name in names:
        assert s.answer_to_server(name, 1)["result"] == {"for": name}
    assert nothing_is_open(s)


def test_where_the_host_samples_without_tools_only_questions_with_tools_go_to_the_model():
    """Our choice: the host is preferred for what it declared. Neither can answer what the other was asked."""
    s = Script(["git"], capabilities={"sampling": {}}, sampling=sampler())
    samples(s, "git", "plain")
    samples(s, "git", "tools", WITH_TOOLS)
    (for_host,), (for_model,) = s.host_told("sampling/createMessage"), s.model_asked()
    assert for_host["params"] == ASKED
    assert for_model["params"]["params"] == WITH_TOOLS
    s.host_sends(id=for_model["id"], result={"from": "host"})
    s.model_sends(id=for_host["id"], result={"from": "model"})
    assert len(s.core.in_flight) == 2
    s.host_sends(id=for_host["id"], result={"from": "host"})
    s.model_sends(id=for_model["id"], result={"from": "model"})
    assert s.answer_to_server("git", "plain")["result"] == {"from": "host"}
    assert s.answer_to_server("git", "tools")["result"] == {"from": "model"}
    assert nothing_is_open(s)


@pytest.mark.parametrize(
    ("table", "params", "code", "words"),
    [
        ({"sampling": "off"}, ASKED, -32601, 'its table says sampling = "off"'),
        ({"sampling": "host"}, ASKED, -32601, "the host declared none"),
        ({}, [], -32602, "params must be an object"),
    ],
)
def test_a_refused_question_reaches_no_model(table: dict[str, Any], params: Any, code: int, words: str):
    s = Script({"git": server(**table)}, sampling=sampler())
    samples(s, "git", "q", params)
    assert s.answer_to_server("git", "q")["error"]["code"] == code
    assert words in s.answer_to_server("git", "q").text
    assert s.to_model == []


def test_a_question_without_params_reaches_the_sampler_which_says_what_is_missing():
    s = Script(["git"], sampling=sampler())
    s.server_sends("git", id="q", method="sampling/createMessage")
    assert s.to_model[0]["method"] == "prepare"
    assert s.to_model[0]["params"] == {"server": "git", "params": {}, "seconds": 120}


def test_an_id_that_the_model_has_not_answered_yet_is_refused():
    """2025-11-25, basic#requests: an id MUST NOT have been used before."""
    s = Script(["git"], sampling=sampler())
    samples(s, "git", "q")
    samples(s, "git", "q")
    assert s.answer_to_server("git", "q")["error"]["code"] == -32600
    assert len(s.model_asked()) == 1


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"result": 7}, "the sampler sent a result that is no object"),
        ({"error": "no"}, "the sampler sent an error without a code and a message"),
        ({}, "the sampler sent a result that is no object"),
    ],
)
def test_an_answer_of_the_sampler_that_is_none_becomes_an_error(answer: dict[str, Any], words: str):
    s = Script(["git"], sampling=sampler())
    samples(s, "git", "q")
    s.model_sends(id=s.model_asked()[0]["id"], **answer)
    assert s.answer_to_server("git", "q").text == words
    assert nothing_is_open(s)


def test_an_answer_of_the_sampler_to_nothing_or_twice_is_dropped():
    s = Script(["git"], sampling=sampler())
    s.host_asks(1, "tools/call", name="git__log")
    samples(s, "git", "q")
    call = s.server_hears("git", "tools/call")["id"]
    for id in (999, call, None, "x", s.model_asked()[0]["id"], s.model_asked()[0]["id"]):
        s.model_sends(id=id, result=SPOKEN)
    assert s.answer_to_server("git", "q")["result"] == SPOKEN
    assert 1 not in s.answered


@pytest.mark.parametrize("line", [b"nonsense", b"{}", b"[]", b'{"method":"log"}', b"\xff"])
def test_a_line_of_the_sampler_that_cannot_be_read_costs_only_itself(line: bytes):
    s = Script(["git"], sampling=sampler())
    samples(s, "git", "q")
    s.sampler_sends(line, b'{"jsonrpc":"2.0","id":%d,"result":{}}' % s.model_asked()[0]["id"])
    assert s.answer_to_server("git", "q")["result"] == {}


@pytest.mark.parametrize("level", ["debug", "warning"])
def test_what_the_sampler_logs_reaches_the_log_at_its_level(level: str):
    s = Script(["git"], sampling=sampler())
    samples(s, "git", "q")
    line = mcpmux.notification_line("log", mcpmux.encode({"level": level, "text": "git: sampled with m"}))
    event = mcpmux.ServerLines(SAMPLER, s.runs[SAMPLER], [line])
    assert s.core.handle(event, s.now) == [mcpmux.Log(level, "git: sampled with m")]


@pytest.mark.parametrize("has_model", [False, True])
def test_members_that_are_null_are_none(has_model: bool):
    s = Script(["git"], capabilities={"sampling": {}}, sampling=sampler() if has_model else None)
    samples(s, "git", "q", ASKED | {"tools": None, "toolChoice": None})
    assert len(s.host_told("sampling/createMessage")) == 1


# ── its limits ──


@pytest.mark.requirement("sampling-limits")
def test_a_server_that_asks_the_model_too_often_in_a_minute_is_refused_and_told_for_how_long():
    """Our choice: `sampling.limits.requests_per_minute`, of each server by itself; the minute slides."""
    s = Script(["git", "hub"], sampling=sampler(timeout_sec=0.5, requests_per_minute=3, max_concurrency=9))
    for number in range(3):
        samples(s, "git", number)
        s.model_answers(SPOKEN)
        s.advance(10)
    samples(s, "git", "over")
    refusal = s.answer_to_server("git", "over")["error"]
    assert "git has made 3 requests in a minute; free again in " in refusal["message"]
    assert "(sampling.limits.requests_per_minute)" in refusal["message"]
    assert refusal["data"]["limit"] == "requests_per_minute"
    assert 30 <= refusal["data"]["retryAfterSeconds"] <= 31
    samples(s, "hub", "other")
    assert len(s.model_asked()) == 4
    s.model_answers(SPOKEN)
    s.advance(29)
    samples(s, "git", "still over")
    assert s.answer_to_server("git", "still over").is_error
    s.advance(1)
    samples(s, "git", "free")
    s.model_answers(SPOKEN)
    assert s.answer_to_server("git", "free")["result"] == SPOKEN
    samples(s, "git", "the second is still within a minute")
    assert s.answer_to_server("git", "the second is still within a minute").is_error
    assert nothing_is_open(s)


def test_what_was_refused_does_not_count_for_the_minute():
    s = Script(["git"], sampling=sampler(timeout_sec=1, requests_per_minute=1))
    samples(s, "git", 0)
    s.model_answers(SPOKEN)
    for number in range(1, 50):
        s.advance(1)
        samples(s, "git", number)
    s.advance(11)
    samples(s, "git", "free")
    assert len(s.model_asked()) == 2


def test_waiting_as_long_as_the_refusal_says_is_enough():
    s = Script(["git"], sampling=sampler(timeout_sec=0.1, requests_per_minute=1))
    for pause in (0.25, 13.5, 59.5):
        samples(s, "git", f"first {pause}")
        s.model_answers(SPOKEN)
        s.advance(pause)
        samples(s, "git", f"over {pause}")
        s.advance(s.answer_to_server("git", f"over {pause}")["error"]["data"]["retryAfterSeconds"])
        samples(s, "git", f"again {pause}")
        s.model_answers(SPOKEN)
        assert s.answer_to_server("git", f"again {pause}")["result"] == SPOKEN
        s.advance(60)


def test_a_restart_of_a_server_does_not_begin_its_minute_anew():
    """Our choice: else a server that dies after each request would have no limit."""
    s = Script(["git"], sampling=sampler(timeout_sec=20, requests_per_minute=1))
    samples(s, "git", "q")
    s.server_dies("git")
    s.host_asks(1, "tools/call", name="git__log")
    s.advance(1)
    samples(s, "git", "r")
    assert s.answer_to_server("git", "r")["error"]["data"]["limit"] == "requests_per_minute"


@pytest.mark.requirement("sampling-limits")
@pytest.mark.parametrize("ending", ["answer", "error", "cancel", "timeout"])
def test_a_server_has_so_many_questions_open_at_the_model_and_the_others_wait_their_turn(ending: str):
    """Our choice: `sampling.limits.max_concurrency`. What has ended, in whatever way, makes room; in order."""
    s = Script(["git", "hub"], sampling=sampler(timeout_sec=50, max_concurrency=2))
    for number in range(4):
        samples(s, "git", number)
    samples(s, "hub", 0)
    assert [asked["params"]["server"] for asked in s.model_asked()] == ["git", "git", "hub"]
    first = s.model_asked()[0]["id"]
    match ending:
        case "answer":
            s.model_sends(id=first, result=SPOKEN)
        case "error":
            s.model_sends(id=first, error={"code": -1, "message": "no"})
        case "cancel":
            s.server_sends("git", method="notifications/cancelled", params={"requestId": 0})
        case _:
            s.model_sends(id=s.model_asked()[2]["id"], result=SPOKEN)
            s.advance(49)
            samples(s, "git", "late")
            s.advance(5)  # those that wait have waited long enough; the sampler has its time still
            for number in (2, 3):
                assert "has waited 50 s for its turn, 2 are open" in s.answer_to_server("git", number).text
                assert s.answer_to_server("git", number)["error"]["data"] == {"limit": "max_concurrency"}
            s.advance(2)
            assert s.sampler_stops == [SAMPLER]
            return
    assert [asked["params"]["server"] for asked in s.model_asked()] == ["git", "git", "hub", "git"]
    s.model_sends(id=s.model_asked()[3]["id"], result={"for": 2})
    assert s.answer_to_server("git", 2)["result"] == {"for": 2}
    assert len(s.model_asked()) == 5


def test_ten_at_once_get_ten_answers_in_order():
    s = Script(["git"], sampling=sampler())
    for number in range(10):
        samples(s, "git", number)
    for number in range(10):
        s.model_sends(id=s.model_asked()[number]["id"], result={"for": number})
    assert [s.answer_to_server("git", number)["result"]["for"] for number in range(10)] == [*range(10)]
    assert nothing_is_open(s)


def test_a_server_over_its_minute_waits_if_that_helps_in_time():
    """Its host gives up on a call after 55 s, as far as is known."""
    s = Script(["git"], sampling=sampler(requests_per_minute=2))
    for number in range(2):
        samples(s, "git", number)
        s.model_answers(SPOKEN)
        s.advance(6)
    s.host_asks(1, "tools/call", name="git__log")
    for number in (2, 3):
        samples(s, "git", number)
    s.advance(47)
    assert len(s.model_asked()) == 2
    s.advance(2)
    assert len(s.model_asked()) == 3
    s.model_answers(SPOKEN)
    s.advance(5)
    assert len(s.model_asked()) == 4
    samples(s, "git", "in vain")
    assert "free again in " in s.answer_to_server("git", "in vain").text


def test_what_waits_its_turn_may_be_withdrawn_and_goes_with_its_server():
    s = Script(["git"], sampling=sampler(max_concurrency=1))
    for number in range(5):
        samples(s, "git", number)
    s.server_sends("git", method="notifications/cancelled", params={"requestId": 1})
    s.model_answers(SPOKEN)
    assert len(s.model_asked()) == 2
    s.server_dies("git")
    assert len(s.model_asked()) == 2
    assert nothing_is_open(s)


def test_more_than_may_wait_are_refused():
    s = Script(["git"], sampling=sampler(max_concurrency=1))
    turns, heir = s.core.turns, mcpmux.Asker()
    for number in range(1 + mcpmux.TURNS_MOST):
        turns.take("git", b"%d" % number, mcpmux.UNSET, heir, 100)
    with pytest.raises(mcpmux.RpcError, match="200 requests of git wait their turn already"):
        turns.take("git", b"x", mcpmux.UNSET, heir, 100)


def test_what_the_sampler_refuses_to_prepare_never_reaches_a_model_and_does_not_count():
    s = Script(["git"], sampling=sampler(requests_per_minute=1))
    s.prepares = False
    for number in range(3):
        samples(s, "git", number)
        s.model_sends(id=s.to_model[-1]["id"], error={"code": -32602, "message": "no"})
        assert s.answer_to_server("git", number)["error"]["message"] == "no"
    samples(s, "git", "q")
    s.model_sends(id=s.to_model[-1]["id"], result={"params": ASKED, "models": ["a", "b"], "usd": 0.5})
    (asked,) = s.model_asked()
    assert (asked["params"]["params"], asked["params"]["models"]) == (ASKED, ["a", "b"])
    s.model_answers(SPOKEN)
    assert s.answer_to_server("git", "q")["result"] == SPOKEN
    assert nothing_is_open(s)


def test_what_the_host_samples_is_not_limited():
    s = Script(["git"], capabilities={"sampling": {}}, sampling=sampler(requests_per_minute=1, max_concurrency=1))
    for number in range(5):
        samples(s, "git", number)
    assert len(s.host_told("sampling/createMessage")) == 5


def test_a_minute_is_told_as_sixty_seconds():
    s = Script(["git"], sampling=sampler(timeout_sec=1, requests_per_minute=1))
    samples(s, "git", 1)
    s.model_answers(SPOKEN)
    samples(s, "git", 2)
    assert s.answer_to_server("git", 2)["error"]["data"]["retryAfterSeconds"] == 60


# ── its beginning ──


def test_the_sampler_starts_with_the_first_call_of_a_server_that_has_sampled_before():
    """It takes seconds to load. Not for other servers, nor for hosts that have a model."""
    s = Script(["git", "hub"], sampling=sampler())
    s.host_asks(1, "tools/call", name="git__log")
    assert s.sampler_starts == [] and not s.saved["git"].samples
    samples(s, "git", "q")
    assert s.saved["git"].samples and not s.saved["hub"].samples
    known = {name: [known] for name, known in s.saved.items()}
    for capabilities, starts in (({}, [SAMPLER]), ({"sampling": {}}, [])):
        again = Script(["git", "hub"], sampling=sampler(), known=known, capabilities=capabilities)
        again.host_asks(1, "tools/call", name="hub__log")
        assert again.sampler_starts == []
        again.host_asks(2, "tools/call", name="git__log")
        assert again.sampler_starts == starts
        again.host_asks(3, "tools/call", name="git__log")
        assert again.sampler_starts == starts
    assert Script(["git"], known=known).sampler_starts == []


# ── its endings ──


def test_when_the_sampler_dies_all_its_requests_end_once_and_the_next_one_starts_another():
    s = Script(["git", "hub"], capabilities={"elicitation": {}}, sampling=sampler())
    samples(s, "git", 1)
    samples(s, "git", 2)
    samples(s, "hub", 1)
    s.server_sends("hub", id="person", method="elicitation/create", params={"message": "?", "requestedSchema": {}})
    s.sampler_dies()
    for name, id in (("git", 1), ("git", 2), ("hub", 1)):
        error = s.answer_to_server(name, id)["error"]
        assert error["code"] == -32603
        assert error["message"] == "mcpmux: the sampler exited with code 1 (ask again)"
    assert len(s.core.in_flight) == 1  # a person is asked as before
    assert s.withdrawn_from_model() == []  # there is nobody to tell
    for asked in s.model_asked():
        s.model_sends(id=asked["id"], result=SPOKEN)
    samples(s, "git", 3)
    assert s.sampler_starts == [SAMPLER]
    s.advance(1)  # it rests as a server does
    s.model_answers(SPOKEN)
    assert s.sampler_starts == [SAMPLER] * 2
    assert s.answer_to_server("git", 3)["result"] == SPOKEN
    assert [s.answer_to_server(name, id).is_error for name, id in (("git", 1), ("git", 2), ("hub", 1))] == [True] * 3


def asked_of(s: Script, who: str) -> list[int]:
    """The ids of what was put to the host, or to the model."""
    return [message["id"] for message in (s.model_asked() if who == "model" else s.host_told("sampling/createMessage"))]


def withdrawn_from(s: Script, who: str) -> list[int]:
    if who == "model":
        return s.withdrawn_from_model()
    return [message["params"]["requestId"] for message in s.host_told("notifications/cancelled")]


def asking(who: str, *names: str) -> Script:
    """Servers whose sampling this one answers."""
    if who == "model":
        return Script(list(names), sampling=sampler())
    return Script(list(names), capabilities={"sampling": {}})


@pytest.mark.requirement("cancelled-with-questions")
@pytest.mark.parametrize("who", ["host", "model"])
def test_when_the_host_cancels_a_call_what_its_server_asks_for_it_is_withdrawn_and_ends_with_an_error(who: str):
    """Our choice. Servers do not cancel what they ask in a call that is cancelled, and nobody should work on it.
    2025-11-25, basic/utilities/cancellation: a cancelled request is not answered, but the server's is another one."""
    s = asking(who, "git", "hub")
    for name, id in (("git", 1), ("hub", 2)):
        s.host_asks(id, "tools/call", name=f"{name}__log")
        samples(s, name, "q")
    mine, other = asked_of(s, who)
    s.host_sends(method="notifications/cancelled", params={"requestId": 1})
    assert withdrawn_from(s, who) == [mine]
    assert s.answer_to_server("git", "q").text == "mcpmux: the host cancelled the call that this was asked for"
    s.model_sends(id=mine, result=SPOKEN)
    s.host_sends(id=mine, result=SPOKEN)
    assert s.answer_to_server("git", "q").is_error
    assert 1 not in s.answered
    (s.model_sends if who == "model" else s.host_sends)(id=other, result=SPOKEN)
    assert s.answer_to_server("hub", "q")["result"] == SPOKEN
    s.server_answers("hub", "tools/call")
    assert nothing_is_open(s)


@pytest.mark.parametrize("who", ["host", "model"])
@pytest.mark.parametrize(
    ("method", "params"), [("prompts/get", {"name": "git__p"}), ("resources/read", {"uri": "mem://1"})]
)
def test_a_question_may_belong_to_any_request_that_carries_one(who: str, method: str, params: dict[str, Any]):
    s = asking(who, "git")
    s.server_dies("git")
    s.offers["git"] = {"prompts/list": [{"name": "p"}], "resources/list": [{"uri": "mem://1", "name": "r"}]}
    s.host_asks(0, "tools/call", name="git__log")
    s.advance(2)
    s.server_answers("git", "tools/call")
    s.host_asks(1, method, **params)
    samples(s, "git", "q")
    s.host_sends(method="notifications/cancelled", params={"requestId": 1})
    assert withdrawn_from(s, who) == asked_of(s, who)
    assert s.answer_to_server("git", "q").is_error


@pytest.mark.requirement("cancelled-with-questions")
@pytest.mark.parametrize("who", ["host", "model"])
def test_a_question_that_another_call_may_have_asked_is_not_withdrawn_until_that_is_cancelled_too(who: str):
    """Our choice: a question does not say for which call it is."""
    s = asking(who, "git")
    for id in (1, 2):
        s.host_asks(id, "tools/call", name="git__log")
    samples(s, "git", "q")
    s.host_asks(3, "tools/call", name="git__log")  # too late to have asked it
    s.host_sends(method="notifications/cancelled", params={"requestId": 1})
    s.host_sends(method="notifications/cancelled", params={"requestId": 3})
    assert withdrawn_from(s, who) == []
    s.host_sends(method="notifications/cancelled", params={"requestId": 2})
    assert withdrawn_from(s, who) == asked_of(s, who)
    assert s.answer_to_server("git", "q").is_error
    assert nothing_is_open(s)


@pytest.mark.requirement("cancelled-with-questions")
@pytest.mark.parametrize("who", ["host", "model"])
def test_a_question_outside_any_call_outlives_calls_that_are_cancelled(who: str):
    s = asking(who, "git", "hub")
    s.host_asks(1, "tools/call", name="hub__log")
    samples(s, "git", "q")
    s.host_asks(2, "tools/call", name="git__log")
    for id in (1, 2):
        s.host_sends(method="notifications/cancelled", params={"requestId": id})
    assert withdrawn_from(s, who) == []
    (number,) = asked_of(s, who)
    (s.model_sends if who == "model" else s.host_sends)(id=number, result=SPOKEN)
    assert s.answer_to_server("git", "q")["result"] == SPOKEN
    assert nothing_is_open(s)


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("completion/complete", {"ref": {"type": "ref/prompt", "name": "git__p"}, "argument": {}}),
        ("tasks/result", {"taskId": "t1"}),
    ],
)
def test_a_question_outlives_the_cancelling_of_a_request_that_carries_none(method: str, params: dict[str, Any]):
    """2026-07-28 names tools/call, prompts/get and resources/read as those in which a server may ask."""
    s = Script(["git"], sampling=sampler(), offers={"git": {**tools("log"), "prompts/list": [{"name": "p"}]}})
    start_task(s)
    s.host_asks(2, method, **params)
    samples(s, "git", "q")
    s.host_sends(method="notifications/cancelled", params={"requestId": 2})
    assert s.withdrawn_from_model() == []
    s.model_answers(SPOKEN)
    assert s.answer_to_server("git", "q")["result"] == SPOKEN


def test_what_a_server_asks_is_not_withdrawn_when_its_call_has_an_answer():
    """A server may go on after its answer; only the host's cancelling says that nobody wants the result."""
    s = Script(["git"], sampling=sampler())
    s.host_asks(1, "tools/call", name="git__log")
    samples(s, "git", "q")
    s.server_answers("git", "tools/call")
    s.host_sends(method="notifications/cancelled", params={"requestId": 1})
    assert s.withdrawn_from_model() == []
    s.model_answers(SPOKEN)
    assert s.answer_to_server("git", "q")["result"] == SPOKEN


def test_a_question_that_its_server_withdraws_is_withdrawn_from_the_model_and_never_answered():
    """2025-11-25, basic/utilities/cancellation."""
    s = Script(["git", "hub"], sampling=sampler())
    samples(s, "git", "q")
    samples(s, "hub", "q")
    mine = s.model_asked()[0]["id"]
    s.server_sends("git", method="notifications/cancelled", params={"requestId": "q", "reason": "r"})
    assert s.to_model[-1]["params"] == {"requestId": mine, "reason": "r"}
    s.server_sends("git", method="notifications/cancelled", params={"requestId": "q"})
    assert s.withdrawn_from_model() == [mine]
    s.model_sends(id=mine, result=SPOKEN)
    assert [m for m in s.to_server["git"] if m.get("id") == "q"] == []
    s.model_answers(SPOKEN)
    assert s.answer_to_server("hub", "q")["result"] == SPOKEN
    samples(s, "git", "q")  # the id is free
    s.model_answers(SPOKEN)
    assert s.answer_to_server("git", "q")["result"] == SPOKEN


def test_questions_of_a_server_that_dies_are_withdrawn_from_the_model_and_its_next_process_gets_no_answer_to_them():
    s = Script(["git"], sampling=sampler())
    s.host_asks(1, "tools/call", name="git__log")
    samples(s, "git", "q")
    mine = s.model_asked()[0]["id"]
    s.server_dies("git")
    assert s.withdrawn_from_model() == [mine]
    assert s.host_hears(1).is_error
    s.host_asks(2, "tools/call", name="git__log")
    s.advance(1)
    samples(s, "git", "q")
    s.model_sends(id=mine, result={"for": "the dead"})
    s.model_answers(SPOKEN)
    assert s.answer_to_server("git", "q")["result"] == SPOKEN
    s.server_answers("git", "tools/call")
    assert nothing_is_open(s)


def test_at_the_end_no_question_to_the_model_is_left():
    s = Script(["git"], sampling=sampler())
    samples(s, "git", "q")
    s.feed(mcpmux.HostGone("end"))
    s.server_dies("git")
    assert s.withdrawn_from_model() == [s.model_asked()[0]["id"]]
    assert nothing_is_open(s)


def test_a_sampler_that_is_stuck_is_replaced_and_what_others_asked_is_asked_again():
    """Our choice: its own timeout ends a request; one that does not even do that answers nobody."""
    s = Script(["git", "hub"], sampling=sampler(timeout_sec=20))
    samples(s, "git", "q")
    s.advance(10)
    samples(s, "hub", "r")
    mine, other = (asked["id"] for asked in s.model_asked())
    s.advance(10 + mcpmux.SAMPLER_SLACK - 1)
    assert s.withdrawn_from_model() == []
    s.advance(2)
    assert (
        s.answer_to_server("git", "q").text == "mcpmux: the sampler did not answer sampling/createMessage within 25 s"
    )
    assert s.withdrawn_from_model() == [mine]
    assert s.sampler_stops == [SAMPLER]
    s.model_sends(id=mine, result=SPOKEN)
    assert s.answer_to_server("git", "q").is_error
    s.sampler_dies()
    assert s.sampler_starts == [SAMPLER] * 2
    assert s.model_asked()[-1]["params"] == s.model_asked()[1]["params"]
    s.model_sends(id=other, result=SPOKEN)
    assert s.answer_to_server("hub", "r")["result"] == SPOKEN
    assert nothing_is_open(s)


def test_what_was_asked_twice_in_vain_is_not_asked_again():
    s = Script(["git", "hub"], sampling=sampler(timeout_sec=20))
    for name in ("git", "hub"):
        samples(s, name, "q")
        s.advance(1)
    for _ in range(3):
        s.advance(26)
        if s.core.sampler.state is State.STOPPING:
            s.sampler_dies()
    assert [s.answer_to_server(name, "q").is_error for name in ("git", "hub")] == [True] * 2
    assert nothing_is_open(s)


def test_a_question_asked_before_a_waiting_call_was_sent_outlives_its_cancellation():
    """outside any call: the server has not even seen the call. On a restart calls wait in `waiting`."""
    s = Script(["git"], sampling=sampler())
    s.server_dies("git")
    s.host_asks(1, "tools/call", name="git__log")
    s.advance(0.55)
    assert s.server_heard("git", "tools/call") == []
    samples(s, "git", "q")
    s.host_sends(method="notifications/cancelled", params={"requestId": 1})
    assert s.withdrawn_from_model() == []
    s.model_answers(SPOKEN)
    assert s.answer_to_server("git", "q")["result"] == SPOKEN


def test_an_over_long_answer_of_the_sampler_ends_its_question_at_once():
    s = Script(["git"], sampling=sampler())
    samples(s, "git", "q")
    head = b'{"jsonrpc":"2.0","id":%d,"result":{"a":"' % s.model_asked()[0]["id"]
    s.sampler_sends(mcpmux.TooLong(70_000_000, head, b'"}}'))
    assert s.answer_to_server("git", "q").is_error


def test_a_tasks_question_outlives_another_call_that_is_cancelled():
    """2025-11-25, basic/utilities/tasks: related-task in `_meta` says which task asks, so no call does."""
    s = Script(["git"], sampling=sampler())
    s.host_asks(1, "tools/call", name="git__log", task={})
    s.server_answers("git", "tools/call", {"task": {"taskId": "t", "status": "working"}})
    s.host_asks(2, "tools/call", name="git__log")
    meta = {"io.modelcontextprotocol/related-task": {"taskId": "t"}}
    samples(s, "git", "q", ASKED | {"_meta": meta})
    s.host_sends(method="notifications/cancelled", params={"requestId": 2})
    assert s.withdrawn_from_model() == []


# ── what goes on meanwhile ──


@pytest.mark.parametrize("ending", ["answer", "death"])
def test_a_calls_clock_stands_still_while_the_model_is_asked(ending: str):
    """As while a person is asked: the call is not the server's to hasten."""
    s = Script({"git": server(tool_timeout_sec=10)}, sampling=sampler())
    s.host_asks(1, "tools/call", name="git__log")
    s.advance(9)
    samples(s, "git", "q")
    s.advance(60)
    assert 1 not in s.answered
    if ending == "answer":
        s.model_answers(SPOKEN)
    else:
        s.sampler_dies()
    s.advance(9)
    assert 1 not in s.answered
    s.advance(2)
    assert s.host_hears(1).is_error


def test_the_clock_of_another_servers_call_goes_on():
    s = Script({"git": server(tool_timeout_sec=10), "hub": server(tool_timeout_sec=10)}, sampling=sampler())
    s.host_asks(1, "tools/call", name="git__log")
    s.host_asks(2, "tools/call", name="hub__log")
    samples(s, "git", "q")
    s.advance(11)
    assert 1 not in s.answered
    assert s.host_hears(2).is_error


def test_lists_and_calls_wait_for_what_a_server_asks_the_model_after_initialized():
    """Some servers offer tools that depend on the answer, or refuse calls until they have it."""
    s = Script(["git"], sampling=sampler(), begin=False)
    s.host_asks("init", "initialize", protocolVersion="2025-11-25", capabilities={})
    s.host_sends(method="notifications/initialized")
    s.host_asks(1, "tools/call", name="git__log")
    samples(s, "git", "q")
    s.advance(5)
    assert s.server_heard("git", "tools/list") == []
    s.model_answers(SPOKEN)
    s.advance(0.05)
    assert s.server_heard("git", "tools/list") == []
    s.advance(0.06)
    assert s.answer_to_server("git", "q")["result"] == SPOKEN
    assert s.server_heard("git", "tools/list")
    assert s.server_hears("git", "tools/call")["params"] == {"name": "log"}


def test_the_model_is_asked_even_before_the_host_has_initialized():
    """The model is nobody's to wait for: only the host may not be asked before it has initialized."""
    s = Script(["git"], sampling=sampler(), begin=False)
    s.host_asks("init", "initialize", protocolVersion="2025-11-25", capabilities={})
    samples(s, "git", "q")
    s.model_answers(SPOKEN)
    assert s.answer_to_server("git", "q")["result"] == SPOKEN


def test_a_model_that_never_answers_what_a_server_asks_first_does_not_keep_its_tools_away_for_ever():
    s = Script({"git": server(startup_timeout_sec=5)}, sampling=sampler(), begin=False)
    s.host_asks("init", "initialize", protocolVersion="2025-11-25", capabilities={})
    s.host_sends(method="notifications/initialized")
    samples(s, "git", "q")
    s.advance(6)
    assert s.tools() == ["git__log"]


@pytest.mark.parametrize("method", ["tools/list", "completion/complete"])
def test_a_server_may_ask_the_model_while_it_lists_or_completes(method: str):
    """The host may not be asked then, since it may wait for us; the model waits for nobody."""
    s = Script(["git"], sampling=sampler(), offers={"git": {"prompts/list": [{"name": "p"}]}})
    if method == "tools/list":
        s.offers["git"]["tools/list"] = ...
        s.server_sends("git", method="notifications/tools/list_changed")
        s.advance(1)
    else:
        s.host_asks(1, method, ref={"type": "ref/prompt", "name": "git__p"}, argument={"name": "a", "value": ""})
    samples(s, "git", "q")
    s.advance(60)  # the listing's clock stands still as well
    s.model_answers(SPOKEN)
    assert s.answer_to_server("git", "q")["result"] == SPOKEN
    if method == "tools/list":
        s.server_answers("git", method, {"tools": [{**TOOL, "name": "chosen"}]})
        assert s.tools() == ["git__chosen"]
    else:
        s.server_answers("git", method, {"completion": {"values": ["x"]}})
        assert s.host_hears(1)["result"] == {"completion": {"values": ["x"]}}


def test_a_server_that_does_not_read_loses_the_models_answer_and_nothing_stays_open():
    s = Script(["git"], sampling=sampler())
    samples(s, "git", "q")
    s.feed(mcpmux.ServerClogged("git", s.runs["git"], True))
    s.model_answers(SPOKEN)
    assert [m for m in s.to_server["git"] if m.get("id") == "q"] == []
    assert nothing_is_open(s)


def test_the_trace_tells_nothing_of_what_is_asked_of_the_model():
    s = Script(["git"], options=MuxOptions(log_level="trace"), sampling=sampler())
    samples(s, "git", "q", ASKED | {"systemPrompt": "s3cret"})
    s.model_answers({"content": "s3cret"})
    assert any(line.startswith("< git sampling/createMessage") for line in s.logged)
    assert "s3cret" not in json.dumps(s.logged)


def test_where_the_host_may_not_be_asked_while_we_list_the_model_is():
    """Our choice, for `auto`: nobody would move if the host were asked now."""
    s = Script(["git"], capabilities={"sampling": {}}, sampling=sampler(), offers={"git": {"tools/list": ...}})
    samples(s, "git", "q")
    s.model_answers(SPOKEN)
    assert s.answer_to_server("git", "q")["result"] == SPOKEN


@pytest.mark.parametrize("new", [None, sampler(timeout_sec=5)], ids=["none", "others"])
def test_when_the_models_change_all_ends_that_they_were_asked_and_all_that_waits_its_turn(new: Any):
    """One that had its turn by the end of another would be for a sampler that is being stopped."""
    s = Script({"git": server()}, sampling=sampler(max_concurrency=1))
    for id in "abc":
        samples(s, "git", id)
    s.feed(mcpmux.ConfigChanged(MuxOptions(), {"git": server()}, {}, new))
    for id in "abc":
        assert "the models of the config have changed" in s.answer_to_server("git", id)["error"]["message"]
    assert nothing_is_open(s)
