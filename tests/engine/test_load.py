"""What an engine says about itself, and why it may refuse to start."""

from pathlib import Path
from typing import Any

import pytest

from engine import memory
from engine.interface import EngineError, EngineSettings
from engine.load import load_engine


def test_an_engine_says_what_it_offers(demo: Path, open_engine: Any) -> None:
    info = open_engine(demo).info
    assert (info.model, info.architecture, info.num_parameters) == ("demo", "LlamaForCausalLM", 4_851_968)
    assert (info.dtype, info.device, info.attention.split("_")[0]) == ("float32", "cpu", "cpu")
    assert (info.num_blocks, info.block_tokens) == (512, 16)
    assert (info.max_sequence_tokens, info.vocabulary_size) == (8192, 4096)


def test_a_random_model_decodes_into_varied_tokens(demo: Path, open_engine: Any, driver: Any) -> None:
    run = driver(open_engine(demo), in_flight=2)
    run.add(1, [10, 20, 30])
    run.run(40, 64)
    assert len(set(run.outputs[1])) > 10


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_runs_on_a_cpu(dtype: str, demo: Path, open_engine: Any, driver: Any) -> None:
    engine = open_engine(demo, dtype=dtype)
    run = driver(engine)
    run.add(1, list(range(10, 60)))
    run.run(5, 16)
    assert engine.info.dtype == dtype
    assert len(set(run.outputs[1])) > 1


def test_the_pool_of_a_cpu_is_bounded(demo: Path) -> None:
    info = load_engine(demo, EngineSettings(device="cpu", threads=1)).info
    assert 0 < info.num_blocks * info.block_tokens * 4096 <= 2**30  # 4096 bytes a token
    few = load_engine(demo, EngineSettings(device="cpu", threads=1, max_sequence_tokens=128)).info
    assert (few.num_blocks * few.block_tokens, few.max_sequence_tokens) == (64 * 128, 128)


def test_the_pool_and_what_bounds_it_are_said_at_start(demo: Path, open_engine: Any) -> None:
    info = open_engine(demo, kv_pool_tokens=1600).info
    assert (info.num_blocks, info.kv_bytes, info.kv_bound) == (100, 101 * 16 * 4096, "engine.kv_pool_tokens")


def test_a_pool_that_does_not_fit_says_by_how_much(demo: Path, open_engine: Any) -> None:
    sentence = r"the KV pool needs 3814\d\.\d\d GiB for 10000000000 tokens, and .* GiB too much; lower engine\.kv_p"
    with pytest.raises(EngineError, match=sentence):
        open_engine(demo, kv_pool_tokens=10**10)


def test_a_model_that_does_not_fit_says_by_how_much(
    demo: Path, open_engine: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:  99999 kB\nMemAvailable:  8192 kB\n")
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    with pytest.raises(
        EngineError,
        match=r"weights need 18\.\d\d MiB as float32 and 8\.00 MiB are free on this machine: 10\.\d\d MiB too",
    ):
        open_engine(demo)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"kv_pool_tokens": 3}, "engine.kv_pool_tokens: 3 is less than a block, 16"),
        ({"max_sequence_tokens": 9000}, "engine.max_sequence_tokens: 9000 is more than the 8192 positions of"),
        ({"device": "cuda:77"}, "engine.device: cuda:77 is not there; CUDA devices: "),
        ({"attention": "xformers_splitk"}, "it needs a cuda device, this is cpu; here you can use cpu_"),
    ],
)
def test_settings_that_cannot_be_met_are_refused(
    changes: dict[str, Any], sentence: str, demo: Path, open_engine: Any
) -> None:
    with pytest.raises(EngineError) as raised:
        open_engine(demo, **changes)
    assert sentence in str(raised.value)


def test_loading_tells_how_much_of_the_weights_is_read(demo: Path) -> None:
    told: list[tuple[int, int]] = []
    info = load_engine(demo, EngineSettings(device="cpu", threads=1), lambda *bytes_: told.append(bytes_)).info
    done = [one for one, _ in told]
    assert done == sorted(done)
    assert len(done) > 3
    assert {total for _, total in told} == {4 * info.num_parameters}
    assert done[-1] == 4 * info.num_parameters
