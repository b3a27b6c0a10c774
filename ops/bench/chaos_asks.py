"""Requests of every kind whose answers are known, and what a client made of an answer.

Owns the catalogue and how two answers are compared. Every request says all that its answer depends on, so that it has
one right answer: the one of an undisturbed run. Sends nothing.
"""

import json
from typing import Any, NamedTuple

import msgspec
import numpy as np

COMPLETIONS, CHAT, EMBEDDINGS = "/v1/completions", "/v1/chat/completions", "/v1/embeddings"
MODEL = "demo"
KINDS = ("greedy", "seeded", "grammar", "penalties", "choices", "stops", "logprobs", "whole")
"""The first four are asked for three times as often as the others."""
OFTEN = 4
FIRST_TOKEN_ID, LAST_TOKEN_ID = 16, 3000
PROMPT_TOKENS, OUTPUT_TOKENS = (8, 120), (24, 72)
"""Drawn evenly."""
ROLES = ("master", "mate", "cook", "engineer", "pilot")
CREW = {
    "type": "array",
    "minItems": 2,
    "maxItems": 3,
    "items": {
        "type": "object",
        "properties": {
            "name": {"enum": ["Ada", "Bo", "Cy"]},
            "role": {"enum": list(ROLES)},
            "able": {"type": "boolean"},
        },
        "required": ["name", "role", "able"],
        "additionalProperties": False,
    },
}
GRAMMAR_TOKENS = 160
LOGPROB_TOLERANCE = 1e-3
"""Attention over a recomputed prompt adds up in another order."""


class Ask(NamedTuple):
    """One request."""

    kind: str
    path: str
    body: dict[str, Any]

    @property
    def num_choices(self) -> int:
        """How many outputs it wants."""
        return int(self.body.get("n") or 1)


class Said(msgspec.Struct):
    """What a client has of one answer: by choice, then of the whole."""

    texts: list[str]
    reasons: list[str]
    """Why each choice ended; empty: it has not."""
    tokens: list[list[str]]
    """Of those who asked for log-probabilities."""
    logprobs: list[list[float]]
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    """As the answer says at its end."""

    @classmethod
    def nothing(cls, num_choices: int) -> "Said":
        """Before anything came."""
        numbers = range(num_choices)
        return cls([""] * num_choices, [""] * num_choices, [[] for _ in numbers], [[] for _ in numbers])

    def take(self, document: dict[str, Any]) -> bool:
        """Account for an event of a stream, or for a whole document; whether it had anything of a choice."""
        for choice in document["choices"]:
            index = choice["index"]
            part = choice.get("delta") or choice.get("message") or choice
            self.texts[index] += part.get("content") or part.get("text") or ""
            self.reasons[index] = choice.get("finish_reason") or self.reasons[index]
            if numbers := choice.get("logprobs"):
                self.tokens[index] += numbers["tokens"]
                self.logprobs[index] += numbers["token_logprobs"]
        if usage := document.get("usage"):
            self.prompt_tokens, self.output_tokens = usage["prompt_tokens"], usage["completion_tokens"]
            self.cached_tokens = usage["prompt_tokens_details"]["cached_tokens"]
        return bool(document["choices"])

    def differs(self, right: "Said") -> str:
        """How it is not the right answer, in words; empty: it is. Cached tokens may differ: a cache may be empty."""
        for index, (text, wanted) in enumerate(zip(self.texts, right.texts, strict=True)):
            if text != wanted:
                return f"choice {index} is {text!r}, not {wanted!r}"
        for name in ("reasons", "tokens", "prompt_tokens", "output_tokens"):
            if (mine := getattr(self, name)) != (wanted := getattr(right, name)):
                return f"{name}: {mine}, not {wanted}"
        for numbers, wanted_numbers in zip(self.logprobs, right.logprobs, strict=True):
            if not np.allclose(numbers, wanted_numbers, rtol=0, atol=LOGPROB_TOLERANCE):
                return f"log-probabilities: {numbers}, not {wanted_numbers}"
        return ""

    def contradicts(self, right: "Said") -> str:
        """How a part of an answer is no beginning of the right one, in words; empty: it is."""
        for index, (text, wanted) in enumerate(zip(self.texts, right.texts, strict=True)):
            if not wanted.startswith(text):
                return f"choice {index} began with {text!r}, the right one is {wanted!r}"
        return ""


def asks(count: int, seed: int) -> list[Ask]:
    """That many requests of all kinds in turn; the same for the same seed."""
    draw = np.random.default_rng(seed)
    often, rarely = KINDS[:OFTEN], KINDS[OFTEN:]
    kinds = [kind for rare in rarely for kind in (*often, *often, *often, rare)]
    return [_ask(kinds[number % len(kinds)], draw) for number in range(count)]


def encode(ask: Ask) -> bytes:
    """Its body as it is sent."""
    return json.dumps(ask.body).encode()


def _ask(kind: str, draw: np.random.Generator) -> Ask:
    prompt = draw.integers(FIRST_TOKEN_ID, LAST_TOKEN_ID, draw.integers(*PROMPT_TOKENS)).tolist()
    seed, max_tokens = int(draw.integers(2**31)), int(draw.integers(*OUTPUT_TOKENS))
    drawn = {"seed": seed, "temperature": 0.9, "top_p": 0.95}
    body: dict[str, Any] = {"model": MODEL, "stream": True, "stream_options": {"include_usage": True}}
    body |= {"prompt": prompt, "max_tokens": max_tokens, "ignore_eos": True}
    match kind:
        case "greedy":
            body |= {"temperature": 0}
        case "seeded":
            body |= drawn | {"ignore_eos": False}
        case "grammar":
            del body["prompt"], body["ignore_eos"]
            messages = [{"role": "user", "content": f"Crew {seed % 1000}: who goes aboard?"}]
            form = {"type": "json_schema", "json_schema": {"name": "crew", "schema": CREW}}
            body |= drawn | {"messages": messages, "response_format": form, "max_tokens": GRAMMAR_TOKENS}
            return Ask(kind, CHAT, body)
        case "penalties":
            body |= drawn | {"frequency_penalty": 0.7, "presence_penalty": 0.4, "repetition_penalty": 1.2}
        case "choices":
            body |= drawn | {"n": 2}
        case "stops":
            body |= drawn | {"stop": [" self", "\n\n"]}
        case "logprobs":
            body |= drawn | {"logprobs": 2}
        case _:
            del body["stream_options"]
            body |= drawn | {"stream": False}
    return Ask(kind, COMPLETIONS, body)
