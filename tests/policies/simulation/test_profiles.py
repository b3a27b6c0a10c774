"""Devices from files of measurements, against the figures of the scheduling and fairness specifications."""

import os
from pathlib import Path

import pytest

from policies.simulation.executor_model import Device
from policies.simulation.parameters import ParameterError, Parameters
from policies.simulation.profiles import READERS, Asked, ProfileError, tile_device
from policies.simulation.step_shape import StepShape

DATA = Path(os.environ.get("FAIRLEAD_DATA") or Path(__file__).resolve().parents[4] / "shared" / "data")

SHAPE = "n_head,n_kv_head,n_embd,n_expanded_embd,vocab_size,num_tokens,num_tensor_parallel_workers"
LAYERS = f"time_stats.emb.median,time_stats.mlp.median,time_stats.add.median,{SHAPE}\n" + "".join(
    f"9.0,{ms},0.1,4,2,512,1024,1000,{tokens},{workers}\n"
    for ms, tokens, workers in ((0.4, 1, 1), (0.9, 128, 1), (1.1, 128, 1), (0.1, 128, 2))
)
SWEEP = "chunk,ttft_ms,batch_ms\n64,64,2.0\n128,40,2.4\n"


def read(kind: str, text: str, parameters: str = "", *, efficiency: float = 1.0) -> Device:
    return READERS[kind](Asked(Parameters(f"{kind}:f{parameters}"), text, "f", efficiency))


def published(kind: str, name: str) -> Device:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{path} is not there")
    return read(kind, path.read_text())


def linear_ms(device: Device, tokens: int) -> float:
    return 1e3 * device.step_time.step_s(StepShape(tokens, 0, 0))


def test_a_step_takes_every_layer_s_operators_at_the_next_profiled_number_of_tokens() -> None:
    device = read("layers", LAYERS, "?layers=10")
    assert linear_ms(device, 1) == pytest.approx(10 * 0.5)
    assert linear_ms(device, 2) == pytest.approx(10 * 1.1)
    assert linear_ms(device, 256) == pytest.approx(2 * 10 * 1.1)


def test_attention_is_read_at_the_assumed_bandwidth_and_computed_at_the_assumed_rate() -> None:
    device = read("layers", LAYERS, "?layers=10&bandwidth_gb_s=1&attention_tflops=1", efficiency=0.5)
    alone = device.step_time.step_s(StepShape(0, 1, 0))
    assert device.step_time.step_s(StepShape(0, 1, 1000)) - alone == pytest.approx(1000 * 10_240 / 0.5e9)
    chunk = device.step_time.step_s(StepShape(1, 0, 0, 1, 1000.0))
    assert chunk - alone == pytest.approx(1000 * 4 * 512 * 10 / 1e12)


def test_the_pool_is_what_the_memory_leaves_beside_the_weights() -> None:
    weights = 2 * (10 * (512 * (1024 + 512) + 3 * 512 * 1024) + 2 * 1000 * 512)
    device = read("layers", LAYERS, "?layers=10&memory_gb=1&context_tokens=100")
    assert device.num_blocks == int((0.9e9 - weights) / (16 * 10_240))
    assert device.max_sequence_tokens == 100


def test_a_sweep_s_chunks_share_the_prompt_s_time_and_a_decode_is_what_the_mean_step_lacks() -> None:
    device = read("sweep", SWEEP, "?prompt_tokens=1088")
    assert linear_ms(device, 64) == pytest.approx(64 / 17)
    assert linear_ms(device, 128) == pytest.approx((40 - 64 / 17) / 8)
    lone = (2.0 * 18 - 64 + 2.4 * 10 - 40) / 2
    assert lone < 0  # of made-up times: the file's own hold a decode
    assert linear_ms(read("sweep", SWEEP.replace("2.0", "3.7").replace("2.4", "4.2")), 1) == pytest.approx(
        min((3.7 * 33 - 64 + 4.2 * 17 - 40) / 2, 64 / 32)
    )


def test_a_cost_profile_is_fitted_back_to_the_model_that_made_it() -> None:
    def decode_s(batch: float, context: float) -> float:
        return 0.02 + 1e-4 * batch + 2e-6 * batch * context

    text = str(
        {
            str(prompt): {
                str(output): [batch, 1e-3 * prompt, decode_s(batch, prompt + output / 2) * output / batch]
                for output, batch in ((1, 9), (64, 8), (128, 4))
            }
            for prompt in (8, 64, 512)
        }
    ).replace("'", '"')
    step_time = read("costs", text, "?overhead=1").step_time
    assert step_time.step_s(StepShape(0, 10, 1000)) == pytest.approx(0.02 + 1e-3 + 2e-3)
    assert step_time.step_s(StepShape(100, 0, 0)) == pytest.approx(0.010 + 0.1)


