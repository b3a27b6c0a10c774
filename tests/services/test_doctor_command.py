import json
import sys
from pathlib import Path

import pytest
from random_checkpoint import write_random_checkpoint

from services.cli import main


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("models") / "demo")


@pytest.fixture
def doctor(demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """`doctor(*options, **deployment)`: exit status, stdout and stderr."""

    def ask(*options: str, **changes: object) -> tuple[int, str, str]:
        file = tmp_path / "deployment.yaml"
        engine = {"device": "cpu", "threads": 1, "kv_pool_tokens": 1600}
        file.write_text(json.dumps({"model": str(demo), "data": str(tmp_path / "data"), "engine": engine, **changes}))
        status = main(["doctor", "--deployment", str(file), *options])
        return status, *capsys.readouterr()

    return ask


def test_a_deployment_that_can_serve_is_described(doctor, tmp_path: Path) -> None:
    status, out, err = doctor()
    assert (status, err) == (0, "")
    lines = {line.split()[0]: line for line in reversed(out.splitlines()) if line}
    assert {"versions", "machine", "services", "engine"} < lines.keys()
    assert sys.version.split()[0] in lines["python"]
    assert "cpu_" in lines["attention"]
    assert "fairlead" in lines["policy"]
    assert "not xformers_splitk" in out
    assert "bounded by engine.kv_pool_tokens" in out
    assert not (tmp_path / "data").exists()


def test_json_says_the_same(doctor) -> None:
    status, out, _ = doctor("--json")
    said = json.loads(out)
    assert (status, said["can_serve"]) == (0, True)
    assert list(said["findings"]) == ["versions", "machine", "services", "engine"]
    assert {"subject": "threads", "verdict": "1", "reason": "engine.threads", "obstacle": False} in said["findings"][
        "engine"
    ]


def test_what_is_in_the_way_is_said_once_and_exits_2(doctor, tmp_path: Path) -> None:
    status, out, err = doctor("--model", str(tmp_path / "nowhere"))
    assert status == 2
    assert err.count("\n") == 1
    assert err.startswith(f"fairlead: cannot serve: {tmp_path / 'nowhere'}: is not a folder; a model is")
    assert "machine" in out
    assert doctor(policy=str(tmp_path / "none.yaml"))[2].startswith("fairlead: cannot serve: ")
    (tmp_path / "bad.yaml").write_text("version: 2")
    status, _, err = doctor(policy=str(tmp_path / "bad.yaml"))
    assert status == 2
    assert "bad.yaml:1:" in err


def test_a_machine_without_torch_is_told_what_to_install(doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "engine.report", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    status, _, err = doctor()
    assert status == 2
    assert err.startswith("fairlead: cannot serve: torch is not installed; pip install 'fairlead[engine]' brings")


def test_the_paced_engine_needs_no_torch(doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    status, out, _ = doctor(engine={"kind": "paced"})
    assert status == 0
    assert "made-up tokens, no weights" in out


def test_a_port_in_use_and_few_open_files_are_pointed_out(doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    import resource
    import socket

    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 512))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        status, out, _ = doctor(http={"port": taken.getsockname()[1]})
    assert status == 0
    assert "cannot be used now" in out
    assert "each client takes one" in out


def test_a_limit_below_which_nothing_starts_is_an_obstacle(doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 64))
    status, out, _ = doctor()
    assert status == 2
    assert "open files" in out


def test_a_deployment_that_cannot_be_read_exits_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--deployment", str(tmp_path / "none.yaml")]) == 2
    assert capsys.readouterr().err.startswith(f"fairlead: {tmp_path / 'none.yaml'}: cannot be read")
