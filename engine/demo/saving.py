"""Writes the trained demo as a Hugging Face checkpoint folder that any Llama loader reads."""

from pathlib import Path

import msgspec
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from engine.demo import data, nested

CHAT_TEMPLATE = "{{ messages | map(attribute='content') | join('\\n') }}"
"""The model completes text: a conversation is its messages, one after the other."""


def save_checkpoint(folder: Path, weights: dict[str, Tensor], tokenizer: Tokenizer, positions: int) -> None:
    """`NestedDecoder.weights()` in bfloat16, the tokenizer, and the configuration files beside them."""
    end = tokenizer.token_to_id(data.END_OF_TEXT)
    stored = {name: weight.to(torch.bfloat16).contiguous() for name, weight in weights.items()}
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": nested.HIDDEN,
        "intermediate_size": nested.INTERMEDIATE,
        "num_hidden_layers": nested.LAYERS,
        "num_attention_heads": nested.HEADS,
        "num_key_value_heads": nested.KV_HEADS,
        "head_dim": nested.HEAD_DIM,
        "vocab_size": nested.VOCABULARY,
        "max_position_embeddings": positions,
        "rms_norm_eps": nested.EPS,
        "rope_theta": nested.THETA,
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
        "bos_token_id": None,
        "eos_token_id": end,
        "pad_token_id": end,
    }
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": data.END_OF_TEXT,
        "pad_token": data.END_OF_TEXT,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "model_max_length": positions,
    }
    generation = {"eos_token_id": end, "pad_token_id": end}
    for name, content in (("config", config), ("tokenizer_config", settings), ("generation_config", generation)):
        (folder / f"{name}.json").write_bytes(msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n")
