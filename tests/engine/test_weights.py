"""Safetensors, single and sharded; errors name file and tensor."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from engine.interface import EngineError


@pytest.fixture
def checkpoint(demo: Path, tmp_path: Path) -> Path:
    """A copy of the demo checkpoint, to be damaged."""
    shutil.copytree(demo, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_a_sharded_checkpoint_gives_the_same_tokens(
    references: Any, greedy: Any, open_engine: Any, driver: Any
) -> None:
    folder, model = references("qwen3", max_shard_size="30KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    run = driver(open_engine(folder))
    run.add(1, [5, 6, 7])
    run.run(12, 8)
    assert run.outputs[1] == greedy(model, [5, 6, 7], 12)


def test_a_missing_tensor_is_named(checkpoint: Path, open_engine: Any) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    del weights["model.layers.2.mlp.up_proj.weight"]
    save_file(weights, checkpoint / "model.safetensors")
    with pytest.raises(EngineError, match=r"tensor model\.layers\.2\.mlp\.up_proj\.weight is missing"):
        open_engine(checkpoint)


def test_a_wrong_shape_is_named_with_the_right_one(checkpoint: Path, open_engine: Any) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    weights["model.norm.weight"] = np.ones(7, np.float32)
    save_file(weights, checkpoint / "model.safetensors")
    with pytest.raises(EngineError, match=r"tensor model\.norm\.weight has shape \[7\]; config\.json asks for \[256\]"):
        open_engine(checkpoint)


def test_numbers_that_are_no_floats_are_refused(checkpoint: Path, open_engine: Any) -> None:
    weights: dict[str, Any] = load_file(checkpoint / "model.safetensors")
    weights["model.norm.weight"] = np.ones(256, np.int8)
    save_file(weights, checkpoint / "model.safetensors")
    with pytest.raises(EngineError, match=r"tensor model\.norm\.weight is torch\.int8; supported are torch\.float32"):
        open_engine(checkpoint)


@pytest.mark.parametrize("name", ["F8_E4M3", "F64", "I64"])
def test_dtypes_that_are_not_supported_are_named(name: str, checkpoint: Path, open_engine: Any) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    dtype = {"F8_E4M3": torch.float8_e4m3fn, "F64": torch.float64, "I64": torch.int64}[name]
    weights = load_file(checkpoint / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"].to(dtype)
    save_file(weights, checkpoint / "model.safetensors")
    with pytest.raises(EngineError, match=rf"model\.norm\.weight is {dtype}; supported are torch\.float32, torch\.bf"):
        open_engine(checkpoint)


def test_a_tensor_of_nearly_the_right_name_is_suggested(checkpoint: Path, open_engine: Any) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    save_file(
        {name.removeprefix("model."): tensor for name, tensor in weights.items()}, checkpoint / "model.safetensors"
    )
    with pytest.raises(
        EngineError, match=r"model\.embed_tokens\.weight is missing .* nearest name there is embed_tokens\.weight"
    ):
        open_engine(checkpoint)


def test_a_tensor_that_would_change_the_model_is_refused(checkpoint: Path, open_engine: Any) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    weights["model.layers.1.self_attn.q_proj.bias"] = np.ones(256, np.float32)
    save_file(weights, checkpoint / "model.safetensors")
    with pytest.raises(
        EngineError, match=r"tensor model\.layers\.1\.self_attn\.q_proj\.bias has no place in the model"
    ):
        open_engine(checkpoint)


def test_tensors_without_a_place_are_left_out_with_a_word(
    checkpoint: Path, open_engine: Any, caplog: pytest.LogCaptureFixture
) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(16, np.float32)
    save_file(weights, checkpoint / "model.safetensors")
    open_engine(checkpoint)
    assert not caplog.messages
    weights["model.layers.9.mlp.up_proj.weight"] = weights["value_head.weight"] = np.ones((2, 2), np.float32)
    save_file(weights, checkpoint / "model.safetensors")
    assert open_engine(checkpoint).info.num_parameters == 4_851_968
    assert "model.layers.9.mlp.up_proj.weight and 1 more have no place in LlamaForCausalLM" in caplog.text


def test_numbers_that_are_not_numbers_are_taken_as_they_are(checkpoint: Path, open_engine: Any) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    weights["model.norm.weight"][3] = np.nan
    save_file(weights, checkpoint / "model.safetensors")
    assert open_engine(checkpoint).info.num_parameters == 4_851_968


@pytest.mark.parametrize("num_bytes", [0, 5, 1000, 10**6])
def test_a_file_that_ends_too_soon_is_named(num_bytes: int, checkpoint: Path, open_engine: Any) -> None:
    whole = (checkpoint / "model.safetensors").read_bytes()
    assert len(whole) > num_bytes
    (checkpoint / "model.safetensors").write_bytes(whole[:num_bytes])
    with pytest.raises(EngineError, match=r"model\.safetensors: is not a readable safetensors file"):
        open_engine(checkpoint)


def test_a_pickle_under_a_safetensors_name_is_not_read(checkpoint: Path, open_engine: Any) -> None:
    import torch

    torch.save({"model.norm.weight": torch.ones(256)}, checkpoint / "model.safetensors")
    with pytest.raises(EngineError, match=r"model\.safetensors: is not a readable safetensors file"):
        open_engine(checkpoint)


def test_a_damaged_file_is_named(checkpoint: Path, open_engine: Any) -> None:
    (checkpoint / "model.safetensors").write_bytes(b"\x10" * 64)
    with pytest.raises(EngineError, match=r"model\.safetensors: is not a readable safetensors file"):
        open_engine(checkpoint)


def test_a_folder_without_weights_says_what_is_needed(checkpoint: Path, open_engine: Any) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")
    with pytest.raises(EngineError, match=r"has no weights; needed is model\.safetensors or .*never read"):
        open_engine(checkpoint)


def test_a_missing_shard_is_named(checkpoint: Path, open_engine: Any) -> None:
    index = checkpoint / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"model.norm.weight": "model-2.safetensors"}}))
    with pytest.raises(
        EngineError, match=r"model-2\.safetensors: is missing; model\.safetensors\.index\.json names it"
    ):
        open_engine(checkpoint)
    for content in ("{}", '{"weight_map": {"model.norm.weight": 3}}'):
        index.write_text(content)
        with pytest.raises(EngineError, match="has no weight_map"):
            open_engine(checkpoint)


def test_a_tensor_that_only_the_index_knows_is_missing(checkpoint: Path, open_engine: Any) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    named = dict.fromkeys(weights, "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, checkpoint / "model.safetensors")
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": named}))
    with pytest.raises(EngineError, match=r"tensor lm_head\.weight is missing from its 38 tensors"):
        open_engine(checkpoint)
