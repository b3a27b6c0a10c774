"""llama.cpp, batched: all prompts in batches of its own size, then all sequences a token a step, greedy.

Runs in an environment of its own (ops/bench/peers/install.sh), so it imports nothing of ours:
`python llama_cpp_peer.py CHECKPOINT WORKLOAD fast|exact`. The weights are written as GGUF in float32, beside the
checkpoint. fast: as it comes, with KV in float16; exact: KV and attention in float32.
For each line on stdin it runs once and prints {"seconds", "tokens"}.
"""

import ctypes
import json
import sys
import time
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
from safetensors.numpy import load_file

BATCH = 512
WAYS = {
    "fast": {},
    "exact": {
        "type_k": llama_cpp.GGML_TYPE_F32,
        "type_v": llama_cpp.GGML_TYPE_F32,
        "flash_attn_type": llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED,
    },
}


def convert(checkpoint: Path, way: str) -> Path:
    """The checkpoint as GGUF. llama.cpp turns pairs of neighbours, Hugging Face's layout halves: q and k rows move."""
    path = checkpoint / f"model-{way}.gguf"
    config = json.loads((checkpoint / "config.json").read_text())
    tensors = load_file(checkpoint / "model.safetensors")
    heads, kv_heads, layers = (
        config[f"num_{name}"] for name in ("attention_heads", "key_value_heads", "hidden_layers")
    )

    def paired(weight: np.ndarray, count: int) -> np.ndarray:
        rows, columns = weight.shape
        return weight.reshape(count, 2, rows // count // 2, columns).swapaxes(1, 2).reshape(rows, columns)

    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(layers)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"<{index}>".encode() for index in range(config["vocab_size"])])
    writer.add_token_scores([0.0] * config["vocab_size"])
    writer.add_token_types([gguf.TokenType.NORMAL] * config["vocab_size"])
    names = {
        "input_layernorm": "attn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    writer.add_tensor("token_embd.weight", tensors["model.embed_tokens.weight"])
    writer.add_tensor("output_norm.weight", tensors["model.norm.weight"])
    writer.add_tensor("output.weight", tensors["lm_head.weight"])
    for layer in range(layers):
        for theirs, ours in names.items():
            weight = tensors[f"model.layers.{layer}.{theirs}.weight"]
            if ours in {"attn_q", "attn_k"}:
                weight = paired(weight, heads if ours == "attn_q" else kv_heads)
            writer.add_tensor(f"blk.{layer}.{ours}.weight", np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


class Peer:
    """A context for all sequences at once."""

    def __init__(self, model: Path, work: dict[str, Any], way: str) -> None:
        self.prompts: list[list[int]] = work["prompts"]
        self.num_outputs: int = work["num_outputs"]
        count, longest = len(self.prompts), max(map(len, self.prompts))
        llama_cpp.llama_backend_init()
        self._quiet = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._quiet, None)
        options = llama_cpp.llama_model_default_params()
        self.model = llama_cpp.llama_model_load_from_file(str(model).encode(), options)
        context = llama_cpp.llama_context_default_params()
        context.n_ctx = count * (longest + self.num_outputs)
        context.n_batch = context.n_ubatch = BATCH
        context.n_seq_max = count
        context.n_threads = context.n_threads_batch = work["threads"]
        context.no_perf = True
        for name, value in WAYS[way].items():
            setattr(context, name, value)
        self.context = llama_cpp.llama_init_from_model(self.model, context)
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.batch = llama_cpp.llama_batch_init(BATCH, 0, 1)

    def decode(self, rows: list[tuple[int, int, int, bool]]) -> list[int]:
        """A batch of (token, position, sequence, wants logits); the likeliest next tokens of those that want them."""
        batch = self.batch
        batch.n_tokens = len(rows)
        for index, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[index] = token
            batch.pos[index] = position
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = sequence
            batch.logits[index] = wanted
        if status := llama_cpp.llama_decode(self.context, batch):
            raise RuntimeError(f"llama_decode: {status}")
        count = sum(wanted for *_, wanted in rows)
        if not count:
            return []
        logits = llama_cpp.llama_get_logits(self.context)
        flat = ctypes.cast(logits, ctypes.POINTER(ctypes.c_float * (count * self.vocabulary))).contents
        chosen: list[int] = np.frombuffer(flat, np.float32).reshape(count, -1).argmax(-1).tolist()
        return chosen

    def run(self) -> list[list[int]]:
        """Output tokens of all sequences."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        outputs: list[list[int]] = [[] for _ in self.prompts]
        pending = [
            (token, position, sequence, position == len(prompt) - 1)
            for sequence, prompt in enumerate(self.prompts)
            for position, token in enumerate(prompt)
        ]
        for start in range(0, len(pending), BATCH):
            rows = pending[start : start + BATCH]
            chosen = iter(self.decode(rows))
            for _, _, sequence, wanted in rows:
                if wanted:
                    outputs[sequence].append(next(chosen))
        for step in range(self.num_outputs - 1):
            rows = [(tokens[-1], len(self.prompts[s]) + step, s, True) for s, tokens in enumerate(outputs)]
            for tokens, token in zip(outputs, self.decode(rows), strict=True):
                tokens.append(token)
        return outputs


def main() -> None:
    """Answer each line of stdin with a run."""
    checkpoint, work = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
    peer = Peer(convert(checkpoint, sys.argv[3]), work, sys.argv[3])
    for _ in sys.stdin:
        began = time.perf_counter()
        tokens = peer.run()
        print(json.dumps({"seconds": time.perf_counter() - began, "tokens": tokens}), flush=True)


if __name__ == "__main__":
    main()
