"""`fairlead replay`, from its arguments to what it prints."""

import json
from pathlib import Path

import pytest

from policies.commands import WakeAt
from policies.event_log import encode_record
from policies.events import Started, Woke
from policies.simulation.driver import Simulation
from policies.simulation.executor_model import DEVICES
from policies.simulation.workload import synthetic
from services.cli import main

POLICY = Path(__file__).resolve().parents[2] / "policies" / "slai.yaml"
CHAT = ["--trace", "synthetic:chat", "--duration-s", "5"]


def replay(*arguments: str) -> int:
    return main(["replay", *arguments])


def record(folder: Path) -> None:
    files = {name: (folder / f"{name}.log").open("wb") for name in ("admission", "scheduler")}
    device = DEVICES["toy-tile"](1.0)
    requests = synthetic("chat", qps=5.0, duration_s=3.0, seed=1, max_sequence_tokens=1000)
    Simulation(
        POLICY.read_bytes(),
        requests,
        device,
        observer=lambda core, now, event, commands: files[core].write(encode_record(now, event, commands)) and None,
    ).run()
    for file in files.values():
        file.close()


def test_json_has_the_documented_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert replay("--policy", str(POLICY), *CHAT, "--json", "--check") == 0
    figures = json.loads(capsys.readouterr().out)
    assert list(figures)[:11] == [
        *("policy", "requests", "ttft_s", "ttft_prefill_s", "tbt_s", "tokens_per_s", "preemptions", "slo"),
        *("fairness", "simulated_s", "wall_s"),
    ]
    assert list(figures["requests"])[:4] == ["arrived", "finished", "unfinished", "refused"]
    assert list(figures["ttft_s"])[:4] == ["p50", "p90", "p99", "mean"]
    assert list(figures["tbt_s"]) == ["all", "paid", "free"]
    assert list(figures["fairness"]) == ["max_gap", "gap_ratio", "jain"]


def test_without_json_it_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--executors", "2", "--executor", "toy-tile", "--steps-in-flight", "1", "--first-token", "next_decode"]
    assert replay("--policy", str(POLICY), *CHAT, *options) == 0
    assert capsys.readouterr().out.startswith("policy slai: ")


def test_on_a_terminal_progress_is_drawn_and_wiped(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert replay("--policy", str(POLICY), *CHAT) == 0
    drawn = capsys.readouterr().err
    assert "fairlead replay" in drawn
    assert drawn.endswith("\x1b[2K")


def test_without_a_terminal_nothing_is_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    assert replay("--policy", str(POLICY), *CHAT) == 0
    assert capsys.readouterr().err == ""


def test_several_seeds_are_reported_each_and_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert replay("--policy", str(POLICY), *CHAT, "--seeds", "1", "2", "3", "--processes", "1", "--json") == 0
    figures = json.loads(capsys.readouterr().out)
    assert [run["seed"] for run in figures["runs"]] == [1, 2, 3]
    medians = sorted(run["ttft_s"]["p50"] for run in figures["runs"])
    together = [figures[name]["ttft_s"]["p50"] for name in ("min", "median", "max")]
    assert together == medians
    page = tmp_path / "seeds.html"
    assert replay("--policy", str(POLICY), *CHAT, "--seeds", "1", "2", "--processes", "1", "--html", str(page)) == 0
    assert "synthetic:chat, seeds 1, 2, on Mistral-7B" in page.read_text()
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]] == [
        *("seed", "seed", "median", "min", "max")
    ]


def test_a_capacity_is_searched_from_the_rate_given_and_every_probe_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "lengths.csv"
    trace.write_text("num_prefill_tokens,num_decode_tokens\n" + "200,10\n" * 150)
    options = ["--trace", str(trace), "--executor", "a10g-llama2-7b", "--qps", "1"]
    searched = [*options, "--capacity", "p50(ttft_s)<0.5", "--capacity-precision", "0.2", "--seeds", "3"]
    assert replay("--policy", str(POLICY), *searched, "--json") == 0
    printed = capsys.readouterr()
    (found,) = json.loads(printed.out)["capacity"]
    assert found["bounded"]
    passed = max(probe["qps"] for probe in found["probes"] if probe["met"])
    failed = min(probe["qps"] for probe in found["probes"] if not probe["met"])
    assert passed == found["rps"]
    assert passed < failed <= 1.2 * passed
    assert found["probes"][0]["qps"] == 1
    lines = printed.err.splitlines()
    assert len(lines) == len(found["probes"])
    assert lines[0].startswith("seed 3: 1.0000 requests/s: kept; p50(ttft_s) 0.")


