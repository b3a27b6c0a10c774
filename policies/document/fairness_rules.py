"""What must hold between the values of `fairness`: each rule adds the problems it finds.

A part of `rules.py`, which says what a rule may look at.
"""

from collections.abc import Sequence
from itertools import pairwise

from msgspec import UNSET

from policies.document.fairness import Fairness, LengthPredictor, Quadratic, ReadTable, Table
from policies.document.reading import Path, Reading

FAIRNESS: Path = ("fairness",)
COST: Path = (*FAIRNESS, "cost")
POINTS = ("prompt_tokens", "output_tokens", "costs")
LEVELS = ("tenant", "project", "key")
MAX_TOKENS = 2**20
"""The longest prompt and output for which a formula is looked at."""


def check_fairness(reading: Reading) -> None:
    """Add every problem between the values of this section."""
    _table_has_points(reading)
    for at in (COST, (*COST, "file")):
        _table_is_rectangular(reading, at)
        _table_never_falls(reading, at)
    _formula_never_falls(reading)
    _levels_go_down(reading)
    _predictor_is_one(reading)
    fairness = reading.get(FAIRNESS)
    if isinstance(fairness, Fairness):
        _predictor_is_there(reading, fairness)
        _quantum_has_an_effect(reading, fairness)
        _portion_has_a_rhythm(reading, fairness)


def check_live_fairness(reading: Reading) -> None:
    """Add a problem for everything here that only a replay knows."""
    predictor = reading.get((*FAIRNESS, "predictor"))
    instead = "none, declared, {mean_last: 5} or {ema: 0.2}"
    if predictor == "oracle":
        wrong = "oracle is for replays: nobody knows yet how long an output will be"
        reading.add((*FAIRNESS, "predictor"), wrong, instead)
    if isinstance(predictor, LengthPredictor) and predictor.noisy_oracle is not None:
        wrong = "noisy_oracle is for replays: nobody knows yet how long an output will be"
        reading.add((*FAIRNESS, "predictor", "noisy_oracle"), wrong, instead)
    if reading.get((*FAIRNESS, "reserve")) == "occupancy":
        wrong = "occupancy is for replays: nobody knows yet how long an output will be"
        reading.add((*FAIRNESS, "reserve"), wrong, "declared or predicted")


def _table_has_points(reading: Reading) -> None:
    table = reading.get(COST)
    if not isinstance(table, Table):
        return
    given = [name for name in POINTS if reading.names((*COST, name))]
    if table.file is None:
        for name in POINTS:
            if name not in given:
                reading.add(COST, f'the key "{name}" is missing', "all three of a table, or the `file` that has them")
    elif given:
        reading.add((*COST, given[0]), "the table is in a file", f"remove {', '.join(given)}, or `file`")
    elif isinstance(table.file, str):
        wrong = f"{table.file} was not read: this document came without its folder"
        reading.add((*COST, "file"), wrong, "the points themselves, as a revision has them, or a policy file")


def _table_is_rectangular(reading: Reading, at: Path) -> None:
    table = reading.get(at)
    if not isinstance(table, Table | ReadTable) or not (table.prompt_tokens and table.output_tokens and table.costs):
        return
    for name, values in (("prompt_tokens", table.prompt_tokens), ("output_tokens", table.output_tokens)):
        if any(later <= earlier for earlier, later in pairwise(values)):
            reading.add((*at, name), "the lengths do not ascend", "each larger than the one before")
    if table.output_tokens[0] != 0:
        wrong = f"the first output length is {table.output_tokens[0]}, so no cost is known for a prompt alone"
        reading.add((*at, "output_tokens", 0), wrong, "the first length must be 0")
    if len(table.costs) != len(table.prompt_tokens):
        wrong = f"{len(table.costs)} rows for {len(table.prompt_tokens)} prompt lengths"
        reading.add((*at, "costs"), wrong, "one row for each of `prompt_tokens`")
    for index, row in enumerate(table.costs):
        if len(row) != len(table.output_tokens):
            wrong = f"{len(row)} costs for {len(table.output_tokens)} output lengths"
            reading.add((*at, "costs", index), wrong, "one cost for each of `output_tokens`")