def test_tiles_with_attention_cost_pairs_and_context() -> None:
    device = tile_device(Parameters("tile?tile_tokens=64&column_us=1000&token_us=1&pair_ns=10&context_ns=100"))
    seconds = device.step_time.step_s(StepShape(64, 1, 1000, 1, 2000.0))
    assert seconds == pytest.approx(2e-3 + 65e-6 + 2000 * 10e-9 + 1000 * 100e-9)


@pytest.mark.parametrize(
    ("kind", "text", "sentence"),
    [
        ("layers", "a,b\n1,2\n", "f:1: there is no column `num_tokens`"),
        ("layers", f"{SHAPE}\n4,2,512,1024,1000,1,1\n", r"f:2: no column is called `time_stats.OPERATOR.median`"),
        ("layers", LAYERS.replace(",1\n", ",4\n"), "f: no line is of one worker"),
        ("layers", LAYERS.replace("0.4", "fast"), "f:2: time_stats.mlp.median is `fast`; it must be a number above 0"),
        ("layers", LAYERS + "1\n", "f:6: 1 fields; the header has 10"),
        ("sweep", "chunk,ttft_ms,batch_ms\n64,64,2\n", "f: a table needs two budgets or more"),
        ("sweep", "chunk,ttft_ms,batch_ms\n96,64,2\n192,40,2\n", "ends in a chunk of 32 under the budget 96"),
        ("sweep", "chunk,ttft_ms,batch_ms\n4096,64,2\n", "f: a chunk of 4096 tokens is longer than the prompt"),
        ("costs", "{", "f:1: is no JSON"),
        ("costs", "[1, 2]", "f: is no cost profile, which has the form"),
        ("costs", '{"8": {"1": [1, 1]}}', "f: is no cost profile, which has the form"),
        ("costs", '{"8": {"1": [0, 1, 1]}}', "f: prompt 8, output 1: every number must be above 0"),
        ("costs", '{"8": {"1": [1, 1, 1]}}', "f: fitting decode steps needs three entries"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_its_line(kind: str, text: str, sentence: str) -> None:
    with pytest.raises(ProfileError, match=sentence):
        read(kind, text)


def test_memory_too_small_for_the_weights_is_refused() -> None:
    with pytest.raises(ProfileError, match="raise memory_gb"):
        read("layers", LAYERS, "?memory_gb=0.001")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("layers:f?layers=0", "layers:f?layers=0: layers is `0`; it must be a number above 0"),
        ("layers:f?layers=1.5", "layers is `1.5`; it must be a whole number"),
        ("layers:f?layers", "after the question mark come key=value pairs"),
        ("layers:f?layer=1", "there is no parameter `layer`; it takes layers, bandwidth_gb_s"),
        ("layers:f?layers=1&layers=2", "layers is given twice"),
    ],
)
def test_a_parameter_that_cannot_be_used_is_named(text: str, sentence: str) -> None:
    with pytest.raises(ParameterError) as caught:
        READERS["layers"](Asked(Parameters(text), LAYERS, "f", 1.0))
    assert sentence in str(caught.value)


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "milliseconds"),
    [
        ("a100_llama3_8b_mlp.csv", {1: 9.70, 64: 11.23, 128: 13.18, 136: 18.06, 192: 16.77, 256: 19.49, 1024: 75.14}),
        ("h100_llama2_7b_mlp.csv", {1: 5.60, 64: 5.86, 128: 6.37, 136: 8.48, 264: 9.38, 520: 15.39, 2048: 40.32}),
    ],
)
def test_the_published_operator_tables_show_the_tiles(name: str, milliseconds: dict[int, float]) -> None:
    device = published("layers", name)
    assert {tokens: round(linear_ms(device, tokens), 2) for tokens in milliseconds} == pytest.approx(
        milliseconds, rel=0.003
    )


@pytest.mark.data
def test_the_published_sweep_gives_the_built_in_table() -> None:
    device = published("sweep", "rtx6000ada_mistral7b_token_budget_sweep.csv")
    expected = {64: 22.6, 128: 24.1, 256: 29.9, 384: 43.9, 512: 53.0, 768: 75.9, 1024: 100.8}
    assert {tokens: linear_ms(device, tokens) for tokens in expected} == pytest.approx(expected, rel=0.003)
    assert 20.4 < linear_ms(device, 1) < 25.4
    assert linear_ms(device, 2048) == pytest.approx(100.8 + 1024 * 0.0932, rel=0.003)


@pytest.mark.data
def test_the_published_cost_profile_gives_the_built_in_constants() -> None:
    step_time = published("costs", "a10g_llama2_7b_cost_profile.json").step_time
    assert step_time.step_s(StepShape(0, 10, 3000)) == pytest.approx(
        1.083 * (0.01816 + 2.161e-4 * 10 + 1.891e-6 * 3000), rel=0.01
    )
    assert step_time.step_s(StepShape(300, 0, 0)) == pytest.approx(0.010 + 1.083 * 2.149e-4 * 300, rel=0.01)
