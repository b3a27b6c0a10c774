"""What a gateway knows of the policy: the revision in force, the ones before, and the last save's outcome.

Validates a revision as every service does before admission commits it; decides nothing by it.
"""

import time
from collections import deque

import msgspec

from policies.document.diff import changes
from policies.document.loading import load_policy
from policies.document.problems import PolicyError
from policies.document.schema import Policy
from services.wire import PolicyAbort, PolicyCommit, PolicyNow, PolicyPrepare, PolicyPrepared, PolicyStatus

HISTORY = 100
FOR_OPERATORS = "ask with an admin key, or see admission's log"


class Applied(msgspec.Struct, frozen=True):
    """A revision that came into force."""

    revision: int
    name: str
    classes: tuple[str, ...]
    applied_unix_s: float
    changes: list[str]
    """Against the revision before, in words."""


class Saved(msgspec.Struct, frozen=True):
    """What became of a save of the policy file."""

    outcome: str
    """`applied` or `rejected`."""
    error: str
    unix_s: float


class Revisions:
    """The revisions this gateway has seen, newest last."""

    def __init__(self) -> None:
        self.history: deque[Applied] = deque(maxlen=HISTORY)
        self.last_save: Saved | None = None
        self.last_rejection: Saved | None = None
        self.policy: Policy | None = None
        """The one in force."""
        self._prepared: tuple[int, Policy] | None = None

    @staticmethod
    def told(each: Applied | Saved | None, *, whole: bool) -> Applied | Saved | None:
        """A revision or a save, all of it for operators: changes and errors may name tenants and paths."""
        match each:
            case Applied() if not whole:
                return msgspec.structs.replace(each, changes=[])
            case Saved(error=error) if error and not whole:
                return msgspec.structs.replace(each, error=FOR_OPERATORS)
        return each

    @property
    def now(self) -> Applied | None:
        """The revision in force."""
        return self.history[-1] if self.history else None

    @property
    def label(self) -> str:
        """`name@revision`, or empty before the first."""
        return "" if self.now is None else f"{self.now.name}@{self.now.revision}"

    def received(
        self, message: PolicyPrepare | PolicyCommit | PolicyAbort | PolicyNow | PolicyStatus
    ) -> PolicyPrepared | None:
        """Take part in a change; returns the answer where one is due."""
        match message:
            case PolicyPrepare():
                return PolicyPrepared(message.revision, self._prepare(message.revision, message.document))
            case PolicyNow():
                self._prepare(message.revision, message.document)
                self._commit(message.revision)
            case PolicyCommit():
                self._commit(message.revision)
            case PolicyAbort():
                self._prepared = None
            case PolicyStatus():
                self.last_save = Saved(message.outcome, message.error, time.time())
                if message.outcome == "rejected":
                    self.last_rejection = self.last_save
        return None

    def _prepare(self, revision: int, document: bytes) -> str:
        try:
            policy = load_policy(document)
        except PolicyError as error:
            self._prepared = None
            return str(error)
        self._prepared = revision, policy
        return ""

    def _commit(self, revision: int) -> None:
        prepared, self._prepared = self._prepared, None
        if prepared is None or prepared[0] != revision:
            return
        before, (_, policy) = self.policy, prepared
        if self.now is not None and self.now.revision == revision and before == policy:
            return  # told again by an admission service that was restarted
        self.policy = policy
        classes = tuple(each.name for each in policy.classes)
        words = changes(before, policy) if before is not None else []
        self.history.append(Applied(revision, policy.name, classes, time.time(), words))
