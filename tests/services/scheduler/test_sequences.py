"""What a request may say that it has already."""

import numpy as np
import pytest

from engine.interface import Sampling
from services.scheduler.sequences import fault_of, output_tokens_of
from services.wire import Submit


def submit(*lengths: int, num_choices: int = 2, ended: tuple[int, ...] = (), pooling: str = "") -> Submit:
    outputs = [np.arange(length, dtype=np.int32).tobytes() for length in lengths]
    sampling = [Sampling()] * num_choices
    return Submit(7, "acme", "paid", b"\0" * 8, 10, sampling, pooling=pooling, outputs=outputs, ended=list(ended))


@pytest.mark.parametrize("begun", [submit(), submit(0, 0), submit(9, 3), submit(10, 3, ended=(0,))])
def test_what_leaves_something_to_make_can_be_gone_on_with(begun: Submit) -> None:
    assert fault_of(begun) == ""


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (submit(3), "outputs of [12] bytes are no 2 rows of tokens"),
        (submit(10, 3), "outputs of [40, 12] bytes leave nothing of 10 tokens"),
        (submit(11, 3, ended=(0,)), "outputs of [44, 12] bytes leave nothing of 10 tokens"),
        (submit(3, 3, ended=(0, 1)), "of 2 choices, those numbered [0, 1] are said to have ended"),
        (submit(3, 3, ended=(5,)), "of 2 choices, those numbered [5] are said to have ended"),
        (submit(ended=(0,)), "choices are said to have ended, and not with what"),
    ],
)
def test_what_nobody_could_go_on_with_is_said_in_a_sentence(wrong: Submit, sentence: str) -> None:
    assert fault_of(wrong) == sentence


def test_bytes_that_are_no_whole_tokens_are_wrong() -> None:
    broken = submit(3, 3)
    broken.outputs[1] += b"\0"
    assert "no 2 rows of tokens" in fault_of(broken)


def test_an_embedding_has_no_output() -> None:
    assert output_tokens_of(submit(3, 2)) == 5
    assert output_tokens_of(submit(1, num_choices=1, pooling="mean")) == 0
