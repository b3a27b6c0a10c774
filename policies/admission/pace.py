"""When releases may happen, where a policy ties them to steps (`fairness.admit_every_steps`).

Owns the count of steps since the last release. Knows prompt tokens; does not know tenants, sizes or time. It is the
loop of engines that admit between two decode steps, and only every so often: prompts make the readers wait.
"""

from math import inf

from policies.admission.window import Window


class Pace:
    """The rhythm of releases. The step that computes the prompts of a release does not count.

    Args:
        every_steps: steps from a release to the next; 0: releases come with any event.
        most_prompt_tokens: of the prompts released at a time; None: no limit. One prompt always is.
    """

    __slots__ = ("_every_steps", "_left", "_most", "_steps")

    def __init__(self, every_steps: int = 0, most_prompt_tokens: int | None = None) -> None:
        self._every_steps = every_steps
        self._most = inf if most_prompt_tokens is None else most_prompt_tokens
        self._left = inf
        self._steps = 0

    def holds_back(self, window: Window) -> bool:
        """Whether what is in flight has to go on first."""
        return 0 < self._every_steps > self._steps and window.num_requests > 0

    def step_ended(self) -> None:
        """Tokens came."""
        self._steps += 1
        self._left = inf

    def has_room(self, prompt_tokens: int, window: Window) -> bool:
        """Whether a prompt may go with those released since the last step."""
        return prompt_tokens <= self._left or not window.num_requests

    def released(self, prompt_tokens: int) -> None:
        """A request was released."""
        self._left = min(self._left, self._most) - prompt_tokens
        self._steps = -1
