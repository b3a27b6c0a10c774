"""An admission process that is not the first takes part in revisions of the policy, and proposes none."""

from typing import Any

from services.admission.followed_revisions import FollowedRevisions
from services.wire import PolicyAbort, PolicyCommit, PolicyNow, PolicyPrepare, PolicyPrepared
from tests.policies.admission.test_admission_core import document


class First:
    """The stream to the first process."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def send(self, message: Any) -> None:
        self.sent.append(message)


def following() -> tuple[FollowedRevisions, First, list[int]]:
    applied: list[int] = []
    return FollowedRevisions("policy.yaml", lambda revision, _: applied.append(revision)), First(), applied


def test_it_begins_with_the_revision_in_force() -> None:
    revisions, first, applied = following()
    assert not revisions.begun.is_set()
    for _ in range(2):
        revisions.received(first, PolicyNow(4, document()))  # type: ignore[arg-type]
    assert (revisions.revision, applied, revisions.begun.is_set()) == (4, [4], True)


def test_a_revision_comes_into_force_when_all_have_agreed() -> None:
    revisions, first, applied = following()
    revisions.received(first, PolicyPrepare(5, document()))  # type: ignore[arg-type]
    assert (first.sent, applied) == ([PolicyPrepared(5, "")], [])
    revisions.received(first, PolicyCommit(5))  # type: ignore[arg-type]
    assert applied == [5]


def test_one_that_cannot_be_used_is_not_taken_and_neither_is_an_aborted_one() -> None:
    revisions, first, applied = following()
    revisions.received(first, PolicyPrepare(5, b"version: 1\nnonsense: 2\n"))  # type: ignore[arg-type]
    assert "nonsense" in first.sent[0].error
    revisions.received(first, PolicyPrepare(6, document()))  # type: ignore[arg-type]
    revisions.received(first, PolicyAbort(6))  # type: ignore[arg-type]
    for revision in (5, 6):
        revisions.received(first, PolicyCommit(revision))  # type: ignore[arg-type]
    assert applied == []
