"""Keys of token prefixes: what lets the scheduler's core find equal beginnings without seeing a token.

Owns the hash. A key is salted with a secret of this process, so that a recorded event log tells nobody what was asked;
it covers all tokens up to its place, so that equal keys mean equal prefixes.
"""

import secrets
from hashlib import blake2b
from math import gcd

from policies.scheduling.prefixes import KEY_BYTES

TOKEN_BYTES = 4
SALT_BYTES = 32
DEFAULT_KEY_TOKENS = 16
"""Where no executor has said how large its blocks are."""


class Salt:
    """The secret of this process, and how many tokens lie between two keys: what divides every executor's blocks."""

    def __init__(self, salt: bytes | None = None) -> None:
        self._salt = secrets.token_bytes(SALT_BYTES) if salt is None else salt
        self.key_tokens = DEFAULT_KEY_TOKENS

    def follow(self, block_tokens: list[int]) -> None:
        """The executors' blocks have these sizes."""
        if block_tokens:
            self.key_tokens = gcd(*block_tokens)

    def begin(self, prompt: bytes) -> "tuple[PrefixKeys, bytes]":
        """Keys of a prompt (int32 token ids): what goes on with its output, and `policies.events.Released`'s bytes."""
        size = self.key_tokens * TOKEN_BYTES
        running = blake2b(key=self._salt, digest_size=KEY_BYTES, person=self.key_tokens.to_bytes(4, "little"))
        view = memoryview(prompt)
        whole = len(prompt) - len(prompt) % size
        keys = []
        for start in range(0, whole, size):
            running.update(view[start : start + size])
            keys.append(running.digest())
        going_on = PrefixKeys(running, self.key_tokens, whole // size)
        if whole < len(prompt):
            last = running.copy()
            last.update(view[whole:])
            keys.append(last.digest())
        return going_on, b"".join(keys)


class PrefixKeys:
    """The keys of one sequence as it grows.

    Attributes:
        key_tokens: tokens between two keys.
    """

    __slots__ = ("_num_keys", "_running", "key_tokens")

    def __init__(self, running: blake2b, key_tokens: int, num_keys: int) -> None:
        self._running = running
        self.key_tokens = key_tokens
        self._num_keys = num_keys

    def copy(self) -> "PrefixKeys":
        """For another choice of the request."""
        return PrefixKeys(self._running.copy(), self.key_tokens, self._num_keys)

    def reach(self, num_tokens: int, prompt: bytes, output: memoryview) -> bytes:
        """The keys not asked for yet, up to the last one within `num_tokens` tokens.

        Args:
            num_tokens: of the prompt and the output, at most all of them.
            prompt: int32 token ids.
            output: int32 token ids that follow the prompt, as bytes.
        """
        size = self.key_tokens * TOKEN_BYTES
        keys = []
        for number in range(self._num_keys, num_tokens // self.key_tokens):
            start, end, border = number * size, (number + 1) * size, len(prompt)
            if start < border:
                self._running.update(memoryview(prompt)[start:end])
            if end > border:
                self._running.update(output[max(0, start - border) : end - border])
            keys.append(self._running.digest())
        self._num_keys = max(self._num_keys, num_tokens // self.key_tokens)
        return b"".join(keys)
