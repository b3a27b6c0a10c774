"""Builds the C++ library of a CPU step: `python -m engine.native.make`. Does nothing where it is built already."""

import shutil
import subprocess
import sys
from pathlib import Path

from engine.native import FOLDER, SOURCES, Variant, library_path, variants

# -ffp-contract=off: which products are joined to sums decides last bits, so the sources say it (vectors.h).
OPTIONS = ("-std=c++17", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fopenmp", "-fPIC", "-shared", "-Wall")


def build(variant: Variant, compiler: str) -> Path:
    """Compile one variant.

    Raises:
        subprocess.CalledProcessError: the compiler refused; it has said why.
    """
    path = library_path(variant)
    path.parent.mkdir(exist_ok=True)
    for old in path.parent.glob(f"{variant.name}-*"):
        old.unlink()
    # Under another name until it is whole: a process that starts meanwhile must not load half a library.
    partial = path.with_suffix(".partial")
    sources = [str(FOLDER / name) for name in SOURCES if name.endswith(".cpp")]
    subprocess.run([compiler, *OPTIONS, *variant.options, *sources, "-o", str(partial)], check=True)
    partial.replace(path)
    return path


def main() -> int:
    """Build what is missing; the exit status is 0 without a compiler too, for the library is optional."""
    missing = [variant for variant in variants() if not library_path(variant).exists()]
    compiler = shutil.which("g++")
    if missing and compiler is None:
        print("fairlead: no g++ here: the CPU engine runs without its C++ library, slower", file=sys.stderr)
        return 0
    for variant in missing:
        try:
            build(variant, str(compiler))
        except subprocess.CalledProcessError as error:
            print(f"fairlead: {variant.name} is left out: g++ ended with {error.returncode}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
