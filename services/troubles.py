"""What a process cannot keep at the moment although it serves: said once in its log, in a metric and in `/readyz`.

Knows names and sentences; whoever has the trouble knows what it means for requests.
"""

import logging

from services.telemetry import names
from services.telemetry.metrics import Family, Registry

STATE, TRAFFIC, HISTORY, EVENT_LOG, STORE = "state", "traffic", "policy_history", "event_log", "store"
ENDS = "ends"
ALL = (STATE, TRAFFIC, HISTORY, EVENT_LOG, STORE, ENDS)

log = logging.getLogger(__name__)


def only_names(troubles: list[str]) -> list[str]:
    """Of sentences, what those are told who may not hear of paths and addresses."""
    return [each.partition(": ")[0] for each in troubles]


class Troubles:
    """Of one process. May be told from any thread."""

    def __init__(self) -> None:
        self._sentences: dict[str, str] = {}

    def begin(self, what: str, sentence: str) -> None:
        """It cannot be kept, and what follows from that; said in the log if it could before."""
        if what not in self._sentences:
            log.error("%s", sentence)
        self._sentences[what] = sentence

    def over(self, what: str, sentence: str) -> None:
        """It is kept again; nothing is said if it always was."""
        if self._sentences.pop(what, None) is not None:
            log.info("%s", sentence)

    @property
    def sentences(self) -> list[str]:
        """`what: sentence` for each, the longest-standing first."""
        return [f"{what}: {sentence}" for what, sentence in tuple(self._sentences.items())]

    def family(self) -> Family:
        """1 for each trouble there is, 0 for the others."""
        gauge = (registry := Registry()).gauge(names.DEGRADED)
        for what in ALL:
            gauge.set(1.0 if what in self._sentences else 0.0, what)
        return registry.families()[0]
