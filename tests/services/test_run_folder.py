import socket
from pathlib import Path

from services.run_folder import deployment_file, tidy, write_deployment
from services.settings import Deployment, load_deployment


def test_what_others_keep_in_the_run_folder_stays(tmp_path: Path) -> None:
    ours = Deployment(data=str(tmp_path / "data"), run=str(tmp_path / "run")).resolved()
    write_deployment(ours)
    assert load_deployment(deployment_file(ours.run)) == ours
    run = Path(ours.run)
    for name in ("gateway.ready", "scheduler.sock", "admission.new", "executor.loading"):
        (run / name).touch()
    theirs = run / "photographs"
    theirs.mkdir()
    tidy(ours.run, ["gateway", "scheduler", "admission", "executor"])
    assert list(run.iterdir()) == [theirs]
    theirs.rmdir()
    tidy(ours.run, ["gateway"])
    assert not run.exists()


def test_sockets_of_keepers_that_were_killed_do_not_keep_the_folder(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in ("gateway.0", "gateway-2.1", ".1", "gateway.theirs"):
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(run / name))
    (run / "gateway.7").write_text("no socket")
    tidy(str(run), ["gateway"])
    assert sorted(path.name for path in run.iterdir()) == ["gateway.7", "gateway.theirs"]
    for path in run.iterdir():
        path.unlink()
    tidy(str(run), ["gateway"])
    assert not run.exists()
