"""Text in, ids out and back, as transformers does it and never half a character."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, normalizers

from engine.interface import EngineError
from engine.tokenizer import LibraryStream, TableStream, Tokenizer

TEXTS = ("Hello world", "naïve café — 東京 😀👩‍👩‍👧", "  two  spaces\n\ttab ", "", "कर्म", "\x00 nul")
CHAT = [{"role": "user", "content": "What is a fairlead?"}]


@pytest.fixture
def checkpoint(demo: Path, tmp_path: Path) -> Path:
    """A copy of the demo checkpoint's text files, to be changed."""
    for file in demo.glob("*.json"):
        shutil.copy(file, tmp_path)
    return tmp_path


def change(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def pieces_of(tokenizer: Tokenizer, ids: list[int]) -> tuple[list[str], str]:
    stream = tokenizer.stream()
    return [stream.push(token_id) for token_id in ids], stream.finish()


def sentencepiece() -> tokenizers.Tokenizer:
    """What Llama 2 and Mistral have: spaces as U+2581, unknown characters as byte tokens."""
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", *"Helo wrdtspac", "\u2581w"]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(words))}
    model = models.BPE(vocabulary, [("\u2581", "w")], unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    library = tokenizers.Tokenizer(model)
    library.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    library.decoder = decoders.Sequence(steps)
    return library


@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_back_as_it_was(text: str, demo: Path) -> None:
    tokenizer = Tokenizer.load(demo)
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("text", TEXTS)
def test_a_stream_hands_out_complete_characters_only(text: str, demo: Path) -> None:
    tokenizer = Tokenizer.load(demo)
    pieces, rest = pieces_of(tokenizer, tokenizer.encode(text))
    assert "".join(pieces) == text
    assert rest == ""
    assert not any("\ufffd" in piece for piece in pieces)


def test_random_tokens_give_the_librarys_text(demo: Path) -> None:
    tokenizer = Tokenizer.load(demo)
    assert isinstance(tokenizer.stream(), TableStream)
    for seed in range(50):
        ids = np.random.default_rng(seed).integers(0, 4096, 40).tolist()
        assert tokenizer.decode(ids) == tokenizer._library.decode(ids)


def test_a_character_cut_off_ends_as_a_replacement(demo: Path) -> None:
    tokenizer = Tokenizer.load(demo)
    pieces, rest = pieces_of(tokenizer, tokenizer.encode("a😀")[:-1])
    assert ("".join(pieces), rest) == ("a", "\ufffd")


def test_special_tokens_are_silent_and_other_added_ones_are_not(checkpoint: Path) -> None:
    library = tokenizers.Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    library.add_tokens([tokenizers.AddedToken("<naïve>", special=False)])
    library.save(str(checkpoint / "tokenizer.json"))
    tokenizer = Tokenizer.load(checkpoint)
    ids = tokenizer.encode("a<|im_end|><naïve>b")
    assert len(ids) == 4
    assert tokenizer.decode(ids) == "a<naïve>b"


def test_ids_that_the_tokenizer_does_not_name_are_silent(checkpoint: Path) -> None:
    change(checkpoint / "config.json", vocab_size=4200)
    tokenizer = Tokenizer.load(checkpoint)
    assert (tokenizer.vocabulary_size, tokenizer.decode([4199])) == (4200, "")


@pytest.mark.parametrize("text", TEXTS)
def test_sentencepiece_vocabularies_keep_the_space_that_continues_a_prompt(text: str, checkpoint: Path) -> None:
    sentencepiece().save(str(checkpoint / "tokenizer.json"))
    tokenizer = Tokenizer.load(checkpoint)
    assert isinstance(tokenizer.stream(), TableStream)
    pieces, rest = pieces_of(tokenizer, tokenizer.encode(text))
    assert "".join(pieces) + rest == (f" {text}" if text else "")
    assert "\ufffd" not in "".join(pieces)


def test_other_vocabularies_go_through_the_library(checkpoint: Path) -> None:
    words = ["[UNK]", "fair", "##lead", "rope", "##s"]
    library = tokenizers.Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    library.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    library.decoder = decoders.WordPiece()
    library.save(str(checkpoint / "tokenizer.json"))
    tokenizer = Tokenizer.load(checkpoint)
    assert isinstance(tokenizer.stream(), LibraryStream)
    pieces, rest = pieces_of(tokenizer, tokenizer.encode("fairlead ropes"))
    assert (pieces, rest) == (["fair", "lead", " rope", "s"], "")


def test_chats_render_as_transformers_renders_them(demo: Path) -> None:
    import transformers

    chat = [{"role": "system", "content": "Be brief."}, *CHAT]
    reference = transformers.AutoTokenizer.from_pretrained(demo)
    wanted = reference.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    tokenizer = Tokenizer.load(demo)
    assert tokenizer.render_chat(chat) == wanted
    assert tokenizer.encode_chat(chat) == reference.encode(wanted, add_special_tokens=False)


def test_templates_have_what_transformers_gives_them(checkpoint: Path) -> None:
    template = """
{%- for message in messages %}
    {%- if loop.index0 > 0 %}
        {%- break %}
    {%- endif %}
    {{- eos_token }}{{ message | tojson }}
{% endfor %}
{{ strftime_now("%Y") | length }}{% if tools is defined %}tools{% endif %}"""
    (checkpoint / "chat_template.jinja").write_text(template)
    rendered = Tokenizer.load(checkpoint).render_chat([{"content": "<é>"}, {"content": "never"}])
    assert rendered == '<|im_end|>{"content": "<é>"}\n4'


TOOL = {"type": "function", "function": {"name": "now", "description": "The time.", "parameters": {"type": "object"}}}
CALLED = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"function": {"name": "now", "arguments": {"zone": "UTC"}}}],
}
ANSWERS = [
    {"role": "tool", "content": "noon", "tool_call_id": "a"},
    {"role": "tool", "content": "one", "tool_call_id": "b"},
]


