"""Products with packed weights are torch's, with the same bits for a row in batches of any size."""

import pytest

SHAPES = [(512, 1024), (1408, 512), (32, 112), (56, 32), (256, 199)]


@pytest.mark.parametrize(("size", "out"), SHAPES)
@pytest.mark.parametrize("biased", [False, True])
def test_a_row_has_the_same_bits_in_batches_of_any_size(size: int, out: int, biased: bool) -> None:
    import torch

    from engine.linear import linear

    torch.manual_seed(0)
    weight, bias, x = torch.randn(out, size), torch.randn(out) if biased else None, torch.randn(200, size)
    product = linear(weight.clone(), bias)
    whole = product(x)
    expected = torch.nn.functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
    assert ((whole - expected).abs() < 1e-5 * size).all()
    for start, stop in ((0, 1), (199, 200), (3, 10), (0, 16), (50, 83), (7, 135)):
        assert (product(x[start:stop]) == whole[start:stop]).all()


def test_weights_are_packed_in_both_dtypes_of_a_cpu_where_onednn_takes_them() -> None:
    import torch

    from engine.linear import linear, packing

    for dtype in (torch.float32, torch.bfloat16):
        choice = packing("cpu", dtype)
        weight, x = torch.randn(48, 32, dtype=dtype), torch.randn(3, 32, dtype=dtype)
        product = linear(weight.clone())
        assert product.packed == choice.packs
        assert torch.allclose(product(x).float(), (x.float() @ weight.float().T), atol=0.1)
    assert packing("cuda", torch.float32) == (False, "weights are packed on CPUs only")


def test_where_onednn_refuses_the_plain_product_is_taken_and_the_reason_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from engine import linear

    def refuse(_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("mkldnn: not today\nat line 3")

    monkeypatch.setattr(linear, "_pack", refuse)
    linear.packing.cache_clear()
    try:
        assert linear.packing("cpu", torch.float32) == (False, "oneDNN does not take it here: mkldnn: not today")
        weight = torch.randn(16, 16)
        assert linear.linear(weight).weight is weight
    finally:
        linear.packing.cache_clear()


def test_batches_come_in_few_sizes() -> None:
    from engine.linear import padded_rows

    sizes = [padded_rows(num_rows) for num_rows in range(1, 513)]
    assert all(padded >= num_rows for num_rows, padded in enumerate(sizes, 1))
    assert len(set(sizes)) == 20
    assert max(padded - num_rows for num_rows, padded in enumerate(sizes, 1)) == 31
