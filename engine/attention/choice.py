"""Which backend runs attention: by what each one needs, never by trying."""

import importlib.util
from typing import NamedTuple

import torch

from engine import native
from engine.attention.cpu_paged import PagedAttention
from engine.attention.gather import GatherAttention
from engine.attention.interface import Attention
from engine.config import ModelConfig
from engine.interface import EngineError, EngineSettings
from engine.kv_cache import KvCache
from engine.native.kernels import Kernels


class Needs(NamedTuple):
    """What a backend runs on. Empty: anything."""

    device: str
    default_block_tokens: int
    block_multiple: int = 1
    dtypes: tuple[torch.dtype, ...] = ()
    head_dims: tuple[int, ...] = ()
    head_multiple: int = 1
    package: str = ""
    library: bool = False
    """The C++ library of `engine.native`."""


BACKENDS = {  # in order of preference
    "xformers_splitk": Needs(
        "cuda", 64, 64, (torch.bfloat16, torch.float16), (16, 32, 64, 128, 256), package="xformers"
    ),
    "varlen_paged": Needs("cuda", 256, 256, (torch.bfloat16, torch.float16), (32, 64, 96, 128, 192, 256)),
    "cpu_paged": Needs(
        "cpu",
        16,
        native.MULTIPLE,
        (torch.float32, torch.bfloat16),
        head_multiple=native.MULTIPLE,
        library=True,
    ),
    "cpu_gather": Needs("cpu", 16),
    "sdpa_gather": Needs("cuda", 16),
}


class Choice(NamedTuple):
    """A backend and why not the others."""

    name: str
    block_tokens: int
    against: dict[str, str]
    """For every other backend a reason."""


def choose(settings: EngineSettings, config: ModelConfig, device: torch.device, dtype: torch.dtype) -> Choice:
    """The backend that the settings name, or the first whose needs are met.

    Raises:
        EngineError: the named backend cannot run here.
    """
    obstacles = {name: _obstacle(needs, settings, config, device, dtype) for name, needs in BACKENDS.items()}
    able = [name for name, obstacle in obstacles.items() if not obstacle]
    name = able[0] if settings.attention == "auto" else settings.attention
    if obstacles[name]:
        raise EngineError(f"engine.attention: {name} cannot be used: {obstacles[name]}; here you can use {able[0]}")
    preferred = f"{name} comes first" if settings.attention == "auto" else f"the settings name {name}"
    against = {other: obstacle or preferred for other, obstacle in obstacles.items() if other != name}
    return Choice(name, settings.kv_block_tokens or BACKENDS[name].default_block_tokens, against)


def build(choice: Choice, config: ModelConfig, cache: KvCache) -> Attention:
    """The chosen backend on this cache."""
    if choice.name == "xformers_splitk":
        # Imported here: it loads CUDA kernels and warns where there are none.
        from engine.attention.xformers_splitk import XformersAttention  # noqa: PLC0415

        return XformersAttention(config, cache)
    if choice.name == "varlen_paged":
        from engine.attention.varlen_paged import VarlenAttention  # noqa: PLC0415  only where it is used

        return VarlenAttention(config, cache)
    path = native.locate().path
    if choice.name == "cpu_paged" and path is not None:
        return PagedAttention(config, cache, Kernels(path, cache.keys[0].dtype))
    return GatherAttention(choice.name, config, cache)


def _obstacle(
    needs: Needs, settings: EngineSettings, config: ModelConfig, device: torch.device, dtype: torch.dtype
) -> str:
    """Why a backend cannot run, or nothing."""
    if needs.device != device.type:
        return f"it needs a {needs.device} device, this is {device.type}"
    if needs.dtypes and dtype not in needs.dtypes:
        return f"it needs {' or '.join(map(_name, needs.dtypes))}, this is {_name(dtype)}"
    if needs.head_dims and config.head_dim not in needs.head_dims:
        return f"it needs a head_dim of {', '.join(map(str, needs.head_dims))}, this model has {config.head_dim}"
    if config.head_dim % needs.head_multiple:
        return f"it needs a head_dim that is a multiple of {needs.head_multiple}, this model has {config.head_dim}"
    block_tokens = settings.kv_block_tokens or needs.default_block_tokens
    if block_tokens % needs.block_multiple:
        return f"it needs kv_block_tokens to be a multiple of {needs.block_multiple}, this is {block_tokens}"
    if needs.package and importlib.util.find_spec(needs.package) is None:
        return f"the package {needs.package} is not installed"
    if needs.library:
        located = native.locate()
        return "" if located.path else located.reason
    return ""


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
