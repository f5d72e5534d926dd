"""Sampling answered by a model of the person's own: real litellm in a real mcpmux, against providers on loopback.

The providers speak the two most common APIs; their replies are queues that a test fills. Nothing of litellm is patched:
where a test needs a stand-in for it, it tests our own part below it.
"""

from __future__ import annotations

import asyncio
import calendar
import collections
import contextlib
import functools
import json
import os
import queue
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conftest import COMMAND, PATIENCE, ROOT, RawHost, assert_lines_are_clean, empty_home, is_running, server_table
from msgspec import Raw

import mcpmux
from mcpmux import ModelOptions, Rated, RpcError, SamplingLimits

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads the process table in /proc")

KEY = "sk-test-5f0c7d2e9a41b836"
GPT, CLAUDE, HASTY, DOWN = "openai/gpt-4o-mini", "anthropic/claude-sonnet-4-5", "openai/gpt-4o", "openai/gpt-4.1"

# All that is ever asked and answered here is made of these, so that a search for them finds every trace of it.
PROMPT = "the heron stands in the reeds at dawn"
SYSTEM = "answer as the keeper of the lighthouse"
SAID = "an otter slept beneath the wooden bridge"
PLACE = "the quay of Tamatave on Madagascar"
FOG = "fog over the whole of the peninsula"
PICTURE = "aGVyb24sIG90dGVyIGFuZCBsaWdodGhvdXNl"
SOUND = "Zm9naG9ybnMgaW4gdGhlIG1vcm5pbmcgYXQgNQ=="
CONTENT = (PROMPT, SYSTEM, SAID, PLACE, FOG, PICTURE, SOUND)

WEATHER = {
    "name": "weather",
    "description": "Tells the weather",
    "inputSchema": {"type": "object", "properties": {"place": {"type": "string"}}},
}


def text(words: str = PROMPT) -> dict[str, Any]:
    return {"type": "text", "text": words}


