"""Which device a run is on, as asked for by name.

Owns the names and how parameters and files are said with them. Opens no file itself.
"""

from collections.abc import Callable

from policies.simulation.executor_model import DEVICES, Device
from policies.simulation.parameters import ParameterError, Parameters
from policies.simulation.profiles import READERS, Asked, tile_device

TILE = "tile"
FITTED = "fitted"
"""Its file is read where it is asked for: it has a history of noise, which takes a seed."""
NAMES = (*DEVICES, TILE)
FILES = (*(f"{kind}:FILE" for kind in READERS), f"{FITTED}:FILE")
HELP = f"""\
executor models:
  {", ".join(DEVICES)}
      published devices, by name
  {TILE}?tile_tokens=128&column_us=4000&token_us=5&pair_ns=3.5&context_ns=65&num_blocks=14733&context_tokens=8192
      whole tiles through the linear layers, then tokens, attention pairs and context (RAD, equation 7)
  layers:FILE?layers=32&bandwidth_gb_s=2000&attention_tflops=150&memory_gb=80&context_tokens=8192
      operator times of one layer by number of tokens, as CSV
  sweep:FILE?prompt_tokens=2048
      time to first token of one prompt under several token budgets, as CSV
  costs:FILE?overhead=1.083
      times of whole batches by prompt and output length, as JSON
  {FITTED}:FILE?noise=drawn, or noise=mean
      an executor as measured: a file of --fit, or a folder of `fairlead up --record`
  every parameter may be left out; its default is shown"""


def named_device(name: str, *, efficiency: float, read: Callable[[str], str]) -> Device:
    """A device of `NAMES`, or KIND:FILE of a file of measurements; `?key=value&...` may follow.

    Args:
        name: as asked for.
        efficiency: share of the memory bandwidth that KV reads reach, above 0 up to 1.
        read: gives the text of a file.

    Raises:
        ParameterError: there is no such device, or a parameter is wrong.
        ProfileError: the file cannot be used.
    """
    parameters = Parameters(name)
    kind, colon, file = parameters.name.partition(":")
    if colon and kind in READERS and file:
        return READERS[kind](Asked(parameters, read(file), file, efficiency))
    if parameters.name == TILE:
        return tile_device(parameters)
    device = DEVICES.get(parameters.name)
    if device is None:
        raise ParameterError(f"{name}: there is no such executor model; there are {', '.join((*NAMES, *FILES))}")
    parameters.finish()
    return device(efficiency)
