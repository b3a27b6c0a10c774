"""A measured profile becomes the table of a policy, or says what it lacks."""

from pathlib import Path

import pytest

from policies.document.fairness import Table
from policies.document.loading import load_live_policy
from services.cli import main

REST = """version: 1
name: table
classes: [{name: all, ttft_s: 1, tbt_s: 1}]
batching: {stages: [{decode: {}}, {prefill: {from: waiting}}]}
"""
PROFILE = "prompt_tokens,output_tokens,cost\n8,0,1.5\n8,64,30\n64,0,9\n64,64,40.25\n"


def table(tmp_path: Path, text: str) -> int:
    file = tmp_path / "profile.csv"
    file.write_text(text)
    return main(["policy", "cost-table", str(file)])


def test_a_profile_becomes_a_section_that_loads_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert table(tmp_path, PROFILE) == 0
    cost = load_live_policy((REST + capsys.readouterr().out).encode()).fairness.cost
    assert cost == Table((8, 64), (0, 64), ((1.5, 30.0), (9.0, 40.25)))


def test_a_profile_of_which_no_table_can_be_made_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert table(tmp_path, PROFILE + "64,many,3\n") == 2
    assert capsys.readouterr().err.startswith(f'{tmp_path / "profile.csv"}:6:4: fairness.cost.file: the text "many"')


def test_a_file_that_is_not_there_is_said_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "cost-table", str(tmp_path / "none.csv")]) == 2
    assert "cannot be read: No such file" in capsys.readouterr().err