def user(*content: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": list(content)}


def assistant(*content: dict[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "content": list(content)}


def use(id: str, **given: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": id, "name": "weather", "input": given}


def result(id: str, *content: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "tool_result", "toolUseId": id, "content": list(content), **more}


IMAGE = {"type": "image", "data": PICTURE, "mimeType": "image/png"}
AUDIO = {"type": "audio", "data": SOUND, "mimeType": "audio/wav"}


# ══ pure ══
# ── the choice of a model ──


def rated(model: str, hints: tuple[str, ...] = (), **scores: float) -> Rated:
    both = dict.fromkeys(mcpmux.PRIORITIES, 0.5) | scores
    return Rated(ModelOptions(model=model, hints=list(hints)), None, both, dict.fromkeys(both, "config"))


MODELS = [
    rated("anthropic/claude-sonnet-4-5", ("middle",), cost=0.5, speed=0.6, intelligence=0.8),
    rated("anthropic/claude-opus-4-1", cost=0.1, speed=0.2, intelligence=1.0),
    rated("openai/gpt-4o-mini", ("small",), cost=0.9, speed=0.7, intelligence=0.4),
    rated("groq/llama-3.1-8b-instant", ("small", "Swift"), cost=0.8, speed=1.0, intelligence=0.2),
]
SONNET, OPUS, MINI, LLAMA = (model.options.model for model in MODELS)


def hints(*names: str | None) -> list[dict[str, Any]]:
    return [{} if name is None else {"name": name} for name in names]


@pytest.mark.parametrize(
    ("preferences", "chosen"),
    [
        # Hints: exactly a name, with or without its provider, in any case.
        ({"hints": hints("anthropic/claude-opus-4-1")}, OPUS),
        ({"hints": hints("claude-opus-4-1")}, OPUS),
        ({"hints": hints("GPT-4o-Mini")}, MINI),
        ({"hints": hints("swift")}, LLAMA),
        # As a part of a name, and the other way round.
        ({"hints": hints("opus")}, OPUS),
        ({"hints": hints("claude-opus-4-1-20250805")}, OPUS),
        ({"hints": hints("llama")}, LLAMA),
        # Whole words only.
        ({"hints": hints("gemini-2.5-pro")}, SONNET),
        ({"hints": hints("pus")}, SONNET),
        ({"hints": hints("foo4o-mini")}, SONNET),
        ({"hints": hints("llama3")}, LLAMA),
        # In their order, and what names nothing is passed over.
        ({"hints": hints("gemini", "opus", "sonnet")}, OPUS),
        ({"hints": hints("sonnet", "opus")}, SONNET),
        ({"hints": hints(None, "", "opus")}, OPUS),
        ({"hints": hints("gemini")}, SONNET),
        ({"hints": []}, SONNET),
        # An exact name before a part of one.
        ({"hints": hints("gpt-4o-mini", "claude")}, MINI),
        # Among several that a hint names: priorities, else the first.
        ({"hints": hints("claude")}, SONNET),
        ({"hints": hints("claude"), "intelligencePriority": 1}, OPUS),
        ({"hints": hints("small"), "costPriority": 1}, MINI),
        ({"hints": hints("small"), "speedPriority": 1}, LLAMA),
        # Hints count more than priorities.
        ({"hints": hints("opus"), "costPriority": 1}, OPUS),
        # Each priority by itself changes the choice.
        ({"costPriority": 1}, MINI),
        ({"speedPriority": 1}, LLAMA),
        ({"intelligencePriority": 1}, OPUS),
        # And weighs against the others.
        ({"costPriority": 0.9, "intelligencePriority": 1}, SONNET),
        ({"costPriority": 0.2, "intelligencePriority": 0.9}, OPUS),
        ({"speedPriority": 0.2, "costPriority": 1}, MINI),
        ({"speedPriority": 0.5, "costPriority": 1}, LLAMA),
        # Nothing is preferred.
        ({}, SONNET),
        ({"costPriority": 0, "speedPriority": 0, "intelligencePriority": 0}, SONNET),
    ],
    ids=json.dumps,
)
def test_the_model_is_chosen_by_hints_then_priorities_then_order(preferences: dict[str, Any], chosen: str):
    """Spec: 2025-11-25, client/sampling#model-preferences: hints in order, as parts of names, before priorities."""
    order, why = mcpmux.ranked_models(MODELS, preferences)
    assert order[0].name == chosen
    assert sorted(one.name for one in order) == sorted(one.name for one in MODELS)
    assert why


@pytest.mark.parametrize("key", ["cost", "speed", "intelligence"])
def test_each_priority_decides_between_models_that_differ_in_it_alone(key: str):
    """Whatever the order of the config."""
    worse, better = rated("x/worse", **{key: 0.4}), rated("x/better", **{key: 0.6})
    for models in ([worse, better], [better, worse]):
        assert mcpmux.ranked_models(models, {f"{key}Priority": 0.3})[0][0] is better
        for other in {"cost", "speed", "intelligence"} - {key}:
            assert mcpmux.ranked_models(models, {f"{other}Priority": 1})[0][0] is models[0]


def test_the_reason_for_a_choice_names_the_hint_and_shows_the_sum():
    preferences = {"hints": hints("claude"), "costPriority": 0.3, "intelligencePriority": 1}
    order, why = mcpmux.ranked_models(MODELS, preferences)
    assert (order[:2], why) == (
        [MODELS[1], MODELS[0]],
        "the hint 'claude' names 2; it scores most: 0.3 × cost 0.1 + 1 × intelligence 1 = 1.03",
    )
    assert mcpmux.ranked_models(MODELS, {})[1] == "no hint names one; no priority is given; it is the first"
    assert mcpmux.ranked_models(MODELS, {"hints": hints("opus")})[1] == "the hint 'opus' names it"


def test_an_empty_name_is_a_part_of_no_other():
    models = [rated("openai/", ("",)), MODELS[1]]
    assert mcpmux.ranked_models(models, {"hints": hints("opus")})[0][0] is MODELS[1]


# ── scores and prices ──

PRICES = {
    "gpt-4o-mini": {"litellm_provider": "openai", "input_cost_per_token": 15e-8, "output_cost_per_token": 60e-8},
    "claude-opus-4-1": {"litellm_provider": "anthropic", "input_cost_per_token": 15e-6, "output_cost_per_token": 75e-6},
    "groq/free": {"litellm_provider": "groq", "input_cost_per_token": 0, "output_cost_per_token": 0},
    "same": {"litellm_provider": "openai", "input_cost_per_token": 1, "output_cost_per_token": 1},
    "half": {"litellm_provider": "openai", "input_cost_per_token": 1e-6},
    "image": {"litellm_provider": "openai", "output_cost_per_image": 1},
}


@pytest.mark.parametrize(
    ("model", "usd", "cost"),
    [
        ("gpt-4o-mini", (0.15, 0.6), 0.95),
        ("openai/gpt-4o-mini", (0.15, 0.6), 0.95),
        ("anthropic/claude-opus-4-1", (15, 75), 0.25),
        ("groq/free", (0, 0), 1.0),
        ("openai/same", (1e6, 1e6), 0.0),
        ("openai/half", (1, 0), 0.88),
    ],
)
def test_a_models_scores_come_from_its_price(model: str, usd: tuple[float, float], cost: float):
    """Our choice: dear models are clever and slow."""
    found = mcpmux.rate(ModelOptions(model=model), PRICES)
    assert found.usd == pytest.approx(usd)
    assert found.scores == {"cost": cost, "speed": cost, "intelligence": round(1 - cost, 2)}
    assert set(found.sources.values()) == {"price"}


@pytest.mark.parametrize("model", ["openai/never-heard-of", "openai/image", "same-but-not", "x/y/z"])
def test_a_model_of_which_nothing_is_known_scores_one_half(model: str):
    found = mcpmux.rate(ModelOptions(model=model), PRICES)
    assert found.usd is None
    assert found.scores == dict.fromkeys(mcpmux.PRIORITIES, 0.5)
    assert set(found.sources.values()) == {"unknown"}


@pytest.mark.parametrize(
    "options",
    [
        ModelOptions(model="ollama_chat/llama3.2"),
        ModelOptions(model="openai/mine", api_base="http://127.0.0.1:1/v1"),
        ModelOptions(model="openai/mine", api_base="http://localhost/v1"),
        ModelOptions(model="openai/mine", api_base="http://[::1]:1/v1"),
    ],
    ids=lambda options: f"{options.model} {options.api_base}",
)
def test_a_model_on_this_machine_is_the_cheapest_and_not_the_cleverest(options: ModelOptions):
    local, opus = mcpmux.rate(options, PRICES), mcpmux.rate(ModelOptions(model="anthropic/claude-opus-4-1"), PRICES)
    for models in ([local, opus], [opus, local]):
        assert mcpmux.ranked_models(models, {"costPriority": 1})[0][0] is local
        assert mcpmux.ranked_models(models, {"intelligencePriority": 1})[0][0] is opus
    assert local.cost(1000, {}, None) is None
    assert local.cost(1000, {}, 0.1) == 0.1


def test_a_clever_model_may_be_cheaper_than_a_dull_one():
    """By what litellm knows besides the price."""
    rows = {
        "old": {"litellm_provider": "openai", "input_cost_per_token": 2.5e-6, "output_cost_per_token": 1e-5},
        "new": {"litellm_provider": "openai", "input_cost_per_token": 1.25e-6, "output_cost_per_token": 1e-5},
    }
    rows["old"] |= {"max_output_tokens": 16384}
    rows["new"] |= {"max_output_tokens": 128000, "supports_reasoning": True}
    models = [mcpmux.rate(ModelOptions(model=f"openai/{name}"), rows) for name in rows]
    assert mcpmux.ranked_models(models, {"intelligencePriority": 1})[0][0].name == "openai/new"
    assert models[0].sources["intelligence"] == "price, length, thinking"


def test_scores_and_prices_of_the_config_count_more():
    options = ModelOptions(model="openai/gpt-4o-mini", cost=0.0, intelligence=1.0)
    found = mcpmux.rate(options, PRICES)
    assert found.scores == {"cost": 0.0, "speed": 0.95, "intelligence": 1.0}
    assert found.sources == {"cost": "config", "speed": "price", "intelligence": "config"}
    own = ModelOptions(model="openai/mine", params={"input_cost_per_token": 2e-6, "output_cost_per_token": 4e-6})
    assert mcpmux.rate(own, PRICES).usd == pytest.approx((2, 4))


# ── what is asked ──


@pytest.mark.parametrize(
    ("blocks", "messages"),
    [
        ([text()], [{"role": "user", "content": PROMPT}]),
        ([text("a"), text("b")], [{"role": "user", "content": [text("a"), text("b")]}]),
        (
            [IMAGE],
            [
                {
                    "role": "user",
                    "content": [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PICTURE}"}}],
                }
            ],
        ),
        (
            [AUDIO],
            [
                {
                    "role": "user",
                    "content": [{"type": "input_audio", "input_audio": {"data": SOUND, "format": "wav"}}],
                }
            ],
        ),
        ([], []),
    ],
    ids=["text", "two texts", "image", "audio", "nothing"],
)
def test_content_becomes_that_of_the_chat_api(blocks: list[dict[str, Any]], messages: list[dict[str, Any]]):
    """Spec: 2025-11-25, client/sampling#message-content."""
    assert mcpmux.chat_messages({"messages": [user(*blocks)]}) == messages
    if len(blocks) == 1:  # a block may stand alone, too
        assert mcpmux.chat_messages({"messages": [{"role": "user", "content": blocks[0]}]}) == messages


@pytest.mark.parametrize(
    ("kind", "format"),
    [
        ("audio/wav", "wav"),
        ("audio/x-wav", "wav"),
        ("audio/vnd.wave", "wav"),
        ("audio/mpeg", "mp3"),
        ("audio/mp3", "mp3"),
        ("audio/ogg;codecs=opus", "ogg"),
        ("audio/flac", "flac"),
    ],
)
def test_audio_is_named_as_the_chat_api_names_it(kind: str, format: str):
    part = mcpmux.chat_messages({"messages": [user(AUDIO | {"mimeType": kind})]})[0]["content"][0]
    assert part["input_audio"]["format"] == format


def test_a_system_prompt_comes_first():
    params = {"systemPrompt": SYSTEM, "messages": [user(text())]}
    assert mcpmux.chat_messages(params)[0] == {"role": "system", "content": SYSTEM}


def call(id: str, arguments: str) -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": "weather", "arguments": arguments}}


def test_tool_uses_go_with_the_text_beside_them():
    """Spec: 2025-11-25, client/sampling#sampling-with-tools."""
    messages = [user(text("a")), assistant(text("b"), use("1", place="é"), use("2"))]
    assert mcpmux.chat_messages({"messages": messages})[1:] == [
        {"role": "assistant", "content": "b", "tool_calls": [call("1", '{"place": "é"}'), call("2", "{}")]}
    ]
    silent = mcpmux.chat_messages({"messages": [assistant(use("1"))]})
    assert silent == [{"role": "assistant", "content": None, "tool_calls": [call("1", "{}")]}]


RESOURCE = {"uri": "file:///a", "mimeType": "text/plain"}


@pytest.mark.parametrize(
    ("blocks", "more", "words"),
    [
        ([text("a"), text("b")], {}, "a\nb"),
        ([text("a")], {"isError": True}, "Error: a"),
        ([], {"structuredContent": {"a": "é"}}, '{"a": "é"}'),
        ([text("a")], {"structuredContent": {"a": 1}}, "a"),
        ([], {"structuredContent": {}, "isError": True}, "Error: {}"),
        ([], {}, ""),
        ([{"type": "resource_link", "name": "a", "uri": "file:///a"}], {}, "a: file:///a"),
        ([{"type": "resource", "resource": RESOURCE | {"text": "inside"}}], {}, "inside"),
        ([{"type": "resource", "resource": RESOURCE | {"blob": PICTURE}}], {}, "(text/plain: file:///a)"),
        ([{"type": "resource", "resource": {"uri": "file:///a", "blob": PICTURE}}], {}, "(binary: file:///a)"),
    ],
)
def test_a_tools_result_becomes_text(blocks: list[dict[str, Any]], more: dict[str, Any], words: str):
    """Spec: 2025-11-25, server/tools#tool-result, of which all may come back in sampling."""
    messages = [assistant(use("1")), user(result("1", *blocks, **more))]
    assert mcpmux.chat_messages({"messages": messages})[1:] == [{"role": "tool", "tool_call_id": "1", "content": words}]


def test_pictures_and_sounds_of_results_follow_in_a_message_that_says_whose_they_are():
    """Our choice: chat APIs take them from the user only, and all results of a turn have to come first."""
    messages = [assistant(use("1"), use("2")), user(result("1", text("a"), IMAGE), result("2", AUDIO))]
    _, first, second, media = mcpmux.chat_messages({"messages": messages})
    assert first == {"role": "tool", "tool_call_id": "1", "content": "a\n(image: see the next message)"}
    assert second == {"role": "tool", "tool_call_id": "2", "content": "(audio: see the next message)"}
    assert media["role"] == "user"
    assert [part.get("text", part["type"]) for part in media["content"]] == [
        "From the result of 1:", "image_url", "From the result of 2:", "input_audio"
    ]  # fmt: skip


def test_what_a_server_asks_for_becomes_the_chat_apis_parameters():
    """Spec: 2025-11-25, client/sampling, CreateMessageRequest."""
    params = {"messages": [user(text())], "maxTokens": 100}
    assert mcpmux.chat_arguments(params, 4096).keys() == {"messages", "max_tokens"}
    full = params | {
        "temperature": 0,
        "stopSequences": ["END"],
        "metadata": {"user_id": "u", "number": 5},
        "tools": [WEATHER, {"name": "bare", "title": "Bare", "inputSchema": {"type": "object"}}],
        "toolChoice": {"mode": "required"},
    }
    arguments = mcpmux.chat_arguments(full, 50)
    assert arguments["max_tokens"] == 50  # the limit's
    assert (arguments["temperature"], arguments["stop"]) == (0, ["END"])
    assert arguments["metadata"] == {"user_id": "u"}  # providers take text only
    assert arguments["tool_choice"] == "required"
    assert [tool["function"]["description"] for tool in arguments["tools"]] == ["Tells the weather", "Bare"]
    assert arguments["tools"][0]["function"]["parameters"] == WEATHER["inputSchema"]
    assert mcpmux.chat_arguments(params | {"tools": [WEATHER]}, 50)["tool_choice"] == "auto"
    assert "tools" not in mcpmux.chat_arguments(params | {"tools": [], "stopSequences": []}, 50)


@pytest.mark.parametrize(
    ("messages", "wrong"),
    [
        ([user(text())], None),
        ([user(text()), assistant(use("1")), user(result("1"))], None),
        ([assistant(text(), use("1"), use("2")), user(result("2"), result("1")), assistant(text())], None),
        ([user(text()), assistant(use("1")), user(result("1")), assistant(use("1")), user(result("1"))], None),
        ([], "messages: there is none"),
        ([user(text()), assistant(use("1"))], "messages.1: its tool_use blocks are not answered"),
        ([user(text()), assistant(use("1")), user(text())], "messages.2: its tool_result blocks do not answer"),
        ([assistant(use("1"), use("2")), user(result("1"))], "messages.1: its tool_result blocks do not answer"),
        ([assistant(use("1")), user(result("1"), result("1"))], "messages.1: its tool_result blocks do not answer"),
        ([assistant(use("1")), user(result("1"), result("2"))], "messages.1: its tool_result blocks do not answer"),
        ([user(result("1"))], "messages.0: its tool_result blocks do not answer"),
        ([assistant(use("1")), assistant(use("2")), user(result("1"))], "messages.1: its tool_result"),
        ([assistant(use("1")), user(result("1"), text())], "messages.1: a message with tool_result is the user's"),
        ([assistant(use("1")), assistant(result("1"))], "messages.1: a message with tool_result is the user's"),
        ([user(use("1")), user(result("1"))], "messages.0: tool_use is the assistant's"),
        ([assistant(use("1"), use("1")), user(result("1"))], "messages.0: two tool_use blocks have the same id"),
    ],
)  # fmt: skip
def test_each_tool_use_has_its_result_in_the_next_message(messages: list[dict[str, Any]], wrong: str | None):
    """Spec: 2025-11-25, client/sampling#tool-result-messages and #tool-use-and-result-balance."""
    found = mcpmux.tools_out_of_balance(messages)
    assert found is None if wrong is None else found and found.startswith(wrong)


def asked(**params: Any) -> dict[str, Any]:
    both = {"messages": [user(text())], "maxTokens": 5} | params
    return mcpmux.checked_params(Raw(json.dumps({key: one for key, one in both.items() if one is not ...}).encode()))


def bad(*content: dict[str, Any], role: str = "user") -> dict[str, Any]:
    return {"messages": [user(text()), {"role": role, "content": list(content)}]}


@pytest.mark.parametrize(
    ("params", "wrong"),
    [
        ({"maxTokens": ...}, "maxTokens: Field required"),
        ({"maxTokens": 0}, "maxTokens: must be at least 1"),
        ({"maxTokens": "many"}, "maxTokens: Input should be a valid integer"),
        ({"messages": ...}, "messages: Field required"),
        ({"messages": []}, "messages: there is none"),
        ({"messages": "hello"}, "messages: Input should be a valid list"),
        ({"messages": [5]}, "messages.0: Input should be a valid dictionary"),
        (bad(text(), role="system"), "messages.1.role: Input should be 'user' or 'assistant'"),
        (bad({"type": "text"}), "messages.1.content.0.text: Field required"),
        (bad({"type": "image", "data": PICTURE}), "messages.1.content.0.mimeType: Field required"),
        (bad(text(), {"type": "video"}), "messages.1.content.1: is no content of a known type"),
        ({"messages": [{"role": "user", "content": PROMPT}]}, "messages.0.content: is no content of a known type"),
        (bad(result("1", {"type": "video"})), "messages.1.content.0.content.0: is no content of a known type"),
        (bad(use("1") | {"input": "x"}, role="assistant"), "messages.1.content.0.input: Input should be a valid dict"),
        (bad(use("1"), role="assistant"), "messages.1: its tool_use blocks are not answered"),
        ({"tools": [{"name": "x"}]}, "tools.0.inputSchema: Field required"),
        ({"toolChoice": {"mode": "any"}}, "toolChoice.mode: Input should be 'auto', 'required' or 'none'"),
        ({"temperature": "hot"}, "temperature: Input should be a valid number"),
        ({"stopSequences": "END"}, "stopSequences: Input should be a valid list"),
        ({"modelPreferences": {"hints": [5]}}, "modelPreferences.hints.0: Input should be a valid dictionary"),
        ({"systemPrompt": 5, "metadata": 5}, "systemPrompt: Input should be a valid string; metadata: Input"),
    ],
)
def test_params_that_are_invalid_are_refused_by_the_name_of_what_is_wrong(params: dict[str, Any], wrong: str):
    """Spec: 2025-11-25, client/sampling#error-handling: -32602. The content is not repeated."""
    with pytest.raises(RpcError) as refused:
        asked(**params)
    assert refused.value.code == mcpmux.INVALID_PARAMS
    said = str(refused.value).removeprefix("mcpmux: invalid sampling request: ")
    assert sorted(said.split("; "))[0].startswith(sorted(wrong.split("; "))[0]), said
    assert not any(words in said for words in CONTENT)


@pytest.mark.parametrize("raw", [b"5", b"[]", b"null", b'"x"', b'{"messages":null}'])
def test_params_that_are_no_object_are_refused(raw: bytes):
    with pytest.raises(RpcError) as refused:
        mcpmux.checked_params(Raw(raw))
    assert refused.value.code == mcpmux.INVALID_PARAMS


def test_params_are_read_as_the_sdks_read_them():
    """Python's SDK sends null for what is absent and takes 5.0 and "5" for 5; unknown members are let be."""
    params = asked(maxTokens=5.0, temperature="0.5", systemPrompt=None, tools=None, vendor={"x": 1})
    assert (params["maxTokens"], params["temperature"]) == (5, 0.5)
    assert params.keys() == {"messages", "maxTokens", "temperature"}
    assert asked(messages=[{"role": "user", "content": {"text": "a"}}])["messages"][0]["content"]["type"] == "text"
    nulls = assistant(use("1", a=None, b={"c": None}))
    assert asked(messages=[nulls, user(result("1"))])["messages"][0] == nulls


# ── what is answered ──


class Thing:
    """An object with these attributes, as litellm's are."""

    def __init__(self, **attributes: Any) -> None:
        self.__dict__ |= attributes


def answered(word: str | None = "stop", content: str | None = SAID, calls: Any = None, **more: Any) -> Thing:
    message = Thing(content=content, tool_calls=calls, **more.pop("message", {}))
    return Thing(choices=[Thing(message=message, finish_reason=word, **more)], model="the-model-itself")


def called(id: str | None, arguments: str, name: str | None = "weather") -> Thing:
    return Thing(id=id, function=Thing(name=name, arguments=arguments))


def test_an_answer_in_text_is_one_block_unless_tools_were_offered():
    """Spec: 2025-11-25, client/sampling: content is a block, or a list of them; older servers know only the former."""
    whole = {"role": "assistant", "content": text(SAID), "model": "the-model-itself", "stopReason": "endTurn"}
    assert mcpmux.sampling_result(answered(), {}, "m") == whole
    assert mcpmux.sampling_result(answered(), {"tools": [WEATHER]}, "m") == whole | {"content": [text(SAID)]}
    assert mcpmux.sampling_result(answered(content=None), {}, "m")["content"] == text("")
    refused = answered(content=None, message={"refusal": SAID})
    assert mcpmux.sampling_result(refused, {}, "m")["content"] == text(SAID)
    spoken = answered(content=None, message={"audio": Thing(transcript=SAID)})
    assert mcpmux.sampling_result(spoken, {}, "m")["content"] == text(SAID)
    thought = answered(content=f"<think>{FOG}\n</think>\n\n{SAID}")
    assert mcpmux.sampling_result(thought, {}, "m")["content"] == text(SAID)
    nameless = answered()
    nameless.model = None
    assert mcpmux.sampling_result(nameless, {}, "m")["model"] == "m"


def test_text_pictures_and_tool_calls_come_together_in_order():
    picture = {"image_url": {"url": f"data:image/png;base64,{PICTURE}"}}
    calls = [called("1", '{"place": "a"}'), called(None, "")]
    response = answered("tool_calls", calls=calls, message={"images": [picture]})
    parts = mcpmux.sampling_result(response, {"tools": [WEATHER]}, "m")["content"]
    assert parts == [text(SAID), IMAGE, use("1", place="a"), use("call_1")]


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("stop", "endTurn"),
        ("length", "maxTokens"),
        ("tool_calls", "toolUse"),
        ("stop_sequence", "stopSequence"),
        ("content_filter", "content_filter"),
        ("something_new", "something_new"),
    ],
)
def test_the_stop_reason_is_the_protocols_or_the_providers_own_word(word: str, reason: str):
    """Spec: 2025-11-25, schema, CreateMessageResult.stopReason: an open string with four values."""
    assert mcpmux.sampling_result(answered(word), {}, "m")["stopReason"] == reason


def test_the_providers_own_word_counts_more_than_what_litellm_makes_of_it():
    told = answered("stop", provider_specific_fields={"native_finish_reason": "MALFORMED_RESPONSE"})
    assert mcpmux.sampling_result(told, {}, "m")["stopReason"] == "MALFORMED_RESPONSE"
    told = answered("stop", provider_specific_fields={"stop_reason": "END"})  # vLLM's
    assert mcpmux.sampling_result(told, {"stopSequences": ["END"]}, "m")["stopReason"] == "stopSequence"
    assert mcpmux.sampling_result(told, {}, "m")["stopReason"] == "endTurn"
    raw = mcpmux.object_of(b'{"stop_reason":"stop_sequence","stop_sequence":"END"}')  # Anthropic's
    assert mcpmux.sampling_result(answered(), {"stopSequences": ["END"]}, "m", raw)["stopReason"] == "stopSequence"


@pytest.mark.parametrize("word", ["tool_calls", "stop", "eos_token", "STOP", "MALFORMED", None])
def test_who_calls_tools_stops_for_them_whatever_the_providers_word_is(word: str | None):
    for extra in ({}, {"provider_specific_fields": {"native_finish_reason": "STOP"}}):
        response = answered(word, calls=[called("1", "{}")], **extra)
        assert mcpmux.sampling_result(response, {"tools": [WEATHER]}, "m")["stopReason"] == "toolUse"


@pytest.mark.parametrize(
    ("response", "wrong"),
    [
        (Thing(choices=[], model="m"), "answered without a choice"),
        (
            answered(calls=[called("1", '{"place": ')]),
            "or with arguments that are no JSON object",
        ),
        (answered(calls=[called("1", '["a"]')]), "or with arguments that are no JSON object"),
        (answered(calls=[called("1", "{}", None)]), "called a tool without a name"),
        (answered("content_filter", None), "content filter"),
        (answered(calls=[called("1", "{}", "rm_rf")]), "a tool that nobody offered"),
    ],
    ids=["no choice", "half arguments", "a list", "no name", "withheld", "not offered"],
)
def test_an_answer_of_no_use_is_an_error_that_says_why(response: Any, wrong: str):
    with pytest.raises(RpcError, match=wrong) as failed:
        mcpmux.sampling_result(response, {"tools": [WEATHER]}, "m")
    assert SAID not in str(failed.value)


# ── what providers say when they fail ──


def trouble(name: str, message: str = "", params: Any = None, **attributes: Any) -> tuple[str, bool]:
    """An exception of litellm's by this name, as `provider_trouble` tells it."""
    wrong = type(name, (Exception,), {})()
    wrong.__dict__ |= {"message": message, **attributes}
    told, kind = mcpmux.provider_trouble(wrong, [KEY, KEY[:9]], params or {"messages": [user(text())]})
    return told, kind is mcpmux.Kind.PASSING


@pytest.mark.parametrize(
    "message",
    [
        f"litellm.AuthenticationError: AuthenticationError: OpenAIException - Incorrect API key provided: {KEY}.",
        f"Incorrect API key provided: {KEY[:7]}*************{KEY[-4:]}. You can find your API key at https://x",
        f"bad key {KEY[:12]}",
        f"{KEY} {KEY} x-api-key={KEY}",
        "x" * (mcpmux.TEXT_MOST - 10) + KEY,
        "x " * (mcpmux.TEXT_MOST // 2 - 5) + KEY,
    ],
    ids=["whole", "in stars", "its beginning", "thrice", "over the end", "near the end"],
)
def test_no_key_is_in_what_is_told_of_a_failure(message: str):
    said, _ = trouble("AuthenticationError", message, status_code=401)
    assert said.startswith("refused the key; correct its api_key")
    assert KEY[3:9] not in said
    assert KEY[-4:] not in said


@pytest.mark.parametrize(
    "message",
    [
        f"Invalid content: {PROMPT}",
        f"Invalid content: ...{PROMPT[5:25]}...",
        "Invalid  content:\n the heron\n\nstands in the reeds",
        "Invalid content: ab cd\nef",
        json.dumps({"error": {"message": f"cannot read {PICTURE[:20]}"}}),
        f"no tool weather_of_the_coast for {PLACE}",
    ],
)
def test_no_content_is_in_what_is_told_of_a_failure(message: str):
    """Providers quote the request, in part or with other white space."""
    params = {
        "messages": [
            user(text(PROMPT.replace(" in", "\n\n in")), text("ab cd ef"), IMAGE),
            assistant(use("1", place=PLACE)),
        ],
        "modelPreferences": {"hints": hints("content")},
    }
    said, _ = trouble("BadRequestError", message, params, status_code=400)
    assert said == "refused the request (HTTP 400)"


def test_a_hint_is_not_content():
    """What is wrong with a model has to be told by its name."""
    params = {"messages": [user(text())], "modelPreferences": {"hints": hints("gpt-9")}}
    said, _ = trouble("NotFoundError", "no model gpt-9", params, status_code=404)
    assert said.endswith(': "no model gpt-9" (HTTP 404)')


@pytest.mark.parametrize(
    "message",
    [
        f"OpenAIException - Empty or invalid response from LLM endpoint. Received: '{SAID}'",
        f"OpenAIException - Invalid response object Traceback (most recent call last): x received_args={SAID}",
        f"AnthropicException - Unable to get json response - Original Response: {SAID}",
    ],
)
def test_an_answer_that_litellm_cannot_read_is_not_repeated(message: str):
    """It holds what the model said."""
    for name in ("InternalServerError", "APIConnectionError"):
        said, passes = trouble(name, message, status_code=500)
        assert "sent no answer that can be read" in said
        assert SAID[:16] not in said
        assert passes


@pytest.mark.parametrize(
    ("said", "told", "passes"),
    [
        (("RateLimitError", "slow down", 429), 'says that its rate limit is reached: "slow down" (HTTP 429)', True),
        (("RateLimitError", "x", 429, "insufficient_quota"), "says that the account has no credit left", False),
        (("BadRequestError", "x", 400, "content_filter"), "refused the request by its content filter", False),
        (("ContextWindowExceededError", "too long", 400), "longer than the model's context window", False),
        (("InternalServerError", "Connection error.", 500), "cannot be reached", True),
        (("Timeout", "Request timed out", 408), "did not answer in time", True),
        (("APIError", "", 402), "wants to be paid first (HTTP 402)", False),
        (("APIError", "", 529), "is overloaded or down (HTTP 529)", True),
        (("APIError", "", 418), "failed (HTTP 418)", False),
        (("APIError", "", 599), "failed (HTTP 599)", True),
        (("KeyError", "", None), "failed", False),
        (("BadRequestError", "x", 400, {"not": "a word"}), 'refused the request: "x" (HTTP 400)', False),
        (
            ("AuthenticationError", 'AnthropicException - {"error": {"message": "invalid x-api-key"}}', 401),
            'refused the key; correct its api_key: "invalid x-api-key" (HTTP 401)',
            False,
        ),
        (
            ("InternalServerError", 'AnthropicException - {"error": {"message": "Overloaded"}}. Handle it', 500),
            "failed, or sent no answer that can be read (HTTP 500)",
            True,
        ),
        (
            ("InternalServerError", 'AnthropicException - {"error": {"message": "Overloaded"}}', 500),
            'failed, or sent no answer that can be read: "Overloaded" (HTTP 500)',
            True,
        ),
    ],
)
def test_a_failure_is_told_in_words_and_whether_it_may_pass(said: tuple[Any, ...], told: str, passes: bool):
    name, message, status, *code = said
    found = trouble(name, message, status_code=status, **({"code": code[0]} if code else {}))
    assert told in found[0]
    assert found[1] is passes


def test_endless_words_of_a_provider_are_cut_quickly():
    for words in ("a: " * 300_000, "a-" * 300_000, "{" * 300_000, "*" * 300_000):
        assert len(trouble("BadRequestError", words, status_code=400)[0]) < mcpmux.TEXT_MOST + 100


@pytest.mark.parametrize(
    ("said", "repeats"),
    [
        ("the heron stands", True),
        ("the heron stand", False),
        ("a heron stands in the reeds", True),
        ("tiny", True),
        ("abc", False),
        ("user", False),
        ("image/png", False),
        ("gpt-4o-mini", False),
        ("", False),
    ],
)
def test_sixteen_characters_or_a_whole_short_text_are_a_quotation(said: str, repeats: bool):
    params = {
        "messages": [user(text(), text("tiny"), text("abc"), IMAGE)],
        "modelPreferences": {"hints": hints("gpt-4o-mini")},
    }
    assert mcpmux.quotes(said, params) is repeats
    assert mcpmux.quotes(f"({said})", params) is repeats


# ── the ledger ──

DAY = "2026-11-21"


def line(usd: Any, day: str = DAY) -> bytes:
    return json.dumps({"time": f"{day}T10:00:00Z", "server": "a", "model": "m", "usd": usd}).encode() + b"\n"


@pytest.fixture
def ledger(tmp_path: Path) -> mcpmux.Ledger:
    return mcpmux.Ledger(tmp_path / "state" / "usage.jsonl")


def written(ledger: mcpmux.Ledger, *lines: bytes) -> None:
    ledger.path.parent.mkdir(exist_ok=True)
    with ledger.path.open("ab") as file:
        file.write(b"".join(lines))


def test_what_a_day_has_cost_is_the_sum_of_its_lines(ledger: mcpmux.Ledger):
    assert ledger.spent(DAY) == 0
    written(ledger, line(0.25), line(0.5), line(None), line(8, "2026-11-20"))
    assert ledger.spent(DAY) == 0.75
    written(ledger, line(1))  # another process's
    assert ledger.spent(DAY) == 1.75
    assert ledger.spent("2026-11-20") == 8
    assert mcpmux.Ledger(ledger.path).spent(DAY) == 1.75


@pytest.mark.parametrize(
    "nonsense",
    [
        b"\n",
        b"no JSON\n",
        b"\xff\xfe\n",
        b"5\n",
        b"[]\n",
        b"{}\n",
        b"[" * 100_000 + b"\n",
        b'{"time":5,"usd":1}\n',
        b'{"time":"2026-11-21T10:00:00Z"}\n',
        *(line(0.0).replace(b"0.0", value) for value in (b"NaN", b"-5", b'"5"', b"1" + b"0" * 400, b"1e999", b"[1]")),
    ],
    ids=lambda raw: repr(raw[-40:]),
)
def test_a_line_of_nonsense_costs_nothing_and_hides_nothing(nonsense: bytes, ledger: mcpmux.Ledger):
    written(ledger, line(0.25), nonsense, line(0.5))
    assert ledger.spent(DAY) == 0.75


def test_half_a_line_counts_when_it_is_whole(ledger: mcpmux.Ledger):
    whole = line(0.5)
    written(ledger, line(0.25), whole[:20])
    assert ledger.spent(DAY) == 0.25
    written(ledger, whole[20:])
    assert ledger.spent(DAY) == 0.75


def test_half_a_line_that_was_left_there_does_not_swallow_the_next(ledger: mcpmux.Ledger):
    """A disk that was full may have taken half of one."""
    written(ledger, line(0.25)[:20])
    ledger.reserve(1, 0.5, server="a")
    assert [found["usd"] for found in ledger.lines()] == [0.5]


def test_a_ledger_that_somebody_emptied_counts_from_nothing(ledger: mcpmux.Ledger):
    written(ledger, line(0.25), line(0.25))
    assert ledger.spent(DAY) == 0.5
    ledger.path.write_bytes(line(0.125))
    assert ledger.spent(DAY) == 0.125
    ledger.path.unlink()
    assert ledger.spent(DAY) == 0


def test_what_is_reserved_counts_until_it_is_settled_and_then_what_it_did_cost(ledger: mcpmux.Ledger):
    """Both are a line, with the time in UTC."""
    before, day = int(time.time()), mcpmux.day_of(time.time())
    first, second = (ledger.reserve(1, usd, server="é", model="m") for usd in (0.5, None))
    assert ledger.spent(first["day"]) == mcpmux.Ledger(ledger.path).spent(first["day"]) == 0.5
    assert [found["ended"] for found in ledger.lines()] == ["unknown", "unknown"]
    ledger.settle(first, usd=0.125, ended="answered")
    ledger.settle(second, usd=None, ended="cancelled")
    assert ledger.spent(first["day"]) == mcpmux.Ledger(ledger.path).spent(first["day"]) == 0.125
    found, _ = ledger.lines()
    assert ledger.path.read_bytes().count(b"\n") == 4
    assert before <= calendar.timegm(time.strptime(found["time"], "%Y-%m-%dT%H:%M:%SZ")) <= time.time()
    assert (found["server"], found["usd"], found["ended"], found["day"] >= day) == ("é", 0.125, "answered", True)
    if sys.platform != "win32":
        assert ledger.path.stat().st_mode & 0o777 == 0o600


def test_three_processes_at_one_ledger_never_reserve_more_than_there_is(ledger: mcpmux.Ledger):
    """A person has several hosts, and each its mcpmux."""
    code = (
        "import sys, mcpmux, pathlib\n"
        "ledger = mcpmux.Ledger(pathlib.Path(sys.argv[1]))\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "for n in range(60):\n"
        "    try: held = ledger.reserve(0.75, 0.0625, server=sys.argv[2], model='m' * n)\n"
        "    except mcpmux.RpcError: continue\n"
        "    ledger.settle(held, usd=0.03125, n=n)\n"
    )
    command, pipe = [sys.executable, "-c", code, str(ledger.path)], subprocess.PIPE
    processes = [subprocess.Popen([*command, name], cwd=ROOT, stdin=pipe, stdout=pipe) for name in "abc"]
    for process in processes:
        assert process.stdout and process.stdout.readline() == b"ready\n"
    day = mcpmux.day_of(time.time())
    for process in processes:
        assert process.stdin
        process.stdin.write(b"go\n")
        process.stdin.flush()
    while any(process.poll() is None for process in processes):
        assert ledger.spent(day) <= 0.75  # it is read all the while
    for process in processes:
        process.communicate(timeout=PATIENCE)
        assert process.returncode == 0
    if mcpmux.day_of(time.time()) == day:
        assert len(ledger.lines()) == 23  # the last one would have been too much as long as it was reserved
        assert ledger.spent(day) == 23 * 0.03125


def test_a_ledger_that_cannot_be_written_refuses(tmp_path: Path):
    """Nobody would know what was spent; also after a restart."""
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "usage.jsonl", tmp_path):
        with pytest.raises(RpcError, match="no model is asked, since the ledger of sampling cannot be written"):
            mcpmux.Ledger(path).reserve(1, 0.1, server="a")


def test_a_day_whose_money_is_spent_is_refused_with_the_hour_of_the_next(ledger: mcpmux.Ledger):
    """Our choice: the limit by the name that it has in the config, and when there is money again."""
    ledger.settle(ledger.reserve(1.0, 0.25, server="a"), usd=0.25)
    with pytest.raises(RpcError, match=r"\$0\.25 of \$1 are spent or reserved today, and this may cost \$0\.8; free"):
        ledger.reserve(1.0, 0.8, server="a")
    ledger.settle(ledger.reserve(1.0, 0.75, server="a"), usd=0.75)
    with pytest.raises(RpcError) as refused:
        ledger.reserve(1.0, None, server="a")
    assert "$1 of $1 are spent or reserved today; free again at 00:00 UTC, in " in str(refused.value)
    assert "(sampling.limits.usd_per_day)" in str(refused.value)
    assert refused.value.data["limit"] == "usd_per_day"
    assert 0 <= refused.value.data["retryAfterSeconds"] <= 86400


# ── the loop, with a stand-in for litellm ──


class StandIn:
    """As much of litellm as the loop calls; `ends` are its answers in turn."""

    provider_list = ("openai", "nobody", "ollama_chat")

    def __init__(self, *ends: Any) -> None:
        self.model_cost: dict[str, Any] = {}
        self.ends = collections.deque(ends)
        self.asked: list[str] = []

    def get_llm_provider(self, model: str, api_base: str | None = None) -> None:
        if model.partition("/")[0] not in self.provider_list:
            raise ValueError(model)

    def validate_environment(self, model: str) -> dict[str, Any]:
        return {"missing_keys": ["OPENAI_API_KEY"]}

    def get_supported_openai_params(self, model: str) -> list[str] | None:
        return {"openai/m": ["tools"], "openai/no-tools": ["stop"]}.get(model)

    def token_counter(self, **asked: Any) -> int:
        return 10

    async def acompletion(self, **arguments: Any) -> Any:
        self.asked.append(arguments["model"])
        end = self.ends.popleft()
        if isinstance(end, BaseException):
            raise end
        return await end if asyncio.iscoroutine(end) else end


def busy(retry_after: str | None = None) -> Exception:
    wrong = failure("RateLimitError", 429)
    headers = {} if retry_after is None else {"retry-after": retry_after}
    wrong.__dict__ |= {"status_code": 429, "message": "", "litellm_response_headers": headers}
    return wrong


def failure(name: str, status: int | None, base: type[BaseException] = Exception, **more: Any) -> Any:
    """As litellm raises it."""
    wrong = type(name, (base,), {})()
    kind = mcpmux._PROVIDER_ERRORS.get(name, ("", None))[1]
    wrong.__dict__ |= {"message": "", "passes": kind is mcpmux.Kind.PASSING and not more, **more}
    wrong.__dict__ |= {} if status is None else {"status_code": status}
    return wrong


PRICED = {"input_cost_per_token": 0.001, "output_cost_per_token": 0.002}


class Loop:
    """A `SamplerLoop` without its process. `waits` are the pauses that it made, none of which is slept through."""

    def __init__(
        self,
        path: Path,
        monkeypatch: pytest.MonkeyPatch,
        *ends: Any,
        models: tuple[str, ...] = ("openai/m",),
        **more: Any,
    ) -> None:
        reading, self.writing = os.pipe()
        self.said = os.fdopen(reading, "rb")
        self.waits: list[float] = []
        self.seconds = more.pop("seconds", 120)
        self.loop = mcpmux.SamplerLoop(self.writing)
        limits = SamplingLimits(usd_per_day=more.pop("usd", 1000), usd_per_request=more.pop("usd_per_request", None))
        options = [
            ModelOptions(model=name, api_key=KEY, params={} if name[:2] == "ol" else more.get("params", PRICED))
            for name in models
        ]
        more.pop("params", None)
        self.litellm = StandIn(*ends)
        self.loop.set_up(
            mcpmux.SamplerSetup(mcpmux.SamplingOptions(models=options, limits=limits, **more), str(path)), self.litellm
        )
        self.ledger = mcpmux.Ledger(path)
        slept = asyncio.sleep

        async def sleep(seconds: float) -> None:
            self.waits.append(seconds)
            await slept(0)

        monkeypatch.setattr(asyncio, "sleep", sleep)

    def asks(self, **params: Any) -> dict[str, Any]:
        """What it writes in answer, after what it has for the log."""
        self.tells(**params)
        os.close(self.writing)
        *self.logged, answer = [json.loads(found) for found in self.said]
        self.said.close()
        return answer

    def close(self) -> None:
        os.close(self.writing)
        self.said.close()

    def tells(self, **params: Any) -> None:
        both = {"messages": [user(text())], "maxTokens": 5} | params
        body = {"server": Raw(b'"a"'), "params": Raw(json.dumps(both).encode())}
        body["seconds"] = Raw(json.dumps(self.seconds).encode())

        async def both_steps() -> dict[str, Any]:
            prepared = await self.loop.prepare(body)
            return await self.loop.answer(body | {key: Raw(json.dumps(one).encode()) for key, one in prepared.items()})

        asyncio.run(self.loop.survive(1, "a", both_steps()))


def paid(response_cost: float | None = 0.5, own: float | None = None) -> Thing:
    response = answered()
    response.usage = Thing(prompt_tokens=3, completion_tokens=4, **({} if own is None else {"cost": own}))
    response._hidden_params = {"response_cost": response_cost}
    return response


@pytest.mark.parametrize(
    ("asked", "waited"), [("5", 5.0), ("9.5", 9.5), ("0", None), (None, None), ("-3", None), ("Mon, 1 Jan", None)]
)
def test_a_provider_that_names_a_wait_is_given_it(
    asked: str | None, waited: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """RFC 9110, 10.2.3: seconds; a date is read as no wish, and then the waits are our own."""
    loop = Loop(tmp_path / "ledger", monkeypatch, busy(asked), busy(asked), paid())
    assert "result" in loop.asks()
    ours = [0 < wait <= most for wait, most in zip(loop.waits, mcpmux.RETRY_WAITS, strict=True)]
    assert loop.waits == [waited] * 2 if waited else all(ours)


@pytest.mark.parametrize("asked", ["10.5", "3600", "inf"])
def test_a_provider_that_wants_to_be_left_alone_for_long_is_and_its_wish_is_told(
    asked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    loop = Loop(tmp_path / "ledger", monkeypatch, busy(asked))
    assert loop.asks()["error"]["message"].endswith(f"; it asks to wait {asked} s")
    assert loop.waits == []


def test_a_provider_that_stays_busy_is_asked_three_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    loop = Loop(tmp_path / "ledger", monkeypatch, busy(), busy(), busy())
    assert "rate limit is reached" in loop.asks()["error"]["message"]
    assert len(loop.waits) == 2
    assert not loop.litellm.ends


def test_a_request_has_its_time_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    loop = Loop(tmp_path / "ledger", monkeypatch, asyncio.Event().wait(), seconds=0.5)
    said = loop.asks()["error"]["message"]
    assert re.fullmatch(r"mcpmux: openai/m did not answer within 0\.\d+ s of sampling\.timeout_sec", said)
    assert [found["ended"] for found in loop.ledger.lines()] == ["timed out"]


@pytest.mark.parametrize("model", ["openai/no-tools", "nobody/knows"])
def test_a_model_that_takes_no_tools_is_not_asked_with_them(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Providers would leave them out without a word."""
    loop = Loop(tmp_path / "ledger", monkeypatch, models=(model,))
    assert f"{model} takes no tools; configure a model that does" in loop.asks(tools=[WEATHER])["error"]["message"]


FAILED: list[tuple[Any, Any, bool]] = [  # how it ended, what counts, and whether another one is asked
    (busy(), 0, True),
    (failure("InternalServerError", 500), "all", True),
    (failure("AuthenticationError", 401), 0, True),
    (failure("NotFoundError", 404), 0, True),
    (failure("ContextWindowExceededError", 400), 0, True),
    (failure("APIError", 402), 0, True),
    (failure("BadRequestError", 400), 0, True),
    (failure("ClientConnectorError", None), 0, True),
    (failure("ContentPolicyViolationError", 400), 0, False),
]


@pytest.mark.parametrize(("wrong", "counts", "falls_back"), FAILED, ids=lambda one: type(one).__name__)
def test_where_a_model_cannot_answer_the_next_best_is_asked_and_all_is_in_the_ledger(
    wrong: Exception, counts: Any, falls_back: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Our choice: an error that comes instead of an answer costs nothing; what may have been worked on, all of it."""
    again = [wrong] * 3 if wrong.passes else [wrong]  # pyright: ignore[reportAttributeAccessIssue]
    loop = Loop(tmp_path / "ledger", monkeypatch, *again, paid(), models=("openai/m", "openai/other"))
    answer = loop.asks()
    lines = loop.ledger.lines()
    assert ("result" in answer) is falls_back
    assert loop.litellm.asked == ["openai/m"] * len(again) + ["openai/other"] * falls_back
    assert [found["model"] for found in lines] == loop.litellm.asked
    estimate = pytest.approx(13 * 0.001 + 5 * 0.002)
    assert [found["usd"] for found in lines[: len(again)]] == [estimate if counts else 0] * len(again)
    warnings = [found["params"]["text"] for found in loop.logged if found["params"]["level"] == "warning"]
    assert [text.endswith("; openai/other is asked") for text in warnings] == [True] * falls_back


@pytest.mark.parametrize(("rests", "next"), [(60.0, "openai/b"), (0.0, "openai/m")])
def test_a_model_that_has_failed_is_asked_after_the_others_for_a_minute(
    rests: float, next: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(mcpmux, "MODEL_RESTS", rests)
    quota = failure("RateLimitError", 429, code="insufficient_quota")
    loop = Loop(tmp_path / "ledger", monkeypatch, quota, paid(), paid(), models=("openai/m", "openai/b"))
    loop.tells()
    assert "result" in loop.asks()
    assert loop.litellm.asked == ["openai/m", "openai/b", next]


def test_without_fallback_nobody_else_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    wrong = failure("AuthenticationError", 401)
    loop = Loop(tmp_path / "ledger", monkeypatch, wrong, models=("openai/m", "openai/b"), fallback=False)
    assert loop.asks()["error"]["message"].startswith("mcpmux: the provider of openai/m refused the key")


def test_what_nobody_can_answer_is_told_of_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ends = [failure("AuthenticationError", 401), failure("NotFoundError", 404)]
    loop = Loop(tmp_path / "ledger", monkeypatch, *ends, models=("openai/m", "wrong/x", "openai/b"))
    told = loop.asks()["error"]["message"]
    assert "wrong/x names no provider that litellm knows" in told
    assert "openai/m refused the key" in told
    assert "openai/b knows no such model" in told


def test_what_is_cancelled_counts_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    loop = Loop(tmp_path / "ledger", monkeypatch, failure("CancelledError", None, asyncio.CancelledError))
    with pytest.raises(asyncio.CancelledError):
        loop.tells()
    loop.close()
    (found,) = loop.ledger.lines()
    assert (found["ended"], found["usd"]) == ("cancelled", pytest.approx(13 * 0.001 + 5 * 0.002))


@pytest.mark.parametrize(
    ("costs", "usd"),
    [
        ({"response_cost": 0.5}, 0.5),
        ({"response_cost": None}, 3 * 0.001 + 4 * 0.002),
        ({"response_cost": 0.5, "own": 0.25}, 0.25),
    ],
)
def test_what_an_answer_costs_is_what_its_provider_or_litellm_says_or_the_price_of_its_tokens(
    costs: dict[str, Any], usd: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    loop = Loop(tmp_path / "ledger", monkeypatch, paid(**costs))
    assert "result" in loop.asks()
    assert [(found["usd"], found["in"], found["out"]) for found in loop.ledger.lines()] == [(pytest.approx(usd), 3, 4)]


def test_a_price_that_nobody_knows_is_refused_unless_the_config_says_what_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    loop = Loop(tmp_path / "ledger", monkeypatch, params={})
    assert "openai/m has no price that litellm knows, so usd_per_day cannot hold" in loop.asks()["error"]["message"]
    loop = Loop(tmp_path / "ledger", monkeypatch, paid(response_cost=None), params={}, usd=0.5, usd_per_request=0.3)
    loop.tells()
    assert [found["usd"] for found in loop.ledger.lines()] == [0.3]
    assert "usd_per_day" in loop.asks()["error"]["message"]


def test_a_cheaper_model_is_asked_when_the_money_is_nearly_spent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    loop = Loop(tmp_path / "ledger", monkeypatch, paid(), models=("openai/m", "ollama_chat/free"), usd=0.001)
    assert "result" in loop.asks()
    assert loop.litellm.asked == ["ollama_chat/free"]


def test_a_request_is_not_asked_if_the_ledger_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    loop = Loop(tmp_path, monkeypatch, paid())
    assert "the ledger of sampling cannot be written" in loop.asks()["error"]["message"]
    assert loop.litellm.asked == []


def test_a_conversation_that_never_ends_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """2025-11-25, client/sampling: both parties SHOULD limit the iterations of tool loops."""
    turns = [one for number in range(51) for one in (assistant(use(f"{number}")), user(result(f"{number}")))]
    loop = Loop(tmp_path / "ledger", monkeypatch)
    assert "51 rounds in a row" in loop.asks(messages=[user(text()), *turns])["error"]["message"]
    loop = Loop(tmp_path / "ledger", monkeypatch, paid())
    assert "result" in loop.asks(messages=[user(text()), *turns[:50], assistant(text()), user(text()), *turns[50:]])


GUARD = """
import json, sys
what, server = sys.argv[1:]
body = json.load(sys.stdin)
said = json.dumps(body)
if "refuse " + what in said:
    print("first", file=sys.stderr)
    sys.exit("no, said the guard")
if "garble" in said:
    print("[1")
elif "keep" not in said:
    print(said.replace("heron", what + " of " + server))
"""


@pytest.mark.parametrize(
    ("words", "sent", "heard"),
    [
        ("a heron", "a request of a", "a reply of a"),
        ("keep the heron", "keep the heron", "heron"),
        ("refuse request", None, (-1, "mcpmux: the guard refused this request of a: no, said the guard")),
        ("garble", None, (-32603, "mcpmux: sampling.guard printed something else than a JSON object")),
    ],
)
def test_a_guard_sees_what_is_asked_and_answered_and_may_change_or_refuse_it(
    words: str, sent: str | None, heard: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "guard.py").write_text(GUARD)
    guard = [sys.executable, str(tmp_path / "guard.py")]
    reply = paid()
    reply.choices[0].message.content = "keep heron" if "keep" in words else "a heron"
    loop = Loop(tmp_path / "ledger", monkeypatch, reply, guard=guard)
    answer = loop.asks(messages=[user(text(words))])
    if sent is None:
        assert (answer["error"]["code"], answer["error"]["message"]) == heard
        assert loop.litellm.asked == []
    else:
        assert answer["result"]["content"]["text"].endswith(heard)


def test_a_guard_that_breaks_a_reply_refuses_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    code = 'import sys; sys.stdin.read(); print("{oops" if sys.argv[1] == "reply" else "")'
    loop = Loop(tmp_path / "ledger", monkeypatch, paid(), guard=[sys.executable, "-c", code])
    assert loop.asks()["error"]["message"] == "mcpmux: sampling.guard printed something else than a JSON object"


def test_a_guard_is_found_as_a_server_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Beside the config file, and where hosts with a window do not look."""
    local = tmp_path / "home" / ".local" / "bin"
    local.mkdir(parents=True)
    named = "guard.cmd" if sys.platform == "win32" else "guard"
    for folder in (tmp_path, local):
        (folder / named).touch(0o755)
    (tmp_path / "rules.txt").touch()
    monkeypatch.setattr(mcpmux, "has_litellm", lambda: True)
    environment = {"PATH": os.defpath, "HOME": str(tmp_path / "home"), "USERPROFILE": str(tmp_path / "home")}
    for written, found in ((f"./{named}", tmp_path), (named, local)):
        table = {"model": "ollama/x", "guard": [written, "rules.txt", "-v"]}
        config = mcpmux.read_config({"sampling": table}, tmp_path / "mcpmux.toml", environment)
        setup = json.loads(asyncio.run(mcpmux.sampler_setup(config, set())))
        guard = [str(found / named), str(tmp_path / "rules.txt"), "-v"]
        assert setup["sampling"]["guard"] == guard


def test_a_guard_that_is_not_there_or_hangs_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    loop = Loop(tmp_path / "ledger", monkeypatch, guard=[str(tmp_path / "none")])
    assert "sampling.guard cannot be run" in loop.asks()["error"]["message"]
    monkeypatch.setattr(mcpmux, "GUARD_TIMEOUT", 0.2)
    guard = [sys.executable, "-c", "import sys; sys.stdin.read(); sys.stdout.close(); input()"]
    loop = Loop(tmp_path / "ledger", monkeypatch, guard=[*guard[:2], "import time; time.sleep(600)"])
    assert "did not answer within 0.2 s" in loop.asks()["error"]["message"]


def test_what_looks_like_a_secret_is_not_sent_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    loop = Loop(tmp_path / "ledger", monkeypatch, paid(), redact=True)
    messages = [user(text(f"use {KEY} or\npassword: hunter2x\nfor the heron"), IMAGE)]
    params, count = mcpmux.redacted({"messages": messages, "metadata": {"api_key": "abcdef12345"}})
    assert params["messages"][0]["content"] == [text("use *** or\npassword: ***\nfor the heron"), IMAGE]
    assert (params["metadata"], count) == ({"api_key": "***"}, 3)
    assert "result" in loop.asks(messages=messages)
    assert [found["redacted"] for found in loop.ledger.lines()] == [2]
    assert mcpmux.redacted({"systemPrompt": f"{KEY} {'x' * 1000} {KEY}"})[1] == 2  # a line too long for assignments


def test_long_words_are_redacted_in_linear_time():
    for words in (
        "a: " * 100_000,
        "a=" * 100_000,
        "://:" * 100_000,
        "sk-" * 100_000,
        "eyJ" * 100_000,
        "?a=&" * 100_000,
    ):
        mcpmux.redacted({"systemPrompt": words})


def test_nonsense_is_found_invalid_in_linear_time():
    for nonsense in ([7] * 20_000, [{"role": "user", "content": [{"type": "x"}] * 5000}], [{}] * 10_000):
        with pytest.raises(RpcError, match="invalid sampling request"):
            mcpmux.checked_params(Raw(json.dumps({"messages": nonsense, "maxTokens": 5}).encode()))


def test_a_bug_costs_its_request_only_and_tells_nothing_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    loop = Loop(tmp_path / "ledger", monkeypatch, Thing(choices=PROMPT, _hidden_params={}))
    error = loop.asks()["error"]
    assert error["message"] == "mcpmux: a bug in its sampler, please report it: AttributeError"


# ══ real ══


class Asked(NamedTuple):
    """A request to a provider."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def words(self) -> str:
        """The last text of the last message."""
        content = self.body["messages"][-1]["content"]
        return content if isinstance(content, str) else [one["text"] for one in content if "text" in one][-1]


class Reply(NamedTuple):
    body: Any
    status: int = 200
    headers: dict[str, str] = {}  # noqa: RUF012


class Held:
    """A reply that is not given before `release`; `closed` is set if the other side hangs up first."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.closed = threading.Event()
        self._gate, self._key = socket.socketpair()

    def release(self) -> None:
        self._key.close()

    def wait(self, connection: socket.socket) -> bool:
        """Whether it is released; else the other side hung up."""
        self.asked.set()
        with self._gate, self._key:
            ready, _, _ = select.select([connection, self._gate], [], [], PATIENCE)
        if connection in ready:
            self.closed.set()
        return connection not in ready


class Provider:
    """A model's provider on loopback. Its replies are a queue; where that is empty, it repeats what it was told."""

    def __init__(self, repeat: Callable[[str], Any]) -> None:
        self.requests: list[Asked] = []
        self.replies: queue.SimpleQueue[Reply | Held] = queue.SimpleQueue()
        provider = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None:
                pass

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                asked = Asked(self.path, {key.lower(): value for key, value in self.headers.items()}, body)
                provider.requests.append(asked)
                try:
                    reply = provider.replies.get_nowait()
                except queue.Empty:
                    reply = Reply(repeat(asked.words))
                if isinstance(reply, Held):
                    if not reply.wait(self.connection):
                        self.close_connection = True
                        return
                    reply = Reply(repeat(asked.words))
                data = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
                self.send_response(reply.status)
                for key, value in {"Content-Type": "application/json", **reply.headers}.items():
                    self.send_header(key, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads, self._server.block_on_close = True, False
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,)).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def will(self, *replies: Reply | Held) -> None:
        for reply in replies:
            self.replies.put(reply)


def openai(content: Any = SAID, finish: Any = "stop", tokens: tuple[int, int] = (10, 5), **message: Any) -> Any:
    """An answer of OpenAI's chat API: platform.openai.com/docs/api-reference/chat/object."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "gpt-4o-mini-2024-07-18",
        "choices": [
            {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": content, **message}}
        ],
        "usage": {"prompt_tokens": tokens[0], "completion_tokens": tokens[1], "total_tokens": sum(tokens)},
    }


def refusal(status: int, message: str, headers: dict[str, str] | None = None, **more: Any) -> Reply:
    return Reply({"error": {"message": message, "param": None, **more}}, status, headers or {})


def claude(*content: dict[str, Any], stop: str = "end_turn", **more: Any) -> dict[str, Any]:
    """An answer of Anthropic's: docs.anthropic.com/en/api/messages."""
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-sonnet-4-5-20250929",
        "content": list(content) or [text(SAID)],
        "stop_reason": stop,
        "stop_sequence": None,
        "usage": {"input_tokens": 10, "output_tokens": 5},
        **more,
    }


def gemini(words: str, calls: Calls, stop: str) -> Any:
    """ai.google.dev/api/generate-content."""
    parts = [{"text": words}] if words else []
    parts += [{"functionCall": {"name": name, "args": given}} for _, name, given in calls]
    usage = {"promptTokenCount": 10, "candidatesTokenCount": 5, "totalTokenCount": 15}
    return {
        "candidates": [{"content": {"role": "model", "parts": parts}, "finishReason": stop, "index": 0}],
        "usageMetadata": usage,
        "modelVersion": "gemini-2.5-flash",
    }


def ollama(words: str, calls: Calls, stop: str) -> Any:
    """docs.ollama.com/api/chat."""
    wanted = [{"function": {"name": name, "arguments": given}} for _, name, given in calls]
    message = {"role": "assistant", "content": words} | ({"tool_calls": wanted} if wanted else {})
    counts = {"prompt_eval_count": 10, "eval_count": 5}
    return {
        "model": "x",
        "created_at": "2026-01-01T00:00:00Z",
        "message": message,
        "done": True,
        "done_reason": stop,
    } | counts


def chat(words: str, calls: Calls, stop: str, **more: Any) -> Any:
    wanted = [
        {"id": id, "type": "function", "function": {"name": name, "arguments": json.dumps(given)}}
        for id, name, given in calls
    ]
    answer = openai(words or None, stop, **({"tool_calls": wanted} if wanted else {}))
    return answer | {"usage": answer["usage"] | more}


def messages(words: str, calls: Calls, stop: str) -> Any:
    uses = [{"type": "tool_use", "id": id, "name": name, "input": given} for id, name, given in calls]
    return claude(*([text(words)] if words else []), *uses, stop=stop)


Calls = list[tuple[str, str, dict[str, Any]]]  # of tools: id, name, arguments


class Route(NamedTuple):
    """A way to a model: how its provider answers, and in which words it says why it stops."""

    model: str
    below: str  # in its address
    answers: Callable[[str, Calls, str], Any]
    ends: str
    wants_tools: str
    is_long: str
    usd: float | None  # of 10 tokens in and 5 out; 0: some that litellm knows; None: nobody is paid
    takes_tools: bool = True


ROUTES = [
    Route("openai/gpt-4.1-mini", "/v1", chat, "stop", "tool_calls", "length", 0),
    Route("openai/o4-mini", "/v1", chat, "stop", "tool_calls", "length", 0),
    Route("anthropic/claude-haiku-4-5", "", messages, "end_turn", "tool_use", "max_tokens", 0),
    Route("gemini/gemini-2.5-flash", "", gemini, "STOP", "STOP", "MAX_TOKENS", 0),
    Route("openrouter/some/model", "/v1", functools.partial(chat, cost=0.00042), "stop", "stop", "length", 0.00042),
    Route("hosted_vllm/x", "/v1", chat, "stop", "stop", "length", None),
    Route("ollama_chat/x", "", ollama, "stop", "stop", "length", None),
    Route(
        "ollama/x",
        "",
        lambda words, calls, stop: {"response": words, **ollama("", [], stop)},
        "stop",
        "",
        "",  # litellm does not tell
        None,
        False,
    ),
]
CROWD = [f"s{number}" for number in range(20)]  # servers


class Recorder:
    """A proxy that nobody should use: it counts who comes."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self.visits: list[bytes] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                visitor, _ = self._socket.accept()
            except OSError:
                return
            with visitor:
                visitor.settimeout(PATIENCE)
                self.visits.append(visitor.recv(4096))

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def asking(host: RawHost, server: str, params: dict[str, Any], **more: Any) -> int:
    """A call in which this server asks for a model; its answer is not waited for."""
    arguments = {"method": "sampling/createMessage", "params": params, **more}
    return host.ask("tools/call", {"name": f"{server}__ask", "arguments": arguments})


def heard(host: RawHost, number: int) -> dict[str, Any]:
    """What the server heard, as it tells in the answer to that call."""
    return json.loads(host.answer(number)["result"]["content"][0]["text"])


def sampler_of(pid: int) -> int | None:
    """The sampler process of an mcpmux process."""
    for child in mcpmux.descendants(pid):
        if b"_sampler" in Path(f"/proc/{child}/cmdline").read_bytes():
            return child
    return None


def settles(pid: int) -> None:
    """Waits for the end of a process that is no child of ours."""
    try:
        file = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    assert select.select([file], [], [], PATIENCE)[0], f"process {pid} does not end"
    os.close(file)


class Site:
    """One mcpmux with servers that ask and providers that answer. Whatever it writes is searched at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.openai = Provider(openai)
        self.anthropic = Provider(lambda words: claude(text(words)))
        self.others = Provider(openai)
        self.recorder = Recorder()
        self._nobody = socket.socket()
        self._nobody.bind(("127.0.0.1", 0))  # and does not listen
        self.failures: list[str] = []  # what servers heard of failures
        models = {
            GPT: f"{self.openai.url}/v1",
            CLAUDE: self.anthropic.url,
            HASTY: f"{self.openai.url}/v1",
            DOWN: f"http://127.0.0.1:{self._nobody.getsockname()[1]}/v1",
            **{route.model: self.others.url + route.below for route in ROUTES},
        }
        tables = ['[mux]\nlog_level = "trace"']
        tables += [
            f'[[sampling.models]]\nmodel = "{model}"\napi_base = "{url}"\napi_key = "${{SAMPLING_KEY}}"'
            + ("\nparams = { timeout = 0.1 }" if model == HASTY else "")
            for model, url in models.items()
        ]
        tables += ['[sampling]\napprove = "never"\nfallback = false']
        tables += ["[sampling.limits]\nmax_concurrency = 100\nrequests_per_minute = 10000\nusd_per_day = 1000"]
        tables += [server_table(name) for name in ("a", "b", "c", "healthy", "mortal", *CROWD)]
        config = folder / "mcpmux.toml"
        config.write_text("\n".join(tables))
        proxies = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
        env = empty_home(folder / "home") | dict.fromkeys(proxies, self.recorder.url)
        env |= {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", "SAMPLING_KEY": KEY}
        self.host = RawHost([*COMMAND, "--config", str(config)], env)
        self.host.initialize()
        self.host.tools()

    def close(self) -> None:
        self.host.close()
        for provider in (self.openai, self.anthropic, self.others, self.recorder):
            provider.close()
        self._nobody.close()

    def ask(self, *content: dict[str, Any], server: str = "a", model: str = GPT, **params: Any) -> int:
        both = {"messages": [user(*(content or [text()]))], "maxTokens": 100} | params
        return asking(self.host, server, both | {"modelPreferences": {"hints": hints(model)}})

    def answer(self, number: int) -> dict[str, Any]:
        """The result that the server got, checked with the SDK's types."""
        import mcp.types

        got = heard(self.host, number)
        assert "result" in got, got
        mcp.types.CreateMessageResultWithTools.model_validate(got["result"], by_name=False)
        return got["result"]

    def failure(self, number: int) -> str:
        """The error that the server got."""
        got = heard(self.host, number)
        assert got["error"]["code"] == mcpmux.INTERNAL_ERROR, got
        self.failures.append(json.dumps(got))
        return got["error"]["message"]

    def sample(self, *content: dict[str, Any], **params: Any) -> dict[str, Any]:
        return self.answer(self.ask(*content, **params))

    def calls(self, count: int, server: str = "healthy") -> None:
        """Calls to a server, each answered before the next but for ten."""
        waiting: collections.deque[int] = collections.deque()
        for n in range(count):
            waiting.append(self.host.ask("tools/call", {"name": f"{server}__echo", "arguments": {"n": n}}))
            if len(waiting) == 10:
                self._received(waiting.popleft())
        while waiting:
            self._received(waiting.popleft())

    def _received(self, number: int) -> None:
        while self.host.receive().get("id") != number:
            pass

    def leaks(self) -> list[str]:
        """Where the key or some content is found in what mcpmux wrote, and what of it."""
        failed = [one["raw"] for one in self.host.seen if "error" in one or one.get("result", {}).get("isError")]
        places = {"stderr": self.host.log(), "errors to servers": "\n".join(self.failures)}
        places["errors to the host"] = b"".join(failed).decode()
        home = self.folder / "home"
        places |= {str(file): file.read_bytes().decode("latin-1") for file in home.rglob("*") if file.is_file()}
        assert any("usage.jsonl" in place for place in places)
        wanted = {KEY, KEY[3:15], *(words[:16] for words in CONTENT), *(words[-16:] for words in CONTENT)}
        return [f"{words!r} in {place}" for place, content in places.items() for words in wanted if words in content]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """At the end no process is left, no key and no content is found in anything that was written, the failures of all
    tests included, and nobody was called but the providers."""
    site = Site(tmp_path_factory.mktemp("sampling"))
    site.sample()
    yield site
    left = mcpmux.descendants(site.host.process.pid)
    site.close()
    assert_lines_are_clean(site.host)
    assert not any(is_running(pid) for pid in left)
    assert site.leaks() == []
    assert site.recorder.visits == []


@pytest.fixture
def site(shared: Site) -> Iterator[Site]:
    """The shared one, with no replies left over from the test before nor for the one after."""
    for provider in (shared.openai, shared.anthropic, shared.others):
        provider.requests.clear()
    yield shared
    for provider in (shared.openai, shared.anthropic, shared.others):
        assert provider.replies.empty(), "a reply was never asked for"


@pytest.mark.parametrize(
    ("content", "sent"),
    [
        ([text()], PROMPT),
        ([text(), text(PLACE)], [text(), text(PLACE)]),
        ([IMAGE, text()], [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PICTURE}"}}, text()]),
        ([AUDIO, text()], [{"type": "input_audio", "input_audio": {"data": SOUND, "format": "wav"}}, text()]),
    ],
    ids=["text", "several texts", "image", "audio"],
)
def test_every_kind_of_content_reaches_the_model(site: Site, content: list[dict[str, Any]], sent: Any):
    """Spec: 2025-11-25, client/sampling#message-content."""
    assert site.sample(*content)["content"]["type"] == "text"
    assert site.openai.requests[-1].body["messages"] == [{"role": "user", "content": sent}]


def test_all_that_a_server_may_set_reaches_the_model(site: Site):
    """Spec: 2025-11-25, client/sampling, CreateMessageRequest."""
    got = site.sample(text(), systemPrompt=SYSTEM, temperature=0.25, stopSequences=["END"], maxTokens=10**6)
    asked = site.openai.requests[-1]
    assert asked.path == "/v1/chat/completions"
    assert asked.headers["authorization"] == f"Bearer {KEY}"
    assert asked.body == {
        "model": "gpt-4o-mini",
        "messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": PROMPT}],
        "max_tokens": SamplingLimits().max_tokens,
        "temperature": 0.25,
        "stop": ["END"],
    }
    assert got == {
        "role": "assistant",
        "content": text(PROMPT),
        "model": "gpt-4o-mini-2024-07-18",
        "stopReason": "endTurn",
    }


TWO_CALLS = [call("call_a", json.dumps({"place": PLACE})), call("call_b", "{}")]


def test_two_tools_are_called_at_once_and_their_results_go_back(site: Site):
    """Spec: 2025-11-25, client/sampling#multi-turn-tool-loop."""
    site.openai.will(Reply(openai(SAID, "tool_calls", tool_calls=TWO_CALLS)))
    tools = {"tools": [WEATHER], "toolChoice": {"mode": "required"}}
    got = site.sample(**tools)
    assert got["content"] == [text(SAID), use("call_a", place=PLACE), use("call_b")]
    assert got["stopReason"] == "toolUse"
    sent = site.openai.requests[-1].body
    assert sent["tools"][0]["function"]["parameters"] == WEATHER["inputSchema"]
    assert sent["tool_choice"] == "required"
    results = user(result("call_b", text(FOG), IMAGE), result("call_a", isError=True, structuredContent={"a": 1}))
    messages = [user(text()), {"role": "assistant", "content": got["content"]}, results]
    site.openai.will(Reply(openai(SAID)))
    got = site.sample(messages=messages, tools=[WEATHER], toolChoice={"mode": "none"})
    assert got["content"] == [text(SAID)]
    sent = site.openai.requests[-1].body
    assert sent["tool_choice"] == "none"
    assert sent["messages"][1] == {"role": "assistant", "content": SAID, "tool_calls": TWO_CALLS}
    assert sent["messages"][2:4] == [
        {"role": "tool", "tool_call_id": "call_b", "content": f"{FOG}\n(image: see the next message)"},
        {"role": "tool", "tool_call_id": "call_a", "content": 'Error: {"a": 1}'},
    ]
    assert sent["messages"][4]["content"][1]["image_url"]["url"].endswith(PICTURE)


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.model)
def test_each_way_to_a_model_has_text_parallel_tools_over_five_rounds_stop_reasons_and_a_cost(site: Site, route: Route):
    for stop, reason in filter(all, ((route.ends, "endTurn"), (route.is_long, "maxTokens"))):
        site.others.will(Reply(route.answers(SAID, [], stop)))
        got = site.sample(model=route.model)
        assert (got["content"], got["stopReason"]) == (text(SAID), reason)
    ledger = mcpmux.Ledger(next(site.folder.rglob("usage.jsonl"))).lines()[-1]
    assert (ledger["model"], ledger["in"], ledger["out"]) == (route.model, 10, 5)
    assert ledger["usd"] == route.usd or (route.usd == 0 and 0 < ledger["usd"] < 0.001)
    if not route.takes_tools:
        assert "takes no tools" in site.failure(site.ask(model=route.model, tools=[WEATHER]))
        return
    said = [user(text())]
    for number in range(5):
        calls = [(f"{one}{number}", "weather", {"place": f"{PLACE} {one}{number}"}) for one in "ab"]
        site.others.will(Reply(route.answers("", calls, route.wants_tools)))
        got = site.sample(model=route.model, tools=[WEATHER], messages=said)
        assert got["stopReason"] == "toolUse"
        assert [(one["name"], one["input"]) for one in got["content"]] == [one[1:] for one in calls]
        assert len({one["id"] for one in got["content"]}) == 2
        results = [result(one["id"], text(f"{FOG} {call[0]}")) for one, call in zip(got["content"], calls, strict=True)]
        said += [{"role": "assistant", "content": got["content"]}, user(*results)]
    site.others.will(Reply(route.answers(SAID, [], route.ends)))
    got = site.sample(model=route.model, tools=[WEATHER], messages=said)
    assert (got["content"], got["stopReason"]) == ([text(SAID)], "endTurn")
    sent = json.dumps(site.others.requests[-1].body)
    for one in (f"{one}{number}" for number in range(5) for one in "ab"):
        assert sent.count(f"{FOG} {one}") == 1 and sent.count(f"{PLACE} {one}") == 1


def test_a_call_of_a_tool_without_a_word_beside_it(site: Site):
    site.openai.will(Reply(openai(None, "tool_calls", tool_calls=TWO_CALLS[1:])))
    assert site.sample(tools=[WEATHER])["content"] == [use("call_b")]


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("stop", "endTurn"),
        ("length", "maxTokens"),
        ("stop_sequence", "stopSequence"),
        ("content_filter", "content_filter"),
        ("network_trouble", "network_trouble"),
        (None, "endTurn"),
    ],
)
def test_every_stop_reason_comes_back(site: Site, word: str | None, reason: str):
    """Spec: 2025-11-25, schema, CreateMessageResult.stopReason. Tools are above."""
    site.openai.will(Reply(openai(SAID, word)))
    assert site.sample()["stopReason"] == reason


BAD_CALL = [call("call_a", '{"place": "' + PLACE)]
FAILURES: dict[str, tuple[list[Reply], str]] = {
    "bad key": (
        [refusal(401, f"Incorrect API key provided: {KEY}.", code="invalid_api_key")],
        'refused the key; correct its api_key: "Incorrect API key provided: ***." (HTTP 401)',
    ),
    "no credit": (
        [refusal(429, "You exceeded your current quota", code="insufficient_quota")],
        'says that the account has no credit left: "You exceeded your current quota" (HTTP 429)',
    ),
    "rate limit": (
        [refusal(429, f"Limit 3, key {KEY[:9]}*******: {PROMPT}")] * 3,
        "says that its rate limit is reached (HTTP 429)",
    ),
    "rate limit for long": (
        [refusal(429, "Limit 3", {"Retry-After": "60"})],
        'says that its rate limit is reached: "Limit 3" (HTTP 429); it asks to wait 60 s',
    ),
    "context window": (
        [refusal(400, "This model's maximum context length is 4096 tokens.", code="context_length_exceeded")],
        "says that the request is longer than the model's context window: "
        '"This model\'s maximum context length is 4096 tokens." (HTTP 400)',
    ),
    "content filter": (
        [refusal(400, f"The prompt was filtered: {PROMPT}", code="content_filter")],
        "refused the request by its content filter (HTTP 400)",
    ),
    "not allowed": ([refusal(403, "no access")], 'does not allow this with this key: "no access" (HTTP 403)'),
    "no such model": (
        [refusal(404, "gpt-4o-mini does not exist", code="model_not_found")],
        'knows no such model or address; correct its model or api_base: "gpt-4o-mini does not exist" (HTTP 404)',
    ),
    "nonsense": (
        [Reply(f"<html>{SAID}".encode(), headers={"Content-Type": "text/html"})] * 3,
        "failed, or sent no answer that can be read (HTTP 500)",
    ),
    "half an answer": (
        [Reply(json.dumps(openai()).encode()[:-30])] * 3,
        "failed, or sent no answer that can be read (HTTP 500)",
    ),
    "another answer": (
        [Reply({"choices": [{"text": SAID}]}), Reply(openai([text(SAID)])), Reply(openai({"text": SAID}))],
        "failed, or sent no answer that can be read (HTTP 500)",
    ),
    "overloaded": ([refusal(503, "come back later")] * 3, 'is overloaded or down: "come back later" (HTTP 503)'),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_every_failure_of_a_provider_is_an_error_that_says_what_to_do(site: Site, failure: str):
    """Our choice of words. What may pass is tried again, three times in all, and what cannot is not."""
    replies, told = FAILURES[failure]
    site.openai.will(*replies)
    assert site.failure(site.ask()) == f"mcpmux: the provider of {GPT} {told}"
    assert len(site.openai.requests) == len(replies)


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        (openai() | {"choices": []}, f"{GPT} answered without a choice"),
        (openai(None, "tool_calls", tool_calls=BAD_CALL), f"{GPT} called a tool without a name or with arguments"),
        (openai(None, "content_filter"), f"the answer of {GPT} was withheld by its provider's content filter"),
    ],
    ids=["no choice", "malformed arguments", "withheld"],
)
def test_an_answer_of_no_use_is_not_asked_for_again(site: Site, reply: Any, told: str):
    """It is paid for, and the server knows better what to do."""
    site.openai.will(Reply(reply))
    assert site.failure(site.ask(tools=[WEATHER])).startswith(f"mcpmux: {told}")
    assert len(site.openai.requests) == 1


