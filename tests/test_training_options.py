"""Options that make a run fit or go faster: what they must not change, and what they must."""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import json
import os
import shutil
import subprocess
import sys
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from test_distill import SMALL, _Tiny, photographs, run_cli, whole
from test_latent import tiny_parts
from test_leres import SMALL as SMALL_LERES
from test_transformers_depth import config as transformers_config
from torch import Tensor, nn
from transformers import AutoModelForDepthEstimation

from distilldepth.distill.config import load_config
from distilldepth.distill.objective import distill_any_depth_objective
from distilldepth.distill.progress import Stopwatch
from distilldepth.distill.recipe import is_random, rate_warning, settle_optimiser, usual_rate
from distilldepth.distill.record.checkpoint import read_state
from distilldepth.distill.step import DistillationStep
from distilldepth.distill.trainer import distill
from distilldepth.errors import DistillDepthError, UsageError
from distilldepth.images.crops import Regions
from distilldepth.losses import without_largest_errors
from distilldepth.losses.normalise import normalise
from distilldepth.models import create_student, load_model, save_model
from distilldepth.models.base import DepthModel, DepthOutput, ModelInfo
from distilldepth.models.encoder import keep_encoder
from distilldepth.models.families.latent import LatentUse, OneStepLatentDepth
from distilldepth.models.families.leres import LeReSDepth
from distilldepth.models.families.leres import build as build_leres
from distilldepth.models.families.light import LightDepth
from distilldepth.models.families.transformers_depth import TransformersDepth
from distilldepth.models.preprocess import Preprocessing
from distilldepth.models.recompute import run_block
from distilldepth.models.top_down import ConvNormAct
from distilldepth.ops import sample_crops
from distilldepth.settings import to_toml
from distilldepth.teachers import offload
from distilldepth.teachers.pool import TeacherPool, load_teachers
from distilldepth.teachers.spec import parse_teachers
from distilldepth.teachers.teacher import PseudoLabel, Teacher

INFO = ModelInfo("x", "transformers", "disparity", "MIT", "random")


def transformers_student(kind: str) -> TransformersDepth:
    torch.manual_seed(0)
    network = AutoModelForDepthEstimation.from_config(transformers_config(kind))
    return TransformersDepth(INFO, Preprocessing(64, 16, "square", (0.5,) * 3, (0.5,) * 3), network, square=False)


def latent_student() -> OneStepLatentDepth:
    vae, unet, context = tiny_parts()
    use = LatentUse(timestep=1, sign=-1.0, fold=1, output="clamp", train_vae=True)
    return OneStepLatentDepth(INFO, Preprocessing(64, 32, "square", (0.5,) * 3, (0.5,) * 3), vae, unet, context, use)


def leres_student() -> LeReSDepth:
    torch.manual_seed(1)
    return build_leres(SMALL_LERES, INFO)


STUDENTS = {
    "light": lambda: create_student("light-mini", seed=1),
    "topformer": lambda: create_student("topformer-tiny", seed=1),
    "leres": leres_student,
    "depth-anything": lambda: create_student("dav2-mini", seed=1),
    "transformers": lambda: transformers_student("dpt-vit"),
    "latent": latent_student,
}
SIDES = {"depth-anything": (98, 126), "transformers": (64, 64)}


