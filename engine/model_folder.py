"""What a model folder may make this process read: files of its own, of a size that fits into memory.

A folder comes from whoever trained the model. A name or link in it that leads elsewhere would show a file of this
machine to whoever talks to the model. Knows no format.
"""

from pathlib import Path

from engine.interface import EngineError

MAX_DOCUMENT_BYTES = 128 * 2**20
"""Of a file that is read whole: the tokenizers of the largest vocabularies have a fourth of it."""


def inside(path: Path) -> Path:
    """The same path, of a file of a model folder.

    Links within the folder may be followed, and within the repository folder of a Hugging Face cache, whose snapshots
    are links to its blobs.

    Raises:
        EngineError: it leads out of the folder, or is no file.
    """
    folder = path.parent.resolve()
    root = folder.parent.parent if folder.parent.name == "snapshots" else folder
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError):  # the latter for links that lead in a circle
        return path  # whoever opens it says best what is wrong
    if not target.is_relative_to(root):
        raise EngineError(f"{path}: leads out of the model folder, to {target}; put the file itself into the folder")
    if not target.is_file():
        raise EngineError(f"{path}: is no regular file")
    return path


def read_document(path: Path) -> bytes:
    """The whole of a file of a model folder.

    Raises:
        EngineError: as `inside`, or it is too large.
        OSError: it cannot be read.
    """
    size = inside(path).stat().st_size
    if size > MAX_DOCUMENT_BYTES:
        raise EngineError(f"{path}: has {size} bytes; at most {MAX_DOCUMENT_BYTES} are read of such a file")
    return path.read_bytes()
