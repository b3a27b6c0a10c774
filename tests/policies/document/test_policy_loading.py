"""Damaged documents: each says where it is wrong and what is right, and nothing but PolicyError is raised."""

from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.document.loading import load_policy
from policies.document.problems import MAX_PROBLEMS_SHOWN, PolicyError
from policies.document.schema import Policy
from policies.document.tree import MAX_BYTES, MAX_DEPTH, MAX_VALUES

POLICIES = Path(__file__).resolve().parents[3] / "policies"
VALID = """version: 1
name: test
classes:
  - {name: paid, ttft_s: 0.5, tbt_s: 0.1}
  - {name: free, ttft_s: 5, tbt_s: 0.5}
classify:
  - {when: {tier: paid}, class: paid}
  - {class: free}
batching:
  token_budget: 512
  stages:
    - decode: {when: due}
    - prefill: {from: [started, waiting]}
    - decode: {}
"""

DAMAGED = [
    # (replaced, by, "line:col: section", words of the message)
    ("version: 1", "version: 2", "1:10: version", "the number 2 does not fit; allowed: 1"),
    ("version: 1", "version: true", "1:10: version", "the truth value true does not fit"),
    ("version: 1\n", "", "1:1: document", 'the key "version" is missing; allowed: 1'),
    ("name: test", "name: Test", "2:7: name", 'the text "Test" does not fit; allowed: a name of at most 64 lowercase'),
    ("name: test", "name: 12", "2:7: name", "the number 12 does not fit; allowed: a name of at most 64"),
    ("name: test", "name: [a]", "2:7: name", "a list does not fit"),
    ("name: test", "name:", "2:6: name", "an empty value does not fit"),
    ("name: test", f"name: {'a' * 65}", "2:7: name", "does not fit; allowed: a name of at most 64"),
    ("name: test", "name: test\nname: again", "3:1: document", 'the key "name" is here twice, first at 2:1; each key'),
    ("name: test", "name: test\nbatchin: 1", "3:1: document", 'unknown key "batchin"; allowed: version, name'),
    ("name: test", "name: test\nbatchin: 1", "3:1: document", 'did you mean "batching"?'),
    ("name: test", "name: test\n[a]: 1", "3:1: document", "a list is not a key"),
    ("name: test", "name: test\nelastic: {}", "3:1: elastic", "no part of this version reads `elastic`; remove it"),
    ("name: test", "name: test\nlimits: [a]", "3:10: limits[0]", 'the text "a" does not fit; allowed: a mapping'),
    ("name: test", "name: test\nqueue: 5", "3:8: queue", "the number 5 does not fit; allowed: a mapping with the keys"),
    (
        "ttft_s: 5,",
        "ttft_s: -1,",
        "5:26: classes[free].ttft_s",
        "-1 is out of bounds; allowed: a number of seconds, at",
    ),
    ("ttft_s: 5,", "ttft_s: .nan,", "5:26: classes[free].ttft_s", ".nan is out of bounds"),
    ("ttft_s: 5,", "ttft_s: .inf,", "5:26: classes[free].ttft_s", ".inf is out of bounds"),
    ("ttft_s: 5,", "ttft_s: 1e400,", "5:26: classes[free].ttft_s", "1e400 is out of bounds"),
    ("ttft_s: 5,", f"ttft_s: {'9' * 399},", "5:26: classes[free].ttft_s", "is out of bounds"),
    ("ttft_s: 5,", f"ttft_s: {'9' * 9999},", "5:26: classes[free].ttft_s", "does not fit"),
    ("ttft_s: 5,", 'ttft_s: "5",', "5:26: classes[free].ttft_s", 'the text "5" does not fit; allowed: a number'),
    ("ttft_s: 5, ", "", "5:5: classes[free]", 'the key "ttft_s" is missing; allowed: a number of seconds, at least 0'),
    ("ttft_s: 5,", "tftt_s: 5,", "5:18: classes[free]", 'did you mean "ttft_s"?'),
    ("name: free", "name: paid", "5:12: classes[paid].name", 'the class "paid" is listed twice'),
    (
        "{class: free}",
        "{class: fre}",
        "8:13: classify[1].class",
        'there is no class "fre"; allowed: paid, free; did you',
    ),
    (
        "{class: free}",
        "{when: {tenant: a}, class: free}",
        "8:5: classify[1]",
        "the last rule does not match everything",
    ),
    ("{when: {tier: paid}, class", "{class", "8:5: classify[1]", "no request reaches this rule, classify[0]"),
    (
        "{tier: paid}",
        "{teir: paid}",
        "7:13: classify[0].when",
        'unknown key "teir"; allowed: tier, tenant, service_tier',
    ),
    ("{tier: paid}", "{tier: 1}", "7:19: classify[0].when.tier", "the number 1 does not fit; allowed: text"),
    (
        "512",
        "0",
        "10:17: batching.token_budget",
        "0 is out of bounds; allowed: a whole number of tokens, at least 1 or",
    ),
    ("512", "1.5", "10:17: batching.token_budget", "the number 1.5 does not fit; allowed: a whole number of tokens"),
    ("512", "nome", "10:17: batching.token_budget", 'the text "nome" does not fit; allowed: a whole number'),
    ("512", "nome", "10:17: batching.token_budget", 'did you mean "none"?'),
    ("512", "none", "13:16: batching.stages[1].prefill.chunked", "with token_budget: none a prompt would never be cut"),
    ("512", "99999999999999999999", "10:17: batching.token_budget", "never beyond 9007199254740992"),
    ("{when: due}", "{when: du}", "12:22: batching.stages[0].decode.when", 'did you mean "due"?'),
    ("{when: due}", "{order: [arival]}", "12:24: batching.stages[0].decode.order[0]", 'did you mean "arrival"?'),
    (
        "{when: due}",
        "{order: [arrival, arrival]}",
        "12:33: batching.stages[0].decode.order[1]",
        "arrival is listed twice",
    ),
    ("{when: due}", "{if: {}}", "12:20: batching.stages[0].decode.if", "the condition is empty; remove it, or write"),
    ("{when: due}", "{exclusive: yes}", "12:27: batching.stages[0].decode.exclusive", "allowed: true or false"),
    ("decode: {when: due}", "decode:", "12:7: batching.stages[0]", "the stage has neither decode nor prefill"),
    ("decode: {}", "decode: {}\n      prefill: {from: started}", "14:7: batching.stages[2]", "both decode and prefill"),
    ("- decode: {}", "- {}", "14:7: batching.stages[2]", "the stage has neither decode nor prefill; exactly one"),
    (
        "- decode: {}",
        "- decode: {if: {decoding: {at_least: 9}}}",
        "12:5: batching.stages",
        "no stage takes every decode",
    ),
    ("[started, waiting]", "started", "12:5: batching.stages", "no stage always takes waiting prompts"),
    ("[started, waiting]", "[]", "13:23: batching.stages[1].prefill.from", "the list names nothing; allowed: waiting"),
    ("[started, waiting]", "[waiting, waiting]", "13:23: batching.stages[1].prefill.from", "names one source twice"),
    ("[started, waiting]", "wating", "13:23: batching.stages[1].prefill.from", 'did you mean "waiting"?'),
    ("[started, waiting]", "waiting, merge: true", "13:39: batching.stages[1].prefill.merge", "nothing to merge"),
    ("[started, waiting]", "waiting, chunk: 513", "13:39: batching.stages[1].prefill.chunk", "a chunk of 513 tokens"),
    (
        "[started, waiting]",
        "waiting, chunk: 9, chunked: false",
        "13:39: batching.stages[1].prefill.chunk",
        "makes no chunks",
    ),
    (
        "[started, waiting]",
        "waiting, order: [arrival, last_schedulable_time]",
        "13:49: batching.stages[1].prefill.order[1]",
        "orders decodes; a prompt has no such time; allowed here: arrival",
    ),
    (
        "{when: due}",
        "{order: [remaining_prompt_tokens]}",
        "12:24: batching.stages[0].decode.order[0]",
        "orders prompts; a decode has none of its prompt left; allowed here: arrival",
    ),
    (
        "  token_budget: 512",
        "  token_budget: 512\n  aging_s: 3",
        "11:12: batching.aging_s",
        "no stage orders by `aged`, so aging_s changes nothing; remove it, or put aged first in a stage's order",
    ),
    (
        "version: 1",
        "routing: {kind: least_kv, seed: 3}\nversion: 1",
        "1:33: routing.seed",
        "least_kv draws nothing, so the seed changes nothing; remove it, or say kind: random",
    ),
    ("version: 1", "routing: {seed: 3}\nversion: 1", "1:17: routing.seed", "least_kv draws nothing"),
    (
        "[started, waiting]",
        "[started, waiting], max_remaining_tokens: 9",
        "12:5: batching.stages",
        "no stage always takes waiting prompts",
    ),
    (
        "[started, waiting]",
        "waiting}\n    - prefill: {from: started, max_remaining_tokens: 9",
        "14:54: batching.stages[2].prefill.max_remaining_tokens",
        "would leave them waiting; remove it, or add a stage prefill: {from: started} without `max_remaining_tokens`",
    ),
    (
        "token_budget: 512",
        "token_budget: {max_step_s: 0.1, tile: 256, max: 128}",
        "10:41: batching.token_budget.tile",
        "256 tokens are more than the largest step has; allowed: 1 to 128 tokens",
    ),
    (
        "token_budget: 512",
        "token_budget: {max_step_s: 0.1, share: 0.9}",
        "10:42: batching.token_budget.share",
        "with a number of seconds for max_step_s, share changes nothing",
    ),
    (
        "token_budget: 512",
        "token_budget: {tile: 1}",
        "10:17: batching.token_budget.max_step_s",
        "set deadlines: {slack: exact}, or give max_step_s in seconds",
    ),
    (
        "token_budget: 512",
        "token_budget: {max_step_s: soon}",
        "10:30: batching.token_budget.max_step_s",
        "does not fit; allowed: a number, above 0 or auto",
    ),
    (
        "512\n  stages:\n    - decode: {when: due}\n    - prefill: {from: [started, waiting]}",
        "{max_step_s: 1}\n  stages:\n    - decode: {}\n    - prefill: {from: waiting, chunk: 129}",
        "13:39: batching.stages[1].prefill.chunk",
        "a chunk of 129 tokens does not fit the shortest steps, which have 128; allowed: 1 to 128 tokens",
    ),
    (
        "512\n  stages:\n    - decode: {when: due}\n    - prefill: {from: [started, waiting]}",
        "{max_step_s: 1}\n  stages:\n    - decode: {}\n    - prefill: {from: waiting, chunked: false}",
        "13:41: batching.stages[1].prefill.chunked",
        "with a token_budget that follows time, a whole prompt may never fit",
    ),
    (
        "version: 1",
        "deadlines: {slack: exact, offset_steps: {below: 1}}\nversion: 1",
        "1:41: deadlines.offset_steps",
        "with slack: exact, offset_steps changes nothing; remove it, or set slack: steps",
    ),
    (
        "version: 1",
        "deadlines: {eager_kv: 0.5}\nversion: 1",
        "1:23: deadlines.eager_kv",
        "with slack: steps, eager_kv changes nothing; remove it, or set slack: exact",
    ),
    ("version: 1", "kv: {headroom: {share: 1, prompt_tokens: 9}}\nversion: 1", "1:24: kv.headroom.share", "below 1"),
    ("version: 1", "preemption: {victim: [self, newest]}\nversion: 1", "1:29: preemption.victim[1]", "is never tried"),
    ("version: 1", "preemption: {victim: [self, self]}\nversion: 1", "1:29: preemption.victim[1]", "is listed twice"),
    (
        "version: 1",
        "preemption: {victim: []}\nversion: 1",
        "1:22: preemption.victim",
        "the list is empty; allowed: a list of",
    ),
    (
        "version: 1",
        "deadlines: {step_time: {ewma: 0}}\nversion: 1",
        "1:31: deadlines.step_time.ewma",
        "above 0 and at most",
    ),
    ("version: 1", "kv: {watermark: 1.1}\nversion: 1", "1:17: kv.watermark", "at least 0 and below 1"),
    ("version: 1", "kv: {watermark: 1}\nversion: 1", "1:17: kv.watermark", "at least 0 and below 1"),
    ("version: 1", "kv: {share: tenants}\nversion: 1", "1:13: kv.share", 'did you mean "tenant"?'),
    ("version: 1", "kv: {share: nobody}\nversion: 1", "1:13: kv.share", "allowed: one of all, none, tenant"),
    (
        "[started, waiting]",
        "waiting}\n    - prefill: {from: started, if: {decoding: {at_least: 2}}",
        "14:36: batching.stages[2].prefill.if",
        "would leave them waiting; remove it, or add a stage prefill: {from: started} without `if`",
    ),
    ("version: 1", "version: !!int 1", "1:10: document", "the tag"),
    ("version: 1", "version: *a", "1:10: document", "no finished value before this is anchored as &a"),
    ("version: 1", "x: &a [*a]\nversion: 1", "1:8: document", "no finished value before this is anchored as &a"),
    ("version: 1", "version: 1: 2", "1:11: syntax", "this is not YAML: mapping values are not allowed"),
    ("version: 1", "version: 1\n\tname: x", "2:1: syntax", "this is not YAML"),
    ("version: 1", "version: \x00", "1:10: syntax", "the character U+0000 cannot be part of YAML; remove it"),
    (
        "    - decode: {}\n",
        "    - decode: {}\n---\na: 1\n",
        "15:1: document",
        "a second document starts here; one document",
    ),
]


