"""Starting and stopping, as somebody who types the command sees it."""

import fcntl
import json
import socket
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from deployed import ROOT, House, fairlead


def processes_of(data: Path) -> list[str]:
    """Command lines of processes that name the data folder in their environment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            environment = (entry / "environ").read_bytes()
            command = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if str(data).encode() in environment and b"services.cli" in command:
            found.append(command.replace(b"\0", b" ").decode())
    return found


@pytest.mark.slow
def test_up_serves_what_it_prints_and_leaves_nothing_behind(house: Callable[..., House]) -> None:
    running = house()
    assert running.output[0].startswith("Model: the demo, a small model trained on")
    assert any(line.startswith("KV pool: ") and "bounded by" in line for line in running.output)
    curl = next(line for line in running.output if line.startswith("curl "))
    answered = subprocess.run(["bash", "-c", f"{curl.strip()} --silent"], capture_output=True, check=True)
    answer = json.loads(answered.stdout)
    assert answer["usage"]["completion_tokens"] > 0
    assert answer["choices"][0]["text"].strip()
    assert len(processes_of(running.data)) == 4
    run_folder = running.run_folder
    assert run_folder.exists()
    key = running.key
    others_may = [path for path in running.data.rglob("*") if stat.S_IMODE(path.stat().st_mode) & 0o077]
    assert others_may == []

    assert running.stop() == 0, running.text
    assert processes_of(running.data) == []
    assert not run_folder.exists()
    left = {path.name for path in running.data.iterdir()}
    kept = {"admission.lock", "admission.sqlite", "deployment.json", "policy-history.sqlite", "traffic", "epochs"}
    assert left == {"admin.key", "demo.key", "lock", "services.lock", "logs", "streams.secret", "tenants.yaml", *kept}

    again = House(running.data.parent)
    again.start()
    assert again.key == key
    assert again.stop() == 0


def test_a_second_up_on_the_same_data_folder_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as the first one does, which the story above shows to keep it
        refused = fairlead("up", "--data-dir", str(tmp_path), "--port", "0", check=False)
    assert_refused(refused, "in use by another")


def test_a_port_in_use_ends_with_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused = fairlead("up", "--data-dir", str(tmp_path), "--port", str(port), check=False)
    assert_refused(refused, f"cannot listen on 127.0.0.1:{port}")


def test_a_model_folder_that_cannot_be_read_ends_with_one_line(tmp_path: Path) -> None:
    refused = fairlead("up", "--data-dir", str(tmp_path), "--model", str(tmp_path / "nowhere"), check=False)
    assert_refused(refused, "nowhere")


def test_an_invalid_policy_ends_with_one_line_that_names_the_place(tmp_path: Path) -> None:
    policy = tmp_path / "bad.yaml"
    policy.write_text((ROOT / "policies" / "slai.yaml").read_text().replace("batching:", "batchin:"))
    refused = fairlead("up", "--data-dir", str(tmp_path / "data"), "--policy", str(policy), check=False)
    assert_refused(refused, f"{policy}:")


def test_a_damaged_tenants_file_ends_with_one_line_that_names_the_place(tmp_path: Path) -> None:
    (tmp_path / "demo.key").write_text("fl-anything")
    (tmp_path / "tenants.yaml").write_text("version: 1\ntenants: [{nam: acme}]\n")
    refused = fairlead("up", "--data-dir", str(tmp_path), "--port", "0", check=False)
    assert_refused(refused, f"{tmp_path / 'tenants.yaml'}:2:")


def test_a_data_folder_that_cannot_be_made_ends_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    refused = fairlead("up", "--data-dir", str(tmp_path / "file" / "data"), check=False)
    assert_refused(refused, "--data-dir")


def assert_refused(refused: subprocess.CompletedProcess[str], words: str) -> None:
    assert refused.returncode == 2
    assert words in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert refused.stdout == ""
