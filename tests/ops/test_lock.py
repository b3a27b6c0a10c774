"""ops/constraints.txt is whole: what is installed from it needs nothing that it does not pin."""

import re
import tomllib
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from ops.lock import PARTS, TORCH_ON_CPU, Pin, normalized, read_lock, read_pins

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK = read_lock((ROOT / "ops" / "constraints.txt").read_text())
INSTALLED_TOGETHER = {"base": ("base",), "engine": ("base", "engine"), "test": ("base", "engine", "test")}
ASKED = {
    "base": [*PROJECT["project"]["dependencies"], *PROJECT["build-system"]["requires"]],
    **PROJECT["project"]["optional-dependencies"],
}


def pinned(parts: tuple[str, ...]) -> dict[str, Pin]:
    return {pin.name: pin for part in parts for pin in LOCK[part]}


def test_the_lock_has_its_parts_and_every_pin_has_hashes() -> None:
    assert tuple(LOCK) == PARTS
    assert [pin.name for pins in LOCK.values() for pin in pins if not pin.hashes] == []


@pytest.mark.parametrize("part", INSTALLED_TOGETHER)
def test_everything_that_the_project_asks_for_is_pinned_in_its_part(part: str) -> None:
    pins = pinned((part,))
    for text in ASKED[part]:
        asked = Requirement(text)
        assert normalized(asked.name) in pins, f"{text}: run `python3 ops/lock.py`"
        assert asked.specifier.contains(pins[normalized(asked.name)].version)


@pytest.mark.parametrize("part", INSTALLED_TOGETHER)
def test_what_is_pinned_needs_nothing_that_is_not(part: str) -> None:
    pins = pinned(INSTALLED_TOGETHER[part])
    missing = []
    for pin in LOCK[part]:
        if pin.name not in installed():
            continue  # of another machine or Python, by its marker
        for text in metadata.requires(pin.name) or ():
            needed = Requirement(text)
            if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
                continue
            found = pins.get(normalized(needed.name))
            if found is None or not SpecifierSet(str(needed.specifier)).contains(found.version, prereleases=True):
                missing.append(f"{pin.name} needs {needed}")
    assert missing == []


def test_what_is_installed_here_is_what_is_pinned() -> None:
    pins = pinned(PARTS)
    versions = installed()
    found = {name: versions[name].partition("+")[0] for name in pins if name in versions}
    assert found == {name: pins[name].version for name in found}
    assert len(found) > 80


def test_torch_for_machines_without_a_gpu_is_pinned_too_and_needs_no_library_of_cuda() -> None:
    torch = pinned(("engine",))["torch"]
    assert set(TORCH_ON_CPU[torch.version]) < set(torch.hashes)
    assert not [pin.name for pin in LOCK["engine"] if re.match("nvidia|cuda", pin.name)]
    assert [pin.name for pin in LOCK["cuda"] if pin.name.startswith("nvidia")]


@pytest.mark.parametrize("line", ["torch", "torch>=2", "torch==2.13.0 --hash=md5:0", "    --hash=sha256:beef"])
def test_a_line_that_pins_nothing_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="line 1"):
        read_pins(line)


@cache
def installed() -> dict[str, str]:
    """By name; to read what all distributions say of themselves takes a tenth of a second."""
    return {normalized(each.name): each.version for each in metadata.distributions()}
