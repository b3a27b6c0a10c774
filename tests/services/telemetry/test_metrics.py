"""Metrics: exact counts, and the two forms in which they leave."""

import numpy as np
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_open
from prometheus_client.parser import text_string_to_metric_families as read_text

from services.telemetry import names
from services.telemetry.exposition import OPEN_METRICS, render
from services.telemetry.metrics import Exemplar, Registry


def filled() -> Registry:
    registry = Registry()
    registry.counter(names.REQUESTS).add(3, "finished", "")
    registry.gauge(names.JAIN).set(0.5)
    gaps = registry.histogram(names.TOKEN_GAP, (0.01, 0.1))
    gaps.observe_all(np.array([0.005, 0.01, 7.0]), "paid")
    gaps.observe(0.05, "paid")
    gaps.exemplify(Exemplar(7.0, b"\1" * 16, 12.5), "paid")
    return registry


def test_a_value_on_a_bound_belongs_below_it() -> None:
    (gaps,) = (family for family in filled().families() if family.kind == "histogram")
    assert gaps.points[0].buckets == (2, 1, 1)
    assert gaps.points[0].value == pytest.approx(7.065)


@pytest.mark.parametrize(("accept", "read"), [("text/plain", read_text), (f"{OPEN_METRICS}; version=1.0.0", read_open)])
def test_prometheus_reads_what_was_counted(accept, read) -> None:
    body, content_type = render(filled().families(), accept)
    assert accept.partition(";")[0] in content_type
    samples = {
        (sample.name, sample.labels.get("le", "")): sample
        for family in read(body.decode())
        for sample in family.samples
    }
    assert samples["fairlead_requests_total", ""].value == 3
    assert samples["fairlead_fairness_jain", ""].value == 0.5
    assert samples["fairlead_token_gap_seconds_bucket", "0.01"].value == 2
    assert samples["fairlead_token_gap_seconds_bucket", "+Inf"].value == 4
    assert samples["fairlead_token_gap_seconds_count", ""].value == 4
    if OPEN_METRICS in accept:
        assert samples["fairlead_token_gap_seconds_bucket", "+Inf"].exemplar.labels == {"trace_id": "01" * 16}


def test_levels_that_are_left_out_are_gone() -> None:
    registry = Registry()
    service = registry.gauge(names.TENANT_SERVICE)
    service.set(1.0, "acme")
    service.replace([(("other",), 2.0)])
    assert [point.labels for point in registry.families()[0].points] == [("other",)]
