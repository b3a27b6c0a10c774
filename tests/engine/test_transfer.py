"""Arrays arrive as they were, all of a step's in one copy, and a landing keeps its address."""

from typing import Any

import numpy as np
import pytest

ARRAYS = [
    np.arange(5, dtype=np.int64),
    np.array([[1, 2, 3], [4, 5, 6]], np.int32),
    np.zeros(0, np.int64),
    np.array([0.5, -2.0], np.float32),
    np.array([True, False, True]),
    np.arange(24, dtype=np.int32).reshape(4, 6)[:, ::2],  # not contiguous
]


def same(tensors: list[Any], arrays: list[Any]) -> bool:
    return all((t.numpy() == a).all() and t.numpy().dtype == a.dtype for t, a in zip(tensors, arrays, strict=True))


def test_packed_arrays_are_unpacked_with_their_shapes_and_types() -> None:
    import torch

    from engine.transfer import ALIGNMENT, extent, layout, pack, unpack

    places = layout(ARRAYS)
    assert all(place.start % ALIGNMENT == 0 for place in places)
    packed = torch.zeros(extent(places), dtype=torch.uint8)
    pack(ARRAYS, places, packed)
    tensors = unpack(packed, places)
    assert same(tensors, ARRAYS)
    assert [tuple(tensor.shape) for tensor in tensors] == [array.shape for array in ARRAYS]


def test_on_a_cpu_tensors_are_the_arrays_themselves() -> None:
    import torch

    from engine.transfer import to_device

    array = np.arange(3)
    (tensor,) = to_device([array], torch.device("cpu"))
    array[0] = 7
    assert tensor.tolist() == [7, 1, 2]


def test_on_a_device_one_pinned_buffer_is_sent_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from engine import transfer

    asked: list[dict[str, Any]] = []
    sent: list[Any] = []
    empty, to = torch.empty, torch.Tensor.to

    def noted_empty(*size: Any, **options: Any) -> Any:
        asked.append(dict(options))
        return empty(*size, dtype=options["dtype"])

    def noted_to(tensor: Any, device: Any, **options: Any) -> Any:
        sent.append((device, options))
        return to(tensor, "cpu")

    monkeypatch.setattr(torch, "empty", noted_empty)
    monkeypatch.setattr(torch.Tensor, "to", noted_to)
    tensors = transfer.to_device(ARRAYS, torch.device("cuda"))
    assert same(tensors, ARRAYS)
    assert asked == [{"dtype": torch.uint8, "pin_memory": True}]
    assert sent == [(torch.device("cuda"), {"non_blocking": True})]


def test_a_landing_stays_where_it_is() -> None:
    import torch

    from engine.transfer import Landing

    landing = Landing(ARRAYS, torch.device("cpu"))
    addresses = [tensor.data_ptr() for tensor in landing.tensors]
    assert same(landing.tensors, ARRAYS)
    others = [array.copy() for array in ARRAYS]
    others[0] += 3
    others[3] *= 2
    landing.fill(others)
    assert same(landing.tensors, others)
    assert [tensor.data_ptr() for tensor in landing.tensors] == addresses
