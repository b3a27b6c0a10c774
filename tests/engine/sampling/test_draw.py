"""Tokens follow the distribution, a row's random numbers are its own."""

from typing import Any

import numpy as np
import pytest

from engine.sampling import draw, noise
from engine.sampling.draw import sample
from engine.sampling.noise import row_keys
from engine.sampling.rows import SamplingRows


def rows(num_rows: int, **columns: Any) -> SamplingRows:
    """Temperature 1 and nothing cut, unless said otherwise; output positions 0, 1, 2 ..."""
    defaults: dict[str, Any] = {"temperatures": 1.0, "top_ps": 1.0, "top_ks": 0, "min_ps": 0.0, "seeds": 7}
    values = {name: np.full(num_rows, columns.get(name, default)) for name, default in defaults.items()}
    return SamplingRows(
        values["temperatures"].astype(np.float32),
        values["top_ps"].astype(np.float32),
        values["top_ks"].astype(np.int64),
        values["min_ps"].astype(np.float32),
        values["seeds"].astype(np.int64),
        np.arange(num_rows),
    )


def frequencies(logits: list[float], num_draws: int = 20000, **columns: Any) -> list[float]:
    import torch

    tokens = sample(torch.tensor(logits).repeat(num_draws, 1), rows(num_draws, **columns))
    return (np.bincount(tokens.numpy(), minlength=len(logits)) / num_draws).tolist()


LOGITS = np.log([0.4, 0.1, 0.3, 0.2]).tolist()


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({}, [0.4, 0.1, 0.3, 0.2]),
        ({"temperatures": 0.5}, [16 / 30, 1 / 30, 9 / 30, 4 / 30]),
        ({"temperatures": 0.0}, [1, 0, 0, 0]),
        ({"top_ks": 2}, [4 / 7, 0, 3 / 7, 0]),
        ({"top_ks": 99}, [0.4, 0.1, 0.3, 0.2]),
        ({"top_ps": 0.65}, [4 / 7, 0, 3 / 7, 0]),
        ({"top_ps": 0.75}, [4 / 9, 0, 3 / 9, 2 / 9]),
        ({"top_ps": 0.0001}, [1, 0, 0, 0]),
        ({"top_ks": 3, "top_ps": 0.7}, [4 / 7, 0, 3 / 7, 0]),
    ],
)
def test_tokens_follow_the_distribution_that_is_left(columns: dict[str, Any], expected: list[float]) -> None:
    assert frequencies(LOGITS, **columns) == pytest.approx(expected, abs=0.015)


@pytest.mark.parametrize(
    ("columns", "deep"),
    [
        ({"top_ks": 50}, 20),
        ({"top_ks": 500}, 100),
        ({"top_ps": 0.2}, 10),
        ({"top_ps": 0.8}, 100),
        ({"top_ks": 2000, "top_ps": 0.6}, 100),
    ],
)
def test_sorting_means_the_same_as_selecting(
    columns: dict[str, Any], deep: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    logits = 2 * torch.randn(64, 3000, generator=torch.Generator().manual_seed(1))
    selected = sample(logits, rows(64, **columns))
    monkeypatch.setattr(draw, "FEW", (1,))
    assert sample(logits, rows(64, **columns)).tolist() == selected.tolist()
    assert (logits > logits.gather(1, selected[:, None])).sum(1).max() > deep


def test_the_vocabulary_is_sorted_only_for_rows_that_few_tokens_do_not_cover(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    logits = torch.zeros(2, 3000)
    logits[0, :10] = 20.0
    sorted_rows = []
    whole = draw._from_sorted

    def watched(probabilities: Any, chosen: SamplingRows) -> Any:
        sorted_rows.append(chosen.output_positions.tolist())
        return whole(probabilities, chosen)

    monkeypatch.setattr(draw, "_from_sorted", watched)
    tokens = sample(logits, rows(2, top_ps=0.9))
    assert sorted_rows == [[1]]
    assert tokens[0] < 10


def test_every_row_is_as_if_alone() -> None:
    import torch

    logits = torch.randn(6, 300, generator=torch.Generator().manual_seed(2))
    mixed = rows(6)._replace(
        temperatures=np.array([0, 1, 1, 0.7, 0, 2], np.float32),
        top_ps=np.array([1, 0.9, 1, 0.5, 0.3, 1], np.float32),
        top_ks=np.array([0, 0, 0, 40, 3, 5]),
    )
    alone = [int(sample(logits[[row]], mixed.at(np.array([row])))) for row in range(6)]
    assert sample(logits, mixed).tolist() == alone


def test_random_numbers_are_spread_and_depend_on_seed_position_and_token_alone() -> None:
    import torch

    def uniform(seeds: Any, positions: Any, tokens: Any) -> Any:
        return noise.uniform(
            torch.from_numpy(row_keys(seeds, positions))[:, None], torch.tensor(tokens.tolist())
        ).numpy()

    seeds, positions = np.repeat(np.arange(-10, 10), 10), np.tile(np.arange(10), 20)
    tokens = np.arange(100)
    numbers = uniform(seeds, positions, tokens)
    assert np.histogram(numbers, 10, (0, 1))[0] == pytest.approx([2000] * 10, abs=200)
    assert len(np.unique(numbers)) > 19900
    assert 0 < numbers.min() < numbers.max() < 1
    assert (uniform(seeds[::-1], positions[::-1], tokens[::-1])[::-1, ::-1] == numbers).all()
    for one, other in ((numbers[:-1], numbers[1:]), (numbers[:, :-1], numbers[:, 1:]), (numbers[:-10], numbers[10:])):
        assert abs(np.corrcoef(one.flatten(), other.flatten())[0, 1]) < 0.03


def test_noise_is_finite_at_both_ends() -> None:
    import torch

    ends = torch.tensor([[0, -0x10000]], dtype=torch.int32)  # without rounds: no bit set, and every bit set
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(noise, "ROUNDS", ())
        numbers = noise.uniform(ends, torch.tensor([0]))
        spread = noise.gumbel(ends, torch.tensor([0]))
    assert 0 < numbers.min() < 1e-9
    assert numbers.max() == 1 - 2**-23
    assert spread.isfinite().all()


def test_a_change_in_the_last_bits_of_the_logits_changes_no_token() -> None:
    import torch

    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(500, 4096, generator=generator)
    shaken = logits * (1 + 2e-7 * torch.randn(logits.shape, generator=generator))
    assert sample(shaken, rows(500)).tolist() == sample(logits, rows(500)).tolist()


def test_large_vocabularies_are_drawn_in_parts_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    logits = torch.randn(7, 512, generator=torch.Generator().manual_seed(4))
    whole = sample(logits, rows(7)).tolist()
    for at_once in (1, 1024):
        monkeypatch.setattr(draw, "NUMBERS_AT_ONCE", at_once)
        assert sample(logits, rows(7)).tolist() == whole


def test_a_token_without_probability_is_never_drawn() -> None:
    assert frequencies([-float("inf"), 0.0, -float("inf"), 0.0])[::2] == [0, 0]
