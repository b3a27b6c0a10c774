"""POST /v1/embeddings: its body, and the answer made of vectors.

Owns their shapes. Each input is a request of its own to the services behind, whose only token nobody sees.
"""

import base64
from array import array
from typing import Any, Literal

from msgspec import Struct

from engine.interface import Sampling
from services.errors import RequestError
from services.gateway.requests import convert, drop_harmless, read_fields, several
from services.gateway.sampling import TierName
from services.gateway.shapes import Shape, encode
from services.gateway.streams import Answer, Choice

HARMLESS: dict[str, tuple[Any, ...]] = {"dimensions": (None,)}
"""As in `requests`: the vectors have the model's hidden size, and cutting them would only make them worse."""


class EmbeddingBody(Struct, forbid_unknown_fields=True, kw_only=True):
    """POST /v1/embeddings."""

    model: str
    input: str | list[str | int | list[int]]
    encoding_format: Literal["float", "base64"] | None = None
    user: str | None = None
    service_tier: TierName | None = None
    pooling: Literal["mean", "last"] = "mean"
    """How the tokens' hidden states become one vector; not a parameter of OpenAI's."""

    seed = 0
    choices = 1
    maximum = 1

    @property
    def inputs(self) -> list[str] | list[list[int]]:
        """The inputs; errors as `requests.several`."""
        return several("input", self.input)

    def check_room(self, num_tokens: int) -> None:
        """Nothing here depends on the output's length."""

    def sampling(self, seed: int, first: int) -> list[Sampling]:
        """Of the token that nobody sees, the same for all."""
        del seed, first
        return [Sampling(temperature=0, ignore_eos=True)]


class Usage(Struct):
    """Tokens of all inputs."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingAnswer(Answer):
    """Done when every input has its vector."""

    def __init__(self, shape: Shape, prompt_tokens: int, *, model: str, encoding: str) -> None:
        super().__init__(shape, prompt_tokens)
        self._model = model
        self._encoding = encoding

    def close(self, choice: Choice, reason: str) -> None:
        """An input's last token was computed; its vector came in the same frame."""
        if choice.index not in self.vectors:
            self.fail(RequestError("internal_error", f"the executor gave no embedding of input {choice.index}"))
        super().close(choice, reason)

    def document(self) -> bytes:
        """The finished answer."""
        data = [
            {"object": "embedding", "index": index, "embedding": self._encoded(self.vectors[index])}
            for index in range(len(self.choices))
        ]
        usage = Usage(self.prompt_tokens, self.prompt_tokens)
        return encode({"object": "list", "data": data, "model": self._model, "usage": usage})

    def _encoded(self, vector: bytes) -> str | list[float]:
        if self._encoding == "base64":
            return base64.b64encode(vector).decode()
        return array("f", vector).tolist()


def read_embedding(data: bytes) -> EmbeddingBody:
    """The body of an embeddings request; errors as `requests.read_chat`."""
    fields = read_fields(data)
    drop_harmless(fields, HARMLESS, "")
    return convert(fields, EmbeddingBody)
