"""A step is launched without reading anything back from the device and without a copy that waits for it.

The device is torch's `meta`: it computes nothing and refuses every read, so that a read shows as an error.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from engine.interface import EngineInfo, GraphSettings, Sampling
from tests.engine.attention.test_attention import model
from tests.engine.test_graphs import CalledAgain

SAMPLINGS = (
    Sampling(temperature=0),
    Sampling(temperature=0.8, seed=1),
    Sampling(temperature=0.8, seed=2, top_p=0.9, top_k=3, min_p=0.1),
    Sampling(temperature=1, presence_penalty=1, frequency_penalty=0.5, repetition_penalty=1.2, logit_bias={3: 2.0}),
    Sampling(temperature=0, min_tokens=5, stop_token_ids=(4,), logprobs=2),
)


class Event:
    """Of work that is done at once."""

    def record(self) -> None: ...

    def synchronize(self) -> None: ...


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each copy from the host to the device, whether it may wait; results read as zeros."""
    import torch

    waits: list[bool] = []
    empty, to, copy = torch.empty, torch.Tensor.to, torch.Tensor.copy_

    def unpinned(*size: Any, pin_memory: bool = False, **options: Any) -> Any:
        return empty(*size, **options)

    def noted_to(tensor: Any, *place: Any, non_blocking: bool = False, **options: Any) -> Any:
        result = to(tensor, *place, non_blocking=non_blocking, **options)
        if tensor.device.type == "cpu" and result.device.type == "meta":
            waits.append(not non_blocking)
        return result

    def noted_copy(tensor: Any, source: Any, non_blocking: bool = False) -> Any:
        if tensor.device.type == "cpu" and source.device.type == "meta":
            assert non_blocking
            return tensor.zero_()
        if tensor.device.type == "meta" and source.device.type == "cpu":
            waits.append(not non_blocking)
        return copy(tensor, source, non_blocking)

    monkeypatch.setattr(torch, "empty", unpinned)
    monkeypatch.setattr(torch.Tensor, "to", noted_to)
    monkeypatch.setattr(torch.Tensor, "copy_", noted_copy)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    return waits


@pytest.fixture
def engine() -> Callable[[GraphSettings], Any]:
    def assemble(settings: GraphSettings) -> Any:
        import torch

        from engine.attention.varlen_paged import VarlenAttention
        from engine.cuda import decode_graphs
        from engine.kv_cache import KvCache
        from engine.models.decoder import Decoder
        from engine.runner import TorchEngine

        device = torch.device("meta")
        config = model()
        checkpoint: Any = SimpleNamespace(
            dtype=torch.float32,
            device=device,
            tensor=lambda name, *shape: torch.zeros(shape, device=device),
        )
        cache = KvCache(config, 20, 256, torch.float32, device)
        attention = VarlenAttention(config, cache, lambda query, *_, **__: torch.empty_like(query))
        decoder = Decoder(config, checkpoint, 520)
        options: Any = {"max_positions": 512, "recorder": CalledAgain()}
        graphs = decode_graphs(decoder, cache, attention, settings, **options)
        info = EngineInfo("m", "Llama", 1, "float32", "meta", "varlen_paged", 20, 256, 512, config.vocabulary_size)
        constraints: Any = SimpleNamespace(
            start=lambda _: None, release=lambda _: None, restrict=lambda *_: {}, advance=lambda *_: None
        )
        ids = frozenset({2})
        return TorchEngine(info, decoder, cache, attention, eos_ids=ids, constraints=constraints, graphs=graphs)

    return assemble


@pytest.mark.parametrize("enable", ["auto", "off"])
def test_launching_a_step_waits_for_nothing(enable: str, engine: Any, driver: Any, copies: list[bool]) -> None:
    ours = engine(GraphSettings(enable=enable, decode_buckets=(8,)))
    copies.clear()
    run = driver(ours, in_flight=2)
    for sequence, sampling in enumerate(SAMPLINGS):
        run.add(sequence, [3, 4, 5, 6, 7], sampling)
    run.run(6, 3, max_prefills=2)
    assert [len(tokens) for tokens in run.outputs.values()] == [6] * len(SAMPLINGS)
    assert len(copies) > 20
    assert not any(copies)