def test_a_template_that_knows_tools_is_given_them(checkpoint: Path) -> None:
    template = """{% for tool in tools or [] %}{{ tool.function.name }} {% endfor %}
{%- for message in messages %}{{ message.role }}:{{ message.content }}
{%- for call in message.tool_calls or [] %}{{ call.function.arguments | tojson }}{% endfor %};{% endfor %}"""
    (checkpoint / "chat_template.jinja").write_text(template)
    rendered = Tokenizer.load(checkpoint).render_chat([*CHAT[:1], CALLED, *ANSWERS], [TOOL])
    assert rendered == f'now {CHAT[0]["role"]}:{CHAT[0]["content"]};assistant:{{"zone": "UTC"}};tool:noon;tool:one;'


def test_a_template_that_knows_no_tools_is_told_of_them_in_turns_it_knows(demo: Path) -> None:
    tokenizer = Tokenizer.load(demo)
    system = {"role": "system", "content": "Be brief."}
    rendered = tokenizer.render_chat([system, *CHAT[:1], CALLED, *ANSWERS], [TOOL])
    turns = rendered.split("<|im_start|>")[1:]
    assert [turn.split("\n")[0] for turn in turns] == ["system", "user", "assistant", "user", "assistant"]
    assert "Be brief.\n\n" in turns[0]
    assert '"description": "The time."' in turns[0]
    assert '<tool_call>\n{"name": "now", "arguments": {"zone": "UTC"}}\n</tool_call>' in turns[2]
    assert "<tool_response>\nnoon\n</tool_response>\n<tool_response>\none\n</tool_response>" in turns[3]
    assert tokenizer.render_chat(CHAT[:1], [TOOL]).startswith("<|im_start|>system\nYou may call functions.")


def test_of_several_templates_the_default_is_taken(checkpoint: Path) -> None:
    several = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]
    change(checkpoint / "tokenizer_config.json", chat_template=several)
    assert Tokenizer.load(checkpoint).render_chat(CHAT) == "yes"


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        ("{{ raise_exception('roles must alternate') }}", "refuses these messages: roles must alternate"),
        ("{{ messages.append(1) }}", "refuses these messages"),
        ("{{ ''.__class__.__mro__ }}", "refuses these messages"),
        ("{{ messages[0]['content'] + 1 }}", "refuses these messages"),
    ],
)
def test_a_template_can_refuse_and_cannot_reach_out(template: str, sentence: str, checkpoint: Path) -> None:
    (checkpoint / "chat_template.jinja").write_text(template)
    with pytest.raises(EngineError, match=sentence):
        Tokenizer.load(checkpoint).encode_chat(CHAT)


def test_a_model_without_a_template_says_what_to_use(checkpoint: Path) -> None:
    change(checkpoint / "tokenizer_config.json", chat_template=None)
    with pytest.raises(EngineError, match="no chat template; send a prompt to /v1/completions"):
        Tokenizer.load(checkpoint).encode_chat(CHAT)


def test_end_tokens_fall_back_to_the_named_one(checkpoint: Path) -> None:
    assert Tokenizer.load(checkpoint).eos_ids == {0, 2}
    (checkpoint / "generation_config.json").unlink()
    change(checkpoint / "config.json", eos_token_id=None)
    change(checkpoint / "tokenizer_config.json", eos_token={"content": "<|endoftext|>"})
    assert Tokenizer.load(checkpoint).eos_ids == {0}


def test_an_unreadable_tokenizer_is_named(checkpoint: Path) -> None:
    (checkpoint / "tokenizer.json").write_text("{}")
    with pytest.raises(EngineError, match=r"tokenizer\.json: cannot be read"):
        Tokenizer.load(checkpoint)
    (checkpoint / "tokenizer.json").unlink()
    with pytest.raises(EngineError, match=r"has no tokenizer\.json"):
        Tokenizer.load(checkpoint)


def test_an_unreadable_template_is_named(checkpoint: Path) -> None:
    (checkpoint / "chat_template.jinja").write_text("{% if %}")
    with pytest.raises(EngineError, match="the chat template cannot be read"):
        Tokenizer.load(checkpoint)