def problems_of(text: str | bytes) -> list[str]:
    with pytest.raises(PolicyError) as caught:
        load_policy(text.encode() if isinstance(text, str) else text, "p.yaml")
    assert str(caught.value).splitlines()[0] == str(caught.value.problems[0])
    return [str(problem) for problem in caught.value.problems]


def test_the_undamaged_document_loads() -> None:
    policy = load_policy(VALID.encode())
    assert policy.classes[1].ttft_s == 5.0
    assert isinstance(policy.classes[1].ttft_s, float)
    assert policy == msgspec.yaml.decode(VALID.encode(), type=Policy)


@pytest.mark.parametrize(("old", "new", "place", "words"), DAMAGED)
def test_a_damaged_document_says_where_and_what(old: str, new: str, place: str, words: str) -> None:
    assert VALID.count(old) >= 1
    problems = problems_of(VALID.replace(old, new, 1))
    if words is None:
        place, words = (
            "13:16: batching.stages[1].prefill.chunked",
            "with token_budget: none a prompt would never be cut",
        )
    assert any(line.startswith(f"p.yaml:{place}: ") and words in line for line in problems), "\n".join(problems)


@pytest.mark.parametrize("old_new", sorted({(old, new) for old, new, _, _ in DAMAGED}))
def test_one_mistake_is_not_reported_in_many_ways(old_new: tuple[str, str]) -> None:
    # Two at most: a misspelt key is both unknown and missing.
    assert len(problems_of(VALID.replace(*old_new, 1))) <= 2