@pytest.mark.parametrize("first", [refusal(500, "oops"), refusal(429, "slow", {"Retry-After": "0.01"})])
def test_a_failure_that_passes_is_not_noticed(site: Site, first: Reply):
    site.openai.will(first, Reply(openai(SAID)))
    assert site.sample()["content"] == text(SAID)
    assert len(site.openai.requests) == 2


def test_a_provider_that_is_not_there_is_told_as_that(site: Site):
    assert site.failure(site.ask(model=DOWN)).startswith(f"mcpmux: the provider of {DOWN} cannot be reached")


def test_a_provider_that_does_not_answer_in_time_is_hung_up_on(site: Site):
    silent = [Held(), Held(), Held()]
    site.openai.will(*silent)
    assert site.failure(site.ask(model=HASTY)).startswith(f"mcpmux: the provider of {HASTY} did not answer in time")
    assert all(held.closed.wait(PATIENCE) for held in silent)


def test_what_is_invalid_never_reaches_a_provider(site: Site):
    """Spec: 2025-11-25, client/sampling#error-handling."""
    got = heard(site.host, site.ask(messages=[user(text()), assistant(use("1"))]))
    assert got["error"] == {
        "code": mcpmux.INVALID_PARAMS,
        "message": "mcpmux: invalid sampling request: messages.1: its tool_use blocks are not answered",
    }
    assert site.openai.requests == []


