"""Both cores joined in virtual time."""

import re
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from policies.admission.core import AdmissionCore
from policies.commands import Abandon, Command, Settle, StartStep
from policies.event_log import encode_record, read_records, verify
from policies.events import Arrived, ExecutorJoined, StepLimits, TokensProduced
from policies.scheduling.core import SchedulerCore
from policies.simulation.driver import Simulation
from policies.simulation.executor_model import Device, FloorLinear
from policies.simulation.outcome import Outcome
from policies.simulation.report import report
from policies.simulation.report_table import table
from policies.simulation.workload import TraceRequest, synthetic

POLICIES = Path(__file__).resolve().parents[3] / "policies"
STEADY = FloorLinear(floor_s=0.01, fixed_s=0.0, token_s=0.0, kv_token_s=0.0)
DEVICE = Device("ten milliseconds a step", 200, 16, 1024, STEADY)


def policy(name: str) -> bytes:
    return (POLICIES / f"{name}.yaml").read_bytes()


def fair(name: str) -> bytes:
    """A shipped policy of a paper, with the fair queue that the papers do without."""
    return policy(name).replace(b"kind: fcfs,", b"kind: vtc,")


def small(seed: int = 1) -> list[TraceRequest]:
    return synthetic("chat", qps=4.0, duration_s=8.0, seed=seed, max_sequence_tokens=400)


def logs(name: str, **options: Any) -> tuple[dict[str, bytes], Outcome]:
    written: dict[str, list[bytes]] = {"admission": [], "scheduler": []}

    def observe(core: str, now: float, event: Any, commands: list[Command]) -> None:
        written[core].append(encode_record(now, event, commands))

    outcome = Simulation(policy(name), small(), DEVICE, observer=observe, check=True, **options).run()
    return {core: b"".join(records) for core, records in written.items()}, outcome


def test_one_request_takes_one_step_for_its_prompt_and_one_for_every_further_token() -> None:
    outcome = Simulation(policy("fcfs"), [TraceRequest(1.0, "a", "free", 100, 5)], DEVICE, steps_in_flight=1).run()
    (served,) = outcome.served
    assert (served.first_scheduled_at_s, served.num_starts) == (1.0, 1)
    assert served.first_token_at_s == pytest.approx(1.01)
    assert served.prefill_done_at_s == served.first_token_at_s
    assert served.finished_at_s == pytest.approx(1.05)
    assert outcome.gaps_s["free"].tolist() == pytest.approx([0.01] * 4)
    assert outcome.num_steps == 5
    assert outcome.simulated_s == served.finished_at_s


def test_with_next_decode_the_prompts_last_step_makes_no_token() -> None:
    request = [TraceRequest(1.0, "a", "free", 100, 5)]
    outcome = Simulation(policy("fcfs"), request, DEVICE, steps_in_flight=1, first_token="next_decode").run()
    (served,) = outcome.served
    assert served.prefill_done_at_s == pytest.approx(1.01)
    assert served.first_token_at_s == pytest.approx(1.02)
    assert served.finished_at_s == pytest.approx(1.06)


