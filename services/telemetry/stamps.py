"""The stamps of a token's way, in order: what is taken where, and which part of the latency lies between two.

All are `time.monotonic_ns()` of the process that took them. Messages carry them (services/wire.py); parts of a token's
latency are differences of neighbours, so that they sum to the whole.
"""

from policies.scheduling.causes import Cause

STEP_STAMPS = ("planned", "launched", "computed", "returned")
"""Scheduler, then three of the executor: once a step, shared by its tokens."""

TOKEN_STAMPS = ("ready", *STEP_STAMPS, "gateway_in", "written")
"""`ready`: the token could first have been planned. `gateway_in` is once a frame, `written` once a token."""

TOKEN_PARTS = ("wait", "launch", "compute", "return", "hop", "write")
"""Part i lies between TOKEN_STAMPS[i] and TOKEN_STAMPS[i + 1]."""

FIRST_PARTS = ("tokenize", "submit", "limits", "fairness", "window", "queue", "prefill", "return", "hop", "write")
"""Parts of the time to the first token: `submit` is the way to and through admission, `queue` lies between release and
the first plan, `prefill` between that and the end of the step that made the token.
"""

CHUNK_COLUMNS = ("step", "num_tokens", "planned", "launched", "computed")
"""Of a prefill chunk."""

CAUSES = tuple(cause.name.lower() for cause in Cause)
"""Why a token was not planned at once, as `policies.scheduling.causes` says."""
