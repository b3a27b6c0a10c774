"""`fairlead experiment`, from its arguments to what it prints."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from policies.simulation.experiments import slai
from services.cli import main

SHORT = ("--qps", "0.5", "--duration-s", "4", "--processes", "1")


def experiment(*arguments: str) -> int:
    return main(["experiment", *arguments])


def test_json_has_the_documented_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert experiment("slai", "--policy", "slai", "--seeds", "3", *SHORT, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found)[:2] == ["runs", "capacity"]
    (one,) = found["runs"]
    assert (one["policy"], one["qps"], one["seed"]) == ("slai", 0.5, 3)
    for name in ("ttft_prefill_s", "ttft_s"):
        assert {"p50", "p99"} <= set(one[name])
    assert {"paid", "free"} <= set(one["tbt_s"])
    (capacity,) = found["capacity"]
    assert list(capacity)[:4] == ["policy", "seed", "rps", "rps_first_token"]


def test_options_reach_the_experiment_and_a_file_is_named_by_its_stem(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Any] = []

    def run(options: Any, progress: Any) -> dict[str, Any]:
        progress(1, 2)
        asked.append(options)
        return {}

    monkeypatch.setattr(slai, "run", run)
    monkeypatch.setattr(slai, "table", lambda figures: f"a table of {figures}")
    mine = tmp_path / "mine.yaml"
    mine.write_bytes((Path(slai.__file__).parents[2] / "slai.yaml").read_bytes())
    options = ("--executor-efficiency", "0.6", "--strict-share", "0", "--data", str(tmp_path))
    assert experiment("slai", "--policy", "sarathi", str(mine), "--qps", "2", "1", "1", *options) == 0
    assert capsys.readouterr().out == "a table of {}\n"
    (found,) = asked
    assert list(found.policies) == ["sarathi", "mine"]
    assert (found.qps, found.seeds, found.executor_efficiency) == ((1.0, 2.0), (), 0.6)
    assert (found.strict_share, found.data) == (0.0, tmp_path)


@pytest.mark.parametrize("name", ["slai", "rad"])
def test_a_page_has_the_figures_and_needs_no_network(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "page.html"
    options = ("--qps", "0.5", "1", "--duration-s", "20", "--processes", "1", "--html", str(file))
    assert experiment(name, "--policy", "sarathi", "slai", *options) == 0
    assert capsys.readouterr().out
    page = file.read_text()
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=", page)
    for word in ("sarathi", "slai", {"slai": "Median TTFT", "rad": "Tile fill"}[name]):
        assert word in page


def test_a_page_that_cannot_be_written_is_refused_before_anything_is_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert experiment("slai", "--html", str(tmp_path / "none" / "page.html")) == 2
    assert "there is no folder" in capsys.readouterr().err
    assert experiment("slai", "--policy", "slai", *SHORT, "--html", str(tmp_path)) == 2
    assert f"--html {tmp_path}: cannot be written: Is a directory" in capsys.readouterr().err


def test_without_policies_those_of_the_paper_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(slai, "run", lambda options, progress: asked.append(options) or {})
    assert experiment("slai", "--json") == 0
    assert tuple(asked[0].policies) == slai.POLICIES


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--policy", "nope"), "fairlead experiment: --policy nope: cannot be read: No such file or directory; give a"),
        (("--data", "/nonexistent"), f"fairlead experiment: /nonexistent/{slai.TRACE}: cannot be read: No such file"),
        (("--policy", __file__), f"{__file__}:"),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert experiment("slai", *SHORT, *arguments) == 2
    assert capsys.readouterr().err.startswith(sentence)


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("--qps", "0", "0 is not above 0"),
        ("--seeds", "4294967296", "4294967296 is not a whole number from 0 to 4294967295"),
        ("--seeds", "x", "x is not a number"),
        ("--executor-efficiency", "1.5", "1.5 is not above 0 and at most 1"),
        ("--strict-share", "2", "2 is not from 0 to 1"),
        ("--processes", "0.5", "0.5 is not a whole number from 1 on"),
    ],
)
def test_a_value_out_of_range_says_what_is_right(
    option: str, value: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        experiment("slai", option, value)
    assert sentence in capsys.readouterr().err


def test_an_interrupt_ends_with_a_word_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(options: Any, progress: Any) -> dict[str, Any]:
        raise KeyboardInterrupt

    monkeypatch.setattr(slai, "run", run)
    assert experiment("slai", "--policy", "slai") == 130
    assert capsys.readouterr().err == "fairlead experiment: interrupted\n"


def test_an_experiments_own_policies_are_known_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert experiment("vtc", "--policy", "slower") == 2
    error = capsys.readouterr().err
    assert "give a file, or one of fcfs, lcf, vtc, vtc_predict, vtc_noisy, vtc_oracle, rpm_5" in error
    assert experiment("vtc", "--policy", "lcf", "--qps", "2") == 2
    assert "--qps, --strict-share and --duration-s do not apply" in capsys.readouterr().err
