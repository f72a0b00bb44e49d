"""The operations as torch sees them: schema, fake, gradient, torch.compile, autocast, threads."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from tolerances import assert_gradient, assert_loss, assert_map

from distilldepth import ops
from distilldepth.ops.backend import available_backends, kernel

SHAPE = (2, 13, 18)


def maps(dtype=torch.float32, device="cpu", seed=0, shape=SHAPE):
    """An asymmetric pair of maps and what is valid of them."""
    g = torch.Generator().manual_seed(seed)
    prediction = torch.randn(shape, generator=g, dtype=torch.float64) * 3 - 5
    target = torch.rand(shape, generator=g, dtype=torch.float64).square() + 0.1 * prediction.cos()
    valid = torch.rand(shape, generator=g) < 0.8
    return prediction.to(device, dtype), target.to(device, dtype), valid.to(device)


def calls(dtype=torch.float32, device="cpu"):
    """Each operation's public function with inputs; the first is the one that gets a gradient."""
    prediction, target, valid = maps(dtype, device)
    boxes = torch.tensor([[1.5, 0.0, 12.0, 9.5], [0.0, 2.0, 18.0, 13.0], [4.0, 3.5, 9.0, 8.0]], device=device)
    index = torch.tensor([1, 0, 1], device=device)
    crops, _, crop_valid = maps(dtype, device, seed=3, shape=(3, 7, 9))
    intrinsics = torch.tensor([[9.0, 0, 8.4], [0, 11.0, 6.1], [0, 0, 1]], device=device, dtype=dtype)
    return {
        "hybrid_norm": (ops.hybrid_norm_loss, (prediction, target, valid), {"contexts": "quantile"}),
        "crop_ssi": (ops.crop_ssi_loss, (prediction, crops, boxes, index, crop_valid), {"segments": (1, 2)}),
        "channel_kl": (ops.channel_kl_loss, (prediction, target, valid), {"temperature": 2.0}),
        "backproject": (ops.backproject, (prediction, intrinsics), {}),
    }


def backward_kernel(op, backend):
    return getattr(torch.ops.distilldepth, f"{op}_backward{'' if backend == 'native' else f'_{backend}'}")


def registered_calls(backend, dtype, device):
    """Arguments of the registered operations, as the public functions prepare them."""
    prediction, target, valid = maps(dtype, device)
    flat = [x.flatten(1)[:, None] for x in (prediction, target)]
    boxes = torch.tensor([[1.5, 0, 12, 9.5], [0, 2, 18, 13]], device=device, dtype=torch.float64)
    crops, _, crop_valid = maps(dtype, device, seed=3, shape=(2, 7, 9))
    matrix = torch.tensor([[9.0, 0, 8.4], [0, 11.0, 6.1], [0, 0, 1]], device=device)
    points_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    matrices = matrix.to(points_dtype).repeat(2, 1, 1)
    index = torch.tensor([1, 0], device=device)

    def leaf(tensor):
        return tensor.clone().requires_grad_()

    yield kernel("hybrid_norm", backend), (leaf(prediction), target, valid, [1, 2, 4], 0, 1e-6, True)
    yield kernel("hybrid_norm", backend), (prediction, target, None, [1, 2], 2, 1e-6, False)
    yield kernel("crop_ssi", backend), (leaf(prediction), crops, boxes, index, crop_valid, [1], 1, 1e-6, True)
    scale = torch.ones((), device=device, dtype=points_dtype)
    scaling = getattr(torch.ops.distilldepth, "scale_gradient" + ("" if backend == "native" else f"_{backend}"))
    yield scaling, (prediction.to(points_dtype), scale, leaf(scale), dtype)
    maps_and_valid = flat[0], flat[1], valid.flatten(1)
    yield kernel("channel_kl", backend), (leaf(flat[0]), *maps_and_valid[1:], 2.0)
    loss, statistics = kernel("channel_kl", backend)(*maps_and_valid, 2.0)
    yield backward_kernel("channel_kl", backend), (loss, *maps_and_valid, statistics, 2.0)
    # opcheck takes NaN, which stands where not valid, for a difference.
    yield kernel("backproject", backend), (leaf(prediction), leaf(matrices), torch.ones_like(valid))


@pytest.fixture(params=("native", "triton", "reference"))
def backend(request, device, monkeypatch):
    """Every backend that can run here, one after the other."""
    if request.param not in available_backends("hybrid_norm", device.type):
        pytest.skip(f"{request.param} does not run here: see distilldepth doctor")
    monkeypatch.setenv("DISTILLDEPTH_BACKEND", request.param)
    return request.param


def value_and_gradient(function, inputs, options):
    leaf = inputs[0].detach().clone().requires_grad_()
    value = function(leaf, *inputs[1:], **options)
    weight = torch.linspace(0.5, 2, value.numel(), device=value.device, dtype=value.dtype).view(value.shape)
    return value.detach(), torch.autograd.grad((value * weight).sum(), leaf)[0]


