"""The server that the official conformance suite expects, over stdio, of both eras. The standard library only.

Names and texts are the suite's: https://github.com/modelcontextprotocol/conformance
"""

import json
import sys
from typing import Any

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJggg=="
SOUND = "UklGRiQAAABXQVZFZm10IBAAAAABAAEAQB8AAIA+AAACABAAZGF0YQAAAAA="
IMAGE = {"type": "image", "data": PIXEL, "mimeType": "image/png"}
META = "io.modelcontextprotocol/"
INFO = {"name": "conformance", "version": "1"}
OBJECT: dict[str, Any] = {"type": "object", "properties": {}}
CAPABILITIES: dict[str, Any] = {"tools": {}, "prompts": {}, "resources": {"subscribe": True}}
CAPABILITIES |= {"completions": {}, "logging": {}}
waiting: dict[Any, Any] = {}  # by the id of a question: the call, and the words before the answer


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def resource(uri: str, words: str = "This is an embedded resource content.") -> dict[str, Any]:
    return {"type": "resource", "resource": {"uri": uri, "mimeType": "text/plain", "text": words}}


def form(message: str, *, required: bool = True, **properties: Any) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties} | ({"required": list(properties)} if required else {})
    return {"method": "elicitation/create", "params": {"message": message, "requestedSchema": schema}}


def say(words: str, tokens: int) -> dict[str, Any]:
    messages = [{"role": "user", "content": text(words)}]
    return {"method": "sampling/createMessage", "params": {"messages": messages, "maxTokens": tokens}}


STRING, ROOTS = {"type": "string"}, {"method": "roots/list", "params": {}}
CONTENTS: dict[str, list[dict[str, Any]]] = {
    "test_simple_text": [text("This is a simple text response for testing.")],
    "test_image_content": [IMAGE],
    "test_audio_content": [{"type": "audio", "data": SOUND, "mimeType": "audio/wav"}],
    "test_embedded_resource": [resource("test://embedded-resource")],
    "test_multiple_content_types": [
        text("Multiple content types test:"),
        IMAGE,
        resource("test://mixed-content-resource", '{"test":"data","value":123}'),
    ],
}
DEFAULTS = {
    "name": {"type": "string", "default": "John Doe"},
    "age": {"type": "integer", "default": 30},
    "score": {"type": "number", "default": 95.5},
    "status": {"type": "string", "enum": ["active", "inactive", "pending"], "default": "active"},
    "verified": {"type": "boolean", "default": True},
}
TITLED = [{"const": f"value{n}", "title": f"Option {n}"} for n in (1, 2, 3)]
PLAIN = ["option1", "option2", "option3"]
ENUMS = {
    "untitledSingle": {"type": "string", "enum": PLAIN},
    "titledSingle": {"type": "string", "oneOf": TITLED},
    "legacyEnum": {"type": "string", "enum": PLAIN, "enumNames": ["Option 1", "Option 2", "Option 3"]},
    "untitledMulti": {"type": "array", "items": {"type": "string", "enum": PLAIN}},
    "titledMulti": {"type": "array", "items": {"anyOf": TITLED}},
}
QUESTIONS = {  # of the legacy era: what is asked, and the words before what came back
    "test_sampling": (lambda given: say(given.get("prompt", ""), 100), "LLM response"),
    "test_elicitation": (lambda given: form(given.get("message", ""), username=STRING, email=STRING), "User response"),
    "test_elicitation_sep1034_defaults": (lambda given: form("?", required=False, **DEFAULTS), "Elicitation completed"),
    "test_elicitation_sep1330_enums": (lambda given: form("?", required=False, **ENUMS), "Elicitation completed"),
}
NAME, CONFIRM = form("What is your name?", name=STRING), form("Please confirm", ok={"type": "boolean"})
ROUNDS: dict[str, list[tuple[dict[str, Any], str | None]]] = {  # of the modern era: what is asked, with which state
    "test_input_required_result_elicitation": [({"user_name": NAME}, None)],
    "test_input_required_result_sampling": [({"capital_question": say("What is the capital of France?", 100)}, None)],
    "test_input_required_result_list_roots": [({"client_roots": ROOTS}, None)],
    "test_input_required_result_request_state": [({"confirm": CONFIRM}, "state")],
    "test_input_required_result_tampered_state": [({"confirm": CONFIRM}, "sealed")],
    "test_input_required_result_multiple_inputs": [
        ({"user_name": NAME, "greeting": say("Generate a greeting", 50), "client_roots": ROOTS}, "several")
    ],
    "test_input_required_result_multi_round": [
        ({"step1": form("Step 1: What is your name?", name=STRING)}, "round-1"),
        ({"step2": form("Step 2: What is your favorite color?", color=STRING)}, "round-2"),
    ],
    "test_input_required_result_prompt": [({"user_context": form("What context?", context=STRING)}, None)],
    "test_input_required_result_capabilities": [({"greeting": say("Hello", 50), "user_name": NAME}, None)],
}
OF_2020 = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "$defs": {"address": {"type": "object", "properties": {"street": STRING, "city": STRING}}},
    "properties": {"name": STRING, "address": {"$ref": "#/$defs/address"}},
    "additionalProperties": False,
}
PROMPTS = {
    "test_simple_prompt": [],
    "test_prompt_with_arguments": ["arg1", "arg2"],
    "test_prompt_with_embedded_resource": ["resourceUri"],
    "test_prompt_with_image": [],
    "test_input_required_result_prompt": [],
}
WORKING = ("test_tool_with_logging", "test_tool_with_progress", "test_error_handling", "test_missing_capability")
TOOLS = [{"name": n, "inputSchema": OBJECT} for n in (*CONTENTS, *QUESTIONS, *ROUNDS, *WORKING) if n not in PROMPTS]
TOOLS.append({"name": "json_schema_2020_12_tool", "inputSchema": OF_2020})
for tool in TOOLS:
    tool["description"] = str(tool["name"]).replace("_", " ")
