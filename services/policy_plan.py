"""`fairlead policy plan NEW`: what a new policy changes, in words and in what the recorded traffic would have seen.

Owns options and the printed form. Works beside running services and without them, from the data folder alone.
"""

import argparse
import importlib
import json
import re
import sys
from datetime import datetime
from pathlib import Path

from policies.document.diff import changes
from policies.scheduling.shadow import Tally
from policies.simulation.what_if import Line, in_cells
from services import policy_documents
from services.policy_documents import CommandError, Document
from services.policy_prediction import Basis, NoPredictionError, Prediction, predict
from services.policy_shadow import as_json, in_words, shadow
from services.progress import progress_bar
from services.settings import Deployment

UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
NO_PREDICTION = 1
MOST_MINUTES = 24 * 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("name", metavar="NEW", help="a policy document, or the number of an earlier revision")
    parser.add_argument(
        "--window",
        type=_duration,
        default=3600.0,
        metavar="1h",
        help="how much of the recorded traffic, its end (%(default)s)",
    )
    parser.add_argument(
        "--shadow",
        type=_minutes,
        metavar="MINUTES",
        help="instead of a replay, let it plan beside the live policy for so long, without effect",
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page of the prediction")
    parser.add_argument("--json", action="store_true", help="print JSON")
    policy_documents.add_data_dir(parser)


def run(args: argparse.Namespace) -> int:
    """0; 1 when what was recorded does not do for a prediction; 2 when the input is at fault."""
    return policy_documents.run(args, _plan)


def _plan(deployment: Deployment, args: argparse.Namespace) -> int:
    then = policy_documents.from_name(args.name, deployment)
    now = policy_documents.in_force(deployment)
    words = changes(now.policy, then.policy)
    if not args.json:
        print(f"from {now.label} ({now.policy.name}) to {then.label} ({then.policy.name}):")
        print("\n".join(f"  {change}" for change in words or ["nothing changes"]))
    if args.shadow is not None:
        if args.html is not None:
            raise CommandError("--html draws a replay: leave --shadow out")
        tally = shadow(deployment, then, args.shadow)
        print(
            json.dumps({"changes": words, "shadow": as_json(tally)}, indent=2)
            if args.json
            else _shadowed(tally, now, then)
        )
        return 0
    try:
        with progress_bar("replaying") as progress:
            prediction = predict(deployment.data, now, then, args.window, progress)
    except NoPredictionError as error:
        if args.json:
            print(json.dumps({"changes": words, "prediction": None, "reason": str(error)}, indent=2))
        print(f"fairlead policy: no prediction: {error}", file=sys.stderr)
        return NO_PREDICTION
    if args.html is not None:
        _write_page(args.html, prediction, words, now, then)
    if args.json:
        print(json.dumps({"changes": words, "prediction": prediction.as_json()}, indent=2))
    else:
        print(_in_words(prediction, now, then))
    return 0


def _shadowed(tally: Tally, now: Document, then: Document) -> str:
    return f"\n{in_words(tally, now.policy, then.policy)}"


def _write_page(path: Path, prediction: Prediction, words: list[str], now: Document, then: Document) -> None:
    # Only a prediction that is to be drawn pays for the plotting library's import.
    pages = importlib.import_module("policies.simulation.what_if_page")
    title = f"{now.label} ({now.policy.name}) to {then.label} ({then.policy.name})"
    text = pages.what_if_page(title, " ".join(_basis(prediction.basis)), words, prediction.lines, prediction.outcomes)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise CommandError(f"--html {path}: cannot be written: {error.strerror}") from error


def _in_words(prediction: Prediction, now: Document, then: Document) -> str:
    return "\n".join(["", *_basis(prediction.basis), "", *_table(prediction.lines, now, then)])


def _basis(basis: Basis) -> list[str]:
    ended = datetime.fromtimestamp(basis.began_unix_s + basis.duration_s).astimezone()
    span = f"{basis.duration_s:.0f} s" if basis.duration_s < 120 else f"{basis.duration_s / 60:.0f} min"
    what = f"{basis.num_requests} requests of {span} up to {ended:%Y-%m-%d %H:%M:%S}"
    where = f"{basis.num_executors} x {basis.executor}"
    steps = f"step times fitted to {basis.num_steps} steps, typical error {basis.step_error:.1%}"
    lines = [f"Replayed: {what}, on {where}; {steps}."]
    if basis.num_left_out:
        lines.append(f"Left out: {basis.num_left_out} that ended without a token, so that nobody knows their output.")
    if basis.num_older:
        lines.append(f"Left out: {basis.num_older} older ones in the window.")
    if basis.num_of_other_policies:
        lines.append(
            f"{basis.num_of_other_policies} of them arrived under another policy than the one in force, which adds to "
            "the replay's error."
        )
    return lines


def _table(lines: list[Line], now: Document, then: Document) -> list[str]:
    names = ("", "recorded", f"replay {now.policy.name}", f"replay {then.policy.name}", "change", "replay's error", "")
    rows: list[tuple[str, ...]] = [names]
    group = ""
    for line in lines:
        if line.recorded is None and line.now is None and line.then is None:
            continue
        if line.group != group:
            group = line.group
            rows.append((group, *[""] * 6))
        rows.append((f"  {line.metric}", *in_cells(line)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if number in (0, 6) else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    if not 0.0 < minutes <= MOST_MINUTES:
        raise argparse.ArgumentTypeError(f"{text} is not a number of minutes above 0 and at most {MOST_MINUTES:g}")
    return minutes


def _duration(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if found is None or not float(found[1]):
        raise argparse.ArgumentTypeError(f"{text} is no duration; a number above 0 and s, m, h or d, such as 90s or 1h")
    return float(found[1]) * UNITS_S[found[2]]
