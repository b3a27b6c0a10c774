"""Reads a Hugging Face `config.json`: which architecture, its sizes, its rotary embedding. Torch-free.

Refuses by name what the engine cannot run; knows nothing of weights or tensors.
"""

import math
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from engine.interface import EngineError
from engine.model_folder import read_document

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
ROPE_TYPES = ("default", "linear", "llama3", "yarn")
MAX_VOCABULARY = 2**22
MOST = {"vocab_size": MAX_VOCABULARY, "num_hidden_layers": 2**12}
MOST_OF_OTHERS = 2**26
"""Of sizes. What there is one of for each token or layer would fill the memory of whoever reads the folder."""

Value = TypeVar("Value", int, float, bool, str, list[str])


class Rope(msgspec.Struct, frozen=True):
    """Rotary position embedding: `factor` and what follows belong to the scaled kinds."""

    theta: float = 10000.0
    kind: str = "default"
    factor: float = 1.0
    original_max_positions: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 0.0
    mscale_all_dim: float = 0.0
    attention_factor: float | None = None
    truncate: bool = True


class ModelConfig(msgspec.Struct, frozen=True):
    """A decoder-only transformer of the Llama family."""

    architecture: str
    vocabulary_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int
    norm_eps: float
    tied_embeddings: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    windows: tuple[int | None, ...]
    """For each layer, how many positions a token sees, itself among them; None: all."""
    rope: Rope
    dtype: str
    """What the checkpoint was saved in: float32, bfloat16 or float16."""

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of one token over all layers, for each byte of a number."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        EngineError: the file is missing, unreadable or holds something else.
    """
    try:
        decoded = msgspec.json.decode(read_document(path))
    except OSError as error:
        raise EngineError(f"{path}: cannot be read: {error.strerror}") from error
    # Text that is no UTF-8 and nesting without end come as Python's own errors.
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise EngineError(f"{path}: is not JSON: {error}") from error
    if not isinstance(decoded, dict):
        raise EngineError(f"{path}: must hold a JSON object, not {type(decoded).__name__}")
    return decoded


def read_optional_json(path: Path) -> dict[str, Any]:
    """As `read_json`; empty where the file is missing."""
    return read_json(path) if path.exists() else {}


def read_config(folder: Path) -> ModelConfig:
    """The model of a checkpoint folder.

    Raises:
        EngineError: the folder is no checkpoint, or the model is not one the engine runs.
    """
    if not folder.is_dir():
        raise EngineError(
            f"{folder}: is not a folder; a model is a Hugging Face checkpoint folder with config.json, "
            "safetensors files and tokenizer.json"
        )
    path = folder / "config.json"
    if not path.exists():
        raise EngineError(f"{folder}: has no config.json, so it is not a Hugging Face checkpoint folder")
    return _Reader(path, read_json(path)).config()


def read_eos_ids(folder: Path) -> frozenset[int]:
    """Token ids that end a sequence: those of generation_config.json and of config.json; an int or a list in either."""
    ids: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        match read_optional_json(folder / name).get("eos_token_id"):
            case int() as one:
                ids.add(one)
            case list() as several:
                ids.update(several)
            case _:
                pass
    return frozenset(ids)


class _Reader:
    """One config.json, with errors that name the file and the key."""

    def __init__(self, path: Path, raw: dict[str, Any]) -> None:
        self.path = path
        self.raw = raw

    def refuse(self, what: str) -> EngineError:
        return EngineError(f"{self.path}: {what}")

    def get(self, key: str, default: Value, source: dict[str, Any] | None = None) -> Value:
        """The value of `key`, of the type of `default`; null counts as absent."""
        value = (self.raw if source is None else source).get(key)
        if value is None:
            return default
        try:
            return msgspec.convert(value, type(default))
        except msgspec.ValidationError as error:
            raise self.refuse(f"{key}: {value!r} is not of type {type(default).__name__}") from error

    def size(self, key: str, default: int | None = None) -> int:
        value = self.get(key, 0 if default is None else default)
        if value < 1:
            raise self.refuse(f"{key}: is missing or not positive; it must be a whole number of at least 1")
        if value > (most := MOST.get(key, MOST_OF_OTHERS)):
            raise self.refuse(f"{key}: {value} is more than a model has; at most {most} is taken")
        return value

    def config(self) -> ModelConfig:
        architecture = self.architecture()
        qwen2, qwen3 = architecture == "Qwen2ForCausalLM", architecture == "Qwen3ForCausalLM"
        llama = architecture == "LlamaForCausalLM"
        hidden, heads = self.size("hidden_size"), self.size("num_attention_heads")
        kv_heads = self.size("num_key_value_heads", heads)
        if heads % kv_heads:
            raise self.refuse(f"num_attention_heads: {heads} is not a multiple of num_key_value_heads {kv_heads}")
        head_dim = self.size("head_dim", 128 if qwen3 else hidden // heads)
        if head_dim % 2:
            raise self.refuse(f"head_dim: {head_dim} is odd; rotary embeddings turn pairs")
        num_layers = self.size("num_hidden_layers")
        attention_bias = self.get("attention_bias", default=False) and (llama or qwen3)
        rope = self.rope()
        positions = self.size("max_position_embeddings")
        if rope.kind == "yarn" and self.rope_section().get("original_max_position_embeddings"):
            positions = max(positions, int(rope.original_max_positions * rope.factor))
        return ModelConfig(
            architecture=architecture,
            vocabulary_size=self.size("vocab_size"),
            hidden_size=hidden,
            intermediate_size=self.size("intermediate_size"),
            num_layers=num_layers,
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            max_positions=positions,
            norm_eps=self.get("rms_norm_eps", 1e-6),
            tied_embeddings=self.get("tie_word_embeddings", default=False),
            qkv_bias=qwen2 or attention_bias,
            output_bias=attention_bias,
            mlp_bias=llama and self.get("mlp_bias", default=False),
            qk_norm=qwen3,
            windows=self.windows(architecture, num_layers),
            rope=rope,
            dtype=self.dtype(),
        )

    def architecture(self) -> str:
        named = self.get("architectures", list[str]())
        known = [name for name in named if name in ARCHITECTURES]
        if not known:
            raise self.refuse(
                f"architectures: {', '.join(map(str, named)) or 'none named'} is not supported; "
                f"supported are {', '.join(ARCHITECTURES)}"
            )
        quantised = self.raw.get("quantization_config")
        if quantised:
            method = quantised.get("quant_method", "unnamed") if isinstance(quantised, dict) else quantised
            raise self.refuse(
                f"quantization_config: {method} is not supported; use float32, bfloat16 or float16 weights"
            )
        activation = self.get("hidden_act", "silu")
        if activation not in ("silu", "swish"):
            raise self.refuse(f"hidden_act: {activation!r} is not supported; supported is silu")
        return str(known[0])

    def dtype(self) -> str:
        name = self.get("dtype", self.get("torch_dtype", "float32"))
        if name not in ("float32", "bfloat16", "float16"):
            raise self.refuse(f"dtype: {name!r} is not supported; supported are float32, bfloat16 and float16")
        return name

    def windows(self, architecture: str, num_layers: int) -> tuple[int | None, ...]:
        window = self.get("sliding_window", 0) or None
        match architecture:
            case "MistralForCausalLM":
                return (window,) * num_layers
            case "Qwen2ForCausalLM" | "Qwen3ForCausalLM" if self.get("use_sliding_window", default=False):
                kinds = self.get("layer_types", list[str]())
                first = self.get("max_window_layers", 28)
                if not kinds:
                    kinds = ["sliding_attention" if layer >= first else "" for layer in range(num_layers)]
                if len(kinds) != num_layers:
                    raise self.refuse(f"layer_types: names {len(kinds)} layers of {num_layers}")
                return tuple(window if kind == "sliding_attention" else None for kind in kinds)
            case _:
                return (None,) * num_layers

    def rope_section(self) -> dict[str, Any]:
        """`rope_parameters` of transformers 5, or `rope_scaling` of before."""
        section = self.raw.get("rope_parameters") or self.raw.get("rope_scaling") or {}
        if not isinstance(section, dict):
            raise self.refuse(f"rope_parameters: must be an object, not {section!r}")
        return section

    def rope(self) -> Rope:
        section = self.rope_section()
        kind = self.get("rope_type", self.get("type", "default", section), section)
        if kind not in ROPE_TYPES:
            raise self.refuse(
                f"rope_parameters: rope_type {kind!r} is not supported; supported: {', '.join(ROPE_TYPES)}"
            )
        if self.get("partial_rotary_factor", self.get("partial_rotary_factor", 1.0), section) != 1.0:
            raise self.refuse("partial_rotary_factor: only 1.0 is supported")
        if kind != "default" and self.get("factor", 0.0, section) < 1.0:
            raise self.refuse(f"rope_parameters: {kind} needs a factor of at least 1")
        attention = self.get("attention_factor", 0.0, section)
        return Rope(
            theta=self.get("rope_theta", self.get("rope_theta", 10000.0), section),
            kind=kind,
            factor=self.get("factor", 1.0, section),
            original_max_positions=self.get(
                "original_max_position_embeddings", self.size("max_position_embeddings"), section
            ),
            low_freq_factor=self.get("low_freq_factor", 1.0, section),
            high_freq_factor=self.get("high_freq_factor", 4.0, section),
            beta_fast=self.get("beta_fast", 32.0, section),
            beta_slow=self.get("beta_slow", 1.0, section),
            mscale=self.get("mscale", 0.0, section),
            mscale_all_dim=self.get("mscale_all_dim", 0.0, section),
            attention_factor=attention or None,
            truncate=self.get("truncate", True, section),
        )


def rope_frequencies(rope: Rope, head_dim: int) -> tuple[NDArray[np.float32], float]:
    """Radians a position turns each of the head_dim / 2 pairs, and what cos and sin are multiplied by.

    Computed in float32 in the order of operations of transformers, so that both agree to the bit where libm does.
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    plain = (1.0 / np.power(np.float32(rope.theta), exponents)).astype(np.float32)
    match rope.kind:
        case "linear":
            return plain / np.float32(rope.factor), 1.0
        case "llama3":
            return _llama3(rope, plain), 1.0
        case "yarn":
            return _yarn(rope, plain, head_dim)
        case _:
            return plain, 1.0