def test_every_problem_is_reported_at_once_in_the_order_of_the_file() -> None:
    text = VALID.replace("0.1", "-1").replace("due", "soon").replace("{class: free}", "{class: fre}")
    text = text.replace("512", "0") + "elastic: {}\nkv: {admit: promt}\n"
    places = [line.split(": ")[1] for line in problems_of(text)]
    assert places == [
        "classes[paid].tbt_s",
        "classify[1].class",
        "batching.token_budget",
        "batching.stages[0].decode.when",
        "elastic",
        "kv.admit",
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "p.yaml:1:1: document: the file is empty"),
        (b"# only a comment\n", "p.yaml:1:1: document: the file is empty"),
        (b"---\n", "a mapping with the keys version, name"),
        (b"- a\n", "p.yaml:1:1: document: a list does not fit"),
        (b"text", 'p.yaml:1:1: document: the text "text" does not fit'),
        (b"name: caf\xe9\n", "p.yaml:1:10: document: byte 9 is not UTF-8; save the file as UTF-8 text"),
        (VALID.encode("utf-16"), "p.yaml:1:1: document: byte 0 is not UTF-8"),
        (b"a: " + b"[" * 5000, f"values are nested deeper than {MAX_DEPTH} levels"),
        (b"[" + b"a," * 200_000 + b"]", f"values up to here; at most {MAX_VALUES} values are read"),
        (b"x" * (MAX_BYTES + 1), f"has more than {MAX_BYTES} bytes"),
    ],
)
def test_what_is_not_a_document_is_said_in_one_line(text: bytes, words: str) -> None:
    problems = problems_of(text)
    assert len(problems) == 1
    assert words in problems[0]