def batch_of(count: int, height: int, width: int, *, windows: int = 0, seed: int = 3) -> tuple[Regions, PseudoLabel]:
    """Regions with a label of unequally many valid pixels, and windows of them."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    regions = whole(rand(count, 3, height, width))
    share = torch.linspace(0.9, 0.2, count)[:, None, None]
    label = PseudoLabel(0.2 + rand(count, height, width), rand(count, height, width) < share, inverse_depth=True)
    if windows:
        corner = rand(count, windows, 2) * torch.tensor([width / 2, height / 2])
        regions.boxes = torch.cat([corner, corner + torch.tensor([width / 2, height / 2])], 2)
        label.patch_disparity = rand(count * windows, 24, 32)
        label.patch_valid = rand(count * windows, 24, 32) < 0.7
        label.patch_valid[0] = False
        label.patch_valid[0, 2, 3] = True
    return regions, label


def make_step(student: DepthModel, **options) -> DistillationStep:
    return DistillationStep(student.train(), distill_any_depth_objective(**options), Stopwatch(torch.device("cpu")))


def saved_bytes(student: DepthModel, images: Tensor) -> tuple[DepthOutput, int]:
    """What a forward pass keeps for the backward pass, each storage once."""
    storages: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage  # Held, so that no other takes its address.
        return tensor

    weights = {parameter.untyped_storage().data_ptr() for parameter in student.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = student(images)
    return output, sum(storage.nbytes() for address, storage in storages.items() if address not in weights)


@pytest.mark.parametrize("family", STUDENTS)
def test_gradient_checkpointing_changes_memory_alone(family):
    student = STUDENTS[family]().train()
    images = torch.rand(2, 3, *SIDES.get(family, (64, 96)), generator=torch.Generator().manual_seed(2))
    found = []
    for again in (False, True):
        trained = copy.deepcopy(student)
        if again:
            trained.enable_gradient_checkpointing()
            trained = copy.deepcopy(trained)  # As the moving average does.
        assert trained.state_dict().keys() == student.state_dict().keys()
        torch.manual_seed(7)
        _, kept = saved_bytes(copy.deepcopy(trained), images)
        # In the step, whose choice of attention kernel the second pass must make too.
        torch.manual_seed(7)
        height, width = images.shape[-2:]
        outputs = make_step(trained)(whole(images), batch_of(2, height, width)[1])
        outputs.loss.backward()
        found.append((outputs.loss, trained, kept))
    (loss, plain, kept), (loss_again, checkpointed, kept_again) = found
    assert torch.equal(loss, loss_again)
    for (name, a), b in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        assert (a.grad is None and b.grad is None) or torch.equal(a.grad, b.grad), name
    moved = 0
    for (name, a), b in zip(plain.state_dict().items(), checkpointed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
        if name.endswith("num_batches_tracked"):
            moved += 1
            assert int(a) == 1
    assert (moved > 0) == (family in ("light", "topformer", "leres"))
    assert kept_again < {"depth-anything": 0.6, "transformers": 0.9, "latent": 0.9}.get(family, 0.5) * kept


def test_a_student_without_blocks_says_so(tmp_path):
    with pytest.raises(TypeError, match="has no blocks that can be computed again"):
        transformers_student("glpn").enable_gradient_checkpointing()
    with pytest.raises(TypeError, match="has no blocks"):
        DepthModel(INFO, Preprocessing(32, 8)).enable_gradient_checkpointing()


class _Blocks(_Tiny):
    """A block with batch normalisation before the convolution."""

    def __init__(self, again: bool) -> None:
        super().__init__()
        self.again, self.block = again, ConvNormAct(3, 3)

    def forward(self, images: Tensor, *, features: bool = False) -> DepthOutput:
        return super().forward(run_block(self.block, images, again=self.again))


def test_gradient_checkpointing_and_compile_together():
    regions, label = batch_of(2, 32, 48)
    results = []
    for again in (False, True):
        torch.manual_seed(0)
        step = make_step(_Blocks(again))
        if again:
            # Everything of torch.compile but the code generator, which would need a compiler and most of a minute.
            step._compiled = torch.compile(step.student.forward, backend="aot_eager")
        step(regions, label).loss.backward()
        results.append((step.student, [p.grad for p in step.student.parameters()]))
    for (name, a), b in zip(results[0][0].state_dict().items(), results[1][0].state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=name)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return photographs(tmp_path_factory.mktemp("images") / "photos")


def configured(photos, out, **flags):
    values = [value for flag, value in itertools.pairwise(SMALL) if flag == "--set"]
    fixed = {
        "teachers": "distilldepth-mini", "student": "light-mini", "size": "64x96", "batch_size": 4, "workers": 0,
        "heldout": 2, "images": [str(photos)], "steps": 3, "precision": "float32", "teacher_precision": "float32",
        "offline": True, "out": str(out),
    }  # fmt: skip
    return load_config(settings=values, flags={**fixed, **flags})


def weights_of(out) -> dict[str, Tensor]:
    return load_file(out / "student" / "model.safetensors")


def test_runs_with_and_without_gradient_checkpointing_are_the_same(photos, tmp_path):
    distill(configured(photos, tmp_path / "plain"))
    distill(configured(photos, tmp_path / "again", gradient_checkpointing=True, checkpoint_every=2))
    plain, again = weights_of(tmp_path / "plain"), weights_of(tmp_path / "again")
    assert plain.keys() == again.keys()
    assert all(torch.equal(plain[name], again[name]) for name in plain)
    # It changes nothing that is learned, so that a run may be continued with it or without it.
    distill(configured(photos, tmp_path / "again", teacher_offload=True, steps=4, resume="auto"))
    assert read_state(tmp_path / "again" / "checkpoints" / "step-00000004").changes == ["step 3: steps: 3 -> 4"]


_WITHOUT_MEDIANS = dict.fromkeys(("shared_context", "local_global", "gradient"), 0.0) | {"feature": 1.0}


@pytest.mark.parametrize("at_once", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("weights", "within"),
    [({"aligned_log": 0.5, "feature": 1.0}, 1e-3), (_WITHOUT_MEDIANS, 2e-5)],
    ids=["all", "smooth"],
)
def test_a_step_in_parts_gives_the_gradient_of_the_whole_batch(at_once, weights, within):
    """With a student without batch normalisation: terms to 1e-5, the gradient to 2e-5 where it is continuous.

    Rounding may make another pixel the median, and all of a median's gradient goes to one pixel: hence 1e-3 with all.
    """
    regions, label = batch_of(5, 98, 126, windows=2)
    label.features = {"encoder": torch.rand(5, 16, 7, 9, generator=torch.Generator().manual_seed(1))}
    label.valid[3] = False  # A sample that is skipped.
    results = []
    for size in (None, at_once):
        torch.manual_seed(0)
        options = {"weights": weights, "student_channels": 192, "drop_share": 0.1}
        step = make_step(create_student("dav2-mini", seed=1), **options, teacher_channels={"": 16})
        step.at_once = size
        outputs = step(regions, label)
        outputs.loss.backward()
        gradients = {name: p.grad for name, p in step.named_parameters() if p.grad is not None}
        results.append((outputs, gradients))
    (outputs, gradients), (parted, parted_gradients) = results
    assert outputs.terms.keys() == parted.terms.keys() >= {"feature", "anchor"}
    assert len(outputs.terms) == (6 if within > 1e-4 else 2)
    for name, value in outputs.terms.items():
        torch.testing.assert_close(parted.terms[name], value, rtol=1e-5, atol=1e-6)
    assert int(outputs.skipped) == int(parted.skipped) == 1
    assert gradients.keys() == parted_gradients.keys()
    flat, parted_flat = (torch.cat([g.flatten() for g in each.values()]) for each in (gradients, parted_gradients))
    assert float((flat - parted_flat).norm() / flat.norm()) < within


def test_a_step_in_parts_keeps_less_and_moves_statistics_once_per_part():
    regions, label = batch_of(6, 64, 96)
    kept = {}
    for size in (None, 2):
        step = make_step(create_student("light-mini", seed=1))
        step.at_once = size
        total = 0

        def keep(tensor: Tensor) -> Tensor:
            nonlocal total
            total += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            outputs = step(regions, label)
        kept[size] = total
        outputs.loss.backward()
        counted = {int(layer.num_batches_tracked) for layer in step.modules() if isinstance(layer, nn.BatchNorm2d)}
        assert counted == {1 if size is None else 3}
    assert kept[2] < 0.3 * kept[None]


def test_parts_and_blocks_that_are_computed_again_go_together():
    regions, label = batch_of(4, 64, 96)
    results = []
    for again in (False, True):
        student = create_student("topformer-tiny", seed=1)
        if again:
            student.enable_gradient_checkpointing()
        step = make_step(student)
        step.at_once = 2
        torch.manual_seed(5)
        step(regions, label).loss.backward()
        results.append(step)
    for (name, a), b in zip(results[0].named_parameters(), results[1].parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name
    states = [step.state_dict() for step in results]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.fixture
def cramped(monkeypatch):
    original = LightDepth.forward

    def forward(self, images: Tensor, *, features: bool = False) -> DepthOutput:
        output = original(self, images, features=features)
        # After its batch normalisation has seen them, so that what it noted must be taken back.
        if self.training and len(images) > forward.most:
            forward.spared -= 1
            if forward.spared < 0:
                raise forward.error
        return output

    forward.most, forward.spared = 2, 0
    forward.error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nGPU 0 has a")
    monkeypatch.setattr(LightDepth, "forward", forward)
    return forward


MORE = {"batch_size": 5, "grad_accumulation": 2, "steps": 2, "heldout": 0}


@pytest.fixture(scope="module")
def told(photos, tmp_path_factory):
    """A run that was told how many fit."""
    out = tmp_path_factory.mktemp("told") / "run"
    distill(configured(photos, out, micro_batch=2, **MORE))
    return weights_of(out)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nGPU 0 has a"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_where_memory_runs_out_the_step_is_repeated_with_fewer_images(photos, tmp_path, capsys, told, cramped, error):
    # In the second batch of the step: the gradient of the first is there, and must go.
    cramped.error, cramped.spared = error, 1
    distill(configured(photos, tmp_path / "run", **MORE))
    assert capsys.readouterr().err.count("memory ran out at step 1") == 2  # From 5 to 3, from 3 to 2.
    weights = weights_of(tmp_path / "run")
    assert all(torch.equal(weights[name], told[name]) for name in told)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["samples"] for row in rows] == [20]


def test_other_errors_end_the_run(photos, tmp_path, cramped):
    cramped.error = RuntimeError("something else")
    with pytest.raises(RuntimeError, match="something else"):
        distill(configured(photos, tmp_path / "run"))


def test_a_resumed_run_goes_on_with_as_many_images_at_once(photos, tmp_path, capsys, cramped):
    more = {"checkpoint_every": 2, "steps": 4}
    distill(configured(photos, tmp_path / "run", **more))
    error = capsys.readouterr().err
    assert error.count("memory ran out at step 1 (CUDA out of memory. Tried to allocate 20.00 MiB.)") == 1
    assert "from here on 2 of 4 images go through the student at once (micro_batch)" in error
    checkpoints = tmp_path / "run" / "checkpoints"
    assert read_state(checkpoints / "step-00000002").micro_batch == 2
    expected = weights_of(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "student")
    shutil.rmtree(checkpoints / "step-00000004")
    cramped.most = 99  # There is room again, and yet it computes as before.
    distill(configured(photos, tmp_path / "run", resume="auto", **more))
    assert "memory" not in capsys.readouterr().err
    assert all(torch.equal(expected[name], value) for name, value in weights_of(tmp_path / "run").items())
    distill(configured(photos, tmp_path / "run", resume="auto", micro_batch=3, **{**more, "steps": 6}))
    assert read_state(checkpoints / "step-00000006").micro_batch == 3
    assert "changed from step 4 on: micro_batch: 0 -> 3" in capsys.readouterr().err


def test_an_image_that_does_not_fit_is_one_line(photos, tmp_path, cramped):
    cramped.most = 0
    with pytest.raises(DistillDepthError, match=r"not enough memory for images of 64 x 96 \(CUDA out of") as caught:
        distill(configured(photos, tmp_path / "run"))
    assert "\n" not in str(caught.value)
    # 32 x 32 pixels are a single value at 1/32, of which batch normalisation cannot take the spread.
    cramped.most = 1
    with pytest.raises(DistillDepthError, match="not enough memory for images of 32 x 32"):
        distill(configured(photos, tmp_path / "other", size="32"))
    with pytest.raises(UsageError, match="too little for light-mini to normalise over; do without --micro-batch"):
        distill(configured(photos, tmp_path / "third", size="32", micro_batch=1))


def test_what_runs_out_elsewhere_is_one_line_too(photos, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory.\nMore")

    monkeypatch.setattr("distilldepth.distill.prepare.measure_agreement", fail)
    with pytest.raises(DistillDepthError, match=r"not enough memory .* \(CUDA out of memory\.\); use a smaller --size"):
        distill(configured(photos, tmp_path / "run"))


CRAMPED_PROCESS = """
import os, sys
import torch
from distilldepth.distill.config import load_config
from distilldepth.models.families.light import LightDepth
from distilldepth.models.top_down import ConvNormAct
original, passes = LightDepth.forward, [0]

