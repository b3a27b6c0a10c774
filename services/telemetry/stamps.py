"""The stamps of a token's way, in order: what is taken where, and which part of the latency lies between two.

All are `time.monotonic_ns()` of the process that took them. Messages carry them (services/wire.py); parts of a token's
latency are differences of neighbours, so that they sum to the whole.
"""

REQUEST_STAMPS = ("received", "tokenized", "queued", "released")
"""Gateway, gateway, admission, admission: once a request."""

STEP_STAMPS = ("planned", "launched", "computed", "returned")
"""Scheduler, then three of the executor: once a step, shared by its tokens."""

TOKEN_STAMPS = ("ready", *STEP_STAMPS, "gateway_in", "written")
"""`ready`: the token could first have been planned. `gateway_in` is once a frame, `written` once a token."""

TOKEN_PARTS = ("wait", "launch", "compute", "return", "hop", "write")
"""Part i lies between TOKEN_STAMPS[i] and TOKEN_STAMPS[i + 1]."""
