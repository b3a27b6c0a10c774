"""A model of random weights that are nowhere on disk: for our engine, and the same ones for transformers.

A tensor's numbers follow from its name, so both make them on the device when they need them.
"""

import zlib
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
import transformers
from torch import Tensor

from engine.config import ModelConfig, read_config
from engine.grammar.compiler import Compiler
from engine.grammar.constraints import Constraints
from engine.interface import EngineSettings
from engine.runner import TorchEngine
from engine.torch_engine import assemble, plan_engine
from engine.weights import Checkpoint

QWEN3_8B: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
"""The geometry of Qwen/Qwen3-8B."""
TINY = {
    **QWEN3_8B,
    "vocab_size": 199,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "torch_dtype": "float32",
}
"""To see that the benchmark works; measures nothing."""
SPREAD = 0.02


class RandomCheckpoint(Checkpoint):
    """Norms are one, all else is normal with a deviation of `SPREAD`, as models are initialised."""

    def _open(self) -> dict[str, tuple[Path, Any]]:
        return {}

    def tensor(self, name: str, *shape: int) -> Tensor:
        """The tensor `name`, the same each time."""
        tensor = torch.empty(shape, dtype=self.dtype, device=self.device)
        self.num_parameters += tensor.numel()
        source = torch.Generator(self.device).manual_seed(zlib.crc32(name.encode()))
        return tensor.fill_(1) if len(shape) == 1 else tensor.normal_(std=SPREAD, generator=source)


class Sizes(NamedTuple):
    """What a step reads and computes."""

    weight_bytes: int
    """Read by every step: all but the embedding."""
    kv_bytes: int
    """Read for each token of a context."""
    token_operations: int
    """Multiplications and additions for a token in the layers' products, the head left out."""
    context_operations: int
    """The same in attention, for each token that a query sees."""


def sizes(config: ModelConfig, number_bytes: int) -> Sizes:
    """From the geometry alone."""
    queries, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    layer = config.hidden_size * (2 * queries + 2 * kv + 3 * config.intermediate_size)
    head = config.vocabulary_size * config.hidden_size
    return Sizes(
        weight_bytes=(config.num_layers * layer + head) * number_bytes,
        kv_bytes=config.kv_bytes_per_token * number_bytes,
        token_operations=2 * config.num_layers * layer,
        context_operations=4 * config.num_layers * queries,
    )


def describe(folder: Path, geometry: dict[str, Any]) -> ModelConfig:
    """Write the geometry as a checkpoint's config.json, and read it as the engine does."""
    (folder / "config.json").write_bytes(msgspec.json.encode(geometry))
    return read_config(folder)


def our_engine(folder: Path, config: ModelConfig, settings: EngineSettings) -> TorchEngine:
    """Our engine, warm."""
    plan = plan_engine(config, settings)
    checkpoint = RandomCheckpoint(folder, plan.dtype, plan.device)
    nobody = frozenset[int]()
    constraints = Constraints(Compiler(folder, config.vocabulary_size, nobody), nobody, config.vocabulary_size)
    return assemble(config, settings, plan, checkpoint, eos_ids=nobody, constraints=constraints)


def their_model(folder: Path, dtype: torch.dtype, device: torch.device) -> Any:
    """Transformers' model."""
    config = transformers.AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    checkpoint = RandomCheckpoint(folder, dtype, device)
    tensors = {name: checkpoint.tensor(name, *parameter.shape) for name, parameter in model.named_parameters()}
    model.load_state_dict(tensors, assign=True)
    # Its frequencies are computed, not loaded.
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to(device)
    return model.eval()
