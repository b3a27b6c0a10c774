"""Names for what a sequence's first tokens are, and who may share them.

Owns keys: equal keys mean equal tokens, as far as a cryptographic hash can say so. Knows neither tokens nor blocks; the
keys come with events. A key of n tokens names the KV of the first n positions, so a block is found by the key of the
prefix that it ends.
"""

from collections.abc import Callable

from policies.events import Released

KEY_BYTES = 16

Namespace = Callable[[str], bytes | None]
"""From the owner of a request to what its keys begin with; None: it shares with nobody, not even with itself."""


def of_owner(owner: str) -> bytes:
    """Requests of one owner share."""
    return b"=" + owner.encode()


def of_all(_: str) -> bytes:
    """Everybody shares with everybody."""
    return b"*"


def of_nobody(_: str) -> None:
    """Nothing is shared."""


NAMESPACES: dict[str, Namespace] = {"tenant": of_owner, "all": of_all, "none": of_nobody}


class Prefix:
    """The keys of one sequence's prefixes, as far as they are known: every `key_tokens` tokens and at the prompt's end.

    Attributes:
        owner: who asked; decides, with the policy, whom it shares with.
        root: what its keys begin with while it holds blocks; None: it takes no part in sharing.
    """

    __slots__ = ("_of_output", "_of_prompt", "_prompt_tokens", "key_tokens", "owner", "root")

    def __init__(self, prompt_keys: bytes, prompt_tokens: int, *, key_tokens: int, owner: str) -> None:
        """`prompt_keys` as in `policies.events.Released`.

        Raises:
            ValueError: they are not as many as the prompt has.
        """
        if len(prompt_keys) != KEY_BYTES * -(-prompt_tokens // key_tokens):
            raise ValueError(
                f"{len(prompt_keys)} bytes of keys for a prompt of {prompt_tokens} tokens, one key for {key_tokens}"
            )
        self._of_prompt = prompt_keys
        self._of_output = bytearray()
        self._prompt_tokens = prompt_tokens
        self.key_tokens = key_tokens
        self.owner = owner
        self.root: bytes | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens up to the last key that is known for a multiple of `key_tokens`."""
        num_keys = self._prompt_tokens // self.key_tokens + len(self._of_output) // KEY_BYTES
        return num_keys * self.key_tokens

    def extend(self, keys: bytes) -> None:
        """Output went on: the keys of the next multiples of `key_tokens`."""
        self._of_output += keys

    def key_at(self, num_tokens: int) -> bytes | None:
        """The key of its first `num_tokens` tokens; None: not known, or it takes no part."""
        if self.root is None:
            return None
        index, rest = divmod(num_tokens, self.key_tokens)
        if num_tokens <= self._prompt_tokens:
            if rest and num_tokens < self._prompt_tokens:
                return None
            start = (index if rest else index - 1) * KEY_BYTES
            return self.root + self._of_prompt[start : start + KEY_BYTES]
        start = (index - self._prompt_tokens // self.key_tokens - 1) * KEY_BYTES
        if rest or start >= len(self._of_output):
            return None
        return self.root + bytes(self._of_output[start : start + KEY_BYTES])


def prefix_of(released: Released) -> Prefix | None:
    """What a request's prompt has in common with others, if that may be known."""
    if not released.prompt_keys:
        return None
    return Prefix(released.prompt_keys, released.prompt_tokens, key_tokens=released.key_tokens, owner=released.owner)
