"""The decoder that the demo is trained as: a Llama whose feed-forward layers also run at a part of their width.

A width keeps the first neurons of gate and up and their columns of down (MatFormer, Devvrit et al., 2023), so that one
set of weights holds all of them. Serving does not need this module: it loads the saved checkpoint as any Llama.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.config import Rope
from engine.layers import Rotary, rotate

WIDTHS = (1.0, 0.75, 0.5, 0.25)
VOCABULARY, HIDDEN, INTERMEDIATE, LAYERS, HEADS, KV_HEADS, HEAD_DIM = 4096, 256, 768, 5, 4, 2, 64
EPS = 1e-6
THETA = 10000.0


def neurons(width: float) -> int:
    """How many feed-forward neurons a part of the width has: a multiple of 32."""
    return round(width * INTERMEDIATE / 32) * 32


class Attention(nn.Module):
    """Causal self-attention with grouped key and value heads."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(HIDDEN, HEADS * HEAD_DIM, bias=False)
        self.k_proj = nn.Linear(HIDDEN, KV_HEADS * HEAD_DIM, bias=False)
        self.v_proj = nn.Linear(HIDDEN, KV_HEADS * HEAD_DIM, bias=False)
        self.o_proj = nn.Linear(HEADS * HEAD_DIM, HIDDEN, bias=False)

    def forward(self, x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
        """[batch, tokens, hidden] to the same shape."""
        batch, tokens, _ = x.shape

        def heads(projected: Tensor, count: int) -> Tensor:
            return projected.view(batch, tokens, count, HEAD_DIM)

        query = rotate(heads(self.q_proj(x), HEADS), turns).transpose(1, 2)
        key = rotate(heads(self.k_proj(x), KV_HEADS), turns).transpose(1, 2)
        value = heads(self.v_proj(x), KV_HEADS).transpose(1, 2)
        groups = HEADS // KV_HEADS
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        out: Tensor = self.o_proj(attended.transpose(1, 2).reshape(batch, tokens, -1))
        return out


class FeedForward(nn.Module):
    """SwiGLU of which the first `count` neurons run."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(HIDDEN, INTERMEDIATE, bias=False)
        self.up_proj = nn.Linear(HIDDEN, INTERMEDIATE, bias=False)
        self.down_proj = nn.Linear(INTERMEDIATE, HIDDEN, bias=False)

    def forward(self, x: Tensor, count: int) -> Tensor:
        """[..., hidden] to the same shape."""
        gate = functional.linear(x, self.gate_proj.weight[:count])
        up = functional.linear(x, self.up_proj.weight[:count])
        return functional.linear(functional.silu(gate) * up, self.down_proj.weight[:, :count])


class Layer(nn.Module):
    """One layer, named as in a Hugging Face checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(HIDDEN, EPS)
        self.self_attn = Attention()
        self.post_attention_layernorm = nn.RMSNorm(HIDDEN, EPS)
        self.mlp = FeedForward()

    def forward(self, x: Tensor, turns: tuple[Tensor, Tensor], count: int) -> Tensor:
        """[batch, tokens, hidden] to the same shape."""
        x = x + self.self_attn(self.input_layernorm(x), turns)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x), count)
        return out


class NestedDecoder(nn.Module):
    """Embedding, layers, final norm; the embedding is the vocabulary head too."""

    def __init__(self, positions: int) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCABULARY, HIDDEN)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = nn.RMSNorm(HIDDEN, EPS)
        self.rotary = Rotary(Rope(theta=THETA), HEAD_DIM, positions, torch.float32, torch.device("cpu"))
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                # What adds to the residual stream starts smaller, by the number of additions (GPT-2).
                adds = "o_proj" in name or "down_proj" in name
                nn.init.normal_(weight, std=0.02 / (2 * LAYERS) ** 0.5 if adds else 0.02)

    def forward(self, tokens: Tensor, width: float = 1.0) -> Tensor:
        """Logits [batch, tokens, vocabulary] of token ids [batch, tokens]."""
        turns = self.rotary.at(torch.arange(tokens.shape[1]))
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x, turns, neurons(width))
        return functional.linear(self.norm(x), self.embed_tokens.weight)

    def loss(self, tokens: Tensor, width: float = 1.0) -> Tensor:
        """Mean negative log likelihood, nat per token, of each next token in [batch, tokens + 1]."""
        logits = self(tokens[:, :-1], width)
        return functional.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())

    def weights(self) -> dict[str, Tensor]:
        """Under the names of a Hugging Face checkpoint."""
        return {f"model.{name}": weight.detach() for name, weight in self.named_parameters()}

    def load(self, weights: dict[str, Tensor]) -> None:
        """Take `weights` of any type and, of them, their values."""
        self.load_state_dict({name.removeprefix("model."): weight for name, weight in weights.items()})