def test_opcheck(backend, device):
    if backend == "reference":
        pytest.skip("the reference is plain torch, nothing is registered for it")
    for dtype in (torch.float32, torch.bfloat16):
        for operator, arguments in registered_calls(backend, dtype, device):
            torch.library.opcheck(operator.default, arguments)


@pytest.mark.parametrize("op", ["hybrid_norm", "crop_ssi", "channel_kl", "backproject"])
def test_torch_compile_takes_it_whole(op, backend, device):
    function, inputs, options = calls(device=device)[op]
    truth = value_and_gradient(function, inputs, options)
    # Everything of torch.compile but the code generator, which would need a compiler and most of a minute.
    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    got = value_and_gradient(compiled, inputs, options)
    torch.testing.assert_close(got, truth)


@pytest.mark.parametrize("op", ["hybrid_norm", "crop_ssi", "channel_kl"])
def test_autocast_changes_nothing(op, backend, device):
    function, inputs, options = calls(device=device)[op]
    plain = value_and_gradient(function, inputs, options)
    with torch.autocast(device.type, torch.bfloat16):
        got = value_and_gradient(function, inputs, options)
    torch.testing.assert_close(got, plain, rtol=0, atol=0)


@pytest.mark.parametrize("op", ["hybrid_norm", "crop_ssi", "channel_kl"])
def test_types_may_differ(op, backend, device):
    function, inputs, options = calls(device=device)[op]
    inputs = (inputs[0].bfloat16(), *inputs[1:])
    got, gradient = value_and_gradient(function, inputs, options)
    truth, true_gradient = value_and_gradient(function, (inputs[0].float(), *inputs[1:]), options)
    assert_loss(got, truth, torch.float32)
    assert_gradient(gradient, true_gradient, torch.bfloat16)


@pytest.mark.parametrize("op", ["hybrid_norm", "crop_ssi", "channel_kl", "backproject"])
def test_backends_agree_on_float32(op, backend, device, monkeypatch):
    function, inputs, options = calls(device=device)[op]
    got = value_and_gradient(function, inputs, options)
    monkeypatch.setenv("DISTILLDEPTH_BACKEND", "reference")
    wide = tuple(x.double() if x.dtype == torch.float32 and x.ndim == 3 else x for x in inputs)
    truth = value_and_gradient(function, wide, options)
    (assert_map if op == "backproject" else assert_loss)(got[0], truth[0], torch.float32)
    assert_gradient(got[1], truth[1], torch.float32)


def test_a_float16_gradient_survives_a_large_image(backend, device):
    # One over a million pixels is below what float16 can hold; the loss scale brings it back only if it was kept wider.
    prediction, target, _ = maps(torch.float16, device, shape=(1, 700, 900))
    leaf = prediction.clone().requires_grad_()
    (ops.hybrid_norm_loss(leaf, target, segments=(1,)) * 65536).backward()
    wide = prediction.float().requires_grad_()
    (ops.hybrid_norm_loss(wide, target.float(), segments=(1,)) * 65536).backward()
    assert_gradient(leaf.grad, wide.grad, torch.float16)


def test_nothing_is_computed_for_a_gradient_that_nobody_wants(backend, device):
    if backend == "reference":
        pytest.skip("autograd decides for the reference")
    prediction, target, valid = maps(device=device)
    loss, gradient, _ = kernel("hybrid_norm", backend)(prediction, target, valid, [1], 0, 1e-6, False)
    assert gradient.shape == (0,)
    with torch.no_grad():
        assert torch.equal(ops.hybrid_norm_loss(prediction.requires_grad_(), target, valid, segments=(1,)), loss)
    points, matrices = torch.rand((*SHAPE, 3), device=device), torch.eye(3, device=device).repeat(2, 1, 1)
    alone = backward_kernel("backproject", backend)(points, prediction.detach(), matrices, valid, False)
    both = backward_kernel("backproject", backend)(points, prediction.detach(), matrices, valid, True)
    assert torch.equal(alone[0], both[0])
    assert [len(gradients[1]) for gradients in (alone, both)] == [0, 2]


@pytest.mark.parametrize("op", ["hybrid_norm", "crop_ssi"])
def test_a_gradient_is_linear_in_that_of_the_loss(op, backend, device):
    # So it has a derivative itself, which a penalty on gradients needs.
    function, inputs, options = calls(device=device)[op]
    leaf, factor = inputs[0].clone().requires_grad_(), torch.tensor(3.0, device=device, requires_grad=True)
    (gradient,) = torch.autograd.grad(function(leaf, *inputs[1:], **options) * factor, leaf, create_graph=True)
    (slope,) = torch.autograd.grad(gradient.square().sum(), factor)
    torch.testing.assert_close(slope, 2 * gradient.detach().square().sum() / 3)


