"""Questions about a service that works: its clock, reports, a mirror of the scheduler. Messages, as in `wire.py`."""

from services.wire_parts import Count, Id, Message, Name, Seconds, Stamp, Words


class Ping(Message, tag="ping"):
    """What does your clock say? Answered before anything else."""

    sent_ns: Stamp


class Pong(Message, tag="pong"):
    """The answer; its stamps are the answerer's."""

    sent_ns: Stamp
    """As in the `Ping`."""
    received_ns: Stamp
    answered_ns: Stamp


class ReportAsked(Message, tag="report_asked"):
    """Gateway or operator -> admission: what do you know of this?"""

    number: Id
    """Of the question; the answer bears it."""
    about: Name
    """`fairness` or `usage`."""
    tenant: Name = ""
    """Of this tenant alone; empty: of all."""
    days: Count = 1
    """Of usage: how many days back, today included."""


class Report(Message, tag="report"):
    """The answer to a `ReportAsked`."""

    number: Id
    document: bytes
    """JSON."""


class MirrorAsked(Message, tag="mirror_asked"):
    """Operator -> scheduler: send a copy of your core, then everything it is told, for so long."""

    duration_s: Seconds


class MirrorState(Message, tag="mirror_state"):
    """The core as it is now."""

    core: bytes
    """As `policies.scheduling.shadow.copy_of` writes it: of use to the same version alone."""


class MirrorRecords(Message, tag="mirror_records"):
    """What the core was told since, and what it answered."""

    records: bytes
    """As `policies.event_log` writes them."""


class MirrorEnded(Message, tag="mirror_ended"):
    """No more records; `error` is why before the time, empty when it was the time."""

    error: Words = ""
