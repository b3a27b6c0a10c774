"""A table beside a policy: what its file must have, and how its points become a part of the document."""

import pytest

from policies.admission.cost import cost_of
from policies.document.cost_table import read_table, table_named, with_table
from policies.document.explain import explain
from policies.document.fairness import ReadTable, Table
from policies.document.loading import load_live_policy
from policies.document.problems import PolicyError

HEAD = """version: 1
name: by_table  # naïve
classes: [{name: all, ttft_s: 1, tbt_s: 0.1}]
"""
TAIL = """
batching: {stages: [{decode: {}}, {prefill: {from: waiting}}]}
"""
PROFILE = "prompt_tokens,output_tokens,cost\n8,0,1.5\n8,64,30\n64,0,9\n64,64,40.25\n"
READ = ReadTable("a.csv", (8, 64), (0, 64), ((1.5, 30.0), (9.0, 40.25)))


def policy(fairness: str) -> bytes:
    return f"{HEAD}fairness:\n{fairness}{TAIL}".encode()


def completed(document: bytes) -> bytes:
    named = table_named(document, "policy.yaml")
    assert named is not None
    return with_table(document, named, read_table(PROFILE.encode(), "a.csv", named.name))


@pytest.mark.parametrize(
    "fairness",
    [
        "  cost: {kind: table, file: a.csv}",
        '  cost: {kind: table, file:   "a.csv"   }  # measured',
        "  cost:\n    file: 'a.csv'  # measured\n    kind: table\n  max_requests: 9",
        "  cost: {file: &here a.csv}",
    ],
)
def test_the_points_take_the_place_of_the_name(fairness: str) -> None:
    document = policy(fairness)
    complete = completed(document)
    assert load_live_policy(complete).fairness.cost == Table(file=READ)
    assert table_named(complete, "policy.yaml") is None
    # Whatever else is wrong is said at the line where it is in the file.
    assert complete.count(b"\n") == document.count(b"\n")


def test_a_table_from_a_file_costs_what_the_same_points_in_the_document_cost() -> None:
    inline = Table(READ.prompt_tokens, READ.output_tokens, READ.costs)
    assert cost_of(load_live_policy(completed(policy("  cost: {kind: table, file: a.csv}"))).fairness.cost) == cost_of(
        inline
    )


def test_the_explanation_says_where_the_table_came_from() -> None:
    said = explain(load_live_policy(completed(policy("  cost: {kind: table, file: a.csv}"))))
    assert "what the table of a.csv says for its prompt (8 to 64 tokens) and output (0 to 64)" in said


def test_a_policy_with_any_other_cost_names_no_table() -> None:
    for fairness in ("  kind: vtc", "  cost: {kind: tokens}", "  cost: [file]", "  cost: {kind: table, file: }"):
        assert table_named(policy(fairness), "policy.yaml") is None


def problem(document: bytes) -> str:
    with pytest.raises(PolicyError) as raised:
        load_live_policy(document, "policy.yaml")
    return str(raised.value)


def test_a_name_alone_is_refused_where_nobody_can_read_the_file() -> None:
    said = problem(policy("  cost: {kind: table, file: a.csv}"))
    assert said.startswith("policy.yaml:5:29: fairness.cost.file: a.csv was not read: this document came without its")


def test_points_are_in_the_file_or_in_the_document_and_all_of_them_are() -> None:
    assert 'fairness.cost: the key "costs" is missing' in problem(
        policy("  cost: {kind: table, prompt_tokens: [1, 9], output_tokens: [0, 5]}")
    )
    said = problem(policy("  cost: {kind: table, prompt_tokens: [1, 9], file: a.csv}"))
    assert "5:38: fairness.cost.prompt_tokens: the table is in a file; remove prompt_tokens, or `file`" in said


def test_points_that_were_read_once_are_looked_at_again() -> None:
    complete = completed(policy("  cost: {kind: table, file: a.csv}"))
    assert "fairness.cost.file.costs[1][0]: the cost falls from 1.5 to 1" in problem(complete.replace(b"9.0", b"1.0"))


def test_a_name_that_is_an_alias_is_refused() -> None:
    document = policy("  cost: {kind: table, file: *x}").replace(b"by_table", b"&x by_table")
    with pytest.raises(PolicyError, match=r"5:29: fairness.cost.file: the name of the file is an alias; write the"):
        table_named(document, "policy.yaml")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("prompt,cost\n", "1:1: {} the column prompt_tokens is missing; the first line names prompt_tokens, output_"),
        ("", "1:1: {} the column prompt_tokens is missing"),
        (
            PROFILE + "64,many,3\n",
            '6:4: {} the text "many" does not fit; allowed: a whole number of tokens, at least 0',
        ),
        (PROFILE + "0,64,3\n", '6:1: {} the text "0" does not fit; allowed: a whole number of tokens, at least 1'),
        (PROFILE + "64\n", "6:4: {} a value is missing"),
        (PROFILE + f"{10**30},0,9\n", '6:1: {} the text "10'),
        (PROFILE + "64,0,9\n", "6:1: {} 64 prompt and 0 output tokens are here twice; line 4 has their cost"),
        (PROFILE + "128,0,20\n", "1:1: {} 128 prompt and 64 output tokens have no cost; every pair of lengths needs"),
        (
            PROFILE.replace("30", "1"),
            "3:1: {} the cost falls from 1.5 to 1 for more output; at least as much as in line",
        ),
        (PROFILE.replace("40.25", "29"), "5:1: {} the cost falls from 30 to 29 for a longer prompt; at least as much"),
        (PROFILE.replace("40.25", ".nan"), '5:7: {} the text ".nan" does not fit; allowed: a number, at least 0'),
        (PROFILE.replace("40.25", "true"), '5:7: {} the text "true" does not fit'),
        (
            PROFILE.replace(",0,", ",1,"),
            "2:1: {} the shortest output is 1 tokens, so no cost is known for a prompt alone",
        ),
        ("prompt_tokens,output_tokens,cost\n1,0,1\n1,5,1\n", "1:1: {} there are 1 lengths of prompt; at least 2"),
    ],
)
def test_a_file_from_which_no_cost_can_be_read_says_where_and_what_is_right(content: str, said: str) -> None:
    with pytest.raises(PolicyError) as raised:
        read_table(content.encode(), "a.csv", "a.csv")
    assert str(raised.value).startswith("a.csv:" + said.format("fairness.cost.file:"))


def test_a_file_that_is_no_text_or_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PolicyError, match=r"a.csv:1:1: .* byte 1 is not UTF-8; save the file as UTF-8 text"):
        read_table(b"a\xff", "a.csv", "a.csv")
    monkeypatch.setattr("policies.document.cost_table.MAX_POINTS", 3)
    with pytest.raises(PolicyError, match=r"a.csv:5:1: .* the table has more than 3 points"):
        read_table(PROFILE.encode(), "a.csv", "a.csv")


def test_a_file_as_spreadsheets_write_it_is_read() -> None:
    content = "\ufeffcost,output_tokens,prompt_tokens,note\r\n"
    content += "".join(f'"{cost}",{output},{prompt},"a, b"\r\n' for prompt, output, cost in POINTS) + ",,,\r\n"
    assert read_table(content.encode(), "a.csv", "a.csv") == READ


POINTS = [(64, 64, 40.25), (8, 0, 1.5), (8, 64, 30), (64, 0, 9)]