def _llama3(rope: Rope, plain: NDArray[np.float32]) -> NDArray[np.float32]:
    """Long waves are slowed by `factor`, short ones kept, those between blended (Llama 3.1)."""
    original = rope.original_max_positions
    waves = 2 * math.pi / plain
    blend = (original / waves - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    between = (1 - blend) * plain / rope.factor + blend * plain
    slow = np.where(waves > original / rope.low_freq_factor, plain / rope.factor, plain)
    medium = (waves >= original / rope.high_freq_factor) & (waves <= original / rope.low_freq_factor)
    return np.where(medium, between, slow).astype(np.float32)


def _yarn(rope: Rope, plain: NDArray[np.float32], head_dim: int) -> tuple[NDArray[np.float32], float]:
    """NTK by parts (Peng et al., YaRN, 2023)."""

    def pair_of(rotations: float) -> float:
        """The pair that turns `rotations` times over the original context."""
        ratio = rope.original_max_positions / (rotations * 2 * math.pi)
        return head_dim * math.log(ratio) / (2 * math.log(rope.theta))

    def scale(factor: float, mscale: float = 1.0) -> float:
        return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0

    low, high = pair_of(rope.beta_fast), pair_of(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    width = high - low if high != low else 0.001
    ramp = np.clip((np.arange(head_dim // 2, dtype=np.float32) - low) / width, 0, 1)
    frequencies = plain / rope.factor * ramp + plain * (1 - ramp)
    if rope.attention_factor is not None:
        attention = rope.attention_factor
    elif rope.mscale and rope.mscale_all_dim:
        attention = scale(rope.factor, rope.mscale) / scale(rope.factor, rope.mscale_all_dim)
    else:
        attention = scale(rope.factor)
    return frequencies.astype(np.float32), attention
