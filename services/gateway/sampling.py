"""How a client may shape the choice of tokens: OpenAI's parameters, and vLLM's where OpenAI has none.

Owns names, bounds and what is taken where nothing is given.
"""

from typing import Annotated

from msgspec import Meta, Struct

from engine.interface import Sampling
from services.errors import RequestError

MAX_BIASES = 1024
MAX_STOP_TOKENS = 128
MAX_SHOWN = 40
MAX_DIGITS = 10
"""Of a token's id, which fits 32 bits."""
SEED_STEP = 0x9E37_79B9_7F4A_7C15
SEED_RANGE = 2**63

Penalty = Annotated[float, Meta(ge=-2, le=2)]
Bias = Annotated[float, Meta(ge=-100, le=100)]
TierName = Annotated[str, Meta(max_length=64)]
"""What `service_tier` may be: the name of a class, or one of OpenAI's."""
TokenId = Annotated[int, Meta(ge=0)]


def _is_below(token: str | int, vocabulary_size: int) -> bool:
    """Whether a token's id, or the digits of one, is one of so many."""
    digits = str(token)
    # Python reads no number of thousands of digits, and these are a client's.
    return digits.isascii() and digits.isdecimal() and len(digits) <= MAX_DIGITS and int(digits) < vocabulary_size


class SamplingFields(Struct, forbid_unknown_fields=True, kw_only=True):
    """The part of a request body that becomes `engine.interface.Sampling`."""

    n: Annotated[int, Meta(ge=1)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0, lt=2**31)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=1000)] | None = None
    logit_bias: Annotated[dict[str, Bias], Meta(max_length=MAX_BIASES)] | None = None
    min_tokens: Annotated[int, Meta(ge=0)] | None = None
    ignore_eos: bool | None = None
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=MAX_STOP_TOKENS)] | None = None

    @property
    def choices(self) -> int:
        """Outputs asked for, for each prompt."""
        return self.n or 1

    @property
    def num_logprobs(self) -> int | None:
        """Alternatives to give log-probabilities of, beside the sampled token's own; None: none at all."""
        return None

    def sampling(self, seed: int, first: int) -> list[Sampling]:
        """One for each choice; `first` counts the choices of the prompts before. Each has a seed of its own."""
        return [
            Sampling(
                temperature=1.0 if self.temperature is None else self.temperature,
                top_p=1.0 if self.top_p is None else self.top_p,
                top_k=self.top_k or 0,
                seed=(seed + index * SEED_STEP) % SEED_RANGE,
                ignore_eos=bool(self.ignore_eos),
                min_p=self.min_p or 0.0,
                presence_penalty=self.presence_penalty or 0.0,
                frequency_penalty=self.frequency_penalty or 0.0,
                repetition_penalty=self.repetition_penalty or 1.0,
                logit_bias={int(token): bias for token, bias in (self.logit_bias or {}).items()},
                min_tokens=self.min_tokens or 0,
                stop_token_ids=tuple(self.stop_token_ids or ()),
                logprobs=self.num_logprobs,
            )
            for index in range(first, first + self.choices)
        ]

    def check_tokens(self, vocabulary_size: int) -> None:
        """Whether every token id is one of the model's.

        Raises:
            RequestError: one is not.
        """
        for name, tokens in (("logit_bias", self.logit_bias or {}), ("stop_token_ids", self.stop_token_ids or ())):
            for token in tokens:
                if not _is_below(token, vocabulary_size):
                    raise RequestError(
                        "invalid_value",
                        f"{name}: {str(token)[:MAX_SHOWN]} is not a token id of this model; its vocabulary has "
                        f"{vocabulary_size}, from 0 to {vocabulary_size - 1}",
                        param=name,
                    )

    def check_room(self, num_tokens: int) -> None:
        """Whether an output of at most this many tokens can be as long as asked for.

        Raises:
            RequestError: it cannot.
        """
        if self.min_tokens is not None and self.min_tokens > num_tokens:
            message = f"min_tokens: {self.min_tokens} is more than the {num_tokens} tokens that the output may have"
            raise RequestError("invalid_value", message, param="min_tokens")