def test_prompts_of_a_tenant_that_begin_alike_are_computed_once_if_the_policy_says_so() -> None:
    options: dict[str, Any] = {"qps": 2.0, "duration_s": 20.0, "seed": 1, "max_sequence_tokens": 1024}
    requests = synthetic("shared_prefixes", **options)
    found = {}
    for share in ("tenant", "all", "none"):
        document = policy("sarathi").replace(b"kv: {", b"kv: {share: %s, " % share.encode())
        simulation = Simulation(document, requests, DEVICE, check=True)
        outcome = simulation.run()
        assert all(served.output_tokens == served.asked.output_tokens for served in outcome.served)
        found[share] = simulation.scheduler.snapshot().num_prefix_hit_tokens
        assert sum(served.prefix_hit_tokens for served in outcome.served) == found[share]
    # All but the first request of each of the two tenants find its beginning; the keys of the two differ.
    shared = {"acme": 384, "globex": 300}
    expected = sum(shared[request.tenant] // 16 * 16 for request in requests)
    assert expected - 2 * 384 < found["tenant"] <= expected
    assert found["all"] == found["tenant"]
    assert found["none"] == 0


def test_with_two_steps_in_flight_a_device_is_never_idle_and_runs_them_in_order() -> None:
    request = [TraceRequest(0.0, "a", "free", 100, 50)]
    outcome = Simulation(policy("fcfs"), request, DEVICE, steps_in_flight=2).run()
    assert outcome.served[0].finished_at_s == pytest.approx(0.5)
    assert max(outcome.gaps_s["free"]) == pytest.approx(0.01)


@pytest.mark.parametrize("name", ["fcfs", "sarathi", "vllm", "slai"])
@pytest.mark.parametrize("steps_in_flight", [1, 2])
def test_every_request_ends_with_exactly_its_tokens(name: str, steps_in_flight: int) -> None:
    _, outcome = logs(name, steps_in_flight=steps_in_flight)
    assert [served.output_tokens for served in outcome.served] == [asked.output_tokens for asked in small()]
    assert all(served.finished_at_s is not None for served in outcome.served)
    assert outcome.max_gap_ratio <= 1.0


@pytest.mark.parametrize("first_token", ["last_chunk", "next_decode"])
@pytest.mark.parametrize("steps_in_flight", [1, 2])
def test_a_request_ends_by_itself_before_what_it_asked_for_at_most(first_token: Any, steps_in_flight: int) -> None:
    requests = [request._replace(max_output_tokens=100) for request in small()]
    crowded = re.sub(rb"(?m)^fairness:.*$", b"fairness: {window_tokens: 5000}", policy("vllm"))
    tight = DEVICE._replace(num_blocks=40)
    simulation = Simulation(
        crowded, requests, tight, first_token=first_token, steps_in_flight=steps_in_flight, check=True
    )
    outcome = simulation.run()
    assert outcome.preemptions > 0
    assert [served.output_tokens for served in outcome.served] == [asked.output_tokens for asked in small()]
    assert all(served.finished_at_s is not None for served in outcome.served)


@pytest.mark.parametrize("first_token", ["last_chunk", "next_decode"])
@pytest.mark.parametrize("steps_in_flight", [1, 2])
def test_tokens_that_are_made_again_after_a_restart_count_once(first_token: Any, steps_in_flight: int) -> None:
    requests = [request._replace(max_output_tokens=100) for request in small()]
    restarting = policy("vllm").replace(b"victim: [newest, self]", b"victim: [newest, self], resume: restart")
    options: dict[str, Any] = {"first_token": first_token, "steps_in_flight": steps_in_flight, "check": True}
    outcome = Simulation(restarting, requests, DEVICE._replace(num_blocks=40), **options).run()
    kept = Simulation(policy("vllm"), requests, DEVICE._replace(num_blocks=40), **options).run()
    assert outcome.preemptions > 0
    assert outcome.recomputed_tokens > 0
    assert outcome.num_step_tokens > kept.num_step_tokens - kept.recomputed_tokens
    assert [served.output_tokens for served in outcome.served] == [asked.output_tokens for asked in small()]
    assert all(served.finished_at_s is not None for served in outcome.served)


def test_a_request_gets_no_more_than_it_asked_for() -> None:
    requests = [TraceRequest(0.0, "a", "free", 100, 50, max_output_tokens=20)]
    outcome = Simulation(policy("vllm"), requests, DEVICE).run()
    assert outcome.served[0].output_tokens == 20


@pytest.mark.parametrize("steps_in_flight", [1, 2])
def test_two_runs_of_the_same_workload_decide_the_same_bytes(steps_in_flight: int) -> None:
    assert logs("slai", steps_in_flight=steps_in_flight)[0] == logs("slai", steps_in_flight=steps_in_flight)[0]


@pytest.mark.parametrize("name", sorted({path.stem for path in POLICIES.glob("*.yaml")} - {"tenants", "hindsight"}))
def test_fresh_cores_answer_a_simulations_log_identically(name: str) -> None:
    written, _ = logs(name)
    assert verify(AdmissionCore(), read_records(written["admission"])) is None
    assert verify(SchedulerCore(), read_records(written["scheduler"])) is None


def test_several_executors_share_the_work() -> None:
    one = Simulation(policy("slai"), small(), DEVICE, check=True).run()
    three = Simulation(policy("slai"), small(), DEVICE, num_executors=3, check=True).run()
    assert three.simulated_s <= one.simulated_s
    assert all(served.finished_at_s is not None for served in three.served)


def test_a_run_that_is_cut_leaves_the_rest_unfinished_and_counts_it() -> None:
    outcome = Simulation(policy("slai"), small(), DEVICE, duration_s=2.0).run()
    requests = report(outcome, 0.0)["requests"]
    assert outcome.simulated_s == 2.0
    assert requests["arrived"] == sum(request.arrived_at_s <= 2.0 for request in small())
    assert 0 < requests["unfinished"] == requests["arrived"] - requests["finished"]


def test_what_no_pool_can_hold_is_refused_and_the_rest_is_served() -> None:
    requests = [TraceRequest(0.0, "a", "free", 5000, 5), TraceRequest(0.0, "b", "free", 50, 5)]
    outcome = Simulation(policy("slai"), requests, DEVICE).run()
    assert [served.refusal for served in outcome.served] == ["context_length_exceeded", ""]
    counts = report(outcome, 0.0)["requests"]
    assert [counts[name] for name in ("arrived", "finished", "unfinished", "refused")] == [2, 1, 0, 1]


def test_a_backlog_that_outlives_its_ttl_is_refused_in_virtual_time_too() -> None:
    document = fair("slai") + b"queue: {ttl_s: 0.2}\n"
    requests = [TraceRequest(0.0, "a", "free", 500, 500) for _ in range(10)]
    outcome = Simulation(document, requests, DEVICE, check=True).run()
    assert {served.refusal for served in outcome.served} == {"", "queue_timeout"}


def test_progress_is_told_at_every_arrival() -> None:
    seen: list[tuple[float, int]] = []
    Simulation(policy("slai"), small(), DEVICE, progress=lambda now, arrived: seen.append((now, arrived))).run()
    assert [arrived for _, arrived in seen] == list(range(1, len(small()) + 1))


GOLDEN = """\
policy slai: requests 81 arrived, 81 finished, 0 unfinished, 0 refused, 40.683/s arriving
seconds                        p50       p90       p99      mean
to first token              3.9360    7.4548    8.3596    3.7770
to end of prefill           3.9360    7.4548    8.3596    3.7770
to first step               3.9160    7.4348    8.3396    3.7572
per output token            0.0101    0.0102    0.0102    0.0101
to last token               4.9260    8.4448    9.3496    4.7772
between tokens, all         0.0100    0.0100    0.0100    0.0101
between tokens, paid             -         -         -         -
between tokens, free        0.0100    0.0100    0.0100    0.0101
within limits                 ttft       tbt goodput/s
  paid                           -         -     0.000
  free                       64.2%    100.0%     4.598
tenant                    requests  ttft p50  ttft p99    output
  heavy                         50    5.1613    8.3596      5000
  light                         31    2.2666    5.3960      3100
output tokens per second 716.2, preemptions 0, goodput/s 4.598
1130 steps of 25.4 tokens, tiles of 128 tokens filled to 9.7%
fairness: gap 258 = 0.05 of the bound, Jain 1.000
simulated 11.3 s in 0.0 s
"""


def test_a_small_simulation_reads_as_it_always_did() -> None:
    requests = synthetic("overload", qps=40.0, duration_s=2.0, seed=7, max_sequence_tokens=400)
    outcome = Simulation(fair("slai"), requests, DEVICE).run()
    assert table(report(outcome, 0.0)) + "\n" == GOLDEN


def test_weight_tier_and_allowed_classes_of_a_request_reach_the_policy() -> None:
    tiers = b"""
version: 1
name: tiers
classes: [{name: fast, ttft_s: 1, tbt_s: 1}, {name: slow, ttft_s: 9, tbt_s: 9}]
classify: [{when: {service_tier: flex}, class: slow}, {class: fast}]
fairness: {kind: vtc}
batching: {token_budget: 64, stages: [{decode: {}}, {prefill: {from: waiting, chunked: true}}]}
"""
    plain = TraceRequest(0.0, "a", "free", 64, 2)
    asked = [plain, plain._replace(service_tier="flex"), plain._replace(allowed_classes=("slow",))]
    outcome = Simulation(tiers, asked, DEVICE).run()
    assert [served.slo_class for served in outcome.served] == ["fast", "slow", "slow"]
    # Twice the service at twice the weight is fair.
    both = [plain, plain._replace(tenant="b", weight=2.0), plain._replace(tenant="b", weight=2.0)]
    later = plain._replace(tenant="a", arrived_at_s=5.0, prompt_tokens=1, output_tokens=1)
    even = Simulation(tiers, [*both, later], DEVICE).run().jain
    uneven = Simulation(tiers, [*(each._replace(weight=1.0) for each in both), later], DEVICE).run().jain
    assert uneven < 0.92
    assert even > 0.99


def test_admission_is_told_who_asks_and_what_the_request_will_come_to() -> None:
    arrivals = []

    def observe(_core: str, _now: float, event: Any, _commands: list[Command]) -> None:
        if isinstance(event, Arrived):
            arrivals.append(event)

    request = TraceRequest(0.0, "a", "free", 10, 3, max_output_tokens=9, project="p", key="k")
    Simulation(policy("fcfs"), [request], DEVICE, observer=observe).run()
    (arrived,) = arrivals
    assert (arrived.tenant, arrived.project, arrived.key) == ("a", "p", "k")
    assert (arrived.max_output_tokens, arrived.output_tokens) == (9, 3)


def test_prompts_found_in_the_prefix_cache_are_given_back_as_by_the_services() -> None:
    requests = synthetic("shared_prefixes", qps=5.0, duration_s=20.0, seed=3, max_sequence_tokens=1024)
    cached: dict[int, int] = {}

    def look(core: str, _now: float, _event: Any, commands: list[Command]) -> None:
        if core == "admission":
            cached.update((one.request, one.cached_tokens) for one in commands if isinstance(one, Settle))

    outcome = Simulation(policy("slai"), requests, DEVICE, observer=look).run()
    found = {request: served.prefix_hit_tokens for request, served in enumerate(outcome.served, start=1)}
    assert sum(found.values()) > 0
    assert cached == found


def test_between_steps_a_place_that_becomes_free_is_taken_in_the_next_step() -> None:
    """As live, that step is planned before admission has heard of the end."""
    document = policy("fcfs").replace(b"{kind: fcfs}", b"{kind: fcfs, max_requests: 2}")
    requests = [TraceRequest(at_s, "a", "free", 10, tokens) for at_s, tokens in ((0.0, 9), (0.0, 3), (0.025, 2))]
    first_tokens = []
    for decides in ("at_every_event", "between_steps"):
        run = Simulation(document, requests, DEVICE, steps_in_flight=1, decides=decides, check=True).run()
        first_tokens.append(run.served[2].first_token_at_s)
        assert all(served.finished_at_s is not None for served in run.served)
    assert first_tokens == pytest.approx([0.06, 0.04])


def test_between_steps_what_arrives_while_one_runs_is_heard_at_its_end() -> None:
    heard = []

    def observe(_core: str, now: float, event: Any, _commands: list[Command]) -> None:
        if isinstance(event, Arrived | TokensProduced):
            heard.append((type(event).__name__, round(now, 3)))

    requests = [TraceRequest(0.0, "a", "free", 10, 2), TraceRequest(0.004, "a", "free", 10, 1)]
    options: dict[str, Any] = {"steps_in_flight": 1, "decides": "between_steps", "observer": observe}
    Simulation(policy("fcfs"), requests, DEVICE, **options).run()
    assert heard[:3] == [("Arrived", 0.0), ("TokensProduced", 0.01), ("Arrived", 0.01)]


class OneFallsSilent(Simulation):
    """The second of two executors takes its twentieth step and never answers again."""

    abandoned_at_s = 0.0

    def _tell(self, core: str, event: Any) -> None:
        if isinstance(event, ExecutorJoined):
            event = replace(event, step_limits=StepLimits(at_least_s=5.0, times=20.0, first_s=600.0))
        super()._tell(core, event)

    def _start_step(self, command: StartStep) -> None:
        if command.executor != 1 or command.step < 20:
            super()._start_step(command)

    def _perform(self, core: str, command: Command) -> None:
        if isinstance(command, Abandon):
            self.abandoned_at_s = self.now
        super()._perform(core, command)


def test_an_executor_that_never_answers_costs_its_requests_a_pause_and_nothing_else() -> None:
    requests = small()
    run = OneFallsSilent(policy("fairlead"), requests, DEVICE, num_executors=2, steps_in_flight=1, check=True)
    served = run.run().served
    assert run.abandoned_at_s > 5.0
    assert [each.output_tokens for each in served] == [each.output_tokens for each in requests]
    assert all(each.finished_at_s is not None for each in served)
    assert run.scheduler.snapshot().used_blocks == 0