# ── cancelling ──


@pytest.mark.parametrize("who", ["host", "server", "crash"])
def test_when_nobody_waits_any_more_the_connection_to_the_provider_closes(site: Site, who: str):
    """Spec: 2025-11-25, basic/utilities/cancellation. A model would go on at somebody's cost."""
    held = Held()
    site.openai.will(held)
    params = {"messages": [user(text())], "maxTokens": 5, "modelPreferences": {"hints": hints(GPT)}}
    number = asking(site.host, "mortal", params, id="to be cancelled")
    assert held.asked.wait(PATIENCE)
    assert not held.closed.is_set()
    match who:
        case "host":
            site.host.cancel(number)
        case "server":
            cancel = {"method": "notifications/cancelled", "params": {"requestId": "to be cancelled"}}
            site.host.call("mortal__notify", **cancel)
        case _:
            site.host.ask("tools/call", {"name": "mortal__crash", "arguments": {}})
    assert held.closed.wait(PATIENCE)
    if who == "crash":
        assert site.host.answer(number)["result"]["isError"]
        site.host.text("mortal__echo")  # it is back
    if who == "server":
        site.host.cancel(number)  # it is of no more use to anybody


# ── another provider ──


def test_anthropics_api_serves_as_well(site: Site):
    """The choice of provider is free: this one has no message of the system's and another shape of everything."""
    got = site.sample(text(), IMAGE, text(PLACE), model=CLAUDE, systemPrompt=SYSTEM, metadata={"user_id": "u"})
    assert got == {
        "role": "assistant",
        "content": text(PLACE),
        "model": "claude-sonnet-4-5-20250929",
        "stopReason": "endTurn",
    }
    asked = site.anthropic.requests[-1]
    assert asked.path == "/v1/messages"
    assert asked.headers["x-api-key"] == KEY
    source = {"type": "base64", "media_type": "image/png", "data": PICTURE}
    assert asked.body == {
        "model": "claude-sonnet-4-5",
        "system": [text(SYSTEM)],
        "messages": [{"role": "user", "content": [text(), {"type": "image", "source": source}, text(PLACE)]}],
        "max_tokens": 100,
        "metadata": {"user_id": "u"},
    }


