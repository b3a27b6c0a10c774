"""The decoder of the Llama family: what differs between its architectures is an option of ModelConfig."""

from typing import NamedTuple

import torch
from torch import Tensor

from engine.attention.interface import StepAttention
from engine.config import ModelConfig
from engine.kv_cache import KvCache
from engine.layers import Norm, Rotary
from engine.linear import Linear, linear, load_linear, padded_rows
from engine.operations import HeadNorms, choose_operations
from engine.weights import Checkpoint


class Layer(NamedTuple):
    """Weights of one layer."""

    input_norm: Norm
    qkv: Linear
    head_norms: HeadNorms
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
        # The head, the largest, before the layers: these take the memory that it leaves when it has been packed.
        if config.tied_embeddings:
            # Not packed: the embedding needs the weight as it is, and two copies would cost more than they bring.
            self.head = Linear(self.embedding, None)
        else:
            self.head = linear(checkpoint.tensor("lm_head.weight", config.vocabulary_size, hidden))
        self.layers = [self._load_layer(checkpoint, f"model.layers.{index}") for index in range(config.num_layers)]
        self.norm = Norm(checkpoint.tensor("model.norm.weight", hidden), config.norm_eps)
        self.rotary = Rotary(config.rope, config.head_dim, positions, checkpoint.dtype, checkpoint.device)
        self._operations = choose_operations(config, checkpoint.device, checkpoint.dtype)

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
            head_norms=(norm("self_attn.q_norm", head_dim), norm("self_attn.k_norm", head_dim))
            if config.qk_norm
            else None,
            attention_out=load_linear(checkpoint, attention, {"o_proj": hidden}, queries, bias=config.output_bias),
            mlp_norm=norm("post_attention_layernorm", hidden),
            gate_up=load_linear(checkpoint, mlp, {"gate_proj": inner, "up_proj": inner}, hidden, bias=config.mlp_bias),
            down=load_linear(checkpoint, mlp, {"down_proj": hidden}, inner, bias=config.mlp_bias),
        )

    def forward(self, inputs: Inputs, cache: KvCache, step: StepAttention) -> Tensor:
        """Logits [sampled, vocabulary] of one pass."""
        hidden = self.hidden(inputs.tokens, inputs.positions, inputs.slots, cache, step)
        return self.logits(hidden, inputs.sampled)

    def logits(self, hidden: Tensor, sampled: Tensor) -> Tensor:
        """Of the hidden states [tokens, hidden] those at `sampled`: [sampled, vocabulary]."""
        return self.head(self._operations.add_norm(hidden[_padded(sampled)], None, self.norm))[: len(sampled)]

    def hidden(self, tokens: Tensor, positions: Tensor, slots: Tensor, cache: KvCache, step: StepAttention) -> Tensor:
        """What the layers make of the flat batch, [tokens, hidden]; tensors as in `Inputs`.

        Keys and values are written before attention reads them.
        """
        operations, num_tokens = self._operations, len(tokens)
        # Tokens that no row has are written to the scratch block.
        tokens, positions, slots = _padded(tokens), _padded(positions), _padded(slots)
        turns = self.rotary.at(positions)
        x = torch.nn.functional.embedding(tokens, self.embedding)
        added = None
        for index, layer in enumerate(self.layers):
            qkv = layer.qkv(operations.add_norm(x, added, layer.input_norm))
            query = operations.place(qkv, layer.head_norms, turns, slots=slots, cache=cache, layer=index)
            attended = layer.attention_out(step.attend(index, query).flatten(1))
            gate_up = layer.gate_up(operations.add_norm(x, attended, layer.mlp_norm))
            added = layer.down(operations.gated(gate_up))
        return (x if added is None else x.add_(added))[:num_tokens]


def _padded(column: Tensor) -> Tensor:
    """On a CPU with zeros up to a size of batch that is usual."""
    beyond = padded_rows(len(column)) - len(column) if column.device.type == "cpu" else 0
    return torch.nn.functional.pad(column, (0, beyond)) if beyond else column
