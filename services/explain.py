"""`fairlead explain REQUEST_ID`: where a request's time went, token by token, in the terminal.

Asks a gateway as an operator does; owns the printed form.
"""

import argparse
import json
import sys
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from services import policy_documents
from services.operator_http import add_gateway, fetch
from services.settings import Deployment

BAR_COLUMNS = 40
SLOWEST = 12
MS = 1000.0
PARTS_IN_WORDS = {
    "tokenize": "its text became tokens",
    "submit": "on its way to and through admission",
    "limits": "waiting for the limits' store",
    "fairness": "waiting for its tenant's turn",
    "window": "its tenant's turn, but no room in flight",
    "queue": "released, waiting for its first step",
    "prefill": "its prompt was computed",
    "wait": "ready, waiting to be planned",
    "launch": "planned, on its way to the device",
    "compute": "computed",
    "return": "on its way back",
    "hop": "on its way to the gateway",
    "write": "at the gateway, until the socket had it",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("request", metavar="REQUEST_ID", help="the answer's id (x-request-id), its trace id, or `last`")
    parser.add_argument("--all", action="store_true", help="every token, not the slowest alone")
    parser.add_argument("--json", action="store_true", help="as JSON, with every stamp")
    add_gateway(parser)


def run(args: argparse.Namespace) -> int:
    """Print it and 0; 2 where there is nothing to print."""
    return policy_documents.run(args, _explain)


def _explain(deployment: Deployment, args: argparse.Namespace) -> int:
    name = args.request
    if name == "last":
        told = fetch(deployment, args, "/v1/fairlead/requests")
        recent = told["requests"]
        for gateway, why in told["silent"].items():
            print(f"fairlead explain: {gateway} {why}, and may have served a later one", file=sys.stderr)
        if not recent:
            print("fairlead explain: no request has ended yet; make one and ask again", file=sys.stderr)
            return policy_documents.BAD_INPUT
        name = recent[0]["id"]
    story = fetch(deployment, args, f"/v1/fairlead/requests/{name}")
    if args.json:
        print(json.dumps(story, indent=2))
        return 0
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    for line in in_words(story):
        console.print(line, soft_wrap=True)
    if story["first"]:
        console.print(_first(story))
    for index, choice in enumerate(story["choices"]):
        if choice["token_parts_s"]:
            console.print(f"\nChoice {index}: time between tokens, by part", soft_wrap=True)
            console.print(_totals(choice))
            console.print(_tokens(choice, everything=args.all))
    return 0


def in_words(story: dict[str, Any]) -> list[str]:
    """What happened to a request, a sentence a line."""
    kind = f"{story['operation']} of {story['tenant']}"
    under = f", class {story['class']}, policy {story['policy']}@{story['revision']}" if story["class"] else ""
    made = f"{story['prompt_tokens']} prompt tokens ({story['prefix_hit_tokens']} cached)"
    ended = story["outcome"] + (f": {story['code']}" if story["code"] else "")
    lines = [
        escape(f"{story['id']}: {kind}{under}; by {story['gateway']}; trace {story['trace_id']}"),
        f"{made}, {story['output_tokens']} of at most {story['max_output_tokens']} output tokens; {ended}.",
    ]
    if story["ttft_s"] is not None:
        gap = "" if story["longest_gap_s"] is None else f"; longest gap between tokens {_ms(story['longest_gap_s'])}"
        lines.append(f"First token after {_ms(story['ttft_s'])}, all after {_ms(story['total_s'])}{gap}.")
    elif story["output_tokens"]:
        lines.append(
            f"Not streamed: the whole answer after {_ms(story['total_s'])}; its class promises nothing of that."
        )
    promises = {name: (ttft_s, tbt_s) for name, ttft_s, tbt_s in story["promises"]}
    for slo, part in story["missed"].items():
        ttft_s, tbt_s = promises.get(story["class"], (0.0, 0.0))
        promised, seen = (ttft_s, story["ttft_s"]) if slo == "ttft" else (tbt_s, story["longest_gap_s"])
        what = "first token" if slo == "ttft" else "gap between tokens"
        lines.append(f"[red]Promise broken[/]: {what} within {_ms(promised)}, was {_ms(seen)}; to blame: {part}.")
    if not story["missed"] and story["ttft_s"] is not None:
        lines.append("[green]Every promise was kept.[/]")
    return lines


def _first(story: dict[str, Any]) -> Table:
    return _bars(list(story["first"].items()), "To the first token")


def _totals(choice: dict[str, Any]) -> Table:
    sums = [sum(column) for column in zip(*choice["token_parts_s"], strict=True)]
    return _bars(list(zip(choice["parts"], sums, strict=True)), "")


def _bars(parts: list[tuple[str, float]], title: str) -> Table:
    table = Table(box=None, show_header=False, title=title or None, title_justify="left", title_style="")
    longest = max((spent_s for _, spent_s in parts), default=0.0) or 1.0
    for part, spent_s in parts:
        bar = "█" * round(BAR_COLUMNS * spent_s / longest)
        table.add_row(part, _ms(spent_s), bar, f"[dim]{PARTS_IN_WORDS[part]}[/]")
    table.columns[1].justify = "right"
    return table


def _tokens(choice: dict[str, Any], *, everything: bool) -> Table:
    rows = list(enumerate(choice["token_parts_s"], start=1))
    shown = rows if everything else sorted(sorted(rows, key=lambda row: -sum(row[1]))[:SLOWEST])
    title = "Every token" if everything else f"The {len(shown)} slowest of {len(rows)} tokens"
    table = Table("TOKEN", "STEP", "TOOK", *(part.upper() for part in choice["parts"]), "WAITED FOR", box=None)
    table.title, table.title_justify, table.title_style = title, "left", ""
    for index, parts in shown:
        cause = choice["causes"][index] if parts[0] > 0 else ""
        step = str(choice["steps"][index])
        table.add_row(str(index), step, _ms(sum(parts)), *(_ms(part) for part in parts), cause)
    for column in table.columns[:-1]:
        column.justify = "right"
    return table


def _ms(spent_s: float) -> str:
    return f"{spent_s * MS:.1f} ms" if spent_s < 1 else f"{spent_s:.2f} s"
