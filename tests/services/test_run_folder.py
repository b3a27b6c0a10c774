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
