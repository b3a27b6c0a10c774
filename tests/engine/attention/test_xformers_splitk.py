"""xformers' kernel, called through our backend, is gathered attention; and what it is given is right."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

PROGRAM = Path(__file__).with_name("interpreted.py")
CASES = (
    "contexts_from_one_token_to_many_pages",
    "a_window_that_begins_within_a_page",
    "a_context_that_is_not_split",
    "rows_padded_and_a_shape_used_again",
    "heads_of_an_8b_model_in_pages_of_128",
    "decodes_beside_chunks",
)
FLOAT16_ERROR = 1e-3


@pytest.fixture(scope="module")
def differences() -> dict[str, float]:
    """Of all cases, run by one process."""
    variables = {"TRITON_INTERPRET": "1", "XFORMERS_ENABLE_TRITON": "1"}
    root = str(PROGRAM.parents[3])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(PROGRAM)],
        env={**os.environ, **variables, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.interp
@pytest.mark.parametrize("case", CASES)
def test_the_interpreted_kernel_is_gathered_attention_for(case: str, differences: dict[str, float]) -> None:
    assert set(differences) == set(CASES)
    assert differences[case] <= FLOAT16_ERROR


@pytest.mark.filterwarnings("ignore")  # xformers says that there is no GPU
@pytest.mark.parametrize("window", [None, 5])
def test_the_bias_of_prefills_is_causal_from_the_end_of_each_context(window: int | None) -> None:
    import torch

    from engine.attention.steady import starts
    from engine.attention.xformers_splitk import context_slots, prefill_bias

    lengths, contexts = [4, 9], [12, 9]
    begins = [torch.from_numpy(starts(np.array(part))) for part in (lengths, contexts)]
    bias: Any = prefill_bias(lengths, contexts, window, *begins)
    assert bias.q_seqinfo.seqstart.tolist() == [0, 4, 13]
    assert bias.k_seqinfo.seqstart.tolist() == [0, 12, 21]
    mask = bias.materialize((13, 21))
    seen = torch.zeros(13, 21, dtype=torch.bool)
    for row, (first_query, first_key) in enumerate(((0, 0), (4, 12))):
        for index in range(lengths[row]):
            position = contexts[row] - lengths[row] + index
            start = max(0, position - (window or 99) + 1)
            seen[first_query + index, first_key + start : first_key + position + 1] = True
    assert ((mask == 0) == seen).all()
    assert context_slots(np.array([2, 5]), 6, 4).tolist() == [8, 9, 10, 11, 20, 21]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("num_programs", "width", "splits"),
    [(8, 1024, 8), (8, 32768, 128), (512, 2048, 2), (2048, 2048, 1), (8, 64, 1), (1, 10**6, 128)],
)
def test_contexts_are_split_until_the_device_is_full_but_not_into_crumbs(
    num_programs: int, width: int, splits: int
) -> None:
    from engine.attention.xformers_splitk import num_splits

    assert num_splits(num_programs, width) == splits
