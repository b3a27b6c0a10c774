"""`window_tokens: auto`: the smallest in-flight window that keeps the throughput of the pool-sized one within 2 %.

VTC's bound is proportional to the window, so a smaller one is fairer sooner; below some size the executors go hungry.
Where that is depends on the device, the model and the traffic, so it is measured while serving: begin at what the KV
pool holds, narrow in steps while the throughput stays, go back one step when it does not, and look again from time to
time. Knows tokens, seconds and the window; does not know tenants, requests or prices.

Only seconds in which somebody waited throughout say anything about a window: in the others it did not bind.
"""

from math import sqrt

SAMPLE_S = 1.0
KEPT = 0.98
"""Of the pool-sized window's throughput."""
STEP, FINE_STEP = 0.75, 0.9
"""To the next narrower window: first in large steps, after the first refusal once in a small one."""
SMALLEST_SHARE = 1 / 64
"""Of what is used of the pool-sized window: narrower ones are not tried."""
BATCH_SAMPLES = 10
"""What one second did not finish the next one does, so the error of a mean is taken over means of so many."""
LEAST_BATCHES, MOST_BATCHES = 4, 30
LEAST_TURNOVERS = 3
"""A measurement lasts until what is in flight has been served so many times, and `LEAST_BATCHES`."""
SMALL_ERROR = 0.004
"""Relative standard error with which the reference is good enough; at `MOST_BATCHES` it must be."""
HOPELESS = 0.9
"""Of the reference: below it a window is given up without measuring on."""
RECHECK_BATCHES = 360
"""A held window is compared anew after so many (an hour in which somebody waited)."""
DROP_BATCHES = 12
"""Over these a held window's throughput must have dropped, for a comparison before its time."""

REFERENCE, TRIAL, HOLDING = "measuring the pool-sized window", "trying a window", "holding"


class Mean:
    """A mean throughput and its standard error, over batches of samples."""

    def __init__(self) -> None:
        self.num_batches = 0
        self.tokens_per_s = 0.0
        self._squares = 0.0
        self._sum = 0.0
        self._num_samples = 0

    def add(self, tokens_per_s: float) -> bool:
        """One sample more; whether it completed a batch."""
        self._sum += tokens_per_s
        self._num_samples += 1
        if self._num_samples < BATCH_SAMPLES:
            return False
        batch = self._sum / self._num_samples
        self._sum, self._num_samples = 0.0, 0
        self.num_batches += 1
        off = batch - self.tokens_per_s
        self.tokens_per_s += off / self.num_batches
        self._squares += off * (batch - self.tokens_per_s)
        return True

    @property
    def error(self) -> float:
        """Standard error of the mean; infinite before the second batch."""
        if self.num_batches < 2:
            return float("inf")
        return sqrt(self._squares / (self.num_batches - 1) / self.num_batches)