def _table_never_falls(reading: Reading, at: Path) -> None:
    rows = reading.get((*at, "costs"))
    if rows is UNSET:
        return
    for index, row in enumerate(rows):
        column = _falls(row)
        if column is not None:
            wrong = f"the cost falls from {row[column - 1]:g} to {row[column]:g} for more output"
            reading.add((*at, "costs", index, column), wrong, "at least as much as before it in the row")
    for index, (above, row) in enumerate(pairwise(rows), start=1):
        for column, (less, more) in enumerate(zip(above, row, strict=False)):
            if more < less:
                wrong = f"the cost falls from {less:g} to {more:g} for a longer prompt"
                reading.add((*at, "costs", index, column), wrong, "at least as much as above it")
                break


def _falls(values: Sequence[float]) -> int | None:
    return next((index for index in range(1, len(values)) if values[index] < values[index - 1]), None)


def _formula_never_falls(reading: Reading) -> None:
    """Each slope is linear in the counts, so that it is smallest where they are smallest or largest."""
    cost = reading.get(COST)
    if not isinstance(cost, Quadratic):
        return
    ends = (0, MAX_TOKENS)
    by_prompt = min(cost.a + cost.c * output for output in ends)
    by_output = min(cost.b + cost.c * prompt + cost.d * (2 * nth - 1) for prompt in ends for nth in (1, MAX_TOKENS))
    for slope, more in ((by_prompt, "prompt"), (by_output, "output")):
        if slope < 0:
            wrong = f"a further {more} token would make some requests cheaper"
            reading.add(COST, wrong, f"coefficients for which the cost never falls, up to {MAX_TOKENS} tokens")
    if cost.a == cost.b == cost.c == cost.d == 0:
        reading.add(COST, "tokens cost nothing", "at least one of a, b, c and d above 0")


def _levels_go_down(reading: Reading) -> None:
    levels = reading.get((*FAIRNESS, "levels"))
    if levels is UNSET:
        return
    if levels[:1] != ("tenant",) or list(levels) != [level for level in LEVELS if level in levels]:
        wrong = f"[{', '.join(levels)}] does not go down from the tenant"
        allowed = "[tenant], [tenant, project], [tenant, key] or [tenant, project, key]"
        reading.add((*FAIRNESS, "levels"), wrong, f"allowed: {allowed}")


def _predictor_is_one(reading: Reading) -> None:
    path: Path = (*FAIRNESS, "predictor")
    predictor = reading.get(path)
    if isinstance(predictor, LengthPredictor):
        given = (predictor.mean_last, predictor.ema, predictor.noisy_oracle)
        if sum(one is not None for one in given) != 1:
            wrong = "the predictor is not one of three"
            reading.add(path, wrong, "{mean_last: COUNT}, {ema: WEIGHT} or {noisy_oracle: SHARE}")


def _predictor_is_there(reading: Reading, fairness: Fairness) -> None:
    if fairness.reserve == "predicted" and fairness.predictor == "none":
        wrong = "reserve: predicted has nothing to go by"
        reading.add((*FAIRNESS, "reserve"), wrong, "add a predictor, such as {mean_last: 5}, or reserve: declared")


def _quantum_has_an_effect(reading: Reading, fairness: Fairness) -> None:
    path: Path = (*FAIRNESS, "quantum_tokens")
    if reading.names(path) and fairness.kind != "drr":
        reading.add(path, f"kind: {fairness.kind} has no turns", "remove it, or say kind: drr")


def _portion_has_a_rhythm(reading: Reading, fairness: Fairness) -> None:
    path: Path = (*FAIRNESS, "admit_prompt_tokens")
    if fairness.admit_prompt_tokens is not None and fairness.admit_every_steps is None:
        reading.add(path, "without admit_every_steps there are no portions", "remove it, or add admit_every_steps")
