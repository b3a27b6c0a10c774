"""Outputs keep to their grammar whatever the model would say, and nobody else notices."""

import json
import threading
from typing import Any

import numpy as np
import pytest

from engine.grammar import lark
from engine.interface import Sampling

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
GRAMMAR = lark.document(PERSON)
FREE = Sampling(temperature=1.0, seed=9, ignore_eos=True)


def test_an_output_is_a_document_of_its_schema_and_then_ends(engine: Any, tokenizer: Any, follow: Any) -> None:
    outputs = follow(engine, [GRAMMAR] * 6, 96)
    documents = [json.loads(tokenizer.decode(output)) for output in outputs]
    assert all(list(document) == ["name", "age", "tags"] for document in documents)
    assert all(0 <= document["age"] <= 120 for document in documents)
    assert len({document["name"] for document in documents}) > 1
    assert all(output[-1] == 2 for output in outputs)


@pytest.mark.gpu
def test_masks_follow_tokens_that_come_from_a_cuda_device(
    tiny: Any, open_engine: Any, tokenizer: Any, follow: Any
) -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    engine = open_engine(tiny, device="cuda", dtype="float32", attention="sdpa_gather")
    for output in follow(engine, [GRAMMAR] * 6, 96, in_flight=2):
        assert list(json.loads(tokenizer.decode(output))) == ["name", "age", "tags"]


def test_the_same_tokens_come_with_two_steps_in_flight_and_after_preemptions(engine: Any, driver: Any) -> None:
    def output(in_flight: int, preempted_after: tuple[int, ...]) -> list[int]:
        steps = driver(engine, in_flight=in_flight)
        steps.add(5, [7, 8, 9], Sampling(temperature=1.0, seed=4), GRAMMAR)
        for num_outputs in preempted_after:
            steps.run(num_outputs, 2)
            steps.preempt(5)
        steps.run(40, 64)
        engine.forget([5])
        tokens: list[int] = steps.outputs[5]
        return tokens[: steps.ended[5].index(True) + 1]

    expected = output(1, ())
    assert output(2, ()) == expected
    assert output(1, (1, 4, 11)) == expected


def test_neighbours_without_a_grammar_have_the_same_bits(
    engine: Any, driver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from engine import runner

    seen: list[Any] = []
    sample = runner.sample

    def watched(logits: Any, *rows: Any, **more: Any) -> Any:
        seen.append(logits[-1].clone())
        return sample(logits, *rows, **more)

    monkeypatch.setattr(runner, "sample", watched)

    def trace(grammars: list[str]) -> tuple[Any, list[int]]:
        seen.clear()
        steps = driver(engine)
        for sequence, grammar in enumerate([*grammars, ""]):
            steps.add(sequence, [11, 12, 13], FREE, grammar)
        steps.run(24, 64, max_prefills=8)
        engine.forget(list(steps.outputs))
        return torch.stack(seen), steps.outputs[len(grammars)]

    logits, tokens = trace([""] * 3)
    beside, same = trace([GRAMMAR, "", GRAMMAR])
    assert same == tokens
    assert torch.equal(beside, logits)


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        ('start: %json {"type": "strnig"}', "Invalid type: strnig"),
        ("start: nothing", "nothing"),
    ],
)
def test_a_grammar_that_fails_ends_its_own_sequence_only(
    grammar: str, reason: str, engine: Any, driver: Any, tokenizer: Any
) -> None:
    steps = driver(engine)
    for sequence, each in enumerate((GRAMMAR, grammar, "")):
        steps.add(sequence, [11, 12, 13], Sampling(temperature=1.0, seed=sequence), each)
    steps.run(60, 64, max_prefills=8)
    engine.forget(list(steps.outputs))
    assert list(steps.failed) == [1]
    assert reason in steps.failed[1]
    assert "\n" not in steps.failed[1]
    end = steps.ended[0].index(True) + 1
    assert list(json.loads(tokenizer.decode(steps.outputs[0][:end]))) == ["name", "age", "tags"]
    alone = driver(engine)
    alone.add(2, [11, 12, 13], Sampling(temperature=1.0, seed=2))
    alone.run(60, 64)
    engine.forget([2])
    assert alone.outputs[2] == steps.outputs[2]


