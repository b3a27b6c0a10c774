"""`fairlead bench engine`: throughput of the engine in this process. On a GPU: `engine_cuda`."""

import argparse

from ops.bench import engine_cuda
from ops.bench.harness import Row, UnmeasurableError


def run(arguments: argparse.Namespace) -> list[Row]:
    """As the half for the device.

    Raises:
        UnmeasurableError: it cannot be measured here.
    """
    if arguments.device == "cpu" and not arguments.smoke:
        raise UnmeasurableError("--device cpu: an 8B model is measured on a GPU; a CPU runs --smoke")
    return engine_cuda.run(arguments)
