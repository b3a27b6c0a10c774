"""A step's tokens against a plain reference: one row at a time, in double precision, as the documents define it."""

import math
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.interface import Sampling

VOCABULARY = 40
EOS = (2, 5)
U64, U32 = 2**64 - 1, 2**32 - 1


def mixed(state: int) -> int:
    state = (state + 0x9E3779B97F4A7C15) & U64
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & U64
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & U64
    return state ^ (state >> 31)


def noise(seed: int, position: int, token: int) -> float:
    """Gumbel noise of a token: SplitMix64 of seed and position, MurmurHash3's finalizer with the token."""
    bits = (mixed((mixed(seed & U64) + position) & U64) >> 32) ^ (token * (2**32 - 0x61C88647) & U32)
    bits = (bits ^ (bits >> 16)) * (2**32 - 0x7A143595) & U32
    bits = (bits ^ (bits >> 13)) * (2**32 - 0x3D4D51CB) & U32
    bits = (bits ^ (bits >> 16)) & (2**31 - 1)
    return -math.log(-math.log1p(-(bits * 2**-31 * (1 - 2**-23) + 2**-32)))


def adjusted(logits: Any, sampling: Sampling, prompt: list[int], output: list[int]) -> list[float]:
    changed = [float(logit) for logit in logits]
    for token, bias in sampling.logit_bias.items():
        changed[token] += bias
    for token in set(prompt + output):
        logit = changed[token]
        changed[token] = logit / sampling.repetition_penalty if logit > 0 else logit * sampling.repetition_penalty
    for token in set(output):
        changed[token] -= sampling.frequency_penalty * output.count(token) + sampling.presence_penalty
    if len(output) < sampling.min_tokens:
        for token in {*sampling.stop_token_ids, *(() if sampling.ignore_eos else EOS)}:
            changed[token] = -1e30
    return changed


def likeliest(logits: list[float], count: int) -> list[int]:
    return sorted(range(len(logits)), key=lambda token: -logits[token])[:count]


def left(logits: list[float], sampling: Sampling, slack: float) -> dict[int, float]:
    """Tokens that remain and their weights; `slack` moves the borders of min_p and top_p."""
    scaled = [logit / sampling.temperature for logit in logits]
    best = max(scaled)
    weights = {token: math.exp(scaled[token] - best) for token in likeliest(scaled, len(scaled))}
    weights = {token: weight for token, weight in weights.items() if weight >= min(1.0, sampling.min_p * slack)}
    if sampling.top_k:
        weights = dict(list(weights.items())[: sampling.top_k])
    share, before = sampling.top_p * sum(weights.values()), 0.0
    kept = {}
    for token, weight in weights.items():
        if kept and before >= share * slack:
            break
        kept[token] = weight
        before += weight
    return kept


def acceptable(logits: list[float], sampling: Sampling, position: int) -> set[int]:
    """The token to be drawn; more than one only where float32 may round to either side of a border."""
    if sampling.temperature == 0:
        return {token for token in likeliest(logits, 3) if logits[token] >= max(logits) - 1e-4}
    chosen = set()
    for slack in (1 - 1e-4, 1 + 1e-4):
        scores = {
            token: math.log(weight) + noise(sampling.seed, position, token)
            for token, weight in left(logits, sampling, slack).items()
            if weight > 0
        }
        best = max(scores.values())
        chosen |= {token for token, score in scores.items() if score >= best - 1e-4}
    return chosen


tokens = st.integers(0, VOCABULARY - 1)
samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 1.7]),
    top_p=st.sampled_from([1.0, 0.95, 0.6, 0.01]),
    top_k=st.sampled_from([0, 1, 3, 20, 100]),
    min_p=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    seed=st.integers(-(2**63), 2**63 - 1),
    ignore_eos=st.booleans(),
    presence_penalty=st.sampled_from([0.0, -2.0, 0.7]),
    frequency_penalty=st.sampled_from([0.0, -0.5, 1.5]),
    repetition_penalty=st.sampled_from([1.0, 0.7, 1.3]),
    logit_bias=st.dictionaries(tokens, st.floats(-100, 100, width=32), max_size=4),
    min_tokens=st.sampled_from([0, 1, 4]),
    stop_token_ids=st.lists(tokens, max_size=3).map(tuple),
)
sequences = st.lists(st.tuples(samplings, st.lists(tokens, min_size=1, max_size=6)), min_size=1, max_size=6)


def slots(capacity: int = 8) -> Any:
    import torch

    from engine.sampling.slots import SlotSampling

    return SlotSampling(capacity, VOCABULARY, EOS, torch.device("cpu"))