def forward(self, images, *, features=False):
    most = int(sys.argv[2]) if os.environ["RANK"] == "1" else 99
    late = sys.argv[3:] and passes[0] > int(sys.argv[3])
    passes[0] += self.training
    if self.training and len(images) > (1 if late else most):
        raise torch.OutOfMemoryError("CUDA out of memory.")
    return original(self, images, features=features)

LightDepth.forward = forward
from distilldepth.distill.trainer import distill
from distilldepth.errors import DistillDepthError, UsageError
try:
    distill(load_config(file=sys.argv[1]))
except DistillDepthError as error:
    print(f"rank {os.environ['RANK']}: {error}", file=sys.stderr, flush=True)
    os._exit(1)
"""


def in_two_processes(folder, *arguments: str) -> subprocess.CompletedProcess:
    (folder / "cramped.py").write_text(CRAMPED_PROCESS)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    return subprocess.run(
        [*launcher, "cramped.py", *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


def test_several_processes_settle_it_before_the_first_step(photos, tmp_path):
    config = configured(photos, tmp_path / "run", steps=9, heldout=0, device="cpu", checkpoint_every=1)
    (tmp_path / "c.toml").write_text(to_toml(config))
    result = in_two_processes(tmp_path, "c.toml", "2", "9")
    assert result.returncode != 0
    assert result.stderr.count("2 of 4 images go through the student at once (micro_batch), since memory has no") == 1
    checkpoints = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))
    assert read_state(checkpoints[0]).micro_batch == 2
    (line,) = {line for line in result.stderr.splitlines() if line.startswith("rank 1: distill:")}
    assert "memory ran out with 2 images at once (CUDA out of memory.); continue with" in line
    assert line.endswith(f"--config {tmp_path / 'run' / 'config.toml'} --resume auto --set micro_batch=1")


class Far:
    """Stands in for the memory of a device: copies, counted, and how many of them are alive."""

    def __init__(self) -> None:
        self.moved, self.alive = 0, weakref.WeakSet()

    def __call__(self, tensor: Tensor, device: torch.device) -> Tensor:
        self.moved += 1
        there = tensor.clone()
        self.alive.add(there.untyped_storage())
        return there


def test_offloaded_teachers_come_to_the_device_one_at_a_time(monkeypatch):
    far = Far()
    monkeypatch.setattr(offload, "to_device", far)
    specs = parse_teachers("dav2-mini=7,distilldepth-mini=3")
    models = [load_model(spec.model) for spec in specs]
    home = torch.device("cpu")
    plain = [Teacher(spec, copy.deepcopy(model)) for spec, model in zip(specs, models, strict=True)]
    away = [Teacher(spec, model, offload=home) for spec, model in zip(specs, models, strict=True)]
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    resting = [{name: value.data_ptr() for name, value in model.state_dict().items()} for model in models]
    sizes = [len([*model.parameters(), *model.buffers()]) for model in models]
    for place in (0, 1, 0):
        far.moved = 0
        with away[place].used():
            for features in (("encoder",), ()):
                label, expected = (teacher[place].label(images, None, features=features) for teacher in (away, plain))
                assert torch.equal(label.disparity, expected.disparity)
                assert label.features.keys() == expected.features.keys()
            assert len(far.alive) == sizes[place]
        assert (far.moved, len(far.alive)) == (sizes[place], 0)
    with torch.inference_mode():  # As agreement is measured.
        assert torch.equal(away[0].label(images, None).disparity, plain[0].label(images, None).disparity)
    away[1].label(images, None)
    for model, addresses in zip(models, resting, strict=True):
        assert {name: value.data_ptr() for name, value in model.state_dict().items()} == addresses
    with pytest.raises(ZeroDivisionError), away[0].used():
        raise ZeroDivisionError
    assert len(far.alive) == 0


def test_offloading_on_a_cpu_moves_nothing(monkeypatch):
    far = Far()
    monkeypatch.setattr(offload, "to_device", far)
    settings = {"device": torch.device("cpu"), "offline": True, "has_depth": False, "seed": 0}
    pool = load_teachers(parse_teachers("distilldepth-mini"), offload=True, **settings)
    pool.teachers[0].label(torch.rand(1, 3, 32, 32), None)
    assert far.moved == 0


def test_a_compiled_teacher_says_the_same(monkeypatch):
    # Everything of torch.compile but the code generator, which would need a compiler and most of a minute.
    monkeypatch.setattr("torch.compile", functools.partial(torch.compile, backend="aot_eager"))
    calls = []
    (spec,) = parse_teachers("x")
    plain, compiled = Teacher(spec, _Tiny()), Teacher(spec, _Tiny(), compiled=True)
    for teacher in (plain, compiled):  # A hook is what only a model that is called itself runs.
        teacher.model.register_forward_hook(lambda *_, teacher=teacher: calls.append(teacher))
    for count, height, width in ((3, 32, 48), (2, 40, 59), (3, 32, 48)):
        images = torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(height))
        a, b = (teacher.label(images, None).disparity for teacher in (plain, compiled))
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-6)
    assert calls == [plain] * 3
    assert [*compiled.model.state_dict()] == ["layer.weight", "layer.bias"]


def test_a_teacher_labels_in_parts():
    teacher = Teacher(parse_teachers("distilldepth-mini")[0], load_model("distilldepth-mini"))
    images = torch.rand(5, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    whole_label = teacher.label(images, None, features=("encoder",))
    for parts in (2, 5, 9):
        teacher.parts = parts
        label = teacher.label(images, None, features=("encoder",))
        torch.testing.assert_close(label.disparity, whole_label.disparity, rtol=1e-5, atol=1e-6)
        expected = whole_label.features["encoder"]
        # Of numbers up to 23 that cancel: another product on one image, as with two threads of some processors.
        torch.testing.assert_close(label.features["encoder"], expected, rtol=1e-4, atol=1e-5 * float(expected.std()))


@pytest.mark.parametrize("key", ["compile", "compile_teachers"])
def test_compiling_without_a_compiler_is_one_line(photos, tmp_path, monkeypatch, key):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(DistillDepthError, match=f"^distill: {key} needs a C.. compiler, and none was found"):
        distill(configured(photos, tmp_path / "run", **{key: True}))


def by_hand(prediction: np.ndarray, target: np.ndarray, valid: np.ndarray, share: float) -> np.ndarray:
    """What `without_largest_errors` means, one image and one pixel after another."""
    kept = valid.copy()
    for image in range(len(kept)):
        places = [tuple(place) for place in np.argwhere(valid[image])]
        if not places:
            continue

        def normalised(values: np.ndarray, image: int = image, places: list = places) -> dict:
            chosen = sorted(float(values[image][place]) for place in places)
            center = chosen[(len(chosen) - 1) // 2]
            spread = sum(abs(value - center) for value in chosen) / len(chosen)
            return {place: (float(values[image][place]) - center) / (spread + 1e-6) for place in places}

        a, b = normalised(prediction), normalised(target)
        worst = sorted(places, key=lambda place: abs(a[place] - b[place]), reverse=True)
        for place in worst[: int(share * len(places) + 1e-6)]:
            kept[image][place] = False
    return kept


def test_the_largest_errors_are_left_out():
    generator = np.random.default_rng(4)
    target = generator.gamma(2.0, size=(4, 9, 13))
    prediction = 3 * target - 1 + generator.standard_normal(target.shape) ** 3
    valid = generator.random(target.shape) < np.array([1, 0.7, 0.1, 0])[:, None, None]
    for share in (0.0, 0.1, 0.29, 0.5, 0.99):
        found = without_largest_errors(*map(torch.tensor, (prediction, target, valid)), share=share)
        assert np.array_equal(found.numpy(), by_hand(prediction, target, valid, share)), share
    assert np.array_equal(without_largest_errors(*map(torch.tensor, (prediction, target)), share=0.1).numpy(),
                          by_hand(prediction, target, np.ones_like(valid), 0.1))  # fmt: skip
    for share in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match="share must be at least 0 and below 1"):
            without_largest_errors(torch.rand(1, 2, 3), torch.rand(1, 2, 3), share=share)
    assert without_largest_errors(torch.rand(0, 2, 3), torch.rand(0, 2, 3), share=0.5).shape == (0, 2, 3)


@given(
    st.integers(1, 6), st.integers(1, 7), st.floats(0, 0.999), st.floats(0, 1), st.booleans(), st.integers(0, 1 << 32)
)
def test_as_many_as_told_are_left_out_and_none_is_better(height, width, share, density, ties, seed):
    generator = torch.Generator().manual_seed(seed)
    prediction, target = (torch.randn(3, height, width, generator=generator) for _ in range(2))
    if ties:
        prediction, target = prediction.round(), target.round()
    valid = torch.rand(3, height, width, generator=generator) < density
    kept = without_largest_errors(prediction, target, valid, share=share)
    assert not (kept & ~valid).any()
    error = (normalise(prediction, valid) - normalise(target, valid)).abs()
    for image in range(3):
        count = int(valid[image].sum())
        left = valid[image] & ~kept[image]
        assert abs(int(left.sum()) - share * count) < 1 + 1e-5
        assert int(left.sum()) < max(count, 1)
        if left.any():
            assert error[image][left].min() >= error[image][kept[image]].max()


def test_maps_of_560_pixels_lose_their_share():
    generator = torch.Generator().manual_seed(0)
    prediction, target = (torch.rand(2, 560, 560, generator=generator) for _ in range(2))
    kept = without_largest_errors(prediction, target, share=0.1)
    assert kept.flatten(1).sum(1).tolist() == [560 * 560 * 9 // 10] * 2


def test_no_term_sees_what_is_dropped():
    """A wrong region and wrong windows, a tenth of each, change nothing; without the option they do."""
    regions, label = batch_of(3, 40, 60, windows=2)
    label.valid[:], label.patch_valid[:] = True, True
    generator = torch.Generator().manual_seed(9)
    prediction = label.disparity + 0.01 * torch.randn(3, 40, 60, generator=generator)
    label.patch_disparity = sample_crops(prediction, regions.boxes.flatten(0, 1), regions.image_index, (24, 32))
    wrong = dataclasses.replace(label, disparity=label.disparity.clone(), patch_disparity=label.patch_disparity.clone())
    wrong.disparity[:, :4] = wrong.disparity[:, :4] + 5
    wrong.patch_disparity[:, :2] -= 5
    found = {}
    for share in (0.0, 0.15):
        objective = distill_any_depth_objective(weights={"anchor": 0.0}, drop_share=share)
        student = prediction.clone().requires_grad_()
        loss, terms = objective(DepthOutput(student), wrong, regions)
        loss.backward()
        assert set(terms) == {"shared_context", "local_global", "gradient"}
        assert student.grad.isfinite().all()
        found[share] = terms
    for name, value in found[0.15].items():
        assert value < 0.5 * found[0.0][name], name
    assert label.valid.all()  # What is dropped is dropped for one loss.


def encoder_and_rest(model: DepthModel) -> tuple[set[str], set[str]]:
    encoder = {id(parameter) for parameter in model.parameter_groups()["encoder"]}
    names = dict(model.named_parameters())
    inside = {name for name, parameter in names.items() if id(parameter) in encoder}
    return inside, names.keys() - inside


@pytest.mark.parametrize("name", ["distilldepth-mini", "dav2-mini", "topformer", "transformers"])
def test_an_encoder_alone_is_kept(tmp_path, name):
    if name == "topformer":
        source = create_student("topformer-tiny", seed=5)
        for layer in source.modules():
            if isinstance(layer, nn.BatchNorm2d):
                nn.init.uniform_(layer.weight), nn.init.uniform_(layer.running_mean)
        source = load_model(save_model(source, tmp_path / "model"))
    elif name == "transformers":
        source = transformers_student("dpt-vit")
    else:
        source = load_model(name)
    before = {key: value.clone() for key, value in source.state_dict().items()}
    torch.manual_seed(1)
    made = keep_encoder(source, seed=3)
    state = made.state_dict()
    assert torch.equal(torch.rand(1), torch.rand(1, generator=torch.Generator().manual_seed(1)))
    assert all(torch.equal(value, before[key]) for key, value in source.state_dict().items())
    encoder, rest = encoder_and_rest(source)
    assert encoder
    assert all(torch.equal(state[key], before[key]) for key in encoder)
    drawn = {key for key in rest if before[key].dim() > 1}
    assert drawn
    assert not any(torch.equal(state[key], before[key]) for key in drawn)
    same, other = keep_encoder(source, seed=3).state_dict(), keep_encoder(source, seed=4).state_dict()
    assert all(torch.equal(same[key], state[key]) for key in state)
    assert not any(torch.equal(other[key], state[key]) for key in drawn)
    for key in before:  # Running statistics belong to the weights beside them.
        if key.endswith("running_mean") and key.replace("running_mean", "weight") in encoder:
            assert torch.equal(state[key], before[key])
        elif key.endswith("running_mean"):
            assert not state[key].any()
    assert made.info.source == f"{source.info.source}, of it the encoder alone"
    assert made.training


def test_rates_of_a_trained_encoder_under_a_random_decoder():
    made = keep_encoder(load_model("distilldepth-mini"), seed=0)
    assert is_random(made)  # Hence its output is drawn to the default range, not held where chance has put it.
    assert usual_rate(made) == (2e-3, 0.1)
    settled = settle_optimiser(load_config().optimiser, made)
    assert (settled.lr, settled.encoder_lr_share) == (2e-3, 0.1)
    assert rate_warning(settled, made) is None
    slow = dataclasses.replace(settled, lr=5e-5)
    assert "starts from random weights in its decoder, for which optimiser.lr=0.002 and" in rate_warning(slow, made)
    assert usual_rate(keep_encoder(load_model("dav2-mini"), seed=0)) == (3e-4, 0.1)


def test_what_has_no_encoder_to_keep_says_so(photos, tmp_path):
    with pytest.raises(DistillDepthError, match="has no encoder of its own to start from"):
        keep_encoder(latent_student(), seed=0)
    with pytest.raises(UsageError, match="'topformer-tiny' is an architecture without weights"):
        distill(configured(photos, tmp_path / "run", student="topformer-tiny", initial_weights="encoder"))


def test_seven_to_three():
    """The preset's teachers: the share, and the same draw in every process and after every resume."""
    specs = parse_teachers(load_config(preset="distill-any-depth").teachers)
    assert [(spec.model, spec.weight) for spec in specs] == [("dav2:large", 7.0), ("genpercept", 3.0)]
    drawn = {}
    for process, seed in ((0, 5), (1, 5), (0, 6)):
        pool = TeacherPool([_Named(spec.model, spec.weight) for spec in specs], seed=seed)
        names = [pool.draw(step).name for step in range(3000)]
        assert names[1234:1300] == [pool.draw(step).name for step in range(1234, 1300)]
        # Three deviations of 3000 draws.
        assert abs(names.count("dav2:large") / 3000 - 0.7) < 3 * (0.7 * 0.3 / 3000) ** 0.5
        drawn[process, seed] = names
    assert drawn[0, 5] == drawn[1, 5] != drawn[0, 6]


