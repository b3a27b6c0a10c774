"""How long a refused client is told to stay away."""

from policies.admission.drain import LONGEST_RETRY_S, ServiceRate


def test_before_anything_was_measured_a_client_waits_about_a_second() -> None:
    assert 1.0 <= ServiceRate().retry_after_s(1e9, 7) <= 1.2


def test_the_wait_is_the_cost_ahead_over_the_measured_rate_and_at_most_a_fifth_more() -> None:
    rate = ServiceRate()
    rate.begin(10.0)
    for tick in range(1, 11):
        rate.add(10.0, 10.0 + tick * 0.5)
    assert rate.per_s == 20.0
    assert 5.0 <= rate.retry_after_s(100.0, 7) <= 6.0
    assert rate.retry_after_s(1e9, 7) == LONGEST_RETRY_S


def test_idle_time_does_not_make_the_system_look_slow() -> None:
    rate = ServiceRate()
    rate.begin(0.0)
    rate.add(20.0, 1.0)
    rate.begin(3600.0)
    rate.add(20.0, 3601.0)
    assert rate.per_s == 20.0


def test_clients_refused_together_come_back_at_different_times() -> None:
    rate = ServiceRate()
    assert len({rate.retry_after_s(5.0, request) for request in range(20)}) == 20
