"""Launches every CUDA kernel of the native library on small, awkward inputs; for compute-sanitizer.

    compute-sanitizer --tool memcheck python benchmarks/one_pass.py
    python benchmarks/one_pass.py --device cpu                                 # the same calls of the C++ library
    TRITON_INTERPRET=1 python benchmarks/one_pass.py --device cpu --backend triton --only small

`cases` gives the calls one by one, `KERNELS` says which of them launch a kernel. Maps have odd sides, so that no row,
block or vector is full; a case called `offset` reads maps that begin in the middle of a vector.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from distilldepth import ops
from distilldepth.errors import DistillDepthError
from distilldepth.words import CONTEXTS

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
COLOURS = (torch.uint8, torch.float16, torch.float32, torch.float64, torch.complex128)
"""A type of every size that colours may have."""
SEGMENTS = {
    "small": (1, 2, 4),
    # More contexts than the histograms in the shared memory of a cluster can hold, so every pass is a kernel.
    "many": {"range": (500, 3), "quantile": (500, 3), "spatial": (30,)},
}
BEYOND_CLUSTERS = (1025, 1027)
"""A map of more than 16 x 65536 pixels, which no cluster takes whatever its shared memory. Few contexts, so its passes
count in shared memory."""
SHORT = 512
"""Up to this many positions channel_kl has blocks of fewer threads."""

KERNELS = {
    # normalise_cuda.cuh: in a cluster where the device has them and the map fits, else a kernel per pass. There are no
    # clusters for float64, for maps that are too large, and for many contexts.
    "normalise_in_cluster": ("hybrid_norm small *float32*", "crop_ssi small *float32*"),
    "sum_images": ("hybrid_norm *", "crop_ssi *"),
    "find_extremes": ("hybrid_norm * float64*", "crop_ssi * float64*", "hybrid_norm many *", "hybrid_norm large *"),
    "prepare_atoms": ("hybrid_norm * float64*", "crop_ssi many *", "hybrid_norm large *"),
    "place_slices": ("hybrid_norm * float64*", "crop_ssi many *", "hybrid_norm large *", "crop_ssi large *"),
    "count_keys": ("hybrid_norm * float64*", "crop_ssi many *", "hybrid_norm large *"),
    "narrow_queries": ("hybrid_norm * float64*", "crop_ssi many *", "hybrid_norm large *"),
    "sum_slices": ("hybrid_norm * float64*", "crop_ssi many *", "hybrid_norm large *"),
    "finish_sums": ("hybrid_norm * float64*", "crop_ssi many *", "hybrid_norm large *"),
    "write_gradients": ("hybrid_norm * float64*backward", "crop_ssi many *backward", "hybrid_norm large *backward"),
    # scale_gradient_cuda.cu
    "scale_maps": ("hybrid_norm *backward", "crop_ssi *backward"),
    # crop_ssi_cuda.cu
    "tabulate": ("crop_ssi *backward", "crop_ssi *forward"),
    "gather_gradient": ("crop_ssi *backward",),
    # channel_kl_cuda.cu: short and long maps, in vectors and not
    "measure": tuple(f"channel_kl {size} {kind} *" for size in ("short", "long") for kind in ("vector", "odd")),
    "write_gradient": (
        "channel_kl short vector *backward",
        "channel_kl short offset *backward",
        "channel_kl long vector *backward",
        "channel_kl long offset *backward",
    ),
    # backproject_cuda.cu
    "forward": ("backproject even *", "backproject odd *", "backproject offset *"),
    "backward": (
        "backproject even * fixed backward",
        "backproject offset *backward",
        "backproject odd *backward",
        "backproject large *backward",
    ),
    "sum_intrinsics": ("backproject even *backward", "backproject large *backward"),
    "count_valid": ("point_cloud * valid*",),
    "scan_counts": ("point_cloud * valid*",),
    "compact": tuple(f"point_cloud * {str(dtype).removeprefix('torch.')} *" for dtype in COLOURS),
}  # fmt: skip
"""Every `__global__` function of `csrc`: patterns (as `fnmatch` has them) of the cases that are there to launch it."""


class Case(NamedTuple):
    """A call; its name says operation, size, contexts, type and what else sets it apart."""

    name: str
    run: Callable[[], None]


def cases(device: torch.device | str = "cuda") -> Iterator[Case]:
    """Yield every call, on inputs that are made when it is called. It raises if a result is not finite."""
    device = torch.device(device)
    for make in (_hybrid_norm, _crop_ssi, _channel_kl, _backproject, _point_cloud):
        yield from make(device)


def offset(tensor: Tensor) -> Tensor:
    """The same numbers, contiguous, in memory that begins one element behind the start of a vector."""
    memory = tensor.new_empty(tensor.numel() + 1)
    return memory[1:].view(tensor.shape).copy_(tensor)


def _random(device: torch.device, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(shape, device=device).to(dtype)


def _valid(device: torch.device, *shape: int) -> Tensor:
    return torch.rand(shape, device=device) > 0.2


def _check(*results: Tensor | None) -> None:
    for result in results:
        assert result is not None, "there is no gradient"
        assert torch.isfinite(result).all(), "a result is not finite"


def _normalising_variants() -> Iterator[tuple[str, str, torch.dtype, bool, bool]]:
    """Size, contexts, type, whether with `valid`, whether with backward."""
    for size in ("small", "many", "large"):
        for contexts in CONTEXTS:
            for dtype in FLOATS if size != "large" else FLOATS[::2]:
                for masked in (False, True):
                    # A forward alone leaves out what the gradient needs; once for each type is enough.
                    yield size, contexts, dtype, masked, True
                    if size == "small" and masked:
                        yield size, contexts, dtype, masked, False


def _segments(size: str, contexts: str) -> tuple[int, ...]:
    return SEGMENTS["many"][contexts] if size == "many" else SEGMENTS["small"]


def _name(op: str, *words: object) -> str:
    return " ".join([op, *(str(word).removeprefix("torch.") for word in words if word)])


def _hybrid_norm(device: torch.device) -> Iterator[Case]:
    for size, contexts, dtype, masked, backward in _normalising_variants():
        for shifted in (False, True) if size == "small" and backward else (False,):
            shape = (1, *BEYOND_CLUSTERS) if size == "large" else (2, 61, 83)

            def run(shape=shape, dtype=dtype, masked=masked, backward=backward, shifted=shifted, contexts=contexts,
                    size=size) -> None:  # fmt: skip
                place = offset if shifted else lambda tensor: tensor
                prediction = place(_random(device, *shape, dtype=dtype)).requires_grad_(backward)
                target = place(_random(device, *shape, dtype=dtype))
                valid = place(_valid(device, *shape)) if masked else None
                loss = ops.hybrid_norm_loss(
                    prediction, target, valid, segments=_segments(size, contexts), contexts=contexts
                )
                _check(loss)
                if backward:
                    loss.backward()
                    _check(prediction.grad)

            words = (size, contexts, dtype, masked and "valid", shifted and "offset")
            yield Case(_name("hybrid_norm", *words, "backward" if backward else "forward"), run)


def _crop_ssi(device: torch.device) -> Iterator[Case]:
    for size, contexts, dtype, masked, backward in _normalising_variants():
        crop = BEYOND_CLUSTERS if size == "large" else (37, 29)

        def run(crop=crop, dtype=dtype, masked=masked, backward=backward, contexts=contexts, size=size) -> None:
            prediction = _random(device, 2, 61, 83, dtype=dtype).requires_grad_(backward)
            boxes = torch.tensor([[0.0, 0, 83, 61], [3.5, 2.25, 50, 40], [10, 10, 30, 31]], device=device)
            index = torch.tensor([0, 1, 1], device=device)
            if size == "large":
                boxes, index = boxes[1:2], index[1:2]
            targets = _random(device, len(boxes), *crop, dtype=dtype)
            valid = _valid(device, len(boxes), *crop) if masked else None
            how = {"segments": _segments(size, contexts), "contexts": contexts}
            loss = ops.crop_ssi_loss(prediction, targets, boxes, index, valid, **how)
            _check(loss)
            if backward:
                loss.backward()
                _check(prediction.grad)

        words = (size, contexts, dtype, masked and "valid")
        yield Case(_name("crop_ssi", *words, "backward" if backward else "forward"), run)


def _channel_kl(device: torch.device) -> Iterator[Case]:
    shapes = {
        "short": {"vector": (3, 2, 16, 24), "odd": (3, 2, 7, 9), "offset": (3, 2, 16, 24)},
        "long": {"vector": (2, 2, 96, 64), "odd": (2, 2, 61, 83), "offset": (2, 2, 96, 64)},
    }
    for size, kinds in shapes.items():
        for kind, shape in kinds.items():
            for dtype in FLOATS:
                for masked in (False, True):

                    def run(shape=shape, kind=kind, dtype=dtype, masked=masked) -> None:
                        place = offset if kind == "offset" else lambda tensor: tensor
                        student = place(_random(device, *shape, dtype=dtype)).requires_grad_()
                        teacher = place(_random(device, *shape, dtype=dtype))
                        valid = place(_valid(device, shape[0], *shape[2:])) if masked else None
                        loss = ops.channel_kl_loss(student, teacher, valid, temperature=2.0)
                        loss.backward()
                        _check(loss, student.grad)

                    yield Case(_name("channel_kl", size, kind, dtype, masked and "valid", "backward"), run)


def _intrinsics(device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.tensor([[80.0, 0, 41], [0, 80, 30], [0, 0, 1]], device=device, dtype=dtype)


def _backproject(device: torch.device) -> Iterator[Case]:
    # With an odd number of pixels the second image begins in the middle of a vector. The large one has more tiles than
    # blocks of the backward, which then take several each.
    shapes = {"even": (2, 64, 96), "odd": (3, 61, 83), "offset": (2, 64, 96), "large": (8, 441, 403)}
    for size, shape in shapes.items():
        for dtype in FLOATS if size != "large" else FLOATS[:1]:
            # Intrinsics without a gradient leave out sums and the depth.
            for masked, fixed in itertools.product((False, True), (False, True) if size != "large" else (False,)):

                def run(size=size, shape=shape, dtype=dtype, masked=masked, fixed=fixed) -> None:
                    place = offset if size == "offset" else lambda tensor: tensor
                    depth = place(_random(device, *shape, dtype=dtype)).requires_grad_()
                    intrinsics = _intrinsics(device).requires_grad_(not fixed)
                    valid = place(_valid(device, *shape)) if masked else None
                    points = ops.backproject(depth, intrinsics, valid)
                    points.backward(place(_random(device, *shape, 3, dtype=points.dtype)))
                    kept = points.detach() if valid is None else points.detach()[valid]
                    _check(kept, depth.grad, *(() if fixed else (intrinsics.grad,)))

                yield Case(_name("backproject", size, dtype, masked and "valid", fixed and "fixed", "backward"), run)


def _point_cloud(device: torch.device) -> Iterator[Case]:
    for dtype in FLOATS:
        for colour in COLOURS:
            for kept in ("all", "valid", "valid-nowhere"):
                # Colours are moved whatever the maps are; every pair of types would show nothing more.
                if colour != COLOURS[0] and dtype != FLOATS[0]:
                    continue

                def run(dtype=dtype, colour=colour, kept=kept) -> None:
                    shape = (2, 61, 83)
                    depth = _random(device, *shape, dtype=dtype)
                    image = (torch.rand((2, 3, *shape[1:]), device=device) * 255).to(colour)
                    valid = _valid(device, *shape) if kept != "all" else None
                    if valid is not None and kept == "valid-nowhere":
                        valid.zero_()
                    points, colours = ops.point_cloud(depth, _intrinsics(device), image, valid)
                    assert len(points) == len(colours) == (depth.numel() if valid is None else int(valid.sum()))
                    _check(points)

                yield Case(_name("point_cloud", f"depth-{dtype}".replace("torch.", ""), colour, kept), run)


def main() -> None:
    """Run the cases and say how many there were."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda or cpu")
    parser.add_argument(
        "--backend", default="native", help="native or triton; triton has no float64, which is left out"
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="only cases whose name holds this")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only every Nth of them")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("one_pass: torch sees no GPU")
    os.environ["DISTILLDEPTH_BACKEND"] = options.backend
    torch.manual_seed(0)
    chosen = [case for case in cases(options.device) if options.only in case.name]
    if options.backend == "triton":
        chosen = [case for case in chosen if "float64" not in case.name]
    chosen = chosen[:: options.every]
    if not chosen:
        sys.exit(f"one_pass: no case holds {options.only!r}")
    began = time.monotonic()
    for number, case in enumerate(chosen):
        if number and number % 25 == 0:
            # Sanitizers are slow: what is stopped has said how far it came.
            print(f"{number} of {len(chosen)}, {time.monotonic() - began:.0f} s, next is {case.name}", flush=True)
        try:
            case.run()
            if options.device == "cuda":
                torch.cuda.synchronize()
        except (AssertionError, RuntimeError, DistillDepthError) as error:
            raise SystemExit(f"one_pass: {case.name}: {error}") from error
    print(f"{len(chosen)} cases passed in {time.monotonic() - began:.1f} s")


if __name__ == "__main__":
    main()
