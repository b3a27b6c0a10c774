"""A data folder whose disk is full, or becomes read-only, under a running deployment: it serves, says so, and loses no
count. And one that is read-only at the start, on which nothing starts.
"""

import json
import os
import shutil
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from deployed import House, fairlead

from services.revisions import Revisions

ROOM_BYTES = 32 * 2**20
"""Enough for the services to start, and little to fill."""


def mount(*arguments: str) -> bool:
    return subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode == 0


def run(*command: str) -> bool:
    return (
        shutil.which(command[0]) is not None
        and subprocess.run(command, capture_output=True, check=False).returncode == 0
    )


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own, where the data folder will be; what it is in lies beside it."""
    data, image = tmp_path / "data", tmp_path / "image"
    data.mkdir()
    image.touch()
    os.truncate(image, ROOM_BYTES)
    if not (run("mkfs.ext4", "-q", "-F", "-m", "0", str(image)) and mount("-o", "loop", str(image), str(data))):
        pytest.skip("file systems cannot be made and mounted here")
    yield data
    while run("umount", "--lazy", str(data)):
        pass


def ask(running: House) -> None:
    body = json.dumps({"model": "demo", "prompt": "import os", "max_tokens": 4, "ignore_eos": True}).encode()
    headers = {"authorization": f"Bearer {running.key}", "content-type": "application/json"}
    request = urllib.request.Request(f"{running.url}/v1/completions", body, headers)
    with urllib.request.urlopen(request, timeout=20) as answer:
        assert json.load(answer)["usage"]["completion_tokens"] == 4


def fill(path: Path) -> None:
    block = bytes(2**16)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        while block:
            try:
                os.write(descriptor, block)
            except OSError:
                block = block[: len(block) // 2]
    finally:
        os.close(descriptor)


def is_degraded(answer: dict[str, Any]) -> bool:
    return "state" in answer["degraded"].get("admission", [])


def repair(disk: Path) -> None:
    """Mount it anew, over what running processes have open."""
    repaired = disk.with_name("repaired")
    shutil.copy(disk.with_name("image"), repaired)
    run("e2fsck", "-f", "-y", str(repaired))
    assert mount("-o", "loop", str(repaired), str(disk))


@pytest.mark.slow
def test_a_full_disk_and_a_read_only_one_cost_no_request_and_no_count_and_on_the_latter_nothing_starts(
    disk: Path, house: Callable[..., House]
) -> None:
    running = house("--record", str(disk / "record"))
    ask(running)
    fill(disk / "fill")
    # Both cores' records stop there; requests go on.
    for _ in range(12):
        ask(running)
    answer = running.wait_until("/readyz", is_degraded)
    assert answer["ready"]
    running.policy.write_bytes(running.policy.read_bytes() + b"# saved while the disk is full\n")
    running.wait_until("/readyz", lambda answer: answer["policy"]["revision"] == 2)
    (disk / "fill").unlink()
    running.wait_until("/readyz", lambda answer: not is_degraded(answer))

    usage = running.wait_until("/v1/fairlead/usage", lambda answer: answer["usage"][0]["requests"] == 13)
    assert usage["usage"][0]["output_tokens"] == 52
    # The traffic is written again with the next of it; a record with a gap is none.
    lasting = {"admission": ["event_log"], "scheduler": ["event_log"]}
    running.wait_until("/readyz", lambda answer: ask(running) or answer["degraded"] == lasting)

    # What the kernel does to a disk with errors: files that are open for writing do not keep it from that.
    assert mount("-o", "remount,abort", str(disk))
    ask(running)
    both = {"gateway": {"traffic"}, "admission": {"event_log", "state"}, "scheduler": {"event_log", "traffic"}}
    troubled = running.wait_until(
        "/readyz", lambda answer: {name: set(said) for name, said in answer["degraded"].items()} == both
    )
    assert troubled["ready"]
    ask(running)
    repair(disk)
    running.wait_until("/readyz", lambda answer: ask(running) or answer["degraded"] == lasting)
    used = running.wait_until("/v1/fairlead/usage", lambda answer: answer["usage"][0]["requests"] >= 16)["usage"][0]
    assert used["output_tokens"] == 4 * used["requests"]
    assert running.stop() == 0
    assert "ended" not in running.text
    assert [each.revision for each in Revisions(str(disk)).all()] == [1, 2]

    assert mount("-o", "remount,ro", str(disk))
    refused = fairlead("up", "--data-dir", str(disk), "--port", "0", check=False)
    assert refused.returncode == 2
    assert refused.stderr == f"fairlead: data folder {disk}: Read-only file system; name another with --data-dir\n"
