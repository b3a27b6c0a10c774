"""The last minute, from records to figures."""

import msgspec
import pytest

from services.telemetry import names
from services.telemetry.keeper.answers import Now, own, together
from services.telemetry.keeper.keeper import Keeper
from services.telemetry.keeper.live import NO_CLASS, OTHER
from services.telemetry.keeper.settings import KeeperSettings
from services.telemetry.records import Asked, Ended, PolicyInForce, Step, Written
from tests.services.telemetry.records import began, let, step

MS = 10**6
SETTINGS = KeeperSettings("gateway", "1", "scheduler")


class Told:
    """A keeper at a time that the test sets."""

    def __init__(self, settings: KeeperSettings = SETTINGS) -> None:
        self.unix_s = 1000.0
        self.keeper = Keeper(lambda: self.unix_s, settings)
        self.keeper.take(PolicyInForce(1, "simple", [("paid", 0.5, 0.1)]))

    def serve(self, request: int, tenant: str, written_ms: list[int]) -> None:
        """A request received at 0 whose tokens are with its reader at these times; it has ended."""
        self.keeper.take(msgspec.structs.replace(began(request), tenant=tenant, received_ns=0, tokenized_ns=1))
        self.keeper.take(let(request))
        for number, at in enumerate(written_ms):
            self.keeper.take(written(request, number, at))
        self.keeper.take(Ended(request, "finished", "", len(written_ms), written_ms[-1] * MS if written_ms else 90))
        self.keeper.batch()

    def figures(self, later_s: float = 1.0) -> dict:
        self.unix_s += later_s
        return self.ask(Asked(0, "live"))["figures"]

    def ask(self, asked: Asked):
        return msgspec.json.decode(together(asked, self.own(asked)))

    def own(self, asked: Asked) -> bytes:
        return own(self.keeper, asked, Now(2000 * MS, self.unix_s))


def written(request: int, number: int, at_ms: int) -> Step:
    return step(number, [request], [at_ms * MS])


@pytest.fixture
def told() -> Told:
    return Told()


def test_percentiles_of_first_tokens_and_gaps_are_within_two_percent(told: Told) -> None:
    for request in range(100):
        told.serve(request, "acme", [request + 1, request + 21])
    figures = told.figures()["classes"]["paid"]
    assert figures["ttft_p50_s"] == pytest.approx(0.050, rel=0.02)
    assert figures["ttft_p99_s"] == pytest.approx(0.099, rel=0.02)
    assert figures["tbt_p50_s"] == figures["tbt_p99_s"] == pytest.approx(0.020, rel=0.02)


def test_rates_are_of_the_last_five_seconds_and_end(told: Told) -> None:
    told.serve(1, "acme", [10, 20, 30])
    figures = told.figures()
    assert figures["classes"]["paid"]["tokens_per_s"] == 3 / 5
    assert figures["classes"]["paid"]["requests_per_s"] == 1 / 5
    assert figures["tenants"] == {"acme": (3 + 5) / 5}
    later = told.figures(5)
    assert later["classes"]["paid"]["tokens_per_s"] == 0
    assert later["classes"]["paid"]["ttft_p50_s"] is not None
    assert later["tenants"] == {}
    assert told.figures(61)["classes"] == {}


def test_promises_are_kept_by_the_share_of_requests_that_could_be_looked_at(told: Told) -> None:
    for request, written_ms in enumerate([[10], [600], [10, 300], [10, 20]]):
        told.serve(request, "acme", written_ms)
    figures = told.figures()["classes"]["paid"]
    assert figures["ttft_attained"] == 0.75
    assert figures["tbt_attained"] == 0.5


def test_the_tenants_past_the_tenth_are_one(told: Told) -> None:
    for number in range(12):
        told.serve(number, f"tenant-{number:02}", [1] * (12 - number))
    tenants = told.figures()["tenants"]
    assert list(tenants) == [f"tenant-{number:02}" for number in range(10)] + [OTHER]
    assert tenants[OTHER] == pytest.approx((2 + 1 + 2 * 5) / 5)


def test_what_was_never_released_has_no_class(told: Told) -> None:
    told.keeper.take(began(1))
    told.keeper.take(Ended(1, "refused", "queue_full", 0, 90))
    told.keeper.batch()
    figures = told.figures()["classes"]
    assert figures[NO_CLASS]["requests_per_s"] == 1 / 5
    assert figures[NO_CLASS]["ttft_p50_s"] is None


def test_a_request_of_two_choices_has_one_first_token(told: Told) -> None:
    told.keeper.take(msgspec.structs.replace(began(1, num_choices=2), received_ns=0))
    told.keeper.take(let(1))
    told.keeper.take(step(1, [1], [10 * MS]))
    told.keeper.take(step(2, [2], [400 * MS]))
    told.keeper.batch()
    figures = told.figures()
    assert figures["classes"]["paid"]["ttft_p99_s"] == pytest.approx(0.010, rel=0.02)
    assert figures["classes"]["paid"]["tokens_per_s"] == 2 / 5


