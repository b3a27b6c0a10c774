"""A small random Llama with chat tokens and float32 weights: what the tests of engine and gateway run on.

What it writes has the look of tokens and no meaning.
"""

import sysconfig
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SEED = 20240517
VOCABULARY, HIDDEN, INTERMEDIATE, LAYERS, HEADS, KV_HEADS, HEAD_DIM = 4096, 256, 640, 4, 8, 4, 32
MAX_POSITIONS = 8192
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# Modules whose sources hold much English: what merges are learned from.
CORPUS = [
    "argparse",
    "ast",
    "cmd",
    "codecs",
    "configparser",
    "datetime",
    "difflib",
    "doctest",
    "fractions",
    "heapq",
    "inspect",
    "locale",
    "mailbox",
    "optparse",
    "pdb",
    "random",
    "shutil",
    "smtplib",
    "statistics",
    "string",
    "subprocess",
    "tarfile",
    "tempfile",
    "textwrap",
    "threading",
    "tokenize",
    "typing",
    "uuid",
    "zipfile",
]


def write_random_checkpoint(folder: Path) -> Path:
    """`folder`, new, with a checkpoint in it."""
    folder.mkdir()
    _write(folder)
    return folder


def _write(folder: Path) -> None:
    _tokenizer().save(str(folder / "tokenizer.json"))
    save_file(_weights(), folder / "model.safetensors", metadata={"format": "pt"})
    end_of_text, _, end_of_turn = range(len(SPECIAL_TOKENS))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": SPECIAL_TOKENS[2],
        "pad_token": SPECIAL_TOKENS[0],
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "model_max_length": MAX_POSITIONS,
    }
    generation = {"eos_token_id": [end_of_turn, end_of_text], "pad_token_id": end_of_text}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": MAX_POSITIONS,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "dtype": "float32",
        "bos_token_id": None,
        "eos_token_id": end_of_turn,
        "pad_token_id": end_of_text,
    }
    for name, content in (("tokenizer_config", settings), ("generation_config", generation), ("config", config)):
        (folder / f"{name}.json").write_bytes(msgspec.json.format(msgspec.json.encode(content), indent=2))


def _tokenizer() -> Tokenizer:
    """Byte-level BPE; the special tokens are the first ids."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    sources = Path(sysconfig.get_paths()["stdlib"])
    files = [sources / f"{module}.py" for module in CORPUS]
    tokenizer.train_from_iterator((file.read_text("utf-8") for file in files if file.exists()), trainer)
    return tokenizer


def _weights() -> dict[str, NDArray[np.float32]]:
    """Normal random numbers, wide enough that the argmax changes from token to token."""
    generator = np.random.default_rng(SEED)

    def normal(*shape: int, std: float = 0.06) -> NDArray[np.float32]:
        return generator.standard_normal(shape, np.float32) * np.float32(std)

    def ones() -> NDArray[np.float32]:
        return np.ones(HIDDEN, np.float32)

    weights = {"model.embed_tokens.weight": normal(VOCABULARY, HIDDEN)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        weights |= {
            f"{prefix}.input_layernorm.weight": ones(),
            f"{prefix}.self_attn.q_proj.weight": normal(HEADS * HEAD_DIM, HIDDEN),
            f"{prefix}.self_attn.k_proj.weight": normal(KV_HEADS * HEAD_DIM, HIDDEN),
            f"{prefix}.self_attn.v_proj.weight": normal(KV_HEADS * HEAD_DIM, HIDDEN),
            f"{prefix}.self_attn.o_proj.weight": normal(HIDDEN, HEADS * HEAD_DIM),
            f"{prefix}.post_attention_layernorm.weight": ones(),
            f"{prefix}.mlp.gate_proj.weight": normal(INTERMEDIATE, HIDDEN),
            f"{prefix}.mlp.up_proj.weight": normal(INTERMEDIATE, HIDDEN),
            f"{prefix}.mlp.down_proj.weight": normal(HIDDEN, INTERMEDIATE),
        }
    return weights | {"model.norm.weight": ones(), "lm_head.weight": normal(VOCABULARY, HIDDEN, std=0.12)}
