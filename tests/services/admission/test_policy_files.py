import asyncio
import os
from pathlib import Path

import pytest

from services.admission import policy_files
from services.admission.policy_files import PolicyFile, PolicyRevisions
from services.runtime import StartError
from services.transport import Identity, inproc_pair
from services.wire import PolicyAbort, PolicyCommit, PolicyNow, PolicyPrepare, PolicyPrepared, PolicyStatus

POLICY = (Path(__file__).resolve().parents[3] / "policies" / "fcfs.yaml").read_bytes()
OTHER = POLICY + b"# saved again\n"
RIGHT = "a number, at least 0"
BROKEN = b"version: 1\nname: Not A Name\n"


class House:
    """Revisions at one end, services at the other."""

    def __init__(self, recorder) -> None:
        self.recorder = recorder
        self.applied: list[tuple[int, bytes]] = []
        self.rejected: list[tuple[int, bytes, str]] = []
        self.revisions = PolicyRevisions(
            "policy.yaml", lambda *revision: self.applied.append(revision), lambda *save: self.rejected.append(save)
        )
        self.revisions.first(POLICY)

    def join(self, service: str):
        theirs = self.recorder()
        _, stream = inproc_pair(
            Answers(self.revisions), theirs, identity_a=Identity("admission"), identity_b=Identity(service, "1")
        )
        theirs.stream = stream
        return theirs


class Answers:
    """What the service does with the streams of others."""

    def __init__(self, revisions: PolicyRevisions) -> None:
        self.revisions = revisions

    def opened(self, stream) -> None:
        self.revisions.joined(stream)

    def closed(self, stream, reason: str) -> None:
        self.revisions.left(stream)

    def received(self, stream, message) -> None:
        self.revisions.prepared(stream, message)

    def stalled(self, stream) -> None: ...

    def resumed(self, stream) -> None: ...


@pytest.fixture
async def house(recorder):
    made = House(recorder)
    yield made
    made.revisions.stop()


async def test_a_service_that_joins_gets_the_revision_in_force(house) -> None:
    scheduler = house.join("scheduler")
    now = await scheduler.message(PolicyNow)
    assert (now.revision, now.document) == (1, POLICY)


async def test_a_save_is_committed_when_every_service_is_ready_and_not_before(house) -> None:
    scheduler, gateway = house.join("scheduler"), house.join("gateway")
    house.revisions.saved(OTHER)
    assert (await scheduler.message(PolicyPrepare)).document == OTHER
    scheduler.stream.send(PolicyPrepared(2))
    await gateway.message(PolicyPrepare)
    assert house.applied == [(1, POLICY)]
    gateway.stream.send(PolicyPrepared(2))
    assert (await scheduler.message(PolicyCommit)).revision == 2
    assert (await gateway.message(PolicyStatus)).outcome == "applied"
    assert house.applied == [(1, POLICY), (2, OTHER)]


async def test_an_invalid_save_changes_nothing_and_says_where_it_is_wrong(house, caplog) -> None:
    gateway = house.join("gateway")
    house.revisions.saved(BROKEN)
    status = await gateway.message(PolicyStatus)
    assert (status.revision, status.outcome) == (1, "rejected")
    assert status.error.startswith("policy.yaml:")
    assert status.error in caplog.text
    assert house.applied == [(1, POLICY)]


async def test_a_service_that_cannot_use_a_save_aborts_it_for_all(house) -> None:
    scheduler, gateway = house.join("scheduler"), house.join("gateway")
    house.revisions.saved(OTHER)
    await gateway.message(PolicyPrepare)
    gateway.stream.send(PolicyPrepared(2, "no such stage here"))
    assert (await scheduler.message(PolicyAbort)).revision == 2
    assert "gateway 1 cannot use it: no such stage here" in (await gateway.message(PolicyStatus)).error
    assert house.revisions.revision == 1


async def test_a_service_that_does_not_answer_in_time_aborts_the_save(house, monkeypatch) -> None:
    monkeypatch.setattr(policy_files, "ANSWER_S", 0.01)
    gateway = house.join("gateway")
    house.revisions.saved(OTHER)
    assert "no answer within 0.01 s from gateway 1" in (await gateway.message(PolicyStatus)).error


