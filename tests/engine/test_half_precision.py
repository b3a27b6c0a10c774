"""In bfloat16 the engine computes what it computes in float32 on a CPU, as far as bfloat16 goes; on CUDA too.

Tests of CUDA run where there is a device. The one of both devices runs on a CPU as well.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from engine.interface import GraphSettings, Sampling
from ops.bench.engine_driver import Batch

NEAR_TIE = 0.1
"""Logits as close as this may change places in bfloat16."""
SEQUENCES = np.random.default_rng(0).integers(3, 199, (8, 120)).astype(np.int32)


@pytest.fixture
def forced(open_engine: Any) -> Callable[..., tuple[NDArray[np.int32], Any]]:
    """`forced(variant, **settings)`: after each token of SEQUENCES the token chosen, and the logits it is chosen by."""

    def run(variant: str, **settings: Any) -> tuple[NDArray[np.int32], Any]:
        import torch

        engine = open_engine(variant, **settings)
        logits, seen = engine._model.logits, []

        def watched(hidden: Any, sampled: Any) -> Any:
            seen.append(logits(hidden, sampled))
            return seen[-1]

        engine._model.logits = watched
        tokens = Batch(engine, SEQUENCES, 0).likeliest()
        return tokens, torch.stack(seen, 1).float().cpu()

    return run


@pytest.mark.parametrize("variant", ["llama", "mistral", "qwen3"])
@pytest.mark.parametrize(
    "settings",
    [
        {"device": "cpu"},
        pytest.param({"device": "cuda", "attention": "xformers_splitk"}, marks=pytest.mark.gpu),
        pytest.param({"device": "cuda", "attention": "sdpa_gather"}, marks=pytest.mark.gpu),
    ],
    ids=["cpu", "xformers_splitk", "sdpa_gather"],
)
def test_forced_along_the_same_tokens_bfloat16_chooses_as_float32(
    variant: str, settings: dict[str, Any], forced: Any, request: pytest.FixtureRequest
) -> None:
    if settings["device"] == "cuda":
        request.getfixturevalue("cuda")
    tokens, logits = forced(variant, dtype="bfloat16", **settings)
    expected, exact = forced(variant)
    best = exact.topk(2, -1).values
    clear = (best[..., 0] - best[..., 1] > NEAR_TIE).numpy()
    assert clear.mean() > 0.8
    assert (tokens == expected)[clear].mean() >= 0.98
    assert (logits - exact).abs().mean() <= 0.05


@pytest.mark.gpu
@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("variant", ["llama", "mistral", "qwen3"])
def test_recorded_decodes_on_cuda_are_the_same_numbers(variant: str, forced: Any) -> None:
    settings = {"device": "cuda", "dtype": "bfloat16", "attention": "xformers_splitk"}
    tokens, logits = forced(variant, **settings)
    expected, plain = forced(variant, **settings, graphs=GraphSettings(enable="off"))
    assert (logits == plain).all()
    assert (tokens == expected).all()


@pytest.mark.gpu
@pytest.mark.usefixtures("cuda")
def test_a_step_on_cuda_waits_for_nothing(open_engine: Any, driver: Any) -> None:
    import torch

    engine = open_engine("qwen3", device="cuda", dtype="bfloat16", attention="xformers_splitk")
    run = driver(engine, in_flight=2)
    samplings = [Sampling(seed=1), Sampling(temperature=0), Sampling(seed=2, top_p=0.9), Sampling(presence_penalty=1)]
    for sequence, sampling in enumerate(samplings):
        run.add(sequence, [3, 4, 5, 6, 7], sampling)
    run.run(2, 3, max_prefills=4)  # kernels are compiled
    launch = engine.launch

    def watched(step: Any) -> None:
        torch.cuda.set_sync_debug_mode("error")
        try:
            launch(step)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    engine.launch = watched
    run.run(12, 3)
    assert [len(tokens) for tokens in run.outputs.values()] == [12] * 4


@pytest.mark.gpu
@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("backend", ["xformers_splitk", "varlen_paged"])
@pytest.mark.parametrize("layer", [0, 1])
def test_a_backend_on_cuda_is_plain_attention(backend: str, layer: int) -> None:
    import torch

    from engine.attention.choice import Choice, build
    from tests.engine.attention.test_attention import LENGTHS, filled_cache, model, plain

    block_tokens = {"xformers_splitk": 64, "varlen_paged": 256}[backend]
    cache, rows = filled_cache(block_tokens, "cuda", "bfloat16", head_dim=32)
    query = torch.randn(sum(LENGTHS), 6, 32, device="cuda", dtype=torch.bfloat16)
    attended = build(Choice(backend, block_tokens, {}), model(head_dim=32), cache).plan(rows).attend(layer, query)
    assert (attended - plain(cache, rows, query, layer)).abs().max() < 0.05