def test_tools_go_through_anthropics_api_and_back(site: Site):
    uses = [{"type": "tool_use", "id": f"toolu_{n}", "name": "weather", "input": {"place": PLACE}} for n in (1, 2)]
    site.anthropic.will(Reply(claude(text(SAID), *uses, stop="tool_use")))
    got = site.sample(model=CLAUDE, tools=[WEATHER], toolChoice={"mode": "required"})
    assert got["content"] == [text(SAID), use("toolu_1", place=PLACE), use("toolu_2", place=PLACE)]
    assert got["stopReason"] == "toolUse"
    sent = site.anthropic.requests[-1].body
    assert sent["tools"][0]["input_schema"] == WEATHER["inputSchema"]
    assert sent["tool_choice"] == {"type": "any"}
    results = user(result("toolu_1", text(FOG), IMAGE), result("toolu_2", text(FOG)))
    messages = [user(text()), {"role": "assistant", "content": got["content"]}, results]
    site.sample(messages=messages, model=CLAUDE, tools=[WEATHER])
    back = site.anthropic.requests[-1].body["messages"]
    assert back[1]["content"][1:] == uses
    assert [block["type"] for block in back[2]["content"]] == ["tool_result", "tool_result", "text", "image"]
    assert [block["tool_use_id"] for block in back[2]["content"][:2]] == ["toolu_1", "toolu_2"]


