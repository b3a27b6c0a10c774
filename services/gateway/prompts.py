"""From what a client wrote to token ids.

Owns tokenising outside the loop and what is wrong with a prompt; knows no HTTP and no request.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from engine.interface import EngineError
from engine.tokenizer import Tokenizer
from services.errors import RequestError

BACKGROUND_CHARACTERS = 16 * 2**10
"""Prompts longer than this are tokenised in a thread: in the loop they would make every stream wait."""


class Prompts:
    """Over one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    async def chat(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]], num_characters: int) -> list[int]:
        """A conversation of about so many characters, through the model's chat template.

        Raises:
            RequestError: the template refuses it, or makes nothing of it.
        """
        try:
            prompt = await _work(num_characters, lambda: self._tokenizer.encode_chat(messages, tools))
        except EngineError as error:
            raise RequestError("invalid_value", f"messages: {error}", param="messages") from error
        return _not_empty(prompt, "messages")

    async def each(self, given: list[str] | list[list[int]], name: str) -> list[list[int]]:
        """The values of the parameter `name`, texts or token ids.

        Raises:
            RequestError: one is empty or has an id that is no token.
        """
        size = sum(len(each) for each in given if isinstance(each, str))
        return await _work(size, lambda: [self._tokens(each, name) for each in given])

    def _tokens(self, prompt: str | list[int], name: str) -> list[int]:
        if isinstance(prompt, str):
            return _not_empty(self._tokenizer.encode(prompt), name)
        size = self._tokenizer.vocabulary_size
        wrong = next((token for token in prompt if not 0 <= token < size), None)
        if wrong is not None:
            message = f"{name}: token id {wrong} is not in the model's vocabulary of {size}"
            raise RequestError("invalid_value", message, param=name)
        return _not_empty(prompt, name)


async def _work(size: int, work: Callable[[], list[Any]]) -> list[Any]:
    return work() if size < BACKGROUND_CHARACTERS else await asyncio.to_thread(work)


def _not_empty(tokens: list[int], name: str) -> list[int]:
    if not tokens:
        raise RequestError("invalid_value", f"{name}: is empty; it must have at least one token", param=name)
    return tokens
