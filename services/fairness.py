"""`fairlead fairness`: how service is divided at this moment, and how far apart tenants are of how far they may be.

Owns the printed form; the figures are admission's.
"""

import argparse
import json
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

from services import policy_documents
from services.asking import ask
from services.policy_documents import CommandError
from services.settings import Deployment

OPEN_TOKENS = 2**62
COLUMNS = {
    "tenant": "TENANT",
    "weight": "WEIGHT",
    "counter": "COUNTER",
    "num_waiting": "WAITING",
    "num_in_flight": "IN FLIGHT",
    "prompt_tokens": "PROMPT",
    "cached_tokens": "CACHED",
    "output_tokens": "OUTPUT",
    "num_requests": "ENDED",
    "backlogged_s": "BACKLOGGED S",
    "wait_bound_s": "WAIT BOUND S",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("--tenant", metavar="NAME", default="", help="this one alone")
    parser.add_argument("--json", action="store_true", help="as JSON, with every figure")
    policy_documents.add_data_dir(parser)


def run(args: argparse.Namespace) -> int:
    """Print it and 0; 2 where admission cannot be asked."""
    return policy_documents.run(args, _fairness)


def _fairness(deployment: Deployment, args: argparse.Namespace) -> int:
    try:
        report = ask(deployment, "fairness", args.tenant)
    except CommandError as error:
        print(f"fairlead fairness: {error}", file=sys.stderr)
        return policy_documents.BAD_INPUT
    if args.json:
        print(json.dumps(report, indent=2))
        return 0
    for line in in_words(report):
        print(line)
    table = Table(*COLUMNS.values(), box=None, header_style="")
    for row in report["tenants"]:
        table.add_row(*(_cell(row[name]) for name in COLUMNS))
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    return 0


def in_words(report: dict[str, Any]) -> list[str]:
    """Everything that is not about one tenant."""
    window = report["window"]
    limit = window["limit_tokens"]
    size = "no limit of tokens" if limit >= OPEN_TOKENS else f"{window['reserved_tokens']} of {limit} tokens"
    gap = f"{report['gap']:.0f} of at most {report['bound']:.0f} ({report['gap_ratio']:.2f}"
    pairs = f"{report['pair_difference']:.0f} of at most {report['pair_bound']:.0f}"
    asking = f"{report['num_backlogged']} tenants wait, {report['num_asking']} have something here"
    served = f"{report['served_per_s']:.0f} a second, idle beside work that fitted {report['idle_s']:.0f} s"
    lines = [
        f"Policy {report['policy']} ({report['kind']}), measured for {report['measured_s']:.0f} s.",
        f"Gap of counters: {gap}, never above {report['max_gap_ratio']:.2f}); Jain's index: {report['jain']:.3f}.",
        f"Largest difference in service of two tenants while both waited: {pairs}.",
        f"{asking}; served: {served}.",
        f"In flight: {size} in {window['num_requests']} requests (at most {window['peak_tokens']} so far).",
    ]
    if limit < OPEN_TOKENS:
        seconds = "" if window["bound_s"] is None else f", {window['bound_s']:.1f} s for each other tenant that asks"
        lines.append(
            f"A window of this size bounds the gap at {window['bound']:.0f}: {window['bound_tokens']} tokens{seconds}."
        )
    if window["auto"]:
        kept = (
            f"{limit / window['pool_tokens']:.0%} of what the KV pool holds, at {window['kept']:.1%} of its throughput"
        )
        lines.append(f"window_tokens: auto is {window['auto']}: {kept}.")
    if report["num_lifts"]:
        lines.append(f"Lifts: {report['num_lifts']}, by {report['lifted']:.0f} in all.")
    if report["num_replicas"] > 1:
        known = f"{report['staleness']:.0f} of the bound is for what they know of each other late"
        lines.append(f"{report['num_replicas']} processes of admission share the counters; {known}.")
    return [*lines, "Figures without a unit are in cost units, over the tenant's weight.", ""]


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if isinstance(value, float) else str(value)