class AutoWindow:
    """The controller: told of what is released and produced, it sizes the window.

    Attributes:
        pool_tokens: the largest window, and the one that all are compared to.
        limit_tokens: the window now.
        phase: what it is doing, in words.
        kept: throughput of the held window over the pool-sized one's, as last compared; 1.0 before.
    """

    def __init__(self, pool_tokens: int) -> None:
        self.pool_tokens = self.limit_tokens = pool_tokens
        self.phase = REFERENCE
        self.kept = 1.0
        self._reference = Mean()
        self._mean = Mean()
        self._good_tokens = pool_tokens
        """The narrowest window that was accepted."""
        self._smallest_tokens = 0.0
        self._step = STEP
        self._widening = False
        self._first = True
        """Nothing was compared yet: after the reference comes the first step, not a judgement of what is held."""
        self._held = Mean()
        self._num_held_batches = 0
        self._patience_batches = DROP_BATCHES
        self._unstarted: dict[int, int] = {}
        """Prompt tokens of what was released and has no token yet."""
        self._since_s: float | None = None
        self._tokens = 0
        self._settled_tokens = 0
        self._used_tokens = 0
        """The most that was in flight since the last change: where requests are counted out first, less than the limit.
        """
        self._measured_tokens = 0

    def released(self, request: int, prompt_tokens: int) -> None:
        """A request will be processed."""
        self._unstarted[request] = prompt_tokens

    def produced(self, sequences: list[int]) -> None:
        """Output tokens; with its first one a request's prompt has been processed."""
        self._tokens += len(sequences)
        if self._unstarted:
            for request in self._unstarted.keys() & sequences:
                self._tokens += self._unstarted.pop(request)

    def finished(self, request: int) -> None:
        """A request has ended, whether it had begun or not."""
        self._unstarted.pop(request, None)

    def idle(self) -> None:
        """Nobody waited until now: the window did not bind, and the second under way says nothing."""
        self._since_s = None

    def look(self, now: float, reserved_tokens: int) -> bool:
        """Somebody waits, and so much is in flight; whether the window has another size now."""
        self._used_tokens = max(self._used_tokens, reserved_tokens)
        if self._since_s is None:
            self._since_s, self._tokens = now, 0
            return False
        elapsed_s = now - self._since_s
        if elapsed_s < SAMPLE_S:
            return False
        sample, self._tokens, self._since_s = self._tokens, 0, now
        if self._settled_tokens < self._used_tokens:
            # What was released under the window before is still being served.
            self._settled_tokens += sample
            return False
        self._measured_tokens += sample
        if not self._mean.add(sample / elapsed_s):
            return False
        before = self.limit_tokens
        self._judge()
        return self.limit_tokens != before

    # --- after every batch ----------------------------------------------------------------------------------------

    def _judge(self) -> None:
        if self.phase == HOLDING:
            self._hold()
        elif self.phase == REFERENCE:
            if (self._measured() and self._mean.error <= SMALL_ERROR * self._mean.tokens_per_s) or self._is_long():
                self._compare()
        elif self._is_hopeless() or (self._measured() and self._falls_short(self._mean, 2.0)):
            self._refused()
        elif self._measured() and not self._falls_short(self._mean, -1.0):
            self._accepted()
        elif self._is_long():
            self._refused()

    def _measured(self) -> bool:
        return (
            self._mean.num_batches >= LEAST_BATCHES and self._measured_tokens >= LEAST_TURNOVERS * self._used_tokens
        ) or self._is_long()

    def _is_long(self) -> bool:
        return self._mean.num_batches >= MOST_BATCHES

    def _is_hopeless(self) -> bool:
        return self._mean.num_batches >= 2 and self._mean.tokens_per_s < HOPELESS * self._reference.tokens_per_s

    def _falls_short(self, mean: Mean, errors: float) -> bool:
        """Whether a throughput is more than 2 % below the reference even if it is so many errors higher."""
        error = sqrt(mean.error**2 + (KEPT * self._reference.error) ** 2)
        return mean.tokens_per_s + errors * error < KEPT * self._reference.tokens_per_s

    def _compare(self) -> None:
        """The pool-sized window has been measured: begin to narrow, or judge the window held until now."""
        self._reference = self._mean
        if self._first:
            self._first = False
            self._smallest_tokens = self._used_tokens * SMALLEST_SHARE
            self._try(self._used_tokens * STEP)
            return
        self.kept = self._held.tokens_per_s / self._reference.tokens_per_s if self._reference.tokens_per_s else 1.0
        if self._falls_short(self._held, 1.0):
            self._widening = True
            self._patience_batches = DROP_BATCHES
            self._try(self._good_tokens / STEP)
        else:
            # It was the traffic that changed: be slower to suspect the window, and see whether it may be narrower.
            self._patience_batches = min(2 * self._patience_batches, RECHECK_BATCHES)
            self._widening = False
            self._step = FINE_STEP
            self._try(self._good_tokens * FINE_STEP)

    def _accepted(self) -> None:
        self._good_tokens = self.limit_tokens
        self.kept = self._mean.tokens_per_s / self._reference.tokens_per_s
        if self._widening:
            self._settle_on_good()
        else:
            self._try(self.limit_tokens * self._step)

    def _refused(self) -> None:
        if self._widening:
            self._try(self.limit_tokens / STEP)
        elif self._step == STEP:
            self._step = FINE_STEP
            self._try(self._good_tokens * FINE_STEP)
        else:
            self._settle_on_good()

    def _hold(self) -> None:
        self._num_held_batches += 1
        if self._mean.num_batches < DROP_BATCHES:
            return
        self._held, self._mean = self._mean, Mean()
        dropped = self._num_held_batches >= self._patience_batches and self._falls_short(self._held, 2.0)
        if dropped or self._num_held_batches >= RECHECK_BATCHES:
            self._measure(REFERENCE, self.pool_tokens)

    # --- what comes next ------------------------------------------------------------------------------------------

    def _try(self, tokens: float) -> None:
        size = int(tokens)
        if size >= self.pool_tokens:
            self._good_tokens = self.pool_tokens
            self.kept = 1.0
            self._settle_on_good()
        elif size < max(1, self._smallest_tokens):
            self._settle_on_good()
        else:
            self._measure(TRIAL, size)

    def _settle_on_good(self) -> None:
        self._step = FINE_STEP
        self._num_held_batches = 0
        self._measure(HOLDING, self._good_tokens)

    def _measure(self, phase: str, window_tokens: int) -> None:
        self.phase, self.limit_tokens = phase, window_tokens
        self._mean = Mean()
        self._measured_tokens = self._settled_tokens = self._used_tokens = 0


def followed(auto: AutoWindow | None, pool_tokens: int) -> AutoWindow | None:
    """The controller of a pool of this size. Without executors there is none, and what was learnt waits for them: a
    stream to the scheduler that breaks says nothing about the window.
    """
    if pool_tokens and (auto is None or auto.pool_tokens != pool_tokens):
        return AutoWindow(pool_tokens)
    if auto is not None and not pool_tokens:
        auto.idle()
    return auto
