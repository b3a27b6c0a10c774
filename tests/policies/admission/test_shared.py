"""What other replicas have charged, and a store that is out of reach: events in, decisions out."""

from policies.admission.window import OPEN_TOKENS, share
from policies.commands import Refuse, Release
from policies.events import CapacityChanged, CountersShared, Invalid, RequestFinished, SchedulerLost, StoreReach
from tests.policies.admission.test_admission_core import Desk, released
from tests.policies.admission.test_intake import TOTAL, Gate, kinds

MISTAKE = Invalid(9, "acme", key="k1")


def counters(desk: Desk) -> dict[str, float]:
    return {name: account.counter for name, account in desk.core.queue.accounts.items()}


def busy(*waiting: tuple[int, str]) -> Desk:
    """Tenants alone are told apart. One request of `first` fills the window, and these wait; a prompt costs 100."""
    desk = Desk(window=150, fairness={"levels": ["tenant"]})
    desk.arrive(1, "first")
    for request, tenant in waiting:
        desk.arrive(request, tenant)
    return desk


def test_what_others_have_charged_decides_who_is_next() -> None:
    desk = busy((2, "a"), (3, "b"))
    desk.tell(CountersShared({"a": 50.0}, {}))
    assert released(desk.tell(RequestFinished(1, 0, "stop"))) == [3]
    other = busy((2, "a"), (3, "b"))
    assert released(other.tell(RequestFinished(1, 0, "stop"))) == [2]


def test_a_charge_that_others_take_back_counts_at_once() -> None:
    desk = busy((2, "a"), (3, "b"))
    desk.tell(CountersShared({"a": 50.0, "b": 60.0}, {}))
    desk.tell(CountersShared({"b": -20.0}, {}))
    assert released(desk.tell(RequestFinished(1, 0, "stop"))) == [3]


def test_a_joining_tenant_is_lifted_to_the_smallest_counter_of_all_replicas() -> None:
    desk = busy((2, "a"))
    desk.tell(CountersShared({"a": 1000.0}, {"": 700.0}))
    desk.arrive(3, "late")
    assert counters(desk) == {"first": 100.0, "a": 1100.0, "late": 700.0}


def test_without_a_backlog_here_the_level_is_that_of_the_others() -> None:
    desk = Desk(window=150)
    desk.tell(CountersShared({}, {"": 700.0}))
    desk.arrive(1, "a")
    assert counters(desk) == {"a": 800.0}
    desk.tell(CountersShared({}, {}))
    desk.arrive(2, "b")
    assert counters(desk) == {"a": 800.0, "b": 800.0}


def test_a_tenant_that_only_others_know_is_remembered_as_long_as_it_is_ahead() -> None:
    desk = busy((2, "a"))
    desk.tell(CountersShared({"a": 0.0, "ahead": 500.0, "behind": 90.0}, {}))
    assert counters(desk) == {"first": 100.0, "a": 100.0, "ahead": 500.0}
    desk.arrive(3, "ahead")
    desk.arrive(4, "behind")
    assert counters(desk) == {"first": 100.0, "a": 100.0, "ahead": 500.0, "behind": 100.0}


def test_below_a_tenant_each_project_and_key_has_what_the_others_charged_it() -> None:
    desk = Desk(window=150, fairness={"levels": ["tenant", "project", "key"]})
    desk.arrive(1, "first")
    desk.arrive(2, "a", project="p", key="k")
    shared = {"a": 30.0, "a\x1fp": 20.0, "a\x1fp\x1fk": 10.0, "b": 300.0, "b\x1fq": 200.0, "b\x1fq\x1fk": 150.0}
    desk.tell(CountersShared(shared, {}))
    root = desk.core.queue.root
    found = {path: node.counter for path in shared if (node := root.find(path.split("\x1f"))) is not None}
    assert found == {
        "a": 130.0,
        "a\x1fp": 20.0,
        "a\x1fp\x1fk": 10.0,
        "b": 300.0,
        "b\x1fq": 200.0,
        "b\x1fq\x1fk": 150.0,
    }
    desk.tell(CountersShared({"c\x1fonly the end is told": 5.0}, {"a\x1fnobody": 3.0}))
    assert root.find(["c"]) is None


def test_without_the_store_whoever_has_limits_is_refused_and_others_go_on() -> None:
    gate = Gate({**TOTAL, "when": {"tenant": "acme"}})
    gate.tell(StoreReach("limited", 5.2))
    [refusal] = gate.arrive(1)
    assert isinstance(refusal, Refuse)
    assert (refusal.code, refusal.retry_after_s, refusal.tenant) == ("store_lost", 1.0, "acme")
    assert "out of reach for more than 5 s" in refusal.message
    assert kinds(gate.arrive(2, tenant="free")) == ["Release"]
    gate.tell(StoreReach())
    assert isinstance(gate.arrive(3)[0], Release)


def test_without_the_store_all_are_refused_where_the_operator_wants_that() -> None:
    gate = Gate()
    gate.tell(StoreReach("all", 5.0))
    [refusal] = gate.arrive(1)
    assert refusal.code == "store_lost"


def test_a_mistake_is_answered_without_the_store() -> None:
    gate = Gate(TOTAL | {"dimension": "requests", "scope": "key"})
    gate.tell(StoreReach("limited", 5.0))
    assert kinds(gate.tell(MISTAKE)) == ["Counted"]


def test_of_several_processes_each_has_its_share_of_the_window() -> None:
    desk = Desk(window=400, kv_tokens=0)
    desk.tell(CapacityChanged(1, 10_000, 2000, num_admissions=2))
    assert desk.core.window.limit_tokens == 200
    assert share(OPEN_TOKENS, 3) == OPEN_TOKENS


def test_of_several_processes_each_has_its_share_of_the_queue() -> None:
    desk = Desk(kv_tokens=0, queue={"per_tenant_max": 7, "total_max": 9})
    for event in (CapacityChanged(1, 10_000, 2000, num_admissions=2), SchedulerLost()):
        desk.tell(event)
    assert [desk.arrive(number) for number in (1, 2, 3)] == [[], [], []]
    [refusal] = desk.arrive(4)
    assert "already has 3 requests waiting (queue.per_tenant_max is 7, shared by 2 admission processes)" in (
        refusal.message
    )
    assert desk.arrive(5, "globex") == []
    [refusal] = desk.arrive(6, "globex")
    assert "4 requests are waiting (queue.total_max is 9, shared by 2 admission processes)" in refusal.message