async def test_saves_while_one_is_in_flight_become_revisions_in_their_order(house) -> None:
    scheduler = house.join("scheduler")
    for document in (OTHER, POLICY, OTHER):
        house.revisions.saved(document)
    for number in (1, 2, 3):
        proposed = await scheduler.message(PolicyPrepare, number)
        scheduler.stream.send(PolicyPrepared(proposed.revision))
    await scheduler.message(PolicyCommit, 3)
    assert house.applied == [(1, POLICY), (2, OTHER), (3, POLICY), (4, OTHER)]


async def test_a_service_that_leaves_is_not_waited_for(house) -> None:
    scheduler, gateway = house.join("scheduler"), house.join("gateway")
    house.revisions.saved(OTHER)
    await scheduler.message(PolicyPrepare)
    scheduler.stream.send(PolicyPrepared(2))
    gateway.stream.close()
    await scheduler.message(PolicyCommit)


async def test_a_service_that_joins_while_a_save_is_in_flight_takes_part_in_it(house) -> None:
    scheduler = house.join("scheduler")
    house.revisions.saved(OTHER)
    gateway = house.join("gateway")
    assert [type(message) for message in (await gateway.message(PolicyPrepare), gateway.messages[0])] == [
        PolicyPrepare,
        PolicyNow,
    ]
    await scheduler.message(PolicyPrepare)
    for service in (scheduler, gateway):
        service.stream.send(PolicyPrepared(2))
    await gateway.message(PolicyCommit)


async def test_a_late_answer_about_an_aborted_revision_is_ignored(house) -> None:
    gateway = house.join("gateway")
    house.revisions.saved(OTHER)
    await gateway.message(PolicyPrepare)
    gateway.stream.send(PolicyPrepared(2, "no"))
    await gateway.message(PolicyAbort)
    house.revisions.saved(OTHER)
    gateway.stream.send(PolicyPrepared(2))
    assert (await gateway.message(PolicyPrepare, 2)).revision == 3
    gateway.stream.send(PolicyPrepared(3))
    assert (await gateway.message(PolicyCommit)).revision == 3


@pytest.fixture
def file(tmp_path: Path) -> PolicyFile:
    path = tmp_path / "policy.yaml"
    path.write_bytes(POLICY)
    watched = PolicyFile(path, lambda content: None, lambda content, why: None)
    assert watched.read() == POLICY
    return watched


def looks(file: PolicyFile, number: int = 3) -> list[bytes]:
    found = [content for content in (file.look() for _ in range(number)) if content is not None]
    assert all(not why for _, why in found)
    return [document for document, _ in found]


def test_a_save_in_place_is_seen_once_it_has_settled(file: PolicyFile) -> None:
    assert looks(file) == []
    file.path.write_bytes(OTHER)
    assert file.look() is None
    assert looks(file) == [OTHER]


def test_a_save_by_rename_is_seen_even_with_the_old_time_and_size(file: PolicyFile) -> None:
    before = file.path.stat()
    new = file.path.with_suffix(".new")
    new.write_bytes(POLICY.replace(b"version: 1", b"version: 2"))
    os.utime(new, ns=(before.st_atime_ns, before.st_mtime_ns))
    new.rename(file.path)
    assert len(looks(file)) == 1


def test_a_missing_file_is_nothing_and_one_that_comes_back_is_seen(file: PolicyFile) -> None:
    file.path.unlink()
    assert looks(file) == []
    file.path.write_bytes(OTHER)
    assert looks(file) == [OTHER]


def test_a_file_that_stays_away_is_a_problem_until_it_is_back_and_is_a_save_then(file: PolicyFile) -> None:
    file.path.unlink()
    for _ in range(policy_files.MISSES_TO_SAY - 1):
        assert file.look() is None
    assert file.problem == ""
    assert file.look() is None
    assert file.problem == f"{file.path}: cannot be read: No such file or directory"
    file.path.write_bytes(POLICY)
    assert looks(file) == [POLICY]
    assert file.problem == ""


def test_a_fifo_in_the_files_place_keeps_nobody_waiting(file: PolicyFile) -> None:
    file.path.unlink()
    os.mkfifo(file.path)
    assert looks(file, policy_files.MISSES_TO_SAY + 1) == []
    assert file.problem == f"{file.path}: cannot be read: it is a FIFO, not a regular file"


