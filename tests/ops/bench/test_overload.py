"""How the benchmarks of overload and of bad clients judge what was seen."""

from ops.bench import bad_crowd, overload
from ops.bench.bad_clients import COUNTS
from ops.bench.open_load import FINISHED, REFUSED, Ending
from ops.bench.overload import AFTER, OVERLOAD, STEADY, Plan, Seen

PLAN = Plan(warm_s=0.0, steady_s=10.0, overload_s=10.0, after_s=20.0)


def finished(phase: int, at_s: float, ttft_s: float, gap_s: float = 0.03, tenant: str = "globex") -> Ending:
    return Ending(phase, tenant, at_s, FINISHED, "", ttft_s, gap_s, at_s + 1.0, retry_after=False)


def refused(at_s: float, *, told: bool = True) -> Ending:
    return Ending(OVERLOAD, "globex", at_s, REFUSED, "would_be_late", None, 0.0, at_s, retry_after=told)


def seen(*, gateway_mib: float) -> list[Seen]:
    """A core is busy from the overload on and half of one before; the gateway grows in it."""
    return [
        Seen(at_s, {"gateway": 100.0 if at_s < 10 else gateway_mib, "keeper": at_s}, at_s / 2 + max(0, at_s - 10) / 2)
        for at_s in range(41)
    ]


def test_goodput_counts_who_finished_and_kept_both_limits_of_the_class() -> None:
    endings = [finished(STEADY, at_s, 0.1) for at_s in range(10)]
    endings += [finished(OVERLOAD, 10.5, 4.9), finished(OVERLOAD, 11.0, 5.1), finished(OVERLOAD, 12.0, 1.0, gap_s=0.6)]
    endings += [finished(OVERLOAD, 13.0, 0.6, tenant="acme"), refused(14.0), refused(15.0, told=False)]
    judged = overload._judged(PLAN, endings, seen(gateway_mib=110.0), len(endings))
    assert (judged.goodput_rps, judged.steady_goodput_rps) == (0.1, 1.0)
    assert (judged.memory, judged.grew) == (1.1, "gateway")
    assert judged.num_asked == judged.num_ended_once == 16
    assert judged.told == 0.5


def test_an_end_that_is_missing_at_either_side_is_told() -> None:
    broken = finished(OVERLOAD, 12.0, 1.0)._replace(outcome="broken")
    endings = [finished(STEADY, 1.0, 0.1), finished(OVERLOAD, 11.0, 1.0), broken]
    assert overload._judged(PLAN, endings, seen(gateway_mib=100.0), 3).num_ended_once == 2
    assert overload._judged(PLAN, endings[:2], seen(gateway_mib=100.0), 3).num_ended_once == 1


def test_normal_is_what_all_but_one_in_twenty_had() -> None:
    assert overload._normal_s([*range(19, 0, -1), 100.0, 200.0]) == 100.0


def test_recovery_begins_with_three_spans_in_a_row_whose_medians_are_normal() -> None:
    waits_s = [2.0, 0.1, 2.0, 0.1, 0.1, 0.1, 2.0]
    after = [finished(AFTER, 20.0 + 2 * number, wait_s) for number, wait_s in enumerate(waits_s)]
    assert overload._recovery_s(0.1, after, 20.0) == 6.0
    assert overload._recovery_s(0.1, after[:4], 20.0) == float("inf")


def test_a_refusal_costs_what_the_served_ones_of_the_overload_do_not() -> None:
    endings = [finished(STEADY, at_s, 0.1) for at_s in range(10)]
    endings += [finished(OVERLOAD, 10.0 + at_s, 0.1) for at_s in range(10)]
    endings += [refused(10.0 + at_s) for at_s in range(10)]
    judged = overload._judged(PLAN, endings, seen(gateway_mib=100.0), len(endings))
    assert (judged.served_ms, judged.refusal_ms) == (500.0, 500.0)


def test_a_thousand_bad_clients_are_a_thousand_and_of_every_kind() -> None:
    assert sum(COUNTS.values()) == 1000
    assert tuple(COUNTS) == bad_crowd.KINDS
