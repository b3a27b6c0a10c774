"""Step times against the published figures they come from."""

import pytest

from policies.simulation.executor_model import DEVICES, Table
from policies.simulation.step_shape import StepShape


def step_ms(device: str, prefill: int, decodes: int = 0, context: int = 0, efficiency: float = 1.0) -> float:
    return 1000 * DEVICES[device](efficiency).step_time.step_s(StepShape(prefill, decodes, context))


def test_the_toy_device_pays_for_whole_tiles() -> None:
    assert step_ms("toy-tile", 128) == pytest.approx(4.64)
    assert step_ms("toy-tile", 129) == pytest.approx(8.645)
    assert step_ms("toy-tile", 0, 1) == pytest.approx(4.005)


def test_the_measured_table_is_met_at_its_points_interpolated_between_and_extended_past_them() -> None:
    assert step_ms("rtx6000ada-mistral7b", 512) == pytest.approx(53.0)
    assert step_ms("rtx6000ada-mistral7b", 0, 1) == pytest.approx(21.5)
    assert step_ms("rtx6000ada-mistral7b", 320) == pytest.approx((29.9 + 43.9) / 2)
    assert step_ms("rtx6000ada-mistral7b", 2024) == pytest.approx(100.8 + 93.2)


def test_below_its_first_point_a_table_is_flat() -> None:
    assert Table((8, 16), (0.1, 0.2), 0.01, 0.0).step_s(StepShape(1, 0, 0)) == 0.1


def test_decodes_read_their_context_at_the_given_share_of_the_bandwidth() -> None:
    reads = step_ms("rtx6000ada-mistral7b", 0, 64, 100_000) - step_ms("rtx6000ada-mistral7b", 0, 64)
    assert reads == pytest.approx(13.65)
    halved = step_ms("rtx6000ada-mistral7b", 0, 64, 100_000, efficiency=0.5) - step_ms("rtx6000ada-mistral7b", 0, 64)
    assert halved == pytest.approx(27.3)


def test_the_linear_form_follows_the_table_within_its_published_error() -> None:
    for tokens, error in ((64, 0.06), (128, 0.12), (256, 0.03), (384, 0.07), (512, 0.005), (768, 0.015), (1024, 0.005)):
        table = step_ms("rtx6000ada-mistral7b", tokens)
        assert step_ms("rtx6000ada-mistral7b-linear", tokens) == pytest.approx(table, rel=error)


def test_the_a10g_prices_decodes_by_batch_and_context_and_prefills_by_token() -> None:
    decode = 1.083 * (18.16 + 0.2161 * 10 + 0.001891 * 3000)
    prefill = 10 + 1.083 * 0.2149 * 300
    assert step_ms("a10g-llama2-7b", 0, 10, 3000) == pytest.approx(decode)
    assert step_ms("a10g-llama2-7b", 300) == pytest.approx(prefill)
    assert step_ms("a10g-llama2-7b", 300, 10, 3000) == pytest.approx(decode + prefill)
