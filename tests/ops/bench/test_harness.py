"""What a row says of its rounds."""

from ops.bench.harness import Paired, within


def test_rounds_that_miss_to_both_sides_do_not_cancel_out() -> None:
    paired = Paired(ours=10.0, reference=10.0, ratio=1.0, ratios=(0.8, 1.0, 1.2, 0.85, 1.15))
    row = within("something", "ms", paired, must=0.1, stretch=0.05)
    assert (round(row.ratio, 9), row.ok, row.rounds) == (0.15, False, 5)
    assert within("something", "ms", paired, must=0.2, stretch=0.1).ok
