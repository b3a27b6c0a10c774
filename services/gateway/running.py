"""A request between its Submit and its end, and what of it would be sent again if whoever has it were lost.

Knows neither HTTP nor streams' states.
"""

from typing import TYPE_CHECKING

import msgspec

from services.streams import Stream
from services.wire import Submit

if TYPE_CHECKING:
    from services.gateway.streams import Answer, Choice


class Running:
    """The choices `request .. request + num_choices - 1` of an answer."""

    def __init__(self, submit: Submit, answer: "Answer") -> None:
        self.submit = submit
        """As it was sent last."""
        self.request = submit.request
        self.sequences = range(submit.request, submit.request + len(submit.sampling))
        self.choices: list[Choice] = []
        self.num_open = len(submit.sampling)
        self.answer = answer
        self.admission: Stream | None = None
        """The process that it was given to last; None: none was there."""
        self.earlier: list[Stream] = []
        """Those that it was given to before, in order: one of them may have released it, and not have said so."""
        self.admitted = False
        """The scheduler has it: it no longer depends on admission."""
        self.was_admitted = False
        """A scheduler had it, if not this one: only the admission process that released it can go on with it."""
        self.lost_at_s: float | None = None
        """Since when nobody is known to have it; None: somebody has."""
        self.is_parked = False
        """It is to be sent again."""
        self.lost_scheduler = False
        """Since it was sent last."""
        self.cached_tokens = 0
        """Of the prompt, as far as it has begun."""
        self.first_token_ns: int | None = None
        """When the step ended that made its first token, on this process's clock; None: it has none."""
        self.num_in_vain = 0
        """How often it was sent again since it got something."""
        self._num_sent = 0

    @property
    def num_tokens(self) -> int:
        """Output so far, over all choices."""
        return sum(choice.num_tokens for choice in self.choices)

    @property
    def is_begun(self) -> bool:
        """There was output since it was sent last."""
        return self.num_tokens > self._num_sent

    def again(self, scheduler_epoch: int) -> Submit:
        """What is sent again, to go on with what its client has; an embedding is made anew."""
        self.is_parked, self.admitted = False, False
        if self.admission is not None:
            self.num_in_vain = 0 if self.is_begun else self.num_in_vain + 1
        self.submit = msgspec.structs.replace(self.submit, resent=True)
        if self.was_admitted:
            self.submit.attempt += self.lost_scheduler
            self.submit.scheduler_epoch = scheduler_epoch
            self.submit.cached_tokens = self.cached_tokens
            if not self.submit.pooling:
                self.submit.outputs = [choice.output.tobytes() for choice in self.choices]
                self.submit.ended = [index for index, choice in enumerate(self.choices) if choice.finish_reason]
        self.lost_scheduler = False
        self._num_sent = self.num_tokens
        for choice in self.choices:
            choice.direct = False  # its next token says that somebody has it, which a direct one does not
        return self.submit
