"""Triton's kernels compute what torch's operators do, and compile for a GPU that is not here."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent
ERRORS = {
    "a_sum_and_its_norm": 1e-6,
    "a_norm_alone_in_float16": 1e-3,
    "a_gate_wider_than_a_program": 1e-6,
    "heads_normed_turned_and_stored": 1e-6,
    "heads_of_no_power_of_two_in_float16": 1e-3,
}
"""Allowed for each case, as a share of its largest number."""
SHARED_BYTES = 227 * 1024
"""What a multiprocessor of an H200 gives one program."""


def printed(program: str, *arguments: str, **variables: str) -> Any:
    """What a program prints last: it must set up Triton before anything imports it."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(FOLDER / program), *arguments],
        env={**os.environ, **variables, "PYTHONPATH": str(FOLDER.parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def differences() -> dict[str, float]:
    """Of all cases, run by one process."""
    found: dict[str, float] = printed("interpreted_operations.py", TRITON_INTERPRET="1")
    return found


@pytest.mark.interp
@pytest.mark.parametrize("case", ERRORS)
def test_interpreted_kernels_are_torchs_operators_for(case: str, differences: dict[str, float]) -> None:
    assert set(differences) == set(ERRORS)
    assert differences[case] <= ERRORS[case]


@pytest.mark.interp
def test_an_engine_put_together_as_on_cuda_chooses_as_the_plain_one_does(references: Any) -> None:
    folder, _ = references("qwen3")
    variables = {"TRITON_INTERPRET": "1", "XFORMERS_ENABLE_TRITON": "1"}
    same, difference, num_recorded, num_replayed = printed("interpreted_engine.py", str(folder), **variables)
    assert same >= 0.98
    assert difference <= 0.01
    assert (num_recorded, num_replayed) == (1, 3)


def test_every_triton_kernel_of_a_decode_step_compiles_for_an_h200(tmp_path: Path) -> None:
    compiled = printed("compiled.py", XFORMERS_ENABLE_TRITON="1", TRITON_CACHE_DIR=str(tmp_path))
    assert set(compiled) == {"_fwd_kernel_splitK", "_splitK_reduce", "_add_norm", "_gate", "_place"}
    for shared_bytes, code_bytes in compiled.values():
        assert shared_bytes <= SHARED_BYTES
        assert code_bytes > 1000


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_an_engine_on_cuda_takes_them(dtype: str) -> None:
    import torch

    from engine.operations import choose_operations
    from engine.triton_operations import TritonOperations
    from tests.engine.attention.test_attention import model

    chosen = choose_operations(model(), torch.device("cuda"), getattr(torch, dtype))
    assert isinstance(chosen, TritonOperations)