@settings(max_examples=60, deadline=None)
@given(
    started=sequences, seed=st.integers(0, 2**32), preempted=st.sets(st.tuples(st.integers(0, 5), st.integers(0, 5)))
)
def test_all_settings_mean_what_the_reference_says_row_by_row(started: Any, seed: int, preempted: Any) -> None:
    import torch

    from engine.sampling.draw import sample

    held = slots()
    source = np.random.default_rng(seed)
    outputs: list[list[int]] = [[] for _ in started]
    for slot, (sampling, prompt) in enumerate(started, 1):
        held.start(slot, sampling, np.array(prompt, np.int32), len(prompt))
    numbers = np.arange(1, len(started) + 1)
    for step in range(6):
        logits = (4 * source.standard_normal((len(started), VOCABULARY))).astype(np.float32)
        positions = np.array([len(output) for output in outputs])
        changed = held.adjusted(torch.from_numpy(logits.copy()), numbers, positions)
        drawn = sample(changed, held.rows(numbers, positions))
        held.sampled(numbers, drawn)
        for row, (sampling, prompt) in enumerate(started):
            expected = adjusted(logits[row], sampling, prompt, outputs[row])
            assert changed[row].tolist() == pytest.approx(expected, rel=1e-5, abs=1e-4)
            assert int(drawn[row]) in acceptable(expected, sampling, len(outputs[row]))
            outputs[row].append(int(drawn[row]))
            if (step, row) in preempted:
                held.release(row + 1)
                known = np.array(prompt + outputs[row], np.int32)
                held.start(row + 1, sampling, known, len(prompt))


# --- distributions ------------------------------------------------------------------------------------------------

LOGITS = np.log([0.30, 0.22, 0.05, 0.16, 0.12, 0.04, 0.08, 0.03])
NUM_DRAWS = 20000


def fits(observed: Any, expected: Any) -> bool:
    """Pearson's chi-square at four standard deviations (Wilson and Hilferty's normal approximation)."""
    if (observed[expected == 0] > 0).any():
        return False
    possible = expected > 0
    degrees = int(possible.sum()) - 1
    if degrees == 0:
        return True
    counts = expected[possible] * observed.sum()
    statistic = float(((observed[possible] - counts) ** 2 / counts).sum())
    spread = 2 / (9 * degrees)
    return (statistic / degrees) ** (1 / 3) < 1 - spread + 4 * math.sqrt(spread)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.4),
        Sampling(temperature=2.0),
        Sampling(top_k=3),
        Sampling(top_p=0.515),  # 0.30 + 0.22 hold it, and hold no more
        Sampling(top_p=0.525),
        Sampling(min_p=0.3),
        Sampling(temperature=1.5, min_p=0.2, top_k=5, top_p=0.9),
        Sampling(presence_penalty=1.0),
        Sampling(frequency_penalty=0.6),
        Sampling(repetition_penalty=1.4),
        Sampling(presence_penalty=-0.5, frequency_penalty=0.3, repetition_penalty=0.8, min_p=0.1),
        Sampling(logit_bias={1: -100, 7: 2.5}),
        Sampling(min_tokens=9, stop_token_ids=(0,)),
    ],
    ids=lambda sampling: str(msgspec.to_builtins(sampling)),
)
def test_tokens_are_distributed_as_the_reference_says(sampling: Sampling) -> None:
    import torch

    from engine.sampling.draw import sample
    from engine.sampling.slots import SlotSampling

    prompt, output = [0, 6], [1, 1, 3]
    held = SlotSampling(2, len(LOGITS), EOS, torch.device("cpu"))
    held.start(1, sampling, np.array(prompt + output, np.int32), len(prompt))
    numbers, positions = np.ones(NUM_DRAWS, np.int64), np.full(NUM_DRAWS, len(output))
    logits = held.adjusted(torch.tensor(LOGITS).float().repeat(NUM_DRAWS, 1), numbers, positions)
    rows = held.rows(numbers, np.arange(NUM_DRAWS))  # as many positions, each with noise of its own
    observed = np.bincount(sample(logits, rows).numpy(), minlength=len(LOGITS))
    weights = np.zeros(len(LOGITS))
    for token, weight in left(adjusted(LOGITS, sampling, prompt, output), sampling, 1.0).items():
        weights[token] = weight
    expected = weights / weights.sum()
    assert fits(observed, expected), f"{observed.tolist()} drawn, {(expected * NUM_DRAWS).round().tolist()} expected"
    assert sampling == Sampling() or not fits(observed, np.exp(LOGITS))
