"""What mutated HTTP requests are made of: good bodies of each endpoint, and odd values and lines."""

from typing import Any

import msgspec

from services.gateway.embeddings import EmbeddingBody
from services.gateway.message_bodies import CountBody, MessagesBody
from services.gateway.requests import ChatBody, CompletionBody

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
MESSAGES, COUNT = "/v1/messages", "/v1/messages/count_tokens"
KINDS: dict[str, type[msgspec.Struct]] = {
    CHAT: ChatBody,
    COMPLETIONS: CompletionBody,
    EMBEDDINGS: EmbeddingBody,
    MESSAGES: MessagesBody,
    COUNT: CountBody,
}
SCHEMA: dict[str, Any] = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FUNCTION = {"name": "weather", "description": "Of a city.", "parameters": SCHEMA}
HELLO = [{"role": "user", "content": "Hello"}]
SEEDS: dict[str, list[dict[str, Any]]] = {
    CHAT: [
        {"messages": HELLO, "max_tokens": 2},
        {"messages": [{"role": "system", "content": "Be brief."}, *HELLO], "max_tokens": 2, "stream": True},
        {"messages": HELLO, "max_tokens": 3, "n": 2, "logprobs": True, "top_logprobs": 2, "stop": ["a", "bc"]},
        {"messages": HELLO, "max_tokens": 2, "response_format": {"type": "json_object"}},
        {
            "messages": HELLO,
            "max_tokens": 2,
            "response_format": {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA}},
        },
        {
            "messages": [
                *HELLO,
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {
                            "id": "1",
                            "type": "function",
                            "function": {"name": "weather", "arguments": '{"city": "Kiel"}'},
                        }
                    ],
                },
                {"role": "tool", "tool_call_id": "1", "content": "rain"},
            ],
            "tools": [{"type": "function", "function": FUNCTION}],
            "max_tokens": 2,
        },
    ],
    COMPLETIONS: [
        {"prompt": "def f(", "max_tokens": 2},
        {"prompt": ["a", "b"], "max_tokens": 1, "stream": True, "stream_options": {"include_usage": True}},
        {"prompt": [5, 6, 7], "max_tokens": 2, "logit_bias": {"7": 1.5}, "logprobs": 1, "seed": 3, "top_k": 5},
    ],
    EMBEDDINGS: [{"input": "text"}, {"input": [[1, 2], [3]], "encoding_format": "base64", "pooling": "last"}],
    MESSAGES: [
        {"messages": HELLO, "max_tokens": 2},
        {"messages": HELLO, "max_tokens": 2, "stream": True, "system": [{"type": "text", "text": "Be brief."}]},
        {
            "messages": HELLO,
            "max_tokens": 2,
            "tools": [{"name": "weather", "input_schema": SCHEMA}],
            "tool_choice": {"type": "auto"},
        },
    ],
    COUNT: [{"messages": HELLO}],
}
LOOKED_AT = (
    "/healthz",
    "/readyz",
    "/v1/models",
    "/v1/models/demo",
    "/v1/fairlead/policy",
    "/v1/fairlead/usage?days=2",
    "/v1/fairlead/fairness",
    "/v1/fairlead/requests?missed=1",
    "/v1/fairlead/requests/chatcmpl-1",
    "/v1/fairlead/live",
    "/console",
    "/console/app.js",
)
ODD_TARGETS = (
    "/",
    "//v1/models",
    "/v1/../v1/models",
    "/console/../../etc/passwd",
    "/console/%2e%2e%2f%2e%2e%2fkeys.py",
    "/v1/models/%00",
    "/v1/models/%ff%fe",
    "/v1/fairlead/requests/%0d%0aa: b",
    "/v1/fairlead/usage?days=-1",
    "/v1/fairlead/usage?days=1e9&days=x",
    "/v1/fairlead/requests?missed=%F0%9F%9A%A2&tenant=%00",
    "*",
    "http://elsewhere/v1/models",
    "http://[::1/v1/models",
    "/v1/models?" + "a=b&" * 500,
    "/" + "x" * 9000,
)
METHODS = ("GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "TRACE", "CONNECT", "get", "BREW", "")
STRINGS = (
    "",
    "x",
    "demo",
    "\x00",
    "\ud800",
    "\uffff\u202e\u2028",
    "<tool_call>\n{",
    "<|im_end|>",
    "$ref",
    "../../x",
    "a" * 70_000,
    "é" * 3000,
    "{{ 7 * 7 }}",
    "-1",
    "NaN",
)
NUMBERS: tuple[Any, ...] = (0, -0.0, -1, 1, 0.5, 2**31, 2**63, -(2**63) - 1, 10**400, 1e308, float("nan"), float("inf"))
NESTED = {
    "ten deep": "[" * 10 + "]" * 10,
    "schema of many": '{"properties":' * 140 + "1" + "}" * 140,
    "many deep": "[" * 900 + "]" * 900,
    "too many deep": '{"a":[' * 50_000 + "]}" * 50_000,
}
"""What stands for a value -> its JSON, too deep to be made of objects."""
HOSTILE_SCHEMAS: tuple[Any, ...] = (
    {"$ref": "#"},
    {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}},
    {"type": "string", "pattern": "(a*)*b{1,5000}"},
    {"type": "string", "maxLength": 10**12},
    {"anyOf": [{"type": "string", "pattern": f"^{letter}+(x|y|z)*$"} for letter in "abcdefgh"] * 20},
    {"type": "array", "items": {"$ref": "#"}, "minItems": 10**6},
    {"enum": [{}, [], None, 1.5, "\x00"]},
    {"type": "no such type"},
    {"allOf": [{"type": "object"}] * 300},
)