READABLE = {
    "test://static-text": {"mimeType": "text/plain", "text": "This is the content of the static text resource."},
    "test://static-binary": {"mimeType": "image/png", "blob": PIXEL},
    "test://watched-resource": {"mimeType": "text/plain", "text": "watched"},
}
LISTED = {
    "tools/list": {"tools": TOOLS},
    "prompts/list": {
        "prompts": [
            {"name": name, "description": name, "arguments": [{"name": one, "required": True} for one in arguments]}
            for name, arguments in PROMPTS.items()
        ]
    },
    "resources/list": {"resources": [{"uri": uri, "name": uri.partition("//")[2]} for uri in READABLE]},
    "resources/templates/list": {
        "resourceTemplates": [{"uriTemplate": "test://template/{id}/data", "name": "template"}],
    },
}


class Refused(Exception):
    def __init__(self, code: int, message: str, data: Any = None) -> None:
        self.body = {"code": code, "message": message} | ({} if data is None else {"data": data})


def send(**message: Any) -> None:
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


def in_rounds(name: str, params: dict[str, Any]) -> dict[str, Any] | None:
    """A round of questions; None when all has been answered."""
    answers, state = params.get("inputResponses"), params.get("requestState")
    can = params["_meta"][META + "clientCapabilities"]
    rounds = ROUNDS[name]
    states = [known for _, known in rounds]
    if state is not None and state not in states:
        raise Refused(-32602, "this requestState is not mine")
    at = 0 if answers is None else states.index(state) + 1 if state in states else len(rounds)
    if at and not set(rounds[at - 1][0]) <= answers.keys():
        at -= 1
    if at == len(rounds):
        return None
    questions, state = rounds[at]
    questions = {key: one for key, one in questions.items() if one["method"].partition("/")[0] in can}
    return {"resultType": "input_required", "inputRequests": questions} | ({"requestState": state} if state else {})


def calls(id: Any, params: dict[str, Any], *, modern: bool) -> dict[str, Any] | None:
    name, given, meta = params.get("name"), params.get("arguments") or {}, params.get("_meta", {})
    if name in CONTENTS:
        return {"content": CONTENTS[name]}
    if name in ROUNDS and modern:
        if (put := in_rounds(name, params)) is not None:
            return put
        said = json.dumps(params.get("inputResponses"))
        return {"content": [text(f"Hello, state-ok: {said}")]}
    if name in QUESTIONS and not modern:
        about, words = QUESTIONS[name]
        waiting[f"q{id}"] = id, words
        send(id=f"q{id}", **about(given))
        return None
    match name:
        case "test_tool_with_logging":
            for words in ("Tool execution started", "Tool processing data", "Tool execution completed"):
                send(method="notifications/message", params={"level": "info", "data": words})
        case "test_tool_with_progress" if "progressToken" in meta:
            for done in (0, 50, 100):
                told = {"progressToken": meta["progressToken"], "progress": done, "total": 100}
                send(method="notifications/progress", params=told)
        case "test_error_handling":
            return {"content": [text("This tool intentionally returns an error for testing")], "isError": True}
        case "test_missing_capability" if modern and "sampling" not in meta[META + "clientCapabilities"]:
            needed = {"requiredCapabilities": {"sampling": {}}}
            raise Refused(-32021, "sampling is needed", needed)
        case "json_schema_2020_12_tool" | "test_tool_with_progress" | "test_missing_capability":
            pass
        case _:
            raise Refused(-32602, f"Unknown tool: {name}")
    return {"content": [text("done")]}