def test_an_alias_bomb_is_refused_without_being_expanded() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    assert "once aliases are written out" in problems_of("\n".join(lines))[0]


def test_an_alias_repeats_a_value_and_is_blamed_where_it_stands() -> None:
    text = VALID.replace("ttft_s: 0.5", "ttft_s: &t 0.5").replace("ttft_s: 5,", "ttft_s: *t,")
    assert load_policy(text.encode()).classes[1].ttft_s == 0.5
    wrong = VALID.replace("name: test", "name: &n test").replace("512", "*n")
    assert problems_of(wrong)[0].startswith("p.yaml:10:17: batching.token_budget")


def test_a_byte_order_mark_and_windows_line_ends_are_accepted() -> None:
    assert load_policy(b"\xef\xbb\xbf" + VALID.replace("\n", "\r\n").encode()) == load_policy(VALID.encode())


def test_numbers_are_those_of_yaml_1_2() -> None:
    assert load_policy(VALID.replace("ttft_s: 5,", "ttft_s: 5e-1,").encode()).classes[1].ttft_s == 0.5
    assert load_policy(VALID.replace("512", "0x200").encode()).batching.token_budget == 512
    assert load_policy(VALID.replace("name: test", "name: on").encode()).name == "on"


def test_a_flood_of_problems_is_cut_in_print_but_kept() -> None:
    with pytest.raises(PolicyError) as caught:
        load_policy((VALID + "".join(f"zz{n}: 1\n" for n in range(MAX_PROBLEMS_SHOWN + 7))).encode())
    assert len(caught.value.problems) == MAX_PROBLEMS_SHOWN + 7
    assert str(caught.value).splitlines()[-1] == "... and 7 more problems"


