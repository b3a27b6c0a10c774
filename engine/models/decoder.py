"""The decoder of the Llama family: what differs between its architectures is an option of ModelConfig."""

from typing import NamedTuple

import torch
from torch import Tensor

from engine.attention.interface import StepAttention
from engine.config import ModelConfig
from engine.kv_cache import KvCache
from engine.layers import Linear, Norm, Rotary, gated, load_linear, rotate
from engine.weights import Checkpoint


class Layer(NamedTuple):
    """Weights of one layer."""

    input_norm: Norm
    qkv: Linear
    query_norm: Norm | None
    key_norm: Norm | None
    attention_out: Linear
    mlp_norm: Norm
    gate_up: Linear
    down: Linear


class Inputs(NamedTuple):
    """The flat batch of one pass, int64."""

    tokens: Tensor
    """Ids [tokens]."""
    positions: Tensor
    """Of each token in its sequence [tokens]."""
    slots: Tensor
    """Where each one's key and value go in the cache [tokens]."""
    sampled: Tensor
    """Indices of the tokens whose logits are wanted [sampled]."""


class Decoder:
    """Embedding, layers, final norm and vocabulary head."""

    def __init__(self, config: ModelConfig, checkpoint: Checkpoint, positions: int) -> None:
        self.config = config
        hidden = config.hidden_size
        self.embedding = checkpoint.tensor("model.embed_tokens.weight", config.vocabulary_size, hidden)
        self.layers = [self._load_layer(checkpoint, f"model.layers.{index}") for index in range(config.num_layers)]
        self.norm = Norm(checkpoint.tensor("model.norm.weight", hidden), config.norm_eps)
        if config.tied_embeddings:
            self.head = Linear(self.embedding, None)
        else:
            self.head = Linear(checkpoint.tensor("lm_head.weight", config.vocabulary_size, hidden), None)
        self.rotary = Rotary(config.rope, config.head_dim, positions, checkpoint.dtype, checkpoint.device)

    def _load_layer(self, checkpoint: Checkpoint, prefix: str) -> Layer:
        config = self.config
        hidden, inner, head_dim, eps = config.hidden_size, config.intermediate_size, config.head_dim, config.norm_eps
        queries, kv = config.num_heads * head_dim, config.num_kv_heads * head_dim
        attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"

        def norm(name: str, size: int) -> Norm:
            return Norm(checkpoint.tensor(f"{prefix}.{name}.weight", size), eps)

        return Layer(
            input_norm=norm("input_layernorm", hidden),
            qkv=load_linear(
                checkpoint, attention, {"q_proj": queries, "k_proj": kv, "v_proj": kv}, hidden, bias=config.qkv_bias
            ),
            query_norm=norm("self_attn.q_norm", head_dim) if config.qk_norm else None,
            key_norm=norm("self_attn.k_norm", head_dim) if config.qk_norm else None,
            attention_out=load_linear(checkpoint, attention, {"o_proj": hidden}, queries, bias=config.output_bias),
            mlp_norm=norm("post_attention_layernorm", hidden),
            gate_up=load_linear(checkpoint, mlp, {"gate_proj": inner, "up_proj": inner}, hidden, bias=config.mlp_bias),
            down=load_linear(checkpoint, mlp, {"down_proj": hidden}, inner, bias=config.mlp_bias),
        )

    def forward(self, inputs: Inputs, cache: KvCache, step: StepAttention) -> Tensor:
        """Logits [sampled, vocabulary] of one pass."""
        return self.logits(self.hidden(inputs.tokens, inputs.positions, inputs.slots, cache, step), inputs.sampled)

    def logits(self, hidden: Tensor, sampled: Tensor) -> Tensor:
        """Of the hidden states [tokens, hidden] those at `sampled`: [sampled, vocabulary]."""
        return self.head(self.norm(hidden[sampled]))

    def hidden(self, tokens: Tensor, positions: Tensor, slots: Tensor, cache: KvCache, step: StepAttention) -> Tensor:
        """What the layers make of the flat batch, [tokens, hidden]; tensors as in `Inputs`.

        Keys and values are written before attention reads them.
        """
        config = self.config
        heads, kv_heads, head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        turns = self.rotary.at(positions)
        x = torch.nn.functional.embedding(tokens, self.embedding)
        for index, layer in enumerate(self.layers):
            qkv = layer.qkv(layer.input_norm(x)).view(len(x), heads + 2 * kv_heads, head_dim)
            query, key, value = torch.split(qkv, [heads, kv_heads, kv_heads], 1)
            if layer.query_norm is not None and layer.key_norm is not None:
                query, key = layer.query_norm(query), layer.key_norm(key)
            cache.write(index, slots, rotate(key, turns), value)
            attended = step.attend(index, rotate(query, turns))
            x = x + layer.attention_out(attended.flatten(1))
            x = x + layer.down(gated(layer.gate_up(layer.mlp_norm(x))))
        return x
