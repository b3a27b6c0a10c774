from services.telemetry.keeper.attainment import WINDOW_S, Attainment

PAID_TBT = ("paid", "tbt")


def test_attainment_is_the_share_of_promises_kept() -> None:
    attainment = Attainment()
    for missed in (True, False, False, False):
        attainment.count(PAID_TBT, 1000.0, missed=missed)
    attainment.count(("free", "ttft"), 1000.0, missed=False)
    assert attainment.shares(1001.0) == [(PAID_TBT, 0.75), (("free", "ttft"), 1.0)]


def test_what_was_broken_long_ago_is_forgotten() -> None:
    attainment = Attainment()
    attainment.count(PAID_TBT, 1000.0, missed=True)
    attainment.count(PAID_TBT, 1000.0 + WINDOW_S / 2, missed=False)
    assert attainment.shares(1000.0 + WINDOW_S / 2) == [(PAID_TBT, 0.5)]
    assert attainment.shares(1011.0 + WINDOW_S) == [(PAID_TBT, 1.0)]
    assert attainment.shares(1020.0 + 2 * WINDOW_S) == []