@pytest.mark.parametrize(
    ("word", "reasons"),
    [
        ("end_turn", {"endTurn"}),
        ("max_tokens", {"maxTokens"}),
        ("refusal", {"content_filter"}),
        ("stop_sequence", {"endTurn", "stopSequence"}),  # litellm 1.106 keeps no word of it
    ],
)
def test_anthropics_stop_reasons_come_back_as_far_as_litellm_tells_them(site: Site, word: str, reasons: set[str]):
    site.anthropic.will(Reply(claude(stop=word, stop_sequence="END" if word == "stop_sequence" else None)))
    assert site.sample(model=CLAUDE, stopSequences=["END"])["stopReason"] in reasons


@pytest.mark.parametrize(
    ("status", "kind", "said", "told"),
    [
        (401, "authentication_error", "invalid x-api-key", "refused the key; correct its api_key"),
        (400, "invalid_request_error", "prompt is too long: 300000 tokens", "longer than the model's context window"),
    ],
)
def test_anthropics_errors_are_told_by_their_message(site: Site, status: int, kind: str, said: str, told: str):
    site.anthropic.will(Reply({"type": "error", "error": {"type": kind, "message": said}}, status))
    failure = site.failure(site.ask(model=CLAUDE))
    assert told in failure
    assert failure.endswith(f': "{said}" (HTTP {status})')


