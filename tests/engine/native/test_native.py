"""The C++ library computes what torch does, in every variant this processor runs; without it the engine still runs."""

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from engine import native
from engine.native import make

NEAR = {"float32": 2e-6, "bfloat16": 2e-2}


@pytest.fixture(scope="session", params=[variant.name for variant in native.variants()])
def library(request: pytest.FixtureRequest) -> Any:
    """A variant's file."""
    variant = next(variant for variant in native.variants() if variant.name == request.param)
    compiler = shutil.which("g++")
    if compiler is None or not variant.flags <= native._processor_flags():
        pytest.skip(f"no compiler, or the processor does not run {variant.name}")
    path = native.library_path(variant)
    return path if path.exists() else make.build(variant, compiler)


@pytest.fixture(params=NEAR)
def kernels(request: pytest.FixtureRequest, library: Any) -> Any:
    import torch

    from engine.native.kernels import Kernels

    torch.manual_seed(1)
    kernels = Kernels(library, getattr(torch, request.param))
    kernels.dtype, kernels.near = getattr(torch, request.param), NEAR[request.param]
    return kernels


@pytest.mark.parametrize(("rows", "width"), [(1, 16), (7, 48), (64, 512)])
def test_a_norm_of_a_sum_is_torchs(kernels: Any, rows: int, width: int) -> None:
    import torch

    x, added, weight = (torch.randn(shape, dtype=kernels.dtype) for shape in ((rows, width), (rows, width), (width,)))
    for summand in (None, added):
        total = x.clone() if summand is None else x + summand
        into = x.clone()
        normed = kernels.add_norm(into, summand, weight, 1e-5)
        assert (into == total).all()
        expected = torch.nn.functional.rms_norm(total.float(), (width,), weight.float(), 1e-5)
        assert ((normed - expected).abs() <= kernels.near * (1 + expected.abs())).all()


def test_a_gate_is_torchs_also_far_from_zero(kernels: Any) -> None:
    import torch

    x = torch.randn(9, 96, dtype=kernels.dtype)
    x[0, :6] = torch.tensor([-1e4, -100, -88, 88, 100, 1e4], dtype=kernels.dtype)
    gate, up = x.float().chunk(2, -1)
    expected = torch.nn.functional.silu(gate) * up
    assert ((kernels.gated(x) - expected).abs() <= kernels.near * (1 + expected.abs())).all()


@pytest.mark.parametrize("size", [16, 64, 80])
@pytest.mark.parametrize("normed", [False, True])
def test_heads_are_normed_turned_and_placed_as_torch_does(kernels: Any, size: int, normed: bool) -> None:
    import torch

    from engine.config import Rope
    from engine.layers import Norm, Rotary, rotate
    from engine.native.kernels import HeadShape

    heads = HeadShape(4, 2, size)
    qkv = torch.randn(5, 8 * size, dtype=kernels.dtype)
    norms = [Norm(torch.rand(size, dtype=kernels.dtype) + 0.5, 1e-5) for _ in range(2)]
    turns = Rotary(Rope(), size, 100, kernels.dtype, torch.device("cpu")).at(torch.tensor([0, 1, 7, 50, 99]))
    slots = torch.tensor([3, 40, 17, 16, 0])
    query, key, value = qkv.clone().view(5, 8, size).split([4, 2, 2], 1)
    if normed:
        query, key = norms[0](query), norms[1](key)
    pool = torch.zeros(2, 3, 16, 2, size, dtype=kernels.dtype).unbind(0)
    weights = (norms[0].weight, norms[1].weight) if normed else None
    kernels.place(qkv, heads, norms=weights, eps=1e-5, turns=turns, slots=slots, pool=pool)
    for found, expected in (
        (qkv.view(5, 8, size)[:, :4], rotate(query, turns)),
        (pool[0].flatten(0, 1)[slots], rotate(key, turns)),
        (pool[1].flatten(0, 1)[slots], value),
    ):
        assert ((found - expected).abs() <= 2 * kernels.near * (1 + expected.abs())).all()
    assert int((pool[0].flatten(0, 1).abs().sum((1, 2)) > 0).sum()) == len(slots)


def attended(kernels: Any, positions: list[int], size: int, groups: int, window: int | None) -> Iterator[Any]:
    """Rows at the end of one sequence of 150 tokens whose blocks lie scattered: (first position, queries, result)."""
    import torch

    from engine.native.kernels import HeadShape, Paged

    torch.manual_seed(2)
    pool = torch.randn(2, 20, 16, 2, size, dtype=kernels.dtype).unbind(0)
    query = torch.randn(150, 2 * groups, size, dtype=kernels.dtype)
    table = torch.randperm(20, dtype=torch.int32)[:10].view(1, 10)
    for start, stop in zip([0, *positions], [*positions, 150], strict=True):
        rows = Paged(table, torch.tensor([stop]), torch.tensor([stop - start]))
        heads = HeadShape(2 * groups, 2, size)
        yield kernels.attend(query[start:stop], heads, rows, pool, window), query, pool, table


