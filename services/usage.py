"""`fairlead usage`: what each tenant has used, by day.

Owns the printed form. Reads what the embedded store has kept, whether the services work or not; a shared store is asked
through admission, which must work then.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from services.asking import ask
from services.policy_documents import CommandError
from services.settings import EMBEDDED_STORE, Deployment, SettingsError, deployment_of
from services.usage_rows import FILE, KEEP_DAYS, UsageError, as_document, read_usage

BAD_INPUT = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `fairlead usage`."""
    parser.add_argument("--tenant", default="", help="this one alone")
    parser.add_argument("--days", type=_days, default=1, help="how many, today included (UTC; default: today)")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    parser.add_argument("--data-dir", metavar="DIR", help="the deployment's data folder")


def run(args: argparse.Namespace) -> int:
    """A table, and 0; 2 where usage cannot be read."""
    try:
        document = _document(deployment_of(args.data_dir), args.tenant, args.days)
    except (SettingsError, UsageError, CommandError) as error:
        print(f"fairlead usage: {error}", file=sys.stderr)
        return BAD_INPUT
    if args.json:
        print(json.dumps(document, indent=2))
    elif not document["usage"]:
        print(f"no usage in the last {args.days} days" if args.days > 1 else "no usage today")
    else:
        Console().print(table(document["usage"]))
    return 0


def table(rows: list[dict[str, Any]]) -> Table:
    """Rows of a usage document as they are printed."""
    shown = Table(box=None, pad_edge=False)
    for name in ("day", "tenant", "requests", "prompt", "cached", "output", "refused"):
        shown.add_column(name, justify="left" if name in ("day", "tenant", "refused") else "right")
    for row in rows:
        refused = ", ".join(f"{count} {code}" for code, count in row["refusals"].items())
        counts = (row[name] for name in ("requests", "prompt_tokens", "cached_tokens", "output_tokens"))
        shown.add_row(row["day"], row["tenant"], *(f"{count:,}" for count in counts), refused)
    return shown


def _document(deployment: Deployment, tenant: str, num_days: int) -> Any:
    if deployment.store != EMBEDDED_STORE:
        return ask(deployment, "usage", tenant, num_days)
    return as_document(read_usage(Path(deployment.data) / FILE, tenant, num_days))


def _days(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= KEEP_DAYS:
        raise argparse.ArgumentTypeError(f"{text}: a number of days from 1 to {KEEP_DAYS}, as long as usage is kept")
    return int(text)
