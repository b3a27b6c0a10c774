"""From what a client wrote to token ids.

Owns tokenising outside the loop and what is wrong with a prompt; knows no HTTP and no request.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from engine.interface import EngineError
from engine.tokenizer import Tokenizer
from services.errors import RequestError

BACKGROUND_CHARACTERS = 16 * 2**10
"""Prompts longer than this are tokenised in a thread: in the loop they would make every stream wait."""


T = TypeVar("T")


class Renders(Protocol):
    """What makes a prompt of a conversation."""

    async def render(self, messages: list[dict[str, Any]], tools: Sequence[dict[str, Any]]) -> str:
        """The prompt; raises `RequestError`."""


class Prompts:
    """Over one tokenizer and one chat template.

    Args:
        tokenizer: of the model.
        rendering: of its chat template.
        max_characters: of a request, all its prompts together.
    """

    def __init__(self, tokenizer: Tokenizer, rendering: Renders, max_characters: int) -> None:
        self._tokenizer = tokenizer
        self._rendering = rendering
        self._max_characters = max_characters

    async def chat(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> list[int]:
        """A conversation, through the model's chat template.

        Raises:
            RequestError: the template refuses it, or makes of it nothing, too much or what is no token of the model.
        """
        text = await self._rendering.render(messages, tools)
        self._check_size(len(text), "messages")
        return await _work(
            len(text), lambda: self._checked(self._encode(text, "messages", add_special_tokens=False), "messages")
        )

    async def each(self, given: list[str] | list[list[int]], name: str) -> list[list[int]]:
        """The values of the parameter `name`, texts or token ids.

        Raises:
            RequestError: one is empty or has an id that is no token of the model, or they are too long together.
        """
        size = sum(len(each) for each in given if isinstance(each, str))
        self._check_length(max((len(each) for each in given if isinstance(each, list)), default=0), name)
        self._check_size(max((len(each) for each in given if isinstance(each, str)), default=0), name)
        if size > self._max_characters:
            message = f"{name}: {size} characters in one request; at most {self._max_characters} are allowed"
            raise RequestError("invalid_value", message, param=name)
        return await _work(size, lambda: [self._tokens(each, name) for each in given])

    def _check_size(self, num_characters: int, name: str) -> None:
        """Refuse a text that is too long for the model before it is tokenised, which takes a second a megabyte."""
        limit = self._tokenizer.max_sequence_tokens
        least = self._tokenizer.least_tokens(num_characters)
        if least > limit:
            message = (
                f"a sequence here has at most {limit} tokens; {name} has a text of {num_characters} characters, "
                f"which are at least {least}; shorten it"
            )
            raise RequestError("context_length_exceeded", message, param=name)

    def _check_length(self, num_tokens: int, name: str) -> None:
        """Refuse what is too long for the model before its ids are looked at, which takes a while for a million."""
        limit = self._tokenizer.max_sequence_tokens
        if num_tokens > limit:
            message = f"a sequence here has at most {limit} tokens; {name} has {num_tokens}; shorten it"
            raise RequestError("context_length_exceeded", message, param=name)

    def _tokens(self, prompt: str | list[int], name: str) -> list[int]:
        return self._checked(self._encode(prompt, name) if isinstance(prompt, str) else prompt, name)

    def _encode(self, text: str, name: str, *, add_special_tokens: bool = True) -> list[int]:
        try:
            return self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        except EngineError as error:
            raise RequestError("invalid_value", f"{name}: {error}", param=name) from error

    def _checked(self, tokens: list[int], name: str) -> list[int]:
        """A text may have such ids too: some tokenizers name tokens that their model has no row for."""
        if not tokens:
            raise RequestError("invalid_value", f"{name}: is empty; it must have at least one token", param=name)
        size = self._tokenizer.vocabulary_size
        if min(tokens) < 0 or max(tokens) >= size:
            wrong = next(token for token in tokens if not 0 <= token < size)
            message = f"{name}: token id {wrong} is not in the model's vocabulary of {size}"
            raise RequestError("invalid_value", message, param=name)
        return tokens


async def _work(size: int, work: Callable[[], T]) -> T:
    return work() if size < BACKGROUND_CHARACTERS else await asyncio.to_thread(work)
