"""Reads the tensors of a checkpoint folder from safetensors files, one or sharded. Never pickle.

Knows names, shapes and bytes; not what a model does with them.
"""

import math
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from engine.config import read_json
from engine.interface import EngineError
from engine.model_folder import inside

SUFFIX = ".safetensors"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
REDUNDANT = ("rotary_emb.inv_freq", "lm_head.weight")
"""Computed from config.json; the embedding again, where the two are tied."""


def _ignore(num_bytes: int) -> None:
    del num_bytes


class Checkpoint:
    """The tensors of one folder, read when asked for and converted to one dtype on one device.

    Raises:
        EngineError: the folder has no safetensors, or a file of it is missing or damaged.
    """

    def __init__(self, folder: Path, dtype: torch.dtype, device: torch.device) -> None:
        self.folder = folder
        self.dtype = dtype
        self.device = device
        self.num_parameters = 0
        """Numbers handed out so far."""
        self.on_read: Callable[[int], None] = _ignore
        """Told how many bytes have been handed out."""
        self._used: set[str] = set()
        self._files = self._open()

    def _open(self) -> dict[str, tuple[Path, Any]]:
        if (self.folder / INDEX).exists():
            named = read_json(self.folder / INDEX).get("weight_map")
            if not isinstance(named, dict) or not all(isinstance(name, str) for name in named.values()):
                raise EngineError(f"{self.folder / INDEX}: has no weight_map, which names the file of each tensor")
            names = sorted(set(named.values()))
            wrong = next((name for name in names if name != Path(name).name or not name.endswith(SUFFIX)), None)
            if wrong is not None:
                raise EngineError(
                    f"{self.folder / INDEX}: names the file {wrong!r}; only {SUFFIX} files of this folder are read"
                )
        elif (self.folder / SINGLE).exists():
            names = [SINGLE]
        else:
            raise EngineError(
                f"{self.folder}: has no weights; needed is {SINGLE} or {INDEX} (pickled .bin files are never read)"
            )
        files: dict[str, tuple[Path, Any]] = {}
        for name in names:
            path = inside(self.folder / name)
            try:
                reader: Any = safe_open(path, framework="pt")
            except FileNotFoundError as error:
                raise EngineError(f"{path}: is missing; {INDEX} names it") from error
            except (OSError, SafetensorError) as error:
                raise EngineError(f"{path}: is not a readable safetensors file: {error}") from error
            files.update((tensor, (path, reader)) for tensor in reader.offset_keys())
        return files

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def count(self) -> int:
        """Numbers in all tensors, from the files' headers."""
        return sum(math.prod(reader.get_slice(name).get_shape()) for name, (_, reader) in self._files.items())

    def tensor(self, name: str, *shape: int) -> torch.Tensor:
        """The tensor `name`, which must have `shape`.

        Raises:
            EngineError: it is missing, of another shape or of no supported dtype.
        """
        if name not in self._files:
            near = get_close_matches(name, self._files, 1)
            hint = f"; the nearest name there is {near[0]}" if near else ""
            raise EngineError(f"{self.folder}: tensor {name} is missing from its {len(self._files)} tensors{hint}")
        path, reader = self._files[name]
        found = reader.get_slice(name)
        if tuple(found.get_shape()) != shape:
            raise EngineError(
                f"{path}: tensor {name} has shape {list(found.get_shape())}; config.json asks for {list(shape)}"
            )
        # Opened anew and copied: pages of the file that were read stay in memory until the last view of it is gone.
        with safe_open(path, framework="pt") as fresh:
            tensor: torch.Tensor = fresh.get_tensor(name)
        if tensor.dtype not in FLOATS:
            raise EngineError(f"{path}: tensor {name} is {tensor.dtype}; supported are {', '.join(map(str, FLOATS))}")
        self.num_parameters += tensor.numel()
        self._used.add(name)
        converted = tensor.to(self.device, self.dtype, copy=True)
        self.on_read(self.num_parameters * self.dtype.itemsize)
        return converted

    def check_unused(self) -> list[str]:
        """Names of tensors that nobody asked for, but for those that many checkpoints carry to no effect.

        Raises:
            EngineError: one belongs to a module of which others were read (a bias, a scale): without it the model
                computes something else.
        """
        unused = sorted(name for name in self._files.keys() - self._used if not name.endswith(REDUNDANT))
        modules = {name.rpartition(".")[0] for name in self._used}
        for name in unused:
            if name.rpartition(".")[0] in modules:
                raise EngineError(
                    f"{self._files[name][0]}: tensor {name} has no place in the model that config.json describes; "
                    "without it the model would compute something else (is a bias not declared, or is it quantised?)"
                )
        return unused
