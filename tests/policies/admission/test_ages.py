"""The oldest of those that wait, also when some had waited elsewhere before: against a look at all of them."""

from hypothesis import example, given
from hypothesis import strategies as st

from policies.admission.ages import Ages
from policies.admission.fairness import FairQueue
from policies.admission.kinds import LeastCounter
from policies.admission.nodes import Queued


@given(st.lists(st.tuples(st.integers(1, 6), st.sampled_from([0, 0, 1, 5, 9, 30])), max_size=60))
@example([(1, 30), (1, 0), (3, 0), (2, 9), (1, 0)])
def test_nobody_has_waited_longer_than_the_oldest(happened: list[tuple[int, int]]) -> None:
    queue = FairQueue(LeastCounter())
    ages = Ages(queue)
    for now, (request, waited_s) in enumerate(happened, start=1):
        if request in queue.waiting:
            queue.remove(queue.waiting[request])
        else:
            arrived_at_s = float(now - waited_s)
            queued = Queued(request, now, tenant="t", prompt_tokens=1, max_output_tokens=1, arrived_at_s=arrived_at_s)
            queue.push(queued)
            ages.joined(queued, float(now))
        ages.check()


def test_what_left_is_not_listed_for_ever() -> None:
    queue = FairQueue(LeastCounter())
    ages = Ages(queue)
    for number in range(1, 1001):
        queued = Queued(number, number, tenant="t", prompt_tokens=1, max_output_tokens=1, arrived_at_s=-number)
        queue.push(queued)
        ages.joined(queued, float(number))
        if number > 1:
            queue.remove(queued)
    assert len(ages._late) < 100
    assert ages.oldest() is queue.waiting[1]
