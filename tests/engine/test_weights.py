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
    index.write_text("{}")
    with pytest.raises(EngineError, match="has no weight_map"):
        open_engine(checkpoint)
