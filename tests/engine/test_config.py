"""What config.json may say, and the sentences for what it may not."""

import json
from pathlib import Path
from typing import Any

import pytest

from engine.config import Rope, read_config, read_eos_ids
from engine.interface import EngineError

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}


def write(folder: Path, **changes: Any) -> Path:
    (folder / "config.json").write_text(json.dumps({**LLAMA, **changes}))
    return folder


def test_what_is_left_out_has_the_default_of_the_architecture(tmp_path: Path) -> None:
    config = read_config(write(tmp_path))
    assert (config.num_kv_heads, config.head_dim, config.rope) == (4, 16, Rope(original_max_positions=512))
    assert config.windows == (None, None)
    assert not any((config.qkv_bias, config.output_bias, config.mlp_bias, config.qk_norm, config.tied_embeddings))


def test_rope_is_read_in_the_form_of_transformers_4_and_of_5(tmp_path: Path) -> None:
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 128}
    four = read_config(write(tmp_path, rope_theta=5e5, rope_scaling={"rope_type": "llama3", **scaling})).rope
    five = read_config(write(tmp_path, rope_parameters={"rope_theta": 5e5, "rope_type": "llama3", **scaling})).rope
    assert four == five
    assert (four.kind, four.theta, four.original_max_positions) == ("llama3", 5e5, 128)


def test_yarn_extends_the_context_by_its_factor(tmp_path: Path) -> None:
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
    assert read_config(write(tmp_path, rope_scaling=scaling)).max_positions == 2048


def test_windows_are_those_of_each_layer(tmp_path: Path) -> None:
    mistral = {"architectures": ["MistralForCausalLM"], "sliding_window": 32}
    qwen = {"architectures": ["Qwen2ForCausalLM"], "sliding_window": 32}
    assert read_config(write(tmp_path, **mistral)).windows == (32, 32)
    assert read_config(write(tmp_path, **{**mistral, "sliding_window": None})).windows == (None, None)
    assert read_config(write(tmp_path, **qwen)).windows == (None, None)
    assert read_config(write(tmp_path, **qwen, use_sliding_window=True, max_window_layers=1)).windows == (None, 32)
    kinds = ["sliding_attention", "full_attention"]
    assert read_config(write(tmp_path, **qwen, use_sliding_window=True, layer_types=kinds)).windows == (32, None)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel is not supported; supported are LlamaForCausalLM, M"),
        ({"architectures": None}, "none named is not supported"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config: awq is not supported; use float32, b"),
        ({"hidden_act": "gelu"}, "hidden_act: 'gelu' is not supported; supported is silu"),
        ({"dtype": "float8"}, "dtype: 'float8' is not supported; supported are float32, bfloat16 and float16"),
        ({"rope_scaling": {"type": "longrope", "factor": 2.0}}, "rope_type 'longrope' is not supported; supported: d"),
        ({"rope_scaling": {"type": "yarn"}}, "yarn needs a factor of at least 1"),
        ({"rope_scaling": [1]}, "rope_parameters: must be an object"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor: only 1.0 is supported"),
        ({"num_key_value_heads": 3}, "num_attention_heads: 4 is not a multiple of num_key_value_heads 3"),
        ({"head_dim": 15}, "head_dim: 15 is odd"),
        ({"architectures": "LlamaForCausalLM"}, "architectures: 'LlamaForCausalLM' is not of type list"),
        (
            {"rope_scaling": {"type": "yarn", "factor": 2.0, "attention_factor": "big"}},
            "attention_factor: 'big' is not",
        ),
        ({"hidden_size": None}, "hidden_size: is missing or not positive"),
        ({"hidden_size": "big"}, "hidden_size: 'big' is not of type int"),
    ],
)
def test_what_the_engine_cannot_run_is_refused_by_name(changes: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(EngineError) as raised:
        read_config(write(tmp_path, **changes))
    assert str(tmp_path / "config.json") in str(raised.value)
    assert sentence in str(raised.value)


def test_a_list_of_layer_types_must_name_every_layer(tmp_path: Path) -> None:
    changes = {"architectures": ["Qwen3ForCausalLM"], "use_sliding_window": True, "layer_types": ["full_attention"]}
    with pytest.raises(EngineError, match="layer_types: names 1 layers of 2"):
        read_config(write(tmp_path, **changes))


def test_a_folder_that_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="nowhere: is not a folder; a model is"):
        read_config(tmp_path / "nowhere")
    with pytest.raises(EngineError, match=r"has no config\.json"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(EngineError, match=r"config\.json: is not JSON"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(EngineError, match="must hold a JSON object, not list"):
        read_config(tmp_path)


def test_end_tokens_come_from_both_files_as_int_or_list(tmp_path: Path) -> None:
    write(tmp_path, eos_token_id=7)
    assert read_eos_ids(tmp_path) == {7}
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [5, 7]}')
    assert read_eos_ids(tmp_path) == {5, 7}