def test_a_token_that_breaks_a_grammar_midway_ends_that_sequence(
    engine: Any, driver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine import runner

    sample = runner.sample

    def wrong(logits: Any, *rows: Any, **more: Any) -> Any:
        tokens = sample(logits, *rows, **more)
        if len(steps.outputs[0]) == 5:
            tokens[0] = logits[0].argmin()
        return tokens

    steps = driver(engine)
    monkeypatch.setattr(runner, "sample", wrong)
    for sequence in range(2):
        steps.add(sequence, [11, 12, 13], Sampling(temperature=1.0, seed=sequence), GRAMMAR)
    steps.run(9, 64)
    engine.forget([0, 1])
    assert list(steps.failed) == [0]
    assert "doesn't satisfy the grammar" in steps.failed[0]


def test_an_output_that_cannot_have_been_written_under_its_grammar_fails(engine: Any, driver: Any) -> None:
    steps = driver(engine)
    steps.add(1, [11, 12], FREE, GRAMMAR)
    steps.outputs[1] = [60, 61]  # as a scheduler of another model might hand over
    steps._starts.clear()
    steps._begin(1)
    steps.run(3, 64)
    engine.forget([1])
    assert "cannot keep to its grammar" in steps.failed[1]


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.0},
        {"top_p": 0.4},
        {"top_k": 2},
        {"min_p": 0.5},
        {"repetition_penalty": 3.0, "presence_penalty": 2.0, "frequency_penalty": 2.0},
        {"logit_bias": {2: 100.0, 60: 100.0}},  # as if the end, or a bracket, were always likeliest
        {"min_tokens": 300},  # the only token left ends the output: it comes all the same
        {"logprobs": 20},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_every_setting_draws_from_what_the_grammar_leaves(
    settings: dict[str, Any], engine: Any, driver: Any, tokenizer: Any
) -> None:
    steps = driver(engine)
    for sequence in range(4):
        sampling = Sampling(**{"temperature": 1.0, "seed": sequence, **settings})
        steps.add(sequence, [11, 12, 13 + sequence], sampling, GRAMMAR)
    steps.run(96, 64, max_prefills=4)
    engine.forget(list(steps.outputs))
    assert steps.failed == {}
    for sequence, tokens in steps.outputs.items():
        document = json.loads(tokenizer.decode(tokens[: steps.ended[sequence].index(True)]))
        assert list(document) == ["name", "age", "tags"]
        for entries in steps.logprobs.get(sequence, ()):
            assert all(np.isfinite(value) for _, value in entries)


def test_a_forward_pass_does_not_wait_for_the_masks_of_its_rows(
    engine: Any, driver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine.grammar import constraints

    began, seen = threading.Event(), list[bool]()
    fill, hidden = constraints.fill_next_token_bitmask_par, engine._model.hidden

    def fill_late(*arguments: Any) -> None:
        seen.append(began.wait(2))
        began.clear()
        fill(*arguments)

    def watched(*arguments: Any) -> Any:
        if steps.outputs[1]:
            began.set()
        return hidden(*arguments)

    steps = driver(engine)
    monkeypatch.setattr(constraints, "fill_next_token_bitmask_par", fill_late)
    monkeypatch.setattr(engine._model, "hidden", watched)
    steps.add(1, [11, 12], Sampling(temperature=1.0, seed=4), GRAMMAR)
    steps.run(6, 64)
    began.set()  # the last mask has no pass to go beside
    engine.forget([1])
    assert seen[:5] == [True] * 5


def test_the_tokenizer_is_read_before_the_first_grammar_asks_for_it(tiny: Any, open_engine: Any) -> None:
    constraints = open_engine(tiny)._constraints
    constraints._compiling.submit(lambda: None).result()
    assert constraints._compiler._tokenizer is not None


def test_nothing_is_followed_any_more_once_sequences_are_released(engine: Any, driver: Any) -> None:
    steps = driver(engine)
    steps.add(1, [11, 12], FREE, GRAMMAR)
    steps.run(3, 64)
    assert len(engine._constraints) == 1
    engine.forget([1])
    assert len(engine._constraints) == 0


def test_the_end_is_allowed_only_where_the_grammar_accepts(compiler: Any) -> None:
    from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

    matcher = compiler.matcher(lark.document({"enum": [1, 12]}))
    allowed = []
    for token in (None, *compiler._tokenizer.tokenize_str("12")):
        assert token is None or matcher.consume_token(token)
        bits = allocate_token_bitmask(1, 400)
        fill_next_token_bitmask(matcher, bits)
        allowed.append(bool(np.unpackbits(bits[0].view(np.uint8), bitorder="little")[2]))
    assert allowed[0] is False
    assert allowed[-1] is True
