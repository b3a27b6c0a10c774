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
            RequestError: the template refuses it, or makes of it nothing or what is no token of the model.
        """
        try:
            prompt = await _work(num_characters, lambda: self._tokenizer.encode_chat(messages, tools))
        except EngineError as error:
            raise RequestError("invalid_value", f"messages: {error}", param="messages") from error
        return self._checked(prompt, "messages")

    async def each(self, given: list[str] | list[list[int]], name: str) -> list[list[int]]:
        """The values of the parameter `name`, texts or token ids.

        Raises:
            RequestError: one is empty or has an id that is no token of the model.
        """
        size = sum(len(each) for each in given if isinstance(each, str))
        return await _work(size, lambda: [self._tokens(each, name) for each in given])

    def _tokens(self, prompt: str | list[int], name: str) -> list[int]:
        return self._checked(self._tokenizer.encode(prompt) if isinstance(prompt, str) else prompt, name)

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


async def _work(size: int, work: Callable[[], list[Any]]) -> list[Any]:
    return work() if size < BACKGROUND_CHARACTERS else await asyncio.to_thread(work)
