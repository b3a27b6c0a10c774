"""What an ended request shows about its class's promises, which part of the wait is to blame, and what is kept of it.

A promise is broken by the first token or by the longest gap. An answer that is not streamed is written whole: its
reader waits for no token but the last, and no promise of tokens can be looked at. To blame is the part that was longest
beyond what that part usually takes in this class: the compute of a slow model is nobody's fault, a wait for it is.
"""

import msgspec
from opentelemetry.sdk.trace.sampling import Decision, TraceIdRatioBased

from services.telemetry.keeper.parts import parts_of_one
from services.telemetry.keeper.requests import Request
from services.telemetry.keeper.rows import WRITTEN
from services.telemetry.records import PolicyInForce
from services.telemetry.stamps import FIRST_PARTS, TOKEN_PARTS

USUAL_SHARE = 0.05
"""Weight of the newest request in what is usual."""
TTFT, TBT = "ttft", "tbt"
SLO_MISS, ERROR, SAMPLED = "slo_miss", "error", "sampled"
FAILED = ("error", "lost")


class Verdict(msgspec.Struct):
    """Of one request; times in seconds."""

    ttft_s: float | None
    """None: its reader got no token, or all of them at once."""
    longest_gap_s: float | None
    missed: dict[str, str]
    """Broken promise (`ttft`, `tbt`) and the part to blame."""
    checked: tuple[str, ...]
    """Promises that could be looked at."""
    kept: str
    """Why its tokens get spans; empty: they do not."""
    first_parts: tuple[int, ...] = ()
    """`stamps.FIRST_PARTS`, ns."""


class Judge:
    """Knows the promises of each revision and what is usual."""

    def __init__(self) -> None:
        self.policies: dict[int, PolicyInForce] = {}
        self._usual: dict[tuple[str, str], list[float]] = {}
        """By class and promise, ns of each part."""

    def policy(self, request: Request) -> PolicyInForce | None:
        """The policy under which a request was released."""
        return None if request.let is None else self.policies.get(request.let.revision)

    def judge(self, request: Request) -> Verdict:
        """Look at an ended request."""
        policy = self.policy(request)
        promises = {name: (ttft_s, tbt_s) for name, ttft_s, tbt_s in policy.classes} if policy else {}
        ttft_s, tbt_s = promises.get(request.slo_class, (float("inf"), float("inf")))
        parts = request.first_parts()
        if not request.began.streamed:
            kept = self._kept(request, policy, missed=False)
            return Verdict(None, None, {}, (), kept, tuple(parts or ()))
        missed: dict[str, str] = {}
        checked = []
        first_s = None
        if parts is not None:
            first_s = sum(parts) / 1e9
            checked.append(TTFT)
            blame = self._blame((request.slo_class, TTFT), parts)
            if first_s > ttft_s:
                missed[TTFT] = FIRST_PARTS[blame]
        gap_s, gap_parts = _longest_gap(request)
        if gap_parts is not None:
            checked.append(TBT)
            blame = self._blame((request.slo_class, TBT), gap_parts)
            if gap_s is not None and gap_s > tbt_s:
                missed[TBT] = TOKEN_PARTS[blame]
        kept = self._kept(request, policy, missed=bool(missed))
        return Verdict(first_s, gap_s, missed, tuple(checked), kept, tuple(parts or ()))

    def _blame(self, key: tuple[str, str], parts: list[int]) -> int:
        usual = self._usual.get(key)
        if usual is None:
            self._usual[key] = list(map(float, parts))
            return parts.index(max(parts))
        beyond = [part - one for part, one in zip(parts, usual, strict=True)]
        self._usual[key] = [one + USUAL_SHARE * more for one, more in zip(usual, beyond, strict=True)]
        return beyond.index(max(beyond))

    def _kept(self, request: Request, policy: PolicyInForce | None, *, missed: bool) -> str:
        if policy is None:
            policy = next(reversed(self.policies.values()), None)
        if policy is None:
            return ""
        failed = request.ended is not None and request.ended.outcome in FAILED
        trace_id = int.from_bytes(request.began.trace_id, "big")
        if failed and _sampled(trace_id, policy.error):
            return ERROR
        if missed and _sampled(trace_id, policy.slo_miss):
            return SLO_MISS
        return SAMPLED if _sampled(trace_id, policy.otherwise) else ""


def _sampled(trace_id: int, share: float) -> bool:
    """By the trace's id, as everywhere: all requests of a trace come to the same answer."""
    return TraceIdRatioBased(share).should_sample(None, trace_id, "").decision is Decision.RECORD_AND_SAMPLE


def _longest_gap(request: Request) -> tuple[float | None, list[int] | None]:
    longest_ns, longest = -1, None
    for output in request.outputs.values():
        stamps = output.stamps()
        if len(stamps) < 2:
            continue
        written = stamps[:, WRITTEN]
        gaps = written[1:] - written[:-1]
        at = int(gaps.argmax())
        if gaps[at] > longest_ns:
            longest_ns = int(gaps[at])
            longest = parts_of_one(int(written[at]), stamps[at + 1, : WRITTEN + 1].tolist())
    return (None, None) if longest is None else (longest_ns / 1e9, longest)