PIECES = [
    "{",
    "}",
    "[",
    "]",
    ":",
    "- ",
    "\n",
    "&a ",
    "*a",
    "null",
    "-1",
    "1e999",
    "none",
    "!x ",
    '"',
    "#",
    "due",
    "\t",
    "é",
]


@settings(max_examples=300, deadline=None)
@given(
    name=st.sampled_from(["slai", "vllm", "fcfs", "sarathi"]),
    edits=st.lists(
        st.tuples(st.floats(0, 1), st.integers(0, 12), st.one_of(st.sampled_from(PIECES), st.text(max_size=3))),
        min_size=1,
        max_size=6,
    ),
)
def test_a_mutated_policy_loads_or_raises_policy_error(name: str, edits: list[tuple[float, int, str]]) -> None:
    text = (POLICIES / f"{name}.yaml").read_text()
    for place, cut, piece in edits:
        at = int(place * len(text))
        text = text[:at] + piece + text[at + cut :]
    try:
        policy = load_policy(text.encode("utf-8", errors="surrogatepass"))
    except PolicyError:
        return
    assert msgspec.convert(msgspec.to_builtins(policy), Policy) == policy


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=200))
def test_any_bytes_load_or_raise_policy_error(data: bytes) -> None:
    with pytest.raises(PolicyError):
        load_policy(data)
