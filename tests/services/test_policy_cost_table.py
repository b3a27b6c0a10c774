"""A measured profile becomes the table of a policy, or says what it lacks."""

from pathlib import Path

import pytest

from policies.document.fairness import Table
from policies.document.loading import load_live_policy
from services.cli import main
from services.policy_cost_table import REST

PROFILE = "prompt_tokens,output_tokens,cost\n8,0,1.5\n8,64,30\n64,0,9\n64,64,40.25\n"


def table(tmp_path: Path, text: str) -> int:
    file = tmp_path / "profile.csv"
    file.write_text(text)
    return main(["policy", "cost-table", str(file)])


def test_a_profile_becomes_a_section_that_loads_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert table(tmp_path, PROFILE) == 0
    cost = load_live_policy((REST + capsys.readouterr().out).encode()).fairness.cost
    assert cost == Table((8, 64), (0, 64), ((1.5, 30.0), (9.0, 40.25)))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "prompt,cost\n",
            "the column prompt_tokens is missing; the first line names prompt_tokens, output_tokens, cost",
        ),
        ("", "the column prompt_tokens is missing"),
        (PROFILE + "64,many,3\n", "line 6 has no two whole numbers of tokens and a cost"),
        (PROFILE + "64\n", "line 6 has no two whole numbers of tokens and a cost"),
        (PROFILE + "64,0,9\n", "line 6 repeats 64 prompt and 0 output tokens"),
        (PROFILE + "128,0,20\n", "128 prompt and 64 output tokens have no cost; every pair needs one"),
        (PROFILE.replace("40.25", "29"), "the cost falls from 30 to 29 for a longer prompt"),
        (PROFILE.replace("40.25", "nan"), "nan"),
        (PROFILE.replace(",0,", ",1,"), "the first length must be 0"),
    ],
)
def test_a_profile_of_which_no_table_can_be_made_says_why(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert table(tmp_path, text) == 2
    told = capsys.readouterr().err
    assert told.startswith(str(tmp_path / "profile.csv"))
    assert said in told


def test_a_file_that_is_not_there_is_said_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "cost-table", str(tmp_path / "none.csv")]) == 2
    assert "cannot be read: No such file" in capsys.readouterr().err
