"""From a checkpoint folder and settings to an engine that is ready to run. Torch is loaded only for a real one."""

from collections.abc import Callable
from pathlib import Path

from engine.config import ModelConfig, read_config
from engine.interface import Engine, EngineError, EngineSettings
from engine.paced import PacedEngine

Progress = Callable[[int, int], None]
"""Told (bytes done, bytes in all)."""


def read_model(folder: Path, settings: EngineSettings) -> ModelConfig:
    """The model of a checkpoint folder, long enough for the settings.

    Raises:
        EngineError: it is not supported, or has fewer positions than are asked for.
    """
    config = read_config(folder)
    if settings.max_sequence_tokens > config.max_positions:
        raise EngineError(
            f"engine.max_sequence_tokens: {settings.max_sequence_tokens} is more than the "
            f"{config.max_positions} positions of {folder}"
        )
    return config


def _ignore(done_bytes: int, total_bytes: int) -> None:
    del done_bytes, total_bytes


def load_engine(folder: Path, settings: EngineSettings, progress: Progress = _ignore) -> Engine:
    """The engine that `settings.kind` names, warm: its first step is as fast as the others. `progress` is told how many
    bytes of the weights have been read, and of how many; tied ones count and are not read.

    Raises:
        EngineError: the checkpoint cannot be read, its model is not supported, or it does not fit into memory.
    """
    config = read_model(folder, settings)
    if settings.kind == "paced":
        return PacedEngine(settings, config.vocabulary_size, config.max_positions)
    from engine.torch_engine import load_torch_engine  # noqa: PLC0415  torch takes seconds to load

    return load_torch_engine(folder, config, settings, progress)
