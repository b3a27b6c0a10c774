"""`fairlead top`: the figures of the console in a terminal, each second, until Ctrl-C.

Asks a gateway as an operator does; owns the printed form. The figures are those of `services/gateway/live.py`.
"""

import argparse
import sys
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from services import policy_documents
from services.operator_http import add_gateway, events
from services.settings import Deployment

NOW = "now"
MISSES = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("--once", action="store_true", help="print one look and end")
    add_gateway(parser)


def run(args: argparse.Namespace) -> int:
    """Show it; 0 when told to end, 2 where there is nothing to show."""
    return policy_documents.run(args, _top)


def _top(deployment: Deployment, args: argparse.Namespace) -> int:
    looks = (document for kind, document in events(deployment, args, "/v1/fairlead/live") if kind == NOW)
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    if args.once:
        console.print(screen(next(looks)))
        return 0
    try:
        with Live(console=console, screen=console.is_terminal, auto_refresh=False) as live:
            for document in looks:
                live.update(screen(document), refresh=True)
    except KeyboardInterrupt:
        return 0
    print("fairlead top: the gateway has ended", file=sys.stderr)
    return policy_documents.BAD_INPUT


def screen(document: dict[str, Any]) -> Group:
    """One look at everything."""
    point = document["point"]
    return Group(
        _head(document),
        Text(),
        _classes(point["classes"], document["promises"]),
        Text(),
        _work(point),
        Text(),
        _tenants(point["tenants"]),
        Text(),
        _misses(document["misses"]),
    )


def _head(document: dict[str, Any]) -> Text:
    policy = document["policy"]
    label = "no policy" if policy is None else f"{policy['name']}@{policy['revision']}"
    missing = "; ".join(document["missing"])
    dropped = sum(document["telemetry"]["dropped"].values())
    text = Text.assemble(
        ("fairlead ", "bold"),
        f"{document['model']}, policy {label}, {_count(document['num_executors'], 'executor')}",
    )
    if (num_running := document["num_running"]) is not None:
        text.append(f", {_count(num_running, 'request')} running")
    for gateway, why in document["silent"].items():
        text.append(f"  {gateway} {why}: what it serves is missing here", "bold yellow")
    if trouble := document["telemetry"]["trouble"]:
        text.append(f"  nothing of requests is known: {trouble}", "bold yellow")
    if missing:
        text.append(f"  NOT READY: {missing}", "bold red")
    if dropped:
        text.append(f"  {dropped} telemetry records dropped", "yellow")
    return text


def _classes(classes: dict[str, dict[str, Any]], promises: list[list[Any]]) -> Table:
    table = Table("CLASS", "REQ/S", "TOK/S", "TTFT P50", "P99", "KEPT", "TBT P50", "P99", "KEPT", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    order = [name for name, _, _ in promises]
    known = [*order, *(name for name in classes if name not in order)]
    for name in known:
        seen = classes.get(name)
        if seen is None:
            table.add_row(escape(name), *["-"] * 8)
            continue
        latencies = [
            cell
            for slo in ("ttft", "tbt")
            for cell in (_ms(seen[f"{slo}_p50_s"]), _ms(seen[f"{slo}_p99_s"]), _share(seen[f"{slo}_attained"]))
        ]
        table.add_row(escape(name), f"{seen['requests_per_s']:.1f}", f"{seen['tokens_per_s']:.0f}", *latencies)
    return table


def _work(point: dict[str, Any]) -> Table:
    table = Table(box=None, show_header=False)
    if (kv := point.get("kv")) is not None:
        table.add_row("KV blocks", f"{kv['used']:,} of {kv['blocks']:,} ({kv['used'] / max(1, kv['blocks']):.0%})")
    if (sequences := point.get("sequences")) is not None:
        table.add_row("Sequences", ", ".join(f"{count} {state}" for state, count in sequences.items()))
    if (steps := point.get("steps")) is not None:
        made = f"{steps['prefill_tokens_per_s']:.0f} prefill and {steps['decode_tokens_per_s']:.0f} decode tokens/s"
        table.add_row("Steps", f"{steps['per_s']:.1f}/s, {_ms(steps['mean_s'])} each, {made}")
    if queued := point.get("queued"):
        table.add_row("Queued", ", ".join(f"{count} {escape(name)}" for name, count in queued.items()))
    return table


def _tenants(tenants: dict[str, float]) -> Table:
    table = Table("TENANT", "TOKENS/S", box=None)
    table.columns[1].justify = "right"
    for name, rate in tenants.items():
        table.add_row(escape(name), f"{rate:.0f}")
    return table


def _misses(misses: list[dict[str, Any]]) -> Table:
    table = Table("RECENT SLO MISSES", "TENANT", "CLASS", "MISSED", "TO BLAME", box=None)
    for miss in misses[:MISSES]:
        kinds, parts = ", ".join(miss["missed"]), ", ".join(miss["missed"].values())
        table.add_row(escape(miss["id"]), escape(miss["tenant"]), escape(miss["class"]), kinds, parts)
    return table


def _ms(spent_s: float | None) -> str:
    if spent_s is None:
        return "-"
    return f"{spent_s * 1000:.1f} ms" if spent_s < 1 else f"{spent_s:.2f} s"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