class _Named:
    def __init__(self, name: str, weight: float) -> None:
        self.name, self.weight = name, weight


def test_all_of_it_on_the_command_line(photos, tmp_path):
    source = save_model(load_model("distilldepth-mini"), tmp_path / "source")
    arguments = ["--teachers", "distilldepth-mini=7,dav2-mini=3", "--images", str(photos), "--steps", "2"]
    arguments += [*SMALL, "--student", str(source), "--initial-weights", "encoder", "--gradient-checkpointing"]
    arguments += ["--teacher-offload", "--micro-batch", "2", "--set", "loss.drop_share=0.1", "--precision", "float32"]
    arguments += ["--set", "optimiser.lr=0", "--heldout", "2"]
    result = run_cli(*arguments, "--out", "run", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    config = load_config(file=tmp_path / "run" / "config.toml")
    assert (config.gradient_checkpointing, config.teacher_offload, config.micro_batch) == (True, True, 2)
    assert (config.loss.drop_share, config.initial_weights) == (0.1, "encoder")
    assert "of it the encoder alone" in (tmp_path / "run" / "student" / "README.md").read_text()
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(row["loss"]) for row in rows)
    assert read_state(tmp_path / "run" / "checkpoints" / "step-00000002").micro_batch == 2
    printed = run_cli(*arguments, "--out", "run", "--compile-teachers", "--print-config", cwd=tmp_path)
    (tmp_path / "printed.toml").write_text(printed.stdout)
    assert load_config(file=tmp_path / "printed.toml").compile_teachers
    for more, words in (
        (("--micro-batch", "-1"), "micro_batch must be at least 0"),
        (("--initial-weights", "encodr"), "initial_weights must be one of random, pretrained, encoder"),
        (("--set", "loss.drop_share=1"), "loss.drop_share must be in [0, 1)"),
    ):
        result = run_cli(*arguments, *more, "--out", "new", cwd=tmp_path)
        assert (result.returncode, "Traceback" in result.stderr) == (2, False)
        assert words in result.stderr