def prompt(params: dict[str, Any], *, modern: bool) -> dict[str, Any]:
    name, given = params.get("name"), params.get("arguments") or {}
    if name not in PROMPTS:
        raise Refused(-32602, f"Unknown prompt: {name}")
    if name in ROUNDS and modern and (put := in_rounds(name, params)) is not None:
        return put
    words = {
        "test_simple_prompt": "This is a simple prompt for testing.",
        "test_prompt_with_arguments": f"Prompt with arguments: arg1='{given.get('arg1')}', arg2='{given.get('arg2')}'",
        "test_prompt_with_image": "Please analyze the image above.",
    }
    contents = [text(words.get(name, "Please process the embedded resource above."))]
    if name == "test_prompt_with_embedded_resource":
        contents.insert(0, resource(given.get("resourceUri", "")))
    if name == "test_prompt_with_image":
        contents.insert(0, IMAGE)
    return {"messages": [{"role": "user", "content": one} for one in contents]}


def read(uri: str, *, modern: bool) -> dict[str, Any]:
    if uri.startswith("test://template/"):
        id = uri.split("/")[3]
        said: dict[str, Any] = {"mimeType": "application/json", "text": json.dumps({"id": id, "templateTest": True})}
    elif uri in READABLE:
        said = READABLE[uri]
    else:
        raise Refused(-32602 if modern else -32002, "Resource not found", {"uri": uri})
    return {"contents": [{"uri": uri, **said}]}


def answer(id: Any, method: str, params: dict[str, Any]) -> dict[str, Any] | None:
    meta = params.get("_meta", {})
    modern = META + "protocolVersion" in meta
    if modern and meta[META + "protocolVersion"] != "2026-07-28":
        asked_for = meta[META + "protocolVersion"]
        raise Refused(-32022, "Unsupported protocol version", {"supported": ["2026-07-28"], "requested": asked_for})
    if modern and not isinstance(meta.get(META + "clientCapabilities"), dict):
        raise Refused(-32602, "clientCapabilities are required")
    if modern and method in ("initialize", "ping", "logging/setLevel", "resources/subscribe", "resources/unsubscribe"):
        raise Refused(-32601, "Method not found")
    match method:
        case "initialize":
            known = ("2025-11-25", "2025-06-18", "2025-03-26")
            revision = params["protocolVersion"] if params["protocolVersion"] in known else known[0]
            return {"protocolVersion": revision, "capabilities": CAPABILITIES, "serverInfo": INFO}
        case "server/discover" if modern:
            return {
                "supportedVersions": ["2026-07-28"],
                "capabilities": CAPABILITIES,
                "ttlMs": 0,
                "cacheScope": "private",
            }
        case "ping" | "logging/setLevel" | "resources/subscribe" | "resources/unsubscribe":
            return {}
        case "tools/call":
            return calls(id, params, modern=modern)
        case "prompts/get":
            return prompt(params, modern=modern)
        case "resources/read":
            return read(params.get("uri", ""), modern=modern)
        case "completion/complete":
            return {"completion": {"values": ["paris", "park", "party"], "total": 3, "hasMore": False}}
        case _ if method in LISTED:
            return dict(LISTED[method])
        case _:
            raise Refused(-32601, f"Method not found: {method}")


for line in sys.stdin:
    message = json.loads(line)
    id, method, params = message.get("id"), message.get("method"), message.get("params") or {}
    if method is None and id in waiting:
        call, words = waiting.pop(id)
        said = json.dumps(message.get("result", message.get("error")))
        send(id=call, result={"content": [text(f"{words}: {said}")]})
    elif method == "subscriptions/listen":
        told = {"_meta": {META + "subscriptionId": id}, "notifications": params.get("notifications", {})}
        send(method="notifications/subscriptions/acknowledged", params=told)
    elif method is not None and id is not None:
        try:
            result = answer(id, method, params)
        except Refused as refused:
            send(id=id, error=refused.body)
            continue
        if result is not None:
            if META + "protocolVersion" in params.get("_meta", {}):
                result = {"resultType": "complete", "_meta": {META + "serverInfo": INFO}} | result
                if method in LISTED or method == "resources/read":
                    result |= {"ttlMs": 0, "cacheScope": "private"}
            send(id=id, result=result)
