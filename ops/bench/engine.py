"""`fairlead bench engine`: throughput of the engine. On a GPU: `engine_cuda`; on a CPU: `engine_cpu`."""

import argparse

from ops.bench import engine_cpu, engine_cuda
from ops.bench.harness import Row


def run(arguments: argparse.Namespace) -> list[Row]:
    """As the half for the device.

    Raises:
        UnmeasurableError: it cannot be measured here.
    """
    gpus = arguments.device == "cuda" or arguments.smoke  # whose benchmark a CPU can try out
    return (engine_cuda if gpus else engine_cpu).run(arguments)