def test_the_capacity_of_a_trace_with_arrivals_stretches_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "timed.csv"
    rows = "".join(f"{second},a,100,20\n" for second in range(60))
    trace.write_text(f"arrived_at_s,client,prompt_tokens,output_tokens\n{rows}")
    options = ["--trace", str(trace), "--capacity", "p90(e2e_s)<1", "--capacity-precision", "0.5"]
    options += ["--html", str(tmp_path / "capacity.html")]
    assert replay("--policy", str(POLICY), *options) == 0
    first, second, found = capsys.readouterr().out.splitlines()
    assert first == "policy slai: the largest rate that keeps p90(e2e_s)<1"
    assert second == "with at most 4.0% unfinished, to 50.0%"
    assert float(found.split()[2]) > 1.0
    page = (tmp_path / "capacity.html").read_text()
    assert "Capacity under slai" in page
    assert "<td>not kept</td>" in page


def test_a_page_of_plots_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "run.html"
    assert replay("--policy", str(POLICY), *CHAT, "--html", str(page)) == 0
    assert "synthetic:chat, seed 42, on Mistral-7B fp16 on an RTX 6000 Ada" in page.read_text()
    assert replay("--policy", str(POLICY), *CHAT, "--html", str(tmp_path)) == 2
    assert f"--html {tmp_path}: cannot be written: Is a directory" in capsys.readouterr().err


