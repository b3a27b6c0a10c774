"""How admission goes on after it, or its stream to the scheduler, was away.

Owns what follows from the rows that an earlier process left, and from what the scheduler says that it holds. Does not
know streams or stores, nor which of the two was away.
"""

from typing import TYPE_CHECKING

import msgspec

from policies.admission.fairness import FairQueue
from policies.admission.intake import Taken
from policies.admission.ledger import Charge
from policies.admission.nodes import Branch, Leaf, Node, Queued
from policies.admission.saved import (
    CHARGE,
    CORE,
    NODE,
    PROGRESS,
    TAKEN,
    ChargeRow,
    CoreRow,
    NodeRow,
    Path,
    Progress,
    TakenRow,
)
from policies.commands import CancelReleased, Command
from policies.events import HeldAtScheduler, SchedulerHolds

if TYPE_CHECKING:
    from policies.admission.core import AdmissionCore

_rows = msgspec.msgpack.Decoder(dict[str, bytes])
_core = msgspec.msgpack.Decoder(CoreRow)
_node = msgspec.msgpack.Decoder(NodeRow)
_charge = msgspec.msgpack.Decoder(ChargeRow)
_progress = msgspec.msgpack.Decoder(list[Progress])
_taken = msgspec.msgpack.Decoder(TakenRow)


def state_of(rows: dict[str, bytes]) -> bytes:
    """Rows of `saved.py` as the event `Restored` carries them."""
    return msgspec.msgpack.encode(rows)