async def test_a_file_that_cannot_be_read_is_told_once_as_a_refused_save(house, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(policy_files, "POLL_S", 0.001)
    path = tmp_path / "policy.yaml"
    path.write_bytes(POLICY)
    seen: asyncio.Queue[bytes] = asyncio.Queue()
    told: asyncio.Queue[tuple[bytes, str]] = asyncio.Queue()
    file = PolicyFile(path, seen.put_nowait, lambda *save: told.put_nowait(save))
    file.read()
    file.start()
    path.unlink()
    house.revisions.unusable(*await asyncio.wait_for(told.get(), 5))
    path.write_bytes(POLICY)
    assert await asyncio.wait_for(seen.get(), 5) == POLICY
    file.stop()
    assert house.rejected == [(1, b"", f"{path}: cannot be read: No such file or directory")]
    assert house.revisions.revision == 1
    assert told.empty()


def test_a_save_without_a_change_is_not_a_revision(file: PolicyFile) -> None:
    os.utime(file.path, ns=(1, 1))
    assert looks(file) == []


def test_a_change_back_is_a_revision_of_its_own(file: PolicyFile) -> None:
    seen = []
    for index, content in enumerate((OTHER, POLICY, OTHER)):
        file.path.write_bytes(content)
        os.utime(file.path, ns=(index, index))
        seen += looks(file)
    assert seen == [OTHER, POLICY, OTHER]


async def test_the_watch_reports_a_save(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(policy_files, "POLL_S", 0.001)
    path = tmp_path / "policy.yaml"
    path.write_bytes(POLICY)
    seen: asyncio.Queue[bytes] = asyncio.Queue()
    file = PolicyFile(path, seen.put_nowait, lambda content, why: None)
    file.read()
    file.start()
    path.write_bytes(OTHER)
    assert await asyncio.wait_for(seen.get(), 5) == OTHER
    file.stop()


TABLE = "prompt_tokens,output_tokens,cost\n1,0,1\n1,9,2\n9,0,3\n9,9,4\n"
BY_TABLE = POLICY.replace(b"fairness:", b"fairness:\n  cost: {kind: table, file: costs/a10g.csv}\n  #", 1)


@pytest.fixture
def table(file: PolicyFile) -> Path:
    """Named by the policy file, and read with it."""
    path = file.path.parent / "costs" / "a10g.csv"
    path.parent.mkdir()
    path.write_text(TABLE)
    file.path.write_bytes(BY_TABLE)
    (document,) = looks(file, 5)
    assert b'"costs":[[1.0,2.0],[3.0,4.0]]' in document
    return path


def test_a_saved_table_is_a_save_of_the_policy(file: PolicyFile, table: Path) -> None:
    assert looks(file) == []
    table.write_text(TABLE.replace("9,9,4", "9,9,40"))
    assert file.look() is None
    (document,) = looks(file)
    assert b'"costs":[[1.0,2.0],[3.0,40.0]]' in document


def test_a_table_that_cannot_be_used_says_where_and_is_a_save_when_it_is_mended(file: PolicyFile, table: Path) -> None:
    table.write_text(TABLE.replace("9,9,4", "9,9,-4"))
    looked = [content for content in (file.look() for _ in range(3)) if content is not None]
    assert looked == [(BY_TABLE, f'{table}:5:5: fairness.cost.file: the text "-4" does not fit; allowed: {RIGHT}')]
    file.forget()
    assert looks(file) == []
    table.write_text(TABLE)
    assert len(looks(file)) == 1


def test_a_table_that_is_not_there_is_said_at_its_name_in_the_policy(file: PolicyFile, table: Path) -> None:
    table.unlink()
    line = 1 + BY_TABLE[: BY_TABLE.index(b"costs/")].count(b"\n")
    (found,) = [content for content in (file.look() for _ in range(3)) if content is not None]
    assert found[1].startswith(f"{file.path}:{line}:29: fairness.cost.file: {table} cannot be read: No such file")


def test_services_do_not_start_with_a_table_that_cannot_be_read(file: PolicyFile, table: Path) -> None:
    table.write_text("")
    with pytest.raises(StartError, match=r"a10g.csv:1:1: .*the column prompt_tokens is missing"):
        policy_files.first_document(file)