# ── many at once ──


def test_a_server_may_ask_outside_any_call(site: Site):
    """Spec: 2025-11-25 does not tie a request of the server's to one of the host's."""
    params = {"messages": [user(text(FOG))], "maxTokens": 5, "modelPreferences": {"hints": hints(GPT)}}
    number = asking(site.host, "b", params, later=True)
    assert site.host.answer(number)["result"]["content"] == [text("asked")]
    told = site.host.until(lambda message: isinstance(message.get("params", {}).get("data"), dict))["params"]
    assert told["logger"] == "b"
    assert told["data"]["result"]["content"] == text(FOG)


def test_each_server_gets_the_answer_to_its_own_question_and_others_are_served_meanwhile(site: Site):
    """Ten slow requests of three servers are open, are answered in another order, and delay no call to a fourth."""
    replies = [Held() for _ in range(10)]
    site.openai.will(*replies)
    numbers = {site.ask(text(f"{PROMPT} {n}"), server="abc"[n % 3]): n for n in range(10)}
    assert all(held.asked.wait(PATIENCE) for held in replies)
    site.calls(500)
    assert not numbers.keys() & {message.get("id") for message in site.host.seen}
    for held in reversed(replies):
        held.release()
    for number, n in numbers.items():
        assert site.answer(number)["content"] == text(f"{PROMPT} {n}")
    ledger = next(site.folder.rglob("usage.jsonl"))
    servers = [entry["server"] for entry in mcpmux.Ledger(ledger).lines()][-10:]
    assert collections.Counter(servers) == {"a": 4, "b": 3, "c": 3}


