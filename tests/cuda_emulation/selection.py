"""A bounded set of calls that launches every kernel: on several GPUs, in several orders, in every precision.

Everything must agree with the reference as the operations' own tests want it, and on one GPU every order must give the
same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from distilldepth import ops, reference
from distilldepth.reference.backproject import point_cloud
from tests.tolerances import assert_gradient, assert_loss, assert_map

from .library import Emulator

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
SCHEDULES = (("newest", 0), ("forward", 0), ("reverse", 0), ("random", 1), ("random", 2), ("random", 3))


class Result(NamedTuple):
    """What a call returned: values, and gradients of the student's side."""

    values: tuple[Tensor, ...]
    gradients: tuple[Tensor, ...]


class Case(NamedTuple):
    """A call of an operation, the same of the reference, and how far apart they may be."""

    name: str
    gpu: str
    run: Callable[[], Result]
    check: Callable[[Result], None]
    all_orders: bool = False


def _random(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _differentiate(function: Callable[..., Tensor], student: Tensor, *arguments: object, **options: object) -> Result:
    leaf = student.detach().clone().requires_grad_()
    loss = function(leaf, *arguments, **options)
    return Result((loss.detach(),), torch.autograd.grad(3 * loss, leaf))


def _loss_case(
    name: str, gpu: str, op: str, student: Tensor, teacher: Tensor, *rest: Tensor | None,
    all_orders: bool = False, **options: object,
) -> Case:  # fmt: skip
    def check(result: Result) -> None:
        wide = student.double(), teacher.double()
        truth = _differentiate(getattr(reference, op), *wide, *rest, **options)
        assert_loss(result.values[0], truth.values[0], student.dtype)
        assert_gradient(result.gradients[0], truth.gradients[0], student.dtype)

    run = lambda: _differentiate(getattr(ops, op), student, teacher, *rest, **options)  # noqa: E731
    return Case(f"{op} {name} {str(student.dtype)[6:]}", gpu, run, check, all_orders)


def _hybrid(gpu: str, dtype: torch.dtype, contexts: str, *, masked: bool = True, all_orders: bool = False,
            shape: tuple[int, ...] = (2, 19, 27), segments: tuple[int, ...] = (1, 2, 4)) -> Case:  # fmt: skip
    prediction, target, valid = _random(shape, 1) * 3 - 5, _random(shape, 2).square(), _random(shape, 3) < 0.8
    return _loss_case(
        contexts, gpu, "hybrid_norm_loss", prediction.to(dtype), target.to(dtype), valid if masked else None,
        contexts=contexts, segments=segments, all_orders=all_orders,
    )  # fmt: skip


def _crops(gpu: str, dtype: torch.dtype, *, masked: bool = True, all_orders: bool = False) -> Case:
    prediction, targets = _random((2, 13, 16), 4) * 2 + 9, _random((3, 11, 8), 5).square()
    boxes = torch.tensor([[1.2, 0.5, 15.1, 9.9], [0.0, 0.0, 16.0, 13.0], [4.3, 2.8, 9.7, 12.4]]).double()
    index, valid = torch.tensor([1, 0, 1]), _random((3, 11, 8), 6) < 0.8
    return _loss_case(
        "range", gpu, "crop_ssi_loss", prediction.to(dtype), targets.to(dtype), boxes, index,
        valid if masked else None, segments=(1, 2), all_orders=all_orders,
    )  # fmt: skip


def _channels(gpu: str, dtype: torch.dtype, shape: tuple[int, ...], *, masked: bool, all_orders: bool = False) -> Case:
    student, teacher = _random(shape, 7) * 4 + 1, _random(shape, 8) * 5
    valid = _random((shape[0], *shape[2:]), 9) < 0.7
    return _loss_case(
        "x".join(map(str, shape)), gpu, "channel_kl_loss", student.to(dtype), teacher.to(dtype),
        valid if masked else None, temperature=1.5, all_orders=all_orders,
    )  # fmt: skip


def _camera(batch: int) -> Tensor:
    matrix = torch.tensor([[31.0, 0, 9.5], [0, 27.0, 7.25], [0, 0, 1]]).double()
    return matrix + torch.arange(batch)[:, None, None] * torch.tensor([[2.0, 0, 1], [0, 3, 0], [0, 0, 0]]).double()


def _points(gpu: str, dtype: torch.dtype, shape: tuple[int, ...], *, masked: bool, all_orders: bool = False) -> Case:
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    depth, matrix = (_random(shape, 10) * 9 + 0.5).to(dtype), _camera(shape[0]).to(exact)
    valid, weight = _random(shape, 11) < 0.7 if masked else None, _random((*shape, 3), 12)

    def differentiate(function: Callable[..., Tensor], *arguments: Tensor) -> Result:
        leaves = [x.clone().requires_grad_() for x in arguments]
        points = function(*leaves, valid)
        return Result((points.detach(),), torch.autograd.grad((points.nan_to_num() * weight).sum(), leaves))

    def check(result: Result) -> None:
        truth = differentiate(reference.backproject, depth.double(), matrix.double())
        assert_map(result.values[0], truth.values[0], dtype)
        assert_gradient(result.gradients[0], truth.gradients[0], dtype)
        assert_gradient(result.gradients[1], truth.gradients[1], exact)

    run = lambda: differentiate(ops.backproject, depth, matrix)  # noqa: E731
    return Case(f"backproject {str(dtype)[6:]}", gpu, run, check, all_orders)


def _cloud(gpu: str, dtype: torch.dtype, colour: torch.dtype, *, masked: bool, all_orders: bool = False) -> Case:
    shape = (2, 45, 53)
    depth, matrix = (_random(shape, 13) * 9 + 0.5).to(dtype), _camera(2).float()
    image, valid = (_random((2, 3, 45, 53), 14) * 200).to(colour), _random(shape, 15) < 0.6 if masked else None

    def check(result: Result) -> None:
        points, colours = point_cloud(depth.double(), matrix.double(), image, valid)
        assert_map(result.values[0], points, dtype)
        assert torch.equal(result.values[1], colours)

    run = lambda: Result(tuple(ops.point_cloud(depth, matrix, image, valid)), ())  # noqa: E731
    return Case(f"point_cloud {str(colour)[6:]}", gpu, run, check, all_orders)


def cases() -> Iterator[Case]:
    """Yield every call; the most that any of them takes in one order is a second."""
    f32, f16, b16, f64 = DTYPES
    for gpu, contexts, dtype in (
        ("clusters-4", "range", f32), ("clusters-4", "quantile", f32), ("clusters-4", "spatial", f32),
        ("clusters-8", "quantile", f16), ("clusters-16", "range", b16), ("clusters-1", "range", f32),
        ("clusters-2", "spatial", f32), ("sm_90", "range", f64),
        ("sm_80", "range", f32), ("sm_80", "quantile", f64), ("sm_80", "spatial", f16), ("small", "quantile", b16),
    ):  # fmt: skip
        every = (gpu, contexts) in (("clusters-4", "quantile"), ("sm_80", "range"))
        yield _hybrid(gpu, dtype, contexts, all_orders=every)
    # Several slices per image; histograms that are too large for shared memory.
    yield _hybrid("sm_80", f32, "range", masked=False, shape=(2, 70, 83), segments=(1, 4))
    yield _hybrid("sm_80", f32, "spatial", shape=(1, 40, 41), segments=(1, 5, 9))
    yield _hybrid("clusters-4", f32, "range", masked=False)
    for gpu, dtype in (("clusters-4", f32), ("clusters-8", b16), ("sm_80", f32), ("sm_80", f16), ("sm_80", f64)):
        yield _crops(gpu, dtype, all_orders=dtype == f32)
    yield _crops("clusters-4", f16, masked=False)
    yield _crops("small", b16, masked=False)
    for dtype in DTYPES:
        yield _channels("sm_90", dtype, (2, 2, 7, 9), masked=True, all_orders=dtype == f32)
        yield _channels("sm_90", dtype, (1, 2, 64, 64), masked=dtype != f16, all_orders=dtype in (f32, f64))
        yield _channels("sm_90", dtype, (1, 1, 51, 53), masked=dtype == f16)
        yield _points("sm_90", dtype, (2, 31, 45), masked=True)
        yield _points("small", dtype, (3, 90, 71), masked=dtype == f32, all_orders=dtype == f32)
    for colour in (torch.uint8, f16, f32, f64, torch.complex128):
        yield _cloud("sm_90", f32, colour, masked=colour != f64, all_orders=colour == torch.uint8)
    for dtype in (f16, b16):
        yield _cloud("sm_90", dtype, torch.bool, masked=dtype == f16)


def run_cases(emulator: Emulator, tell: Callable[[str], None], only: str = "", orders: bool = True) -> int:
    """Run all, or those of an operation; return how many calls that were. With `orders` some run in every order.

    Raises:
        SystemExit: a call failed, or returned something else than it should.
    """
    calls = 0
    for case in cases():
        if not case.name.startswith(only):
            continue
        first: Result | None = None
        for order, seed in SCHEDULES if case.all_orders and orders else SCHEDULES[:1]:
            emulator.use(case.gpu, order, seed)
            where = f"{case.name} on {case.gpu}, {order} {seed}"
            try:
                result = case.run()
                emulator.check()
                if first is None:
                    case.check(result)
                    first = result
                for one, other in zip(
                    (*result.values, *result.gradients), (*first.values, *first.gradients), strict=True
                ):
                    assert torch.equal(one.nan_to_num(7), other.nan_to_num(7)), "other bits than in the first order"
            except (AssertionError, RuntimeError) as error:
                raise SystemExit(f"{where}: {error}") from error
            calls += 1
        tell(f"{case.name} on {case.gpu}")
    return calls
