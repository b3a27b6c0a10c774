"""Finds the C++ parts of a CPU step, if they were built for this processor. Torch-free, so that `make` needs nothing.

`python -m engine.native.make` builds them, `./ops/up --prepare` calls it; never at run time. Without them the engine
does the same with torch's operators, slower.
"""

import hashlib
import platform
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent
SOURCES = ("rows.cpp", "attention.cpp", "vectors.h")
CPU_FILE = Path("/proc/cpuinfo")
MULTIPLE = 16
"""Widths must be a multiple of this: the numbers in the widest vector."""


class Variant(NamedTuple):
    """One translation of the sources: for which machine, with which options, needing which processor flags."""

    name: str
    machine: str
    options: tuple[str, ...]
    flags: frozenset[str]


VARIANTS = (  # in order of preference; the last runs everywhere
    Variant(
        "x86-64-v4",
        "x86_64",
        ("-march=x86-64-v4", "-mprefer-vector-width=512"),
        frozenset({"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "fma", "bmi2"}),
    ),
    Variant("x86-64-v3", "x86_64", ("-march=x86-64-v3",), frozenset({"avx2", "fma", "bmi1", "bmi2", "f16c"})),
    Variant("baseline", "", (), frozenset()),
)


class Located(NamedTuple):
    """The library for this processor, or why there is none."""

    path: Path | None
    variant: str
    reason: str


def library_path(variant: Variant) -> Path:
    """Where a variant of these very sources is: others have another name."""
    digest = hashlib.sha256(b"".join((FOLDER / name).read_bytes() for name in SOURCES)).hexdigest()
    return FOLDER / "build" / f"{variant.name}-{digest[:12]}.so"


def variants() -> list[Variant]:
    """Those that can be built on this machine."""
    return [variant for variant in VARIANTS if variant.machine in {"", platform.machine()}]


def locate() -> Located:
    """The best variant that was built and that this processor can run."""
    for variant in variants():
        path = library_path(variant)
        if variant.flags <= _processor_flags() and path.exists():
            return Located(path, variant.name, f"built for {variant.name}")
    return Located(None, "", "its C++ library is not built: ./ops/up --prepare does it where g++ is installed")


def _processor_flags() -> frozenset[str]:
    lines = CPU_FILE.read_text().splitlines() if CPU_FILE.exists() else []
    return frozenset(next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), []))