def test_a_crowd_of_servers_asks_at_once_and_each_gets_its_own_answer(site: Site):
    replies = [Held() for _ in CROWD]
    site.openai.will(*replies)
    numbers = {site.ask(text(f"{PROMPT} {name}"), server=name): name for name in CROWD}
    assert all(held.asked.wait(PATIENCE) for held in replies)
    site.calls(200)
    for held in reversed(replies):
        held.release()
    for number, name in numbers.items():
        assert site.answer(number)["content"] == text(f"{PROMPT} {name}")
    lines = mcpmux.Ledger(next(site.folder.rglob("usage.jsonl"))).lines()[-len(CROWD) :]
    assert sorted(line["server"] for line in lines) == sorted(CROWD)


@linux
def test_a_sampler_that_is_killed_ends_its_requests_and_while_the_next_one_loads_others_are_served(site: Site):
    """It takes seconds to load; a healthy server's calls are answered all the while."""
    held = [Held(), Held()]
    site.openai.will(*held)
    numbers = [site.ask(server=server) for server in "ab"]
    assert all(one.asked.wait(PATIENCE) for one in held)
    first = sampler_of(site.host.process.pid)
    assert first
    os.kill(first, signal.SIGKILL)
    for number in numbers:
        told = site.failure(number)
        assert told == "mcpmux: the sampler was killed by SIGKILL (the next call starts it again)"
    late = Held()
    site.openai.will(late)
    number = site.ask(text(FOG))
    site.calls(500)
    assert number not in {message.get("id") for message in site.host.seen}
    late.release()
    assert site.answer(number)["content"] == text(FOG)
    assert sampler_of(site.host.process.pid) not in (None, first)


# ── one mcpmux each ──

Start = Callable[..., RawHost]


def model_table(url: str, **keys: Any) -> str:
    """`[sampling]` with one model of this provider; `keys` are further TOML values as Python ones."""
    lines = ["[sampling]", 'approve = "never"', f'model = "{GPT}"', f'api_base = "{url}/v1"']
    return "\n".join(lines + [f"{key} = {json.dumps(value)}" for key, value in ({"api_key": KEY} | keys).items()])


ASKED = {"messages": [user(text())], "maxTokens": 5}


@pytest.fixture
def provider() -> Iterator[Provider]:
    one = Provider(openai)
    yield one
    one.close()


def test_when_the_days_money_is_spent_the_next_request_is_refused_also_after_a_restart(
    serve: Start, provider: Provider, home: dict[str, str]
):
    """Our choice: the ledger is the person's, not the process's."""
    priced = "params = { input_cost_per_token = 0.01, output_cost_per_token = 0.02 }"
    tables = [model_table(provider.url), priced, "[sampling.limits]\nusd_per_day = 0.45", server_table("a")]
    host = serve(*tables)
    host.initialize()
    for _ in range(2):  # 0.2 each
        assert "result" in heard(host, asking(host, "a", ASKED))
    refused = "mcpmux: sampling limit reached: $0.4 of $0.45 are spent or reserved today, and this may cost $0.2"
    error = heard(host, asking(host, "a", ASKED))["error"]
    assert error["message"].startswith(refused)
    host.close()
    again = serve(*tables)
    again.initialize()
    error = heard(again, asking(again, "a", ASKED))["error"]
    assert error["message"].startswith(refused)
    assert error["message"].endswith("(sampling.limits.usd_per_day)")
    assert error["data"]["limit"] == "usd_per_day"
    assert len(provider.requests) == 2
    (ledger,) = Path(home["HOME"]).rglob("usage.jsonl")
    lines = mcpmux.Ledger(ledger).lines()
    kept = {"server": "a", "model": GPT, "in": 10, "out": 5, "usd": pytest.approx(0.2)}
    assert [{key: one[key] for key in kept} for one in lines] == [kept, kept]
    assert all(one.keys() == kept.keys() | {"time", "day", "id", "ms", "ended", "allowed"} for one in lines)


@linux
def test_three_mcpmux_with_two_servers_each_spend_no_more_than_a_days_money(
    serve: Start, provider: Provider, home: dict[str, str]
):
    """Ten requests of each server at once, at 10 cents; a dollar a day."""
    priced = "params = { input_cost_per_token = 0, output_cost_per_token = 0.02 }"
    limits = "[sampling.limits]\nusd_per_day = 1\nrequests_per_minute = 100"
    tables = [model_table(provider.url), priced, limits, server_table("a"), server_table("b")]
    hosts = [serve(*tables) for _ in range(3)]
    for host in hosts:
        host.initialize()
    numbers = [(host, asking(host, server, ASKED)) for host in hosts for server in "ab" for _ in range(10)]
    got = [heard(host, number) for host, number in numbers]
    errors = [one["error"] for one in got if "error" in one]
    assert len(got) - len(errors) == len(provider.requests) == 10
    assert {error["data"]["limit"] for error in errors} == {"usd_per_day"}
    (path,) = Path(home["HOME"]).rglob("usage.jsonl")
    assert [line["usd"] for line in mcpmux.Ledger(path).lines()] == [pytest.approx(0.1)] * 10


def test_the_sampler_ends_with_an_mcpmux_that_is_killed(start: Start, provider: Provider):
    """Also while it still loads: nobody would hear it."""
    host = start(model_table(provider.url), server_table("a"))
    host.initialize()
    asking(host, "a", ASKED)
    while not (pid := sampler_of(host.process.pid)):
        host.request("ping")
    host.process.kill()
    settles(pid)
    assert not is_running(pid)


SLEEPER = """
import json, socket, sys
heart = socket.create_connection(("127.0.0.1", {port}))  # closes when this process ends
setup = json.loads(sys.stdin.readline())
print('{{"jsonrpc":"2.0","method":"loaded"}}', flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    answer = {{"role": "assistant", "content": {{"type": "text", "text": ""}}, "model": "m"}}
    if asked["method"] == "prepare":
        answer = {{"params": asked["params"]["params"], "models": ["m"], "usd": 0}}
    print(json.dumps({{"jsonrpc": "2.0", "id": asked["id"], "result": answer}}), flush=True)
"""


def test_a_sampler_that_is_not_asked_is_stopped_and_the_next_request_starts_another(
    tmp_path: Path, home: dict[str, str]
):
    """Our choice: litellm keeps 200 MB. Here the sampler is a stand-in and its rest is due at once."""
    hearts = socket.create_server(("127.0.0.1", 0))
    hearts.settimeout(PATIENCE)
    sleeper = tmp_path / "sleeper.py"
    sleeper.write_text(SLEEPER.format(port=hearts.getsockname()[1]))
    config = tmp_path / "mcpmux.toml"
    config.write_text(model_table("http://127.0.0.1:9") + "\n" + server_table("a"))
    code = (
        "import mcpmux, sys\n"
        f"mcpmux.SAMPLER_IDLE, mcpmux.__file__ = 0.01, {str(sleeper)!r}\n"
        "sys.exit(mcpmux.main(sys.argv[1:]))"
    )
    env = home | {"PYTHONPATH": str(ROOT)}
    with hearts, contextlib.closing(RawHost([sys.executable, "-c", code, "--config", str(config)], env)) as host:
        host.initialize()
        for last in (False, False, True):
            number = asking(host, "a", ASKED)
            heart, _ = hearts.accept()
            heart.settimeout(PATIENCE)
            with heart:
                assert "result" in heard(host, number)
                assert not last or host.close() == 0
                assert heart.recv(1) == b""  # it has ended, and but for the last nobody asked for that
    assert_lines_are_clean(host)
    assert "exit status" not in host.log()


def without_litellm(folder: Path) -> dict[str, str]:
    """An environment in which litellm is as good as not installed: its import fails and its spec is not found."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text("import sys\nsys.modules['litellm'] = None\n")
    return {"PYTHONPATH": str(folder)}


INSTALL = "litellm is not installed; start mcpmux as: uvx --from 'mcpmux[sampling]' mcpmux"


def test_without_the_extra_one_line_says_how_to_get_it_and_servers_are_told_of_no_sampling(
    serve: Start, provider: Provider, tmp_path: Path
):
    """Never more than can be honoured: servers act on capabilities."""
    env = without_litellm(tmp_path / "blocked")
    host = serve(model_table(provider.url), server_table("a", "--also", "told"), env=env)
    host.initialize()
    assert json.loads(host.text("a__told"))["capabilities"] == {}
    error = heard(host, asking(host, "a", ASKED))["error"]
    assert error["code"] == mcpmux.METHOD_NOT_FOUND
    host.close()
    lines = [line for line in host.log().splitlines() if "litellm" in line]
    assert lines == [f"mcpmux error: {INSTALL}; servers are told of no local model"]


@pytest.mark.parametrize("arguments", [["check"], ["models"]])
def test_without_the_extra_the_commands_say_how_to_get_it(
    arguments: list[str], provider: Provider, home: dict[str, str], tmp_path: Path
):
    config = tmp_path / "mcpmux.toml"
    config.write_text(model_table(provider.url) + "\n" + server_table("a"))
    command = [*COMMAND, "--config", str(config), *arguments]
    env = home | without_litellm(tmp_path / "blocked")
    done = subprocess.run(command, env=env, capture_output=True, encoding="utf-8", timeout=PATIENCE)
    assert done.returncode == {"check": 1, "models": 2}[arguments[0]]
    said = [line for line in (done.stdout + done.stderr).splitlines() if "litellm" in line]
    assert len(said) == 1
    assert said[0].endswith(INSTALL)


def test_a_sampler_that_cannot_load_ends_its_requests_with_its_last_words(
    serve: Start, provider: Provider, tmp_path: Path
):
    """Each request tries again: the person may have mended it."""
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "litellm.py").write_text("raise ImportError('half of it is missing')")
    host = serve(model_table(provider.url), server_table("a"), env={"PYTHONPATH": str(tmp_path / "broken")})
    host.initialize()
    for _ in range(2):
        error = heard(host, asking(host, "a", ASKED))["error"]
        assert error["message"].startswith("mcpmux: the sampler exited with code 1; its last words: ")
        assert "ImportError: half of it is missing" in error["message"]
    assert json.loads(host.text("a__echo", n=1)) == {"n": 1}


def test_a_key_that_is_not_set_is_named_and_costs_sampling_only(serve: Start, provider: Provider):
    host = serve(model_table(provider.url, api_key="${NO_SUCH_KEY_ANYWHERE}"), server_table("a"))
    host.initialize()
    for _ in range(2):
        error = heard(host, asking(host, "a", ASKED))["error"]
        assert error["message"] == (
            "mcpmux: the sampler: ${NO_SUCH_KEY_ANYWHERE} is not set (sampling.api_key) "
            "(set NO_SUCH_KEY_ANYWHERE in env_file, or in the host's environment if it hands that on)"
        )
    assert json.loads(host.text("a__echo", n=1)) == {"n": 1}
    assert provider.requests == []


def test_who_answers_is_each_servers_own_setting(serve: Start, provider: Provider):
    """Our choice: a host that can is asked, unless the table says otherwise; tools are the model's where the host has
    none. Here the key is missing, so that whoever asks the model hears of that."""
    modes = ("auto", "host", "local", "off")
    tables = [server_table(mode, "--also", "told", sampling=mode) for mode in modes]
    host = serve(model_table(provider.url, api_key="${NO_SUCH_KEY_ANYWHERE}"), *tables)
    host.questions["sampling/createMessage"] = lambda _: {"result": {"by": "the host"}}
    host.initialize({"sampling": {}})
    told = {mode: json.loads(host.text(f"{mode}__told"))["capabilities"] for mode in modes}
    assert told == {
        "auto": {"sampling": {"tools": {}}},
        "host": {"sampling": {}},
        "local": {"sampling": {"tools": {}}},
        "off": {},
    }

    def answers(**params: Any) -> list[str]:
        found = [heard(host, asking(host, mode, ASKED | params)) for mode in modes]
        return [one["result"]["by"] if "result" in one else one["error"]["message"] for one in found]

    auto, by_host, local, off = answers()
    assert (auto, by_host) == ("the host", "the host")
    assert "is not set (sampling.api_key)" in local
    assert off == 'sampling is not offered to off: its table says sampling = "off"'
    auto, by_host, local, _ = answers(tools=[WEATHER])
    assert "is not set (sampling.api_key)" in auto
    assert "is not set (sampling.api_key)" in local
    assert by_host == "the host did not declare sampling.tools"
