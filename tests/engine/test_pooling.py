"""Embeddings are transformers' hidden states, pooled, in any company and however the prompt came."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.interface import POOLINGS, EngineSettings, Sampling, SequenceStart, Step
from engine.load import load_engine

VARIANTS = ("llama", "mistral", "qwen2", "qwen3")
LENGTHS = (1, 5, 16, 17, 90)
IGNORED = Sampling(temperature=0, ignore_eos=True)


def prompts() -> list[list[int]]:
    source = np.random.default_rng(6)
    return [source.integers(3, 199, length).tolist() for length in LENGTHS]


def expected(model: Any, pooling: str) -> list[Any]:
    import torch

    with torch.no_grad():
        states = [model.model(torch.tensor([prompt])).last_hidden_state[0].double() for prompt in prompts()]
    vectors = [each.mean(0) if pooling == "mean" else each[-1] for each in states]
    return [(vector / vector.norm()).numpy() for vector in vectors]


@pytest.fixture
def embed(driver: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`embed(engine, pooling, chunk, preempt=, mates=)`: the vectors of `prompts()`, by prompt."""

    def run(
        engine: Any, pooling: str, chunk: int, *, preempt: bool = False, mates: int = 0
    ) -> tuple[list[Any], dict[int, str]]:
        vectors: dict[int, Any] = {}
        failed: dict[int, str] = {}
        driven = driver(engine)
        collect = driven.collect

        def collected() -> Any:
            output = collect()
            vectors.update(output.vectors)
            failed.update(output.failed)
            return output

        def add(sequence: int, prompt: list[int], pooled: str) -> None:
            driven.add(sequence, prompt, IGNORED)
            driven._starts[-1].pooling = pooled

        monkeypatch.setattr(driven, "collect", collected)
        for sequence, prompt in enumerate(prompts()):
            add(sequence, prompt, pooling)
        for mate in range(mates):
            add(100 + mate, list(range(3, 30 + mate)), "")
        if preempt:
            driven.step({4: 40})
            driven.release(4)
            driven._begin(4)
            driven._starts[-1].pooling = pooling
        driven.run(1, chunk, max_prefills=3)
        engine.forget(list(driven.outputs))
        assert set(vectors) | set(failed) == set(range(len(LENGTHS)))
        return [vectors.get(sequence) for sequence in range(len(LENGTHS))], failed

    return run


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("pooling", POOLINGS)
def test_vectors_are_those_of_transformers(
    variant: str, pooling: str, references: Any, open_engine: Any, embed: Any
) -> None:
    folder, model = references(variant)
    engine = open_engine(folder)
    vectors, failed = embed(engine, pooling, 512)
    others, _ = embed(engine, pooling, 7, mates=3)
    assert not failed
    for vector, other, right in zip(vectors, others, expected(model, pooling), strict=True):
        assert vector.dtype == np.float32
        assert np.abs(vector - right).max() < 1e-5
        assert abs(np.linalg.norm(vector) - 1) < 1e-6
        assert (vector == other).all()


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_preempted_prompt_begins_anew(pooling: str, references: Any, open_engine: Any, embed: Any) -> None:
    folder, model = references("llama")
    engine = open_engine(folder)
    vectors, failed = embed(engine, pooling, 16, preempt=True)
    assert not failed
    for vector, right in zip(vectors, expected(model, pooling), strict=True):
        assert np.abs(vector - right).max() < 1e-5


def test_chunks_make_no_difference_to_the_sum() -> None:
    import torch

    from engine.pooling import Pools

    states = torch.randn(90, 32, generator=torch.Generator().manual_seed(1)) * torch.logspace(-6, 6, 90)[:, None]

    def vector(chunk: int) -> Any:
        pools = Pools()
        pools.start(SequenceStart(1, b"\0" * 360, 90, IGNORED, pooling="mean"))
        for start in range(0, 90, chunk):
            part = states[start : start + chunk]
            pooled = pools.gather(
                step(1, start, len(part), start + chunk >= 90), np.array([len(part) - 1]), lambda part=part: part
            )
        return pooled.vectors[1]

    assert all((vector(chunk) == vector(90)).all() for chunk in (1, 7, 45, 89))


def step(sequence: int, position: int, num_tokens: int, samples: bool, starts: Any = ()) -> Step:
    num_blocks = len(starts) * 8
    return Step(
        step=1,
        sequences=np.array([sequence]),
        positions=np.array([position], np.int32),
        num_tokens=np.array([num_tokens], np.int32),
        samples=np.array([samples]),
        num_new_blocks=np.array([num_blocks], np.int32),
        new_blocks=np.arange(num_blocks, dtype=np.int32),
        starts=list(starts),
        released=[],
    )


@pytest.mark.parametrize(
    ("pooling", "position", "sentence"),
    [
        ("mean", 16, "only 0 of the prompt's 24 tokens were computed for its mean"),
        ("max", 0, "pooling max is not known here; known are mean, last"),
    ],
)
def test_a_vector_that_cannot_be_made_is_an_error_of_its_sequence(
    pooling: str, position: int, sentence: str, open_engine: Any
) -> None:
    engine = open_engine("llama")
    start = SequenceStart(5, np.arange(3, 27, dtype=np.int32).tobytes(), 24, IGNORED, pooling=pooling)
    engine.launch(step(5, position, 24 - position, samples=True, starts=[start]))
    output = engine.collect()
    assert output.failed == {5: sentence}
    assert not output.vectors
    engine.forget([5])


def test_the_paced_engine_says_that_it_has_none(demo: Path) -> None:
    engine = load_engine(demo, EngineSettings(kind="paced", paced_step_s=0))
    start = SequenceStart(5, np.arange(3, 27, dtype=np.int32).tobytes(), 24, IGNORED, pooling="mean")
    engine.launch(step(5, 0, 24, samples=True, starts=[start]))
    assert engine.collect().failed == {5: "the paced engine computes nothing and has no embeddings"}