class Recovery:
    """Brings a core up to date with what is true elsewhere.

    Attributes:
        unclaimed: what requests have taken of limits that waited when the process before this one ended, or were
            released in its last moments: theirs again if the scheduler has them, else given back.
    """

    def __init__(self, core: "AdmissionCore") -> None:
        self._core = core
        self._unix_minus_core_s = 0.0
        self.unclaimed: dict[int, Taken] = {}
        self.forgot_counters = False
        """What was restored last was too old for its counters to be of use."""

    def started(self, unix_s: float, now: float) -> None:
        """Core time `now` is this on the wall."""
        self._unix_minus_core_s = unix_s - now

    # --- after this process was away ------------------------------------------------------------------------------

    def restore(self, state: bytes, now: float) -> None:
        """Go on from rows. What was in flight is again, until the scheduler says otherwise; it costs what the policy of
        today says. Counters that are older than `fairness.idle_ttl_s` are worth nothing: all begin equal.
        """
        rows = _rows.decode(state)
        core = _core.decode(rows.pop(CORE))
        progress = {each.request: each for each in _progress.decode(rows.pop(PROGRESS))}
        nodes: list[NodeRow] = []
        for name, row in rows.items():
            if name.startswith(NODE):
                nodes.append(_node.decode(row))
            elif name.startswith(CHARGE):
                self._restore_charge(_charge.decode(row), progress)
            elif name.startswith(TAKEN):
                self._restore_taken(_taken.decode(row))
        age_s = now + self._unix_minus_core_s - core.at_unix_s
        self.forgot_counters = age_s > self._core.rules.fairness.idle_ttl_s
        if self.forgot_counters:
            nodes = []
        else:
            self._core.unit_bound.remember(core.bound)
            queue = self._core.queue
            queue.smallest_weight = min(queue.smallest_weight, core.smallest_weight)
        self._restore_counters(core, nodes, now)

    def _restore_charge(self, row: ChargeRow, progress: dict[int, Progress]) -> None:
        queued = self._queued(row, row.max_output_tokens, row.size_tokens)
        charge = self._open(queued, row.predicted_tokens, row.size_tokens, row.slo_class)
        if row.request in progress:
            found = progress[row.request]
            charge.cancelled, charge.attempt = found.is_cancelled, found.attempt
            self.catch_up(charge, found.output_tokens, found.cached_tokens)

    def _restore_taken(self, row: TakenRow) -> None:
        taken = Taken(row.request, row.items, row.expected_tokens, row.most_tokens, row.num_choices)
        self.unclaimed[row.request] = taken
        if row.request in self._core.ledger.in_flight:
            self._claim(row.request)

    def _restore_counters(self, core: CoreRow, nodes: list[NodeRow], now: float) -> None:
        queue = self._core.queue
        depth = len(queue.levels) if core.levels == queue.levels else 1
        known = {row.path: row for row in nodes if len(row.path) <= depth}
        for path in sorted(known, key=len):
            _open_node(queue, path)
        queue.root.shifted = core.shifted if known else 0.0
        every: list[Node] = [*queue.accounts.values()]
        for node in every:
            if isinstance(node, Branch):
                every += node.children.values()
            row = known.get(tuple(each.name for each in reversed(node.path)))
            # What was in flight has been charged anew on the way here: the row has that already.
            node.counter = 0.0 if row is None else row.value - node.above.shifted
            node.credit = node.counter + (0.0 if row is None else row.deficit)
            if row is not None:
                node.weight = row.weight
                if isinstance(node, Branch):
                    node.shifted = row.shifted
                    node.last_left = None if row.last_left is None else node.children.get(row.last_left)
        if known and core.last_left is not None:
            queue.root.last_left = queue.accounts.get(core.last_left)
        for node in every:
            if isinstance(node, Leaf):
                queue.retire(node, now)

    # --- after the scheduler, or the stream to it, was away -------------------------------------------------------

    def agree(self, event: SchedulerHolds, now: float, commands: list[Command]) -> None:
        """This is all that the scheduler has. Charge for what is there and was not charged for here; what is not there
        never got there, or went with the scheduler before this one.
        """
        held, ends = event.requests, self._core.ends
        there = {each.request for each in held}
        in_flight = self._core.ledger.in_flight
        for charge in [charge for charge in in_flight.values() if charge.request not in there]:
            # Whoever got nothing yet loses nothing by coming anew.
            is_begun = charge.output_tokens or charge.attempt
            ends.lose(charge, event.resume_s if is_begun else 0.0, now, commands)
        for each in held:
            charge = in_flight.get(each.request) or self._take_up(each, commands)
            if each.attempt < charge.attempt:
                continue  # the end of what was lost, told once more
            charge.attempt = each.attempt
            ends.stranded.pop(each.request, None)
            self.catch_up(charge, each.output_tokens, each.cached_tokens)
            self._core.intake.reached(each.request, each.output_tokens, commands)
            if charge.cancelled:
                # The cancel was passed on, and may have gone with the stream.
                commands.append(CancelReleased(each.request, "cancelled"))
        self.nobody_came(commands)

    def nobody_came(self, commands: list[Command]) -> None:
        """Whoever waited when the process before this one ended got nothing, and has taken nothing until it is sent
        again.
        """
        for request in list(self.unclaimed):
            self._claim(request)
            self._core.intake.settle(request, commands, num_requests=0)

    def _take_up(self, held: HeldAtScheduler, commands: list[Command]) -> Charge:
        """As if it were released now: what it took was not kept, or is among what nobody has claimed."""
        size_tokens = held.prompt_tokens + held.num_choices * held.max_output_tokens
        queued = self._queued(held, held.max_output_tokens, size_tokens)
        charge = self._open(queued, 0, size_tokens, held.slo_class)
        if held.request in self.unclaimed:
            self._claim(held.request)
        else:
            self._core.intake.take_again(held, self._core.rules, commands)
        return charge

    # --- both -----------------------------------------------------------------------------------------------------

    def _queued(self, of: "ChargeRow | HeldAtScheduler", max_output_tokens: int, size_tokens: int) -> Queued:
        queued = Queued(
            of.request,
            0,
            tenant=of.tenant,
            project=of.project,
            key=of.key,
            prompt_tokens=of.prompt_tokens,
            max_output_tokens=max_output_tokens,
            num_choices=of.num_choices,
            arrived_at_s=0.0,
            weight=of.weight,
            tier="",
            service_tier=None,
            allowed_classes=(),
            expected_tokens=size_tokens - of.prompt_tokens,
            true_tokens=None,
        )
        queued.leaf = self._core.queue.leaf(of.tenant, of.project, of.key)
        return queued

    def _open(self, queued: Queued, predicted_tokens: int, size_tokens: int, slo_class: str) -> Charge:
        core, leaf = self._core, queued.leaf
        leaf.path[-1].weight = queued.weight
        core.queue.smallest_weight = min(core.queue.smallest_weight, queued.weight)
        core.queue.adopt(leaf)
        core.unit_bound.released(queued.prompt_tokens)
        charge = Charge.of(queued, core.rules.cost, predicted_tokens, core.window.take(size_tokens), slo_class)
        core.ledger.open(charge)
        return charge

    def catch_up(self, charge: Charge, output_tokens: int, cached_tokens: int) -> None:
        """A request has so many tokens in all, whatever was heard of them."""
        core = self._core
        refund = -core.ledger.catch_up(charge, output_tokens)
        for _, saved in core.ledger.hits([(charge.request, cached_tokens)]):
            refund += saved
            core.unit_bound.refunds_prompts()
        if refund:
            core.queue.refund(charge.leaf, charge.weight, refund)

    def _claim(self, request: int) -> None:
        charge = self._core.ledger.in_flight.get(request)
        self._core.intake.resume(self.unclaimed.pop(request), 0 if charge is None else charge.output_tokens)


def _open_node(queue: FairQueue, path: Path) -> None:
    branch = queue.root
    for depth, name in enumerate(path, start=1):
        node = branch.children.get(name)
        if node is None:
            node = branch.children[name] = (Leaf if depth == len(queue.levels) else Branch)(name, branch)
        if isinstance(node, Branch):
            branch = node
