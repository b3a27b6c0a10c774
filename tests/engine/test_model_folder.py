"""A model folder shows nothing of the machine but its own files, and no code or pickle of it is ever read."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from engine import model_folder
from engine.config import read_config, read_json
from engine.demo import CHECKPOINT
from engine.interface import EngineError
from engine.model_folder import inside, read_document
from engine.tokenizer import Tokenizer
from engine.weights import Checkpoint


def opened(folder: Path) -> Checkpoint:
    return Checkpoint(folder, torch.float32, torch.device("cpu"))


def test_a_link_out_of_the_folder_is_refused_whatever_it_leads_to(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret").write_text("{}")
    for name in ("config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"):
        (folder / name).symlink_to(tmp_path / "secret")
        with pytest.raises(EngineError, match=f"{name}: leads out of the model folder"):
            inside(folder / name)
    with pytest.raises(EngineError, match="leads out of the model folder"):
        read_json(folder / "config.json")
    with pytest.raises(EngineError, match="leads out of the model folder"):
        opened(folder)


def test_links_within_the_folder_and_a_cache_of_snapshots_are_followed(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--acme--small" / "snapshots" / "1234"
    blobs = tmp_path / "models--acme--small" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "abcd").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/abcd")
    (snapshot / "other.json").symlink_to("config.json")
    assert read_json(snapshot / "config.json") == read_json(snapshot / "other.json") == {}
    (tmp_path / "link").symlink_to(snapshot)
    assert read_json(tmp_path / "link" / "config.json") == {}


def test_a_size_that_would_fill_the_memory_is_refused_before_anything_is_made_of_it(tmp_path: Path) -> None:
    written = json.loads((CHECKPOINT / "config.json").read_text())
    for name in ("vocab_size", "num_hidden_layers", "max_position_embeddings", "num_attention_heads"):
        (tmp_path / "config.json").write_text(json.dumps(written | {name: 10**12}))
        with pytest.raises(EngineError, match=f"{name}: 1000000000000 is more than a model has; at most"):
            read_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(written))
    tokenizer = json.loads((CHECKPOINT / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["of a name that nobody has"] = 2**32 - 1
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(EngineError, match="has a token with id 4294967295; ids are below"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("content", [b'{"a": "\xff"}', b'{"a": ' + b"[" * 10**5 + b"]" * 10**5 + b"}"])
def test_what_cannot_be_read_as_json_is_a_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(EngineError, match="is not JSON"):
        read_json(tmp_path / "config.json")


def test_what_is_no_regular_file_is_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(EngineError, match="is no regular file"):
        read_document(tmp_path / "config.json")
    (tmp_path / "loop.json").symlink_to("loop.json")
    with pytest.raises(EngineError, match="cannot be read"):
        read_json(tmp_path / "loop.json")


def test_a_document_that_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_folder, "MAX_DOCUMENT_BYTES", 1)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(EngineError, match="has 2 bytes; at most 1 are read"):
        read_document(tmp_path / "tokenizer.json")


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "model.bin", "pytorch.pt"])
def test_an_index_names_safetensors_files_of_its_own_folder_alone(tmp_path: Path, name: str) -> None:
    save_file({"one": torch.ones(1)}, tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"one": name}}))
    with pytest.raises(EngineError, match=r"only \.safetensors files of this folder are read"):
        opened(tmp_path)


def test_a_folder_of_pickles_is_refused_with_a_sentence(tmp_path: Path) -> None:
    for name in ("pytorch_model.bin", "model.pt"):
        (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch /tmp/owned'\ntR.")
    with pytest.raises(
        EngineError, match=r"has no weights; needed is model\.safetensors .* \(pickled \.bin files are never"
    ):
        opened(tmp_path)