@pytest.mark.parametrize("op", ["hybrid_norm", "crop_ssi", "channel_kl", "backproject"])
def test_the_number_of_threads_does_not_change_a_bit(op, device):
    if "native" not in available_backends(op, device.type) or device.type != "cpu":
        pytest.skip("the native CPU library is not built: distilldepth doctor --build")
    g = torch.Generator().manual_seed(1)
    prediction, target = torch.randn((3, 301, 257), generator=g), torch.rand((3, 301, 257), generator=g)
    boxes = torch.tensor([[10.5, 4.0, 200.0, 250.0], [0, 0, 257.0, 301.0], [99.0, 7.0, 180.0, 90.0]])
    index, crops = torch.tensor([2, 0, 2]), torch.rand((3, 190, 230), generator=g)
    matrix = torch.tensor([[200.0, 0, 120], [0, 210, 150], [0, 0, 1]])
    function, inputs = {
        "hybrid_norm": (ops.hybrid_norm_loss, (prediction, target)),
        "crop_ssi": (ops.crop_ssi_loss, (prediction, crops, boxes, index)),
        "channel_kl": (ops.channel_kl_loss, (prediction, target)),
        "backproject": (ops.backproject, (prediction, matrix)),
    }[op]
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            results.append(value_and_gradient(function, inputs, {}))
    finally:
        torch.set_num_threads(before)
    for value, gradient in results[1:]:
        assert torch.equal(value, results[0][0])
        assert torch.equal(gradient, results[0][1])


@pytest.mark.parametrize("op", ["hybrid_norm", "crop_ssi", "channel_kl", "backproject"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_run_gives_the_same_bits(op, dtype, backend, device):
    if backend == "reference" and device.type != "cpu":
        pytest.skip("promised by the kernels; torch's own sums on a GPU depend on who comes first")
    function, inputs, options = calls(dtype, device)[op]
    if device.type == "cuda":
        # Enough blocks that they do not come in the same order twice.
        inputs = tuple(x.repeat(40, 1, 1) if x.ndim == 3 and len(x) != 1 else x for x in inputs)
        if op == "crop_ssi":
            inputs = (*inputs[:2], inputs[2].repeat(40, 1), inputs[3].repeat(40), inputs[4])
    runs, rubbish = [], []
    before = torch.are_deterministic_algorithms_enabled()
    for number in range(4):
        # Half of the runs as torch does it by itself; in the other half it fills new memory with NaN, which nobody
        # may read. What is freed in between makes the next run use other memory.
        torch.use_deterministic_algorithms(number % 2 == 1)
        try:
            runs.append(value_and_gradient(function, inputs, options))
        finally:
            torch.use_deterministic_algorithms(before)
        rubbish.append(torch.full((1000 * (number + 1),), torch.nan, device=device))
        del rubbish[:-1]
    for value, gradient in runs[1:]:
        assert torch.equal(value.nan_to_num(nan=-1), runs[0][0].nan_to_num(nan=-1))
        assert torch.equal(gradient, runs[0][1])


@pytest.mark.parametrize("op", ["hybrid_norm", "crop_ssi", "channel_kl", "backproject"])
def test_the_default_device_does_not_matter(op, backend, device):
    # Whatever is made without a device would lie where there are no numbers, so that none can be read back.
    function, inputs, options = calls(device=device)[op]
    plain = value_and_gradient(function, inputs, options)
    with torch.device("meta"):
        value = function(inputs[0].clone().requires_grad_(), *inputs[1:], **options)
        value.sum().backward()
    assert torch.equal(value.detach(), plain[0])


@pytest.mark.parametrize("op", ["hybrid_norm", "crop_ssi", "channel_kl", "backproject"])
def test_nobody_waits_for_the_gpu(op, backend, device):
    if device.type != "cuda":
        pytest.skip("nothing to wait for: run with --device cuda")
    function, inputs, options = calls(device=device)[op]
    leaf = inputs[0].clone().requires_grad_()
    function(leaf, *inputs[1:], **options).sum().backward()  # loads and compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.device(device):
            function(leaf, *inputs[1:], **options).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("wrong", [-1, 2, 2**40])
def test_a_crop_of_no_image_is_nan_where_nobody_looks_at_the_index(wrong, backend, device):
    if backend == "reference" or (backend == "native" and device.type == "cpu"):
        pytest.skip("looks at the index, and raises")
    prediction, _, _ = maps(device=device)
    crops, _, valid = maps(device=device, seed=3, shape=(2, 7, 9))
    boxes = torch.tensor([[1.5, 0, 12, 9.5], [0, 2, 18, 13]], device=device, dtype=torch.float64)
    run = kernel("crop_ssi", backend)
    how = (valid, [1, 2], 0, 1e-6, True)
    loss, gradient, _ = run(prediction, crops, boxes, torch.tensor([wrong, 0], device=device), *how)
    assert loss.isnan()
    # What the other crop adds to the gradient is not touched.
    assert gradient.isfinite().all()
    assert (gradient[0] != 0).any()
    assert (gradient[1] == 0).all()


def test_triton_without_knobs():
    # They came with Triton 3.4.
    pytest.importorskip("triton")
    code = "import triton; vars(triton).pop('knobs', None); import distilldepth.kernels.maps as m; print(m.BLOCK)"
    for interpret, block in (("0", "1024"), ("1", "16384")):
        environment = {**os.environ, "TRITON_INTERPRET": interpret}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
        )
        assert done.stdout.strip() == block, done.stderr
