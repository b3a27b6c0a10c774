"""Devices by name."""

import pytest

from policies.simulation.devices import HELP, NAMES, named_device
from policies.simulation.parameters import ParameterError
from policies.simulation.step_shape import StepShape

SWEEP = "chunk,ttft_ms,batch_ms\n64,640,33\n128,400,36\n"


def nothing(file: str) -> str:
    raise AssertionError(f"{file} was read")


@pytest.mark.parametrize("name", NAMES)
def test_every_named_device_computes_a_step(name: str) -> None:
    device = named_device(name, efficiency=1.0, read=nothing)
    assert device.step_time.step_s(StepShape(100, 10, 1000, 1, 5000.0)) > 0
    assert name in HELP


def test_a_file_is_read_with_its_parameters() -> None:
    read = {"a.csv": SWEEP}.__getitem__
    device = named_device("sweep:a.csv?prompt_tokens=1280", efficiency=1.0, read=read)
    assert device.step_time.step_s(StepShape(64, 0, 0)) == pytest.approx(0.032)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("gpu", "gpu: there is no such executor model; there are rtx6000ada-mistral7b, "),
        ("tables:a.csv", "tables:a.csv: there is no such executor model"),
        ("sweep:", "sweep:: there is no such executor model"),
        ("toy-tile?x=1", "toy-tile?x=1: there is no parameter `x`; it takes none"),
        ("tile?pair_ns=-1", "tile?pair_ns=-1: pair_ns is `-1`; it must be a number above 0"),
    ],
)
def test_what_is_no_device_is_refused_with_what_there_is(name: str, sentence: str) -> None:
    with pytest.raises(ParameterError) as caught:
        named_device(name, efficiency=1.0, read=nothing)
    assert str(caught.value).startswith(sentence)
