"""Decodes through recorded passes are the same decodes. A recording that calls its pass again stands for CUDA's."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import numpy as np
import pytest

from engine.attention.interface import Rows
from engine.interface import EngineSettings, GraphSettings, Sampling

OUTPUTS = 12
SHAPES = (1, 2, 8)


class CalledAgain:
    """A recorder for a CPU. What it recorded reads and writes the memory that it did, as a CUDA graph would."""

    def __init__(self) -> None:
        self.num_recorded = 0
        self.num_replayed = 0

    def record(self, run: Callable[[], Any]) -> Any:
        from engine.graphs import Recording

        output = run()
        self.num_recorded += 1

        def replay() -> None:
            self.num_replayed += 1
            output.copy_(run())

        return Recording(output, replay)


class SteadyGather:
    """Gathered attention whose decodes can be filled anew."""

    name = "steady_gather"

    def __init__(self, gather: Any) -> None:
        self.plan = gather.plan
        self.shapes: list[tuple[int, int]] = []

    def steady(self, num_rows: int, num_blocks: int) -> Any:
        from engine.attention.steady import padded

        self.shapes.append((num_rows, num_blocks))
        backend = self

        class Decodes:
            def fill(self, rows: Rows) -> None:
                contexts, tables = (part.astype(np.int64) for part in padded(rows, num_rows, num_blocks))
                self.step = backend.plan(Rows(num_rows, np.ones(num_rows, np.int64), contexts, tables))

            def attend(self, layer: int, query: Any) -> Any:
                return self.step.attend(layer, query)

        return Decodes()


@pytest.fixture
def recorded(open_engine: Any) -> Callable[..., tuple[Any, CalledAgain, SteadyGather]]:
    """`recorded(variant)`: an engine whose decodes go through graphs, its recorder and its attention."""
    from engine.cuda import decode_graphs

    def load(variant: str) -> tuple[Any, CalledAgain, SteadyGather]:
        engine, recorder = open_engine(variant), CalledAgain()
        attention = SteadyGather(engine._attention)
        settings = GraphSettings(decode_buckets=SHAPES)
        engine._graphs = decode_graphs(
            engine._model, engine._cache, attention, settings, max_positions=520, recorder=recorder
        )
        return engine, recorder, attention

    return load


def tokens(engine: Any, driver: Any, num_sequences: int, in_flight: int) -> dict[int, list[int]]:
    source = np.random.default_rng(num_sequences)
    run = driver(engine, in_flight=in_flight)
    for sequence in range(num_sequences):
        sampling = Sampling(temperature=sequence % 2, top_p=0.9, seed=sequence, ignore_eos=True)
        run.add(sequence, source.integers(3, 199, int(source.integers(1, 50))).tolist(), sampling)
    run.run(OUTPUTS, 16, max_prefills=num_sequences)
    engine.forget(list(run.outputs))
    outputs: dict[int, list[int]] = run.outputs
    return outputs


@pytest.mark.parametrize("variant", ["llama", "mistral", "qwen3"])
@pytest.mark.parametrize("in_flight", [1, 2])
def test_recorded_decodes_give_the_same_tokens(
    variant: str, in_flight: int, recorded: Any, open_engine: Any, driver: Any
) -> None:
    engine, recorder, _ = recorded(variant)
    plain = open_engine(variant)
    for num_sequences in (1, 2, 5, 8):
        assert tokens(engine, driver, num_sequences, in_flight) == tokens(plain, driver, num_sequences, in_flight)
    assert recorder.num_recorded == len(SHAPES)
    assert recorder.num_replayed >= 4 * (OUTPUTS - 2)


def test_more_rows_than_the_largest_shape_run_without_a_graph(recorded: Any, open_engine: Any, driver: Any) -> None:
    engine, recorder, _ = recorded("llama")
    assert tokens(engine, driver, 9, 1) == tokens(open_engine("llama"), driver, 9, 1)
    assert recorder.num_replayed < OUTPUTS  # but for steps at the end that hold fewer


def test_padding_writes_the_scratch_block_alone(recorded: Any, driver: Any) -> None:
    engine, recorder, _ = recorded("llama")
    pools = (*engine._cache.keys, *engine._cache.values)
    for pool in pools:
        pool.fill_(7)
    run = driver(engine)
    for sequence in range(3):
        run.add(sequence, [5, 6, 7, 8])
    run.run(4, 16, max_prefills=3)
    assert recorder.num_replayed > 0
    held = {block + 1 for blocks in run._blocks.values() for block in blocks}
    for pool in pools:
        changed = (pool != 7).flatten(1).any(1).nonzero().flatten().tolist()
        assert set(changed) - {0} == held
        assert (pool[0, 1:] == 7).all()  # one slot of it


def test_the_likely_shapes_are_recorded_beforehand_the_largest_first(
    recorded: Any, caplog: pytest.LogCaptureFixture
) -> None:
    engine, recorder, attention = recorded("llama")
    with caplog.at_level(logging.INFO, "engine.graphs"):
        engine._graphs.prepare(400)
    assert attention.shapes == [(8, 33), (2, 33), (1, 33)]  # 1024 tokens are more than the 520 there can be
    assert recorder.num_recorded == len(engine._graphs) == 3
    assert "recorded 3 decode graphs" in caplog.text


@pytest.mark.parametrize(
    ("max_context", "blocks"), [(1, [64]), (1024, [64]), (1025, [128, 64]), (5000, [512, 256, 128, 64])]
)
def test_widths_are_prepared_up_to_the_context_asked_for(max_context: int, blocks: list[int]) -> None:
    import torch

    from engine.graphs import DecodeGraphs, Recording

    class Recorder:
        def record(self, run: Any) -> Recording:
            return Recording(torch.empty(0), lambda: None)

    class Attention:
        name = "none"
        asked: list[int] = []

        def plan(self, rows: Any) -> Any: ...

        def steady(self, num_rows: int, num_blocks: int) -> Any:
            self.asked.append(num_blocks)
            return SteadyGather(self).steady(num_rows, num_blocks)

    attention = Attention()
    attention.asked = []
    graphs = DecodeGraphs(
        lambda *_: torch.empty(0),
        attention,
        shapes=(4,),
        block_tokens=16,
        max_blocks=10**6,
        device=torch.device("cpu"),
        recorder=Recorder(),
    )
    graphs.prepare(max_context)
    assert attention.asked == blocks


@pytest.mark.parametrize(("num_rows", "padding"), [(1, 0), (2, 0), (3, 5), (8, 0), (9, None)])
def test_steps_are_padded_to_the_next_shape(num_rows: int, padding: int | None, recorded: Any) -> None:
    assert recorded("llama")[0]._graphs.num_padding(num_rows) == padding


def test_graphs_can_be_switched_off_and_need_a_backend_for_them(open_engine: Any) -> None:
    from engine.cuda import decode_graphs

    engine = open_engine("llama")
    attention = engine._attention
    for backend, settings in ((SteadyGather(attention), GraphSettings(enable="off")), (attention, GraphSettings())):
        options: Any = {"max_positions": 520, "recorder": CalledAgain()}
        assert decode_graphs(engine._model, engine._cache, backend, settings, **options) is None


def test_shapes_must_ascend() -> None:
    for shapes in ([], [4, 2], [2, 2]):
        with pytest.raises(msgspec.ValidationError, match="decode_buckets must be ascending and not empty"):
            msgspec.convert({"graphs": {"decode_buckets": shapes}}, EngineSettings)


@pytest.mark.parametrize(("num_tokens", "max_sequence_tokens"), [(100, 512), (100, 40), (3, 1)])
def test_a_full_step_runs_in_rows_as_long_as_they_may_be(
    num_tokens: int, max_sequence_tokens: int, open_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine.attention.choice import Choice
    from engine.cuda import run_full_step

    model = open_engine("llama")._model
    seen: list[int] = []
    forward = model.forward

    def watched(inputs: Any, cache: Any, step: Any) -> Any:
        seen.append(len(inputs.tokens))
        logits = forward(inputs, cache, step)
        assert logits.isfinite().all()
        return logits

    monkeypatch.setattr(model, "forward", watched)
    run_full_step(model, Choice("cpu_gather", 16, {}), max_sequence_tokens, num_tokens)
    assert num_tokens <= seen[0] < num_tokens + max_sequence_tokens


def test_cuda_captures_after_a_first_run_in_one_pool_and_leaves_other_threads_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import inspect

    import torch

    from engine.graphs import CudaRecorder

    events: list[Any] = []

    class Graph:
        def replay(self) -> None:
            events.append("replay")

    @contextlib.contextmanager
    def graph(captured: Graph, **options: Any) -> Iterator[None]:
        events.append(("capture", options))
        yield

    known = inspect.signature(torch.cuda.graph.__init__).parameters
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: events.append("synchronize"))
    recorder = CudaRecorder(torch.device("cuda"))
    recording = recorder.record(lambda: events.append("run") or torch.ones(1))
    recording.replay()
    options = {"pool": "pool", "capture_error_mode": "thread_local"}
    assert events == ["run", "synchronize", ("capture", options), "run", "replay"]
    assert set(options) <= set(known)
    assert recording.output == 1
