"""`fairlead policy apply`, `rollback`, `history`, `diff` and `explain`, with admission at work and without."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from services.admission import policy_files
from services.admission.service import AdmissionService
from services.cli import main
from services.health import ready_file
from services.revisions import Revisions
from services.runtime import ReadyFile
from services.settings import STARTED, Deployment

POLICIES = Path(__file__).resolve().parents[2] / "policies"
SLAI, FCFS, VLLM = (POLICIES / f"{name}.yaml" for name in ("slai", "fcfs", "vllm"))


class Place(NamedTuple):
    """A data folder and the policy file in use."""

    deployment: Deployment
    policy: Path

    def command(self, *arguments: str | Path) -> int:
        return main(["policy", *map(str, arguments), "--data-dir", self.deployment.data])

    def service(self) -> AdmissionService:
        return AdmissionService(self.deployment)

    @property
    def names(self) -> list[str]:
        return [revision.name for revision in Revisions(self.deployment.data).all()]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setattr(policy_files, "POLL_S", 0.002)
    monkeypatch.setattr("services.policy_apply.STOPPED_ANSWER_S", 0.01)
    policy = tmp_path / "policy.yaml"
    policy.write_bytes(SLAI.read_bytes())
    deployment = Deployment(data=str(tmp_path / "data"), policy=str(policy)).resolved()
    Path(deployment.data).mkdir()
    Path(deployment.streams.secret_file).write_bytes(b"s" * 32)
    (Path(deployment.data) / STARTED).write_bytes(msgspec.json.encode(deployment))
    return Place(deployment, policy)


@pytest.fixture
async def admission(place: Place) -> AsyncIterator[AdmissionService]:
    ReadyFile(Path(place.deployment.run), "admission").update("")
    service = place.service()
    await service.start()
    yield service
    await service.stop()


async def test_an_applied_policy_is_in_force_and_in_the_history(place, admission, capsys) -> None:
    assert await asyncio.to_thread(place.command, "apply", FCFS, "-m", "a quiet night") == 0
    out = capsys.readouterr().out
    assert out.startswith(f"revision 2 is in force: fcfs, from {FCFS}\n")
    assert "  name: slai -> fcfs\n" in out
    assert admission._revisions.document == place.policy.read_bytes() == FCFS.read_bytes()
    assert place.command("history") == 0
    header, newest, oldest = capsys.readouterr().out.splitlines()
    assert header.split() == ["REVISION", "SINCE", "NAME", "DIGEST", "BY", "MESSAGE"]
    assert newest.startswith("2 ")
    assert newest.endswith("a quiet night")
    assert "(the file was edited)" in oldest
    assert place.command("history", "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert [(each["revision"], each["name"], each["message"]) for each in listed] == [
        (1, "slai", ""),
        (2, "fcfs", "a quiet night"),
    ]
    assert listed[1]["document"] == FCFS.read_text()


async def test_applying_what_is_in_force_changes_nothing(place, admission, capsys) -> None:
    await asyncio.to_thread(place.command, "apply", FCFS)
    capsys.readouterr()
    assert await asyncio.to_thread(place.command, "apply", FCFS) == 0
    assert capsys.readouterr().out == f"{FCFS} is in force already, as revision 2\n"
    assert place.names == ["slai", "fcfs"]


async def test_a_rollback_is_a_revision_of_its_own(place, admission, capsys) -> None:
    for file in (FCFS, VLLM):
        await asyncio.to_thread(place.command, "apply", file)
    assert await asyncio.to_thread(place.command, "rollback") == 0
    assert await asyncio.to_thread(place.command, "rollback", "1", "-m", "back to the start") == 0
    assert place.names == ["slai", "fcfs", "vllm", "fcfs", "slai"]
    messages = [revision.message for revision in Revisions(place.deployment.data).all()]
    assert messages == ["", "", "", "rollback to revision 2", "back to the start"]
    assert admission._revisions.document == SLAI.read_bytes()
    capsys.readouterr()
    assert await asyncio.to_thread(place.command, "rollback", "9") == 2
    assert "there is no revision 9" in (err := capsys.readouterr().err)
    assert "it has 1 to 5" in err


async def test_a_save_that_a_service_cannot_use_is_reported_and_may_be_tried_again(place, admission, capsys) -> None:
    def refuse(document: bytes, file: str) -> str:
        return f"{file}:1:1: not on a Monday"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policy_files, "validate", refuse)
        assert await asyncio.to_thread(place.command, "apply", FCFS) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"{FCFS} was not applied, revision 1 stays in force:\n")
    assert "not on a Monday" in err
    assert place.command("history") == 0
    assert "was not applied:" in capsys.readouterr().out
    assert await asyncio.to_thread(place.command, "apply", FCFS) == 0
    assert place.names == ["slai", "fcfs"]


async def test_of_two_applies_at_once_both_come_into_force(place, admission, monkeypatch) -> None:
    monkeypatch.setattr(policy_files, "POLL_S", 0.05)  # long enough for the second to overwrite the first
    statuses = await asyncio.gather(*(asyncio.to_thread(place.command, "apply", file) for file in (FCFS, VLLM)))
    assert statuses == [0, 0]
    assert sorted(place.names) == ["fcfs", "slai", "vllm"]


async def test_an_edited_file_is_in_the_history_too(place, admission) -> None:
    place.policy.write_bytes(VLLM.read_bytes())
    async with asyncio.timeout(10):
        while place.names != ["slai", "vllm"]:  # noqa: ASYNC110  a file is watched by looking
            await asyncio.sleep(0.002)


async def test_revisions_go_on_counting_after_a_restart(place, admission) -> None:
    await asyncio.to_thread(place.command, "apply", FCFS)
    await admission.stop()
    for file, expected in ((FCFS, 2), (VLLM, 3), (VLLM, 3)):
        place.policy.write_bytes(file.read_bytes())
        again = place.service()
        await again.start()
        assert again._revisions.revision == expected
        await again.stop()
    assert place.names == ["slai", "fcfs", "vllm"]


async def test_a_history_that_cannot_be_used_does_not_keep_a_policy_from_being_used(place, caplog) -> None:
    Revisions(place.deployment.data).path.write_bytes(b"no database at all " * 100)
    service = place.service()
    await service.start()
    assert service._revisions.revision == 1
    await service.stop()
    assert "the history of the policy cannot be used" in caplog.text
    assert "revisions count from 1" in caplog.text


def test_an_apply_while_nothing_runs_is_taken_at_the_next_start(place, capsys) -> None:
    assert place.command("apply", FCFS) == 1
    err = capsys.readouterr().err
    assert f"{place.policy} held what was never in force; it is kept as {place.policy}.replaced" in err
    assert "the services do not run: it comes into force when they take it" in err
    assert place.policy.read_bytes() == FCFS.read_bytes()
    assert place.policy.with_name("policy.yaml.replaced").read_bytes() == SLAI.read_bytes()


def test_a_policy_with_problems_is_not_written(place, tmp_path, capsys) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text(FCFS.read_text().replace("version: 1", "version: 7"))
    assert place.command("apply", broken) == 2
    assert capsys.readouterr().err.startswith(f"{broken}:")
    assert place.policy.read_bytes() == SLAI.read_bytes()
    assert place.command("apply", tmp_path / "missing.yaml") == 2
    assert "missing.yaml: cannot be read: No such file or directory" in capsys.readouterr().err


def test_a_policy_that_only_a_replay_can_use_is_not_written(place, tmp_path, capsys) -> None:
    knowing = tmp_path / "knowing.yaml"
    knowing.write_text(FCFS.read_text().replace("kv: {admit: prompt", "kv: {admit: future, estimate: oracle"))
    for command in (("apply", knowing), ("plan", knowing, "--shadow", "1")):
        assert place.command(*command) == 2
        assert "oracle is for replays" in capsys.readouterr().err
    assert place.policy.read_bytes() == SLAI.read_bytes()


def test_a_file_that_cannot_be_written_is_said_with_the_way_out(place, capsys) -> None:
    place.policy.unlink()
    place.policy.mkdir()
    assert place.command("apply", FCFS) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"fairlead policy: {place.policy}: the policy in use cannot be written: ")
    assert "where the file is mounted from elsewhere, save it there" in err


def test_differences_and_explanations_take_files_and_revisions(place, capsys) -> None:
    history = Revisions(place.deployment.data)
    for number, file in enumerate((SLAI, FCFS), start=1):
        history.began(number, file.stem, file.read_bytes())
    assert place.command("diff", "1", VLLM) == 0
    assert capsys.readouterr().out.startswith(f"from revision 1 (slai) to {VLLM} (vllm):\n")
    assert place.command("diff", "1") == 0
    assert "from revision 2 (fcfs) to revision 1 (slai):\n" in (out := capsys.readouterr().out)
    assert "name: fcfs -> slai\n" in out
    assert place.command("diff", FCFS) == 0
    assert capsys.readouterr().out.endswith("nothing changes\n")
    assert place.command("explain") == 0
    assert capsys.readouterr().out.startswith("revision 2\nfcfs")
    assert place.command("explain", "1") == 0
    assert capsys.readouterr().out.startswith("revision 1\nslai: Defers decodes")


def test_before_the_first_start_the_file_is_explained_and_the_history_says_so(place, capsys) -> None:
    assert place.command("explain") == 0
    assert capsys.readouterr().out.startswith(f"{place.policy}\nslai")
    assert place.command("history") == 0
    assert "no revision yet" in capsys.readouterr().out
    assert place.command("rollback") == 2
    assert "there is nothing to go back to" in capsys.readouterr().err
    assert not ready_file(place.deployment.run, "admission").exists()


TABLE = "prompt_tokens,output_tokens,cost\n1,0,1\n1,9,2\n9,0,3\n9,9,4\n"
BY_TABLE = """version: 1
name: by_table
classes: [{name: all, ttft_s: 1, tbt_s: 1}]
fairness: {cost: {kind: table, file: a.csv}}
batching: {stages: [{decode: {}}, {prefill: {from: waiting}}]}
"""


async def in_force(place: Place, names: list[str]) -> None:
    async with asyncio.timeout(10):
        while place.names != names:  # noqa: ASYNC110  a file is watched by looking
            await asyncio.sleep(0.002)


async def test_a_revision_keeps_the_table_of_its_time(place, admission, capsys) -> None:
    file = place.policy.with_name("new.yaml")
    file.write_text(BY_TABLE)
    table = place.policy.with_name("a.csv")
    table.write_text(TABLE)
    assert await asyncio.to_thread(place.command, "apply", file) == 0
    assert place.policy.read_text() == BY_TABLE, "beside its table the policy goes on naming it"
    table.write_text(TABLE.replace("9,9,4", "9,9,40"))
    await in_force(place, ["slai", "by_table", "by_table"])
    capsys.readouterr()
    assert place.command("diff", "2", "3") == 0
    assert "fairness.cost.file.costs: [[1.0, 2.0], [3.0, 4.0]] -> [[1.0, 2.0], [3.0, 40.0]]" in capsys.readouterr().out
    assert await asyncio.to_thread(place.command, "rollback", "2") == 0
    assert [revision.document.count(b"[3.0,4.0]") for revision in Revisions(place.deployment.data).all()] == [
        0,
        1,
        0,
        1,
    ]
    assert b"[3.0,4.0]" in place.policy.read_bytes()
    table.write_text("")
    assert place.command("explain", "3") == 0


def test_a_policy_from_another_folder_brings_the_points_of_its_table(place, capsys) -> None:
    file = place.policy.parent / "elsewhere" / "new.yaml"
    file.parent.mkdir()
    file.write_text(BY_TABLE)
    assert place.command("apply", file) == 2
    assert f"{file}:4:38: fairness.cost.file: {file.with_name('a.csv')} cannot be read" in capsys.readouterr().err
    file.with_name("a.csv").write_text(TABLE)
    place.command("apply", file)
    assert b'file: {"name":"a.csv"' in place.policy.read_bytes()


def test_a_policy_is_checked_and_explained_with_its_table(place, capsys) -> None:
    place.policy.write_text(BY_TABLE)
    assert main(["policy", "check", str(place.policy)]) == 2
    assert "a.csv cannot be read: No such file" in capsys.readouterr().err
    place.policy.with_name("a.csv").write_text(TABLE)
    assert main(["policy", "check", str(place.policy)]) == 0
    assert "what the table of a.csv says" in capsys.readouterr().out
