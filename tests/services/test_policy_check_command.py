from pathlib import Path

import pytest

from services.cli import main

POLICIES = Path(__file__).resolve().parents[2] / "policies"


def test_a_good_policy_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "check", str(POLICIES / "slai.yaml")]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("slai: Defers decodes")
    assert err == ""


def test_every_problem_of_a_bad_policy_is_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text((POLICIES / "slai.yaml").read_text().replace("fcfs", "fcsf").replace("0.96", "9.6"))
    assert main(["policy", "check", str(file)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    first, second = err.splitlines()
    wrong = 'the text "fcsf" does not fit; allowed: one of drr, fcfs, lcf, vtc; did you mean "fcfs"?'
    assert first == f"{file}:14:18: fairness.kind: {wrong}"
    assert second.startswith(
        f"{file}:25:80: deadlines.offset_steps.kv_threshold: 9.6 is out of bounds; allowed: a number"
    )


def test_the_mistake_in_the_readme_is_answered_as_the_readme_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "fairlead.yaml"
    file.write_text((POLICIES / "fairlead.yaml").read_text().replace("{pools: 3}", "automatic"))
    assert main(["policy", "check", str(file)]) == 2
    said = capsys.readouterr().err.strip().replace(str(file), "policies/fairlead.yaml")
    assert said in (POLICIES.parent / "README.md").read_text().splitlines()


@pytest.mark.parametrize("name", ["missing.yaml", "."])
def test_a_file_that_cannot_be_read_is_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert main(["policy", "check", str(tmp_path / name)]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"{tmp_path / name}: cannot be read: ")
    assert err.count("\n") == 1