def test_help_names_every_workload_and_executor_model(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        replay("--help")
    shown = capsys.readouterr().out
    assert "azure_conversation" in shown
    assert "layers:FILE?layers=32" in shown
    assert "arrivals=gamma&cv=3" in shown


def test_a_trace_file_is_read_with_its_rate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "lengths.csv"
    trace.write_text("\ufeffnum_prefill_tokens,num_decode_tokens\n" + "100,20\n" * 10)  # as spreadsheets write it
    assert replay("--policy", str(POLICY), "--trace", str(trace), "--qps", "2", "--json") == 0
    assert json.loads(capsys.readouterr().out)["requests"]["finished"] == 10


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "say which --policy and which --trace, or --log DIR --verify"),
        (["--policy", "nowhere.yaml", *CHAT], "nowhere.yaml: cannot be read: No such file or directory"),
        (["--policy", str(POLICY), "--trace", "nowhere.csv"], "nowhere.csv: cannot be read: No such file"),
        (["--policy", str(POLICY), "--trace", "synthetic:x"], "synthetic:x: there is no such workload"),
        (
            ["--policy", str(POLICY), "--trace", "synthetic:chat?cv=2"],
            "synthetic:chat?cv=2: there is no parameter `cv`",
        ),
        (["--policy", str(POLICY), *CHAT, "--executor", "gpu"], "gpu: there is no such executor model; there are"),
        (["--policy", str(POLICY), *CHAT, "--executor", "sweep:no.csv"], "no.csv: cannot be read"),
        (
            ["--policy", str(POLICY), *CHAT, "--capacity", "p50(ttft_s)<1", "--qps", "0.01"],
            "at 0.01 requests/s nobody arrives within the run: give a longer --duration-s",
        ),
        (["--policy", str(POLICY), *CHAT, "--capacity", "p50(x)<1"], "--capacity `p50(x)<1`: there is no metric `x`"),
        (["--verify"], "--log DIR and --verify go together"),
        (["--log", "here"], "--log DIR and --verify go together"),
        (["--log", "here", "--verify", "--policy", "p"], "leave --policy and --trace out"),
        (["--log", "nowhere", "--verify"], "nowhere/admission.log: cannot be read"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_exit_2(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert replay(*arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert sentence in lines[0]


def test_a_trace_that_is_no_text_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_bytes(b"\xff\xfe\x00")
    assert replay("--policy", str(POLICY), "--trace", str(trace)) == 2
    assert "is not a text file" in capsys.readouterr().err


def test_an_invalid_policy_shows_its_problems(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = tmp_path / "bad.yaml"
    policy.write_text("version: 1\nname: bad\nnonsense: true\n")
    assert replay("--policy", str(policy), *CHAT) == 2
    assert "bad.yaml:3:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--qps", "0"),
        ("--qps", "fast"),
        ("--executor-efficiency", "1.5"),
        ("--executors", "0"),
        ("--executors", "inf"),
        ("--executors", "nan"),
        ("--seeds", "-1"),
        ("--max-unfinished", "2"),
    ],
)
def test_a_number_out_of_range_names_its_option(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        replay("--policy", str(POLICY), *CHAT, option, value)
    assert caught.value.code == 2
    assert f"argument {option}: {value} is not" in capsys.readouterr().err


def test_a_recorded_log_verifies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record(tmp_path)
    assert replay("--log", str(tmp_path), "--verify") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[1].split(",")[1] for line in lines] == [" identical commands"] * 2


def test_a_recorded_run_is_replayed_on_the_executor_fitted_to_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record(tmp_path)
    model = tmp_path / "model.json"
    assert replay("--log", str(tmp_path), "--fit", str(model), "--verify") == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"{model}: fitted to ")
    reports = []
    for executor in ("toy-tile", f"fitted:{model}", f"fitted:{tmp_path}?noise=mean"):
        assert replay("--policy", str(POLICY), "--trace", str(tmp_path), "--executor", executor, "--json") == 0
        reports.append(json.loads(capsys.readouterr().out))
    recorded, *fitted = reports
    assert recorded["requests"]["finished"] == recorded["requests"]["arrived"] > 5
    for figures in fitted:
        assert figures["e2e_s"]["p50"] == pytest.approx(recorded["e2e_s"]["p50"], rel=0.1)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--trace", "RUN", "--qps", "2"], "RUN: --qps is for traces without arrival times"),
        (["--trace", "RUN", "--seeds", "1", "2"], "RUN: has its own arrivals, so that every seed gives the same run"),
        (["--trace", "EMPTY"], "EMPTY/admission.log: cannot be read"),
        ([*CHAT, "--executor", "fitted:RUN", "--executor-efficiency", "0.5"], "leave --executor-efficiency out"),
        ([*CHAT, "--executor", "fitted:RUN?noise=loud"], "noise is `loud`; it must be one of drawn, mean"),
        ([*CHAT, "--executor", "fitted:RUN/admission.log"], "RUN/admission.log: is no fitted executor of this version"),
        ([*CHAT, "--executor", "fitted:RUN/none"], "RUN/none: cannot be read"),
    ],
)
def test_what_a_recorded_run_cannot_be_used_for_is_one_line(
    arguments: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, empty = tmp_path / "run", tmp_path / "empty"
    run.mkdir()
    empty.mkdir()
    record(run)
    places = {"RUN": str(run), "EMPTY": str(empty)}
    for name, place in places.items():
        arguments = [argument.replace(name, place) for argument in arguments]
        sentence = sentence.replace(name, place)
    assert replay("--policy", str(POLICY), *arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert sentence in lines[0]


def test_a_log_that_was_cut_short_verifies_up_to_there_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record(tmp_path)
    log = tmp_path / "scheduler.log"
    log.write_bytes(log.read_bytes()[:-3])
    assert replay("--log", str(tmp_path), "--verify") == 0
    assert "identical commands; record" in capsys.readouterr().out.splitlines()[1]


def test_a_core_that_decides_otherwise_is_shown_and_exit_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record(tmp_path)
    log = tmp_path / "admission.log"
    log.write_bytes(encode_record(0.0, Started(wall_s=0.0), [WakeAt(3.0)]) + log.read_bytes())
    assert replay("--log", str(tmp_path), "--verify") == 1
    shown = capsys.readouterr().out
    assert "after 0 identical records: record 1 at 0.000000 s differs" in shown
    assert "recorded: WakeAt(at_s=3.0)" in shown


@pytest.mark.parametrize(
    ("log", "sentence"),
    [
        (b"", "holds no whole record, so there is nothing to verify"),
        (b"not a log at all", "holds no whole record, so there is nothing to verify"),
        (encode_record(0.0, Woke(), []), "begins with Woke; a log to verify begins with Started"),
        (encode_record(0.0, Started(wall_s=0.0), []) + b"\x01\x00\x00\x00\xc0", "record 2, at byte"),
    ],
)
def test_a_log_that_cannot_be_verified_is_no_success(
    log: bytes, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record(tmp_path)
    (tmp_path / "scheduler.log").write_bytes(log)
    assert replay("--log", str(tmp_path), "--verify") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert f"{tmp_path}/scheduler.log: " in lines[0]
    assert sentence in lines[0]
