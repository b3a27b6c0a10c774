"""500 kinds of damage to each file that operators write, as the services come upon them."""

from pathlib import Path

import pytest

from ops.bench.damage import DOCUMENTS, SAVED, is_placed
from ops.bench.damage_kinds import NUM_KINDS, damages

PATH = Path("file.yaml")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_kind_of_damage_is_refused_with_its_place_and_changes_nothing(name: str, tmp_path: Path) -> None:
    saved = SAVED[name](tmp_path)
    wrong = []
    for damage in damages(DOCUMENTS[name]):
        saved.path.write_bytes(damage.content)
        refused = saved.look()
        if not refused.stays or not is_placed(refused.said, saved.path):
            wrong.append((damage.kind, refused))
    assert wrong == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_kinds_are_as_many_as_said_and_the_same_each_time(name: str) -> None:
    kinds = damages(DOCUMENTS[name])
    assert len({damage.kind for damage in kinds}) == len({damage.content for damage in kinds}) == NUM_KINDS
    assert kinds == damages(DOCUMENTS[name])


@pytest.mark.parametrize("name", DOCUMENTS)
async def test_what_is_not_damaged_is_taken(name: str, tmp_path: Path) -> None:
    saved = SAVED[name](tmp_path)
    saved.path.write_bytes(DOCUMENTS[name] + b"# seen\n")
    refused = saved.look()
    assert refused.said == ""
    assert not refused.stays


@pytest.mark.parametrize(
    "said", ["", "file.yaml: wrong; right", "file.yaml:1:x: wrong; right", "file.yaml:1:2: wrong", "all is lost"]
)
def test_a_refusal_without_a_place_or_a_fix_does_not_count(said: str) -> None:
    assert not is_placed(said, PATH)
    assert not is_placed(f"file.yaml:1:2: name: wrong; right\n{said or 'x'}", PATH)
