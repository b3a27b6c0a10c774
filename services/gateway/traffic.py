"""What becomes of each request of this gateway, as one row of the recorded traffic when it has ended.

Owns the rows of requests that have not ended. Works a few times a request and never for a token; knows no text.
"""

import time
from collections.abc import Callable, Iterable

from services.traffic.rows import RequestRow
from services.wire import RequestEnded, Submit

INT32_BYTES = 4


class Traffic:
    """The requests on their way through the services behind. Whatever is not known here is ignored."""

    def __init__(self, write: Callable[[RequestRow], None]) -> None:
        self._write = write
        self._open: dict[int, RequestRow] = {}
        self._arrived_ns: dict[int, int] = {}
        """Of these, on this process's clock."""

    def arrived(self, submit: Submit, revision: int) -> None:
        """A request was handed to admission."""
        self._arrived_ns[submit.request] = time.monotonic_ns()
        self._open[submit.request] = RequestRow(
            unix_s=time.time(),
            tenant=submit.tenant,
            tier=submit.tier,
            weight=submit.weight,
            service_tier=submit.service_tier,
            allowed_classes=",".join(submit.allowed_classes),
            slo_class="",
            prompt_tokens=len(submit.prompt) // INT32_BYTES,
            max_output_tokens=submit.max_output_tokens,
            num_choices=len(submit.sampling),
            output_tokens=0,
            outcome="",
            code="",
            ttft_s=None,
            gaps=b"",
            key_tokens=0,
            prompt_keys=b"",
            revision=revision,
            project=submit.project,
            key=submit.key,
        )

    def goes_on(self, request: int, first_token_ns: int | None) -> None:
        """It is sent again; whoever goes on with it will not know when its first token was made."""
        row = self._open.get(request)
        if row is not None and first_token_ns is not None:
            ttft_s = max(0, first_token_ns - self._arrived_ns[request]) / 1e9
            self._open[request] = row._replace(ttft_s=ttft_s)

    def gone(self, request: int, outcome: str, code: str) -> None:
        """It ended without the scheduler's word: `refused`, `cancelled` while it waited, or `lost`."""
        row = self._open.pop(request, None)
        self._arrived_ns.pop(request, None)
        if row is not None:
            self._write(row._replace(outcome=outcome, code=code))

    def ended(self, message: RequestEnded) -> None:
        """The scheduler is done with it."""
        row = self._open.get(message.request)
        measured = message.measured
        if row is not None and measured is not None:
            self._open[message.request] = row._replace(
                slo_class=measured.slo_class,
                output_tokens=message.output_tokens,
                ttft_s=row.ttft_s if measured.ttft_s is None else measured.ttft_s,
                gaps=measured.gaps,
                key_tokens=measured.key_tokens,
                prompt_keys=measured.prompt_keys,
            )
        self.gone(message.request, message.outcome, message.code)

    def lost_but(self, waiting: Iterable[int]) -> None:
        """The scheduler is gone, and everything with it that does not wait in admission."""
        still = set(waiting)
        for request in [request for request in self._open if request not in still]:
            self.gone(request, "lost", "scheduler_lost")