def test_what_runs_is_listed_until_it_ends(told: Told) -> None:
    told.keeper.take(began(1))
    told.keeper.take(let(1))
    told.keeper.take(written(1, 1, 10))
    told.keeper.batch()
    live = told.ask(Asked(0, "live"))
    assert live["num_running"] == 1
    (one,) = live["running"]
    assert (one["id"], one["tenant"], one["class"], one["output_tokens"]) == ("answer-1", "acme", "paid", 1)
    assert one["age_s"] == pytest.approx(2)
    told.keeper.take(Ended(1, "finished", "", 1, 20 * MS))
    ended = told.ask(Asked(0, "live"))
    assert (ended["num_running"], ended["running"]) == (0, []), "before the batch that looks at it, too"
    told.keeper.batch()
    assert told.ask(Asked(0, "live"))["num_running"] == 0


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (Asked(0, "recent"), ["answer-3", "answer-2", "answer-1"]),
        (Asked(0, "recent", tenant="globex"), ["answer-2"]),
        (Asked(0, "recent", missed=True), ["answer-3"]),
        (Asked(0, "recent", slo_class="free"), []),
        (Asked(0, "recent", tenant="globex", missed=True), []),
    ],
)
def test_recent_requests_are_those_asked_for_the_newest_first(told: Told, asked: Asked, expected: list[str]) -> None:
    for request, (tenant, written_ms) in enumerate([("acme", [10]), ("globex", [10]), ("acme", [600])], start=1):
        told.serve(request, tenant, written_ms)
    assert [line["id"] for line in told.ask(asked)["requests"]] == expected


def test_a_story_is_told_to_its_tenant_alone(told: Told) -> None:
    told.serve(1, "acme", [10])
    told.unix_s += 1
    story = told.ask(Asked(0, "request", "answer-1", tenant="acme"))["story"]
    assert story["id"] == "answer-1"
    assert story["ended_unix_s"] == pytest.approx(1001 - 1.99)
    assert told.ask(Asked(0, "request", "answer-1", tenant="globex"))["story"] is None
    assert told.ask(Asked(0, "request", "answer-1"))["story"]["tenant"] == "acme"


def test_a_client_that_takes_the_trace_of_another_tenant_hides_no_story(told: Told) -> None:
    told.serve(1, "acme", [10])
    told.serve(2, "globex", [10])  # the same trace: clients choose it
    trace = (b"t" * 16).hex()
    for tenant, answer in (("acme", "answer-1"), ("globex", "answer-2")):
        assert told.ask(Asked(0, "request", trace, tenant=tenant))["story"]["id"] == answer


def test_a_request_is_held_to_what_was_promised_when_it_was_released(told: Told) -> None:
    told.serve(1, "acme", [600])
    told.keeper.take(PolicyInForce(2, "simple", [("paid", 0.9, 0.1)]))
    (line,) = told.ask(Asked(0, "recent", missed=True))["requests"]
    assert (line["promised"], list(line["missed"])) == ({"ttft": 0.5, "tbt": 0.1}, ["ttft"])


def test_a_clock_that_was_set_back_loses_nothing(told: Told) -> None:
    told.serve(1, "acme", [10])
    told.unix_s -= 30
    told.serve(2, "acme", [10])
    told.unix_s += 30
    assert told.figures()["classes"]["paid"]["requests_per_s"] == 2 / 5


@pytest.mark.parametrize("num_tokens", [0, 1, 80])
def test_no_flood_of_requests_is_remembered_without_end_not_even_of_those_without_tokens(num_tokens: int) -> None:
    told = Told(KeeperSettings("gateway", "1", "scheduler", recent_tokens=1000, recent_steps=10))
    for request in range(200):
        told.serve(request, "acme", list(range(1, num_tokens + 1)))
    assert len(told.keeper.recent) == 1000 // (num_tokens + 20)
    assert told.ask(Asked(0, "recent"))["requests"][0]["id"] == "answer-199"


def test_a_request_too_large_to_be_remembered_beside_others_is_remembered_alone() -> None:
    told = Told(KeeperSettings("gateway", "1", "scheduler", recent_tokens=10))
    for request in (1, 2):
        told.serve(request, "acme", [1, 2, 3])
    assert list(told.keeper.recent) == ["answer-2"]


def test_an_answer_that_is_not_streamed_breaks_and_keeps_no_promise_of_tokens(told: Told) -> None:
    told.keeper.take(msgspec.structs.replace(began(1), streamed=False, received_ns=0))
    told.keeper.take(let(1))
    for number in (1, 2, 3):
        told.keeper.take(written(1, number, 0))
    told.keeper.take(Written([1], 900 * MS))
    told.keeper.take(Ended(1, "finished", "", 3, 901 * MS))
    told.keeper.batch()
    figures = told.figures()
    assert {name: figure for name, figure in figures["classes"]["paid"].items() if figure is not None} == {
        "requests_per_s": 1 / 5,
        "tokens_per_s": 3 / 5,
    }
    assert figures["tenants"] == {"acme": (3 + 5) / 5}
    (line,) = told.ask(Asked(0, "recent"))["requests"]
    assert (line["streamed"], line["ttft_s"], line["missed"], line["output_tokens"]) == (False, None, {}, 3)
    counted = {family.name for family in told.keeper.registry.families() if family.points}
    assert names.REQUEST_DURATION.name in counted
    assert not counted & {metric.name for metric in (names.TIME_TO_FIRST_TOKEN, names.TOKEN_GAP, names.SLO_KEPT)}