@pytest.mark.parametrize("window", [None, 70, 9])
@pytest.mark.parametrize(("size", "groups"), [(16, 1), (64, 2), (80, 3), (128, 8)])
def test_attention_over_blocks_is_plain_attention(kernels: Any, size: int, groups: int, window: int | None) -> None:
    import torch

    ((found, query, pool, table),) = attended(kernels, [], size, groups, window)
    keys, values = (
        part[table[0].long()].flatten(0, 1)[:150].float().repeat_interleave(groups, 1).transpose(0, 1) for part in pool
    )
    scores = query.float().transpose(0, 1) @ keys.transpose(1, 2) / size**0.5
    far = torch.arange(150)[:, None] - torch.arange(150)
    scores = scores.masked_fill((far < 0) | (far >= (window or 1000)), -torch.inf)
    expected = (scores.softmax(-1) @ values).transpose(0, 1)
    assert ((found - expected).abs() <= 2 * kernels.near * (1 + expected.abs())).all()


@pytest.mark.parametrize("window", [None, 70])
@pytest.mark.parametrize(("size", "groups"), [(16, 1), (64, 2), (80, 3), (128, 8)])
def test_a_query_has_the_same_bits_in_any_chunk(kernels: Any, size: int, groups: int, window: int | None) -> None:
    import torch

    whole = torch.cat([found for found, *_ in attended(kernels, [], size, groups, window)])
    for cuts in (list(range(1, 150)), [3, 10, 64, 65, 130], [70]):
        chunked = torch.cat([found for found, *_ in attended(kernels, cuts, size, groups, window)])
        assert (chunked == whole).all()


def test_a_decode_has_the_same_bits_in_any_company(kernels: Any) -> None:
    import torch

    from engine.native.kernels import HeadShape, Paged

    pool = torch.randn(2, 200, 16, 4, 64, dtype=kernels.dtype).unbind(0)
    query = torch.randn(40, 8, 64, dtype=kernels.dtype)
    contexts = torch.randint(1, 80, (40,))
    tables = torch.randperm(200, dtype=torch.int32).view(40, 5)
    ones = torch.ones(40, dtype=torch.int64)
    many = kernels.attend(query, HeadShape(8, 4, 64), Paged(tables, contexts, ones), pool, None)
    for row in range(40):
        alone = Paged(tables[row : row + 1], contexts[row : row + 1], ones[:1])
        one = kernels.attend(query[row : row + 1], HeadShape(8, 4, 64), alone, pool, None)
        assert (one == many[row]).all()


def test_tokens_that_no_row_has_get_zeros(kernels: Any) -> None:
    import torch

    from engine.native.kernels import HeadShape, Paged

    pool = torch.randn(2, 3, 16, 2, 16, dtype=kernels.dtype).unbind(0)
    rows = Paged(torch.ones(1, 1, dtype=torch.int32), torch.tensor([5]), torch.tensor([2]))
    found = kernels.attend(torch.randn(4, 2, 16, dtype=kernels.dtype), HeadShape(2, 2, 16), rows, pool, None)
    assert (found[2:] == 0).all()
    assert (found[:2] != 0).all()


def test_without_a_compiler_nothing_is_built_and_nothing_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    monkeypatch.setattr(make.shutil, "which", lambda _: None)
    monkeypatch.setattr(make, "library_path", lambda variant: tmp_path / variant.name)
    assert make.main() == 0
    assert "no g++ here" in capsys.readouterr().err


def test_a_variant_the_compiler_refuses_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    monkeypatch.setattr(make.shutil, "which", lambda _: "false")
    monkeypatch.setattr(make, "library_path", lambda variant: tmp_path / "build" / f"{variant.name}-1.so")
    assert make.main() == 0
    assert "baseline is left out: g++ ended with 1" in capsys.readouterr().err


def test_a_library_of_other_sources_is_not_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    for name in native.SOURCES:
        (tmp_path / name).write_text(f"// another {name}")
    monkeypatch.setattr(native, "FOLDER", tmp_path)
    located = native.locate()
    assert located.path is None
    assert "./ops/up --prepare" in located.reason


def test_the_widest_variant_the_processor_has_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(native, "library_path", lambda variant: tmp_path / variant.name)
    monkeypatch.setattr(native, "variants", lambda: list(native.VARIANTS))
    for variant in native.VARIANTS:
        (tmp_path / variant.name).touch()
    for variant in native.VARIANTS:
        monkeypatch.setattr(native, "_processor_flags", lambda flags=variant.flags: flags)
        assert native.locate().variant == variant.name
