"""Checkpoints as people's training scripts write them: loaded for what they are, or refused in one line."""

from __future__ import annotations

import argparse
import json
import os
import re
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_depth_anything import official_state, reference_values, tiny_network
from torch import Tensor

from distilldepth.errors import DistillDepthError, UsageError
from distilldepth.models import CheckpointWarning, load_model

OFFICIAL_BEST = {
    "d1": 0.9, "d2": 0.97, "d3": 0.99, "abs_rel": 0.05, "sq_rel": 0.3,
    "rmse": 2.5, "rmse_log": 0.1, "log10": 0.03, "silog": 9.0,
}  # fmt: skip


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return official_state(tiny_network())


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(2, 3, 70, 98, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def logits(images) -> Tensor:
    """What the head of `tiny_network` says before its last function, `(2, 70, 98)`."""
    network = tiny_network()
    network.head.activation2 = torch.nn.Identity()
    with torch.no_grad():
        torch.nn.init.constant_(network.head.conv3.bias, 0.3)
    model = load_built(network)
    values = model(images).values.detach()
    assert (values < 0).any()
    assert (values > 0).any()
    return values


@pytest.fixture(scope="module")
def metric_state() -> dict[str, Tensor]:
    """The same weights as those of `logits`; which function follows is not in them."""
    state = official_state(tiny_network())
    state["depth_head.scratch.output_conv2.2.bias"].fill_(0.3)
    return state


def load_built(network):
    """The network with the official positions, as every official file is read."""
    from distilldepth.models.base import ModelInfo
    from distilldepth.models.families.depth_anything import DepthAnythingDepth
    from distilldepth.models.preprocess import Preprocessing

    info = ModelInfo("t", "depth-anything", "disparity", "x", "y")
    return DepthAnythingDepth(info, Preprocessing(70, 14), network, official_positions=True).eval()


def under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


def changed(state: dict[str, Tensor], by: float = 0.5) -> dict[str, Tensor]:
    """The same network with another last bias, so that it can be told from `state`."""
    other = dict(state)
    key = "depth_head.scratch.output_conv2.2.bias"
    other[key] = state[key] + by
    return other


def bias(model) -> float:
    return model.state_dict()["network.head.conv3.bias"].item()


def quietly(spec, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("error", CheckpointWarning)
        return load_model(spec, **options)


# --- metric or relative ---


def official_latest(state, **extra) -> dict:
    """What the official metric training saves."""
    optimizer = {"state": {0: {"exp_avg": torch.ones(3), "step": torch.tensor(1.0)}}, "param_groups": [{"lr": 5e-6}]}
    return {
        "model": under("module.", state),
        "optimizer": optimizer,
        "epoch": 3,
        "previous_best": OFFICIAL_BEST,
        **extra,
    }


@pytest.mark.parametrize("max_depth", [80, 20.0, 2.5, 0.4])
@pytest.mark.parametrize("how", ["argument", "name"])
def test_a_metric_model_is_the_sigmoid_times_max_depth(metric_state, images, logits, max_depth, how):
    torch.save(official_latest(metric_state), "latest.pth")
    if how == "argument":
        model = quietly("latest.pth", max_depth=max_depth)
    else:
        model = quietly(f"dav2-metric:{max_depth}@latest.pth")
    assert model.info.quantity == "metric_depth"
    values = model(images).values
    torch.testing.assert_close(values, max_depth / (1 + torch.exp(-logits)), rtol=1e-5, atol=1e-6)
    assert values.max() < max_depth


def test_max_depth_survives_saving(metric_state, images):
    from distilldepth.models import save_model

    torch.save(metric_state, "m.pth")
    model = quietly("m.pth", max_depth=2.5)
    again = load_model(save_model(model, "saved"))
    assert again.architecture["max_depth"] == 2.5
    assert again.info.quantity == "metric_depth"
    assert torch.equal(again(images).values, model(images).values)


def test_what_the_official_metric_training_writes_is_never_taken_for_disparity(metric_state):
    torch.save(official_latest(metric_state), "latest.pth")
    with pytest.raises(
        DistillDepthError, match=r"is metric \(the scores abs_rel, d1, d2 in its previous_best\), and no"
    ) as caught:
        load_model("latest.pth")
    for words in ("dav2-metric:METRES@latest.pth", "--model-max-depth", "20 for Hypersim, 80 for Virtual KITTI"):
        assert words in str(caught.value)
    with pytest.raises(DistillDepthError, match="no max_depth"):
        load_model("dav2@latest.pth")
    with pytest.raises(DistillDepthError, match="no max_depth"):
        load_model("dav2-metric@latest.pth")
    assert quietly("dav2-relative@latest.pth").info.quantity == "disparity"


@pytest.mark.parametrize(
    "settings",
    [
        {"args": argparse.Namespace(max_depth=50.0, dataset="vkitti")},
        {"hyper_parameters": {"model": {"max_depth": 50}}},
        {"config": OrderedDict(max_depth=np.float32(50))},
        {"args": {"max_depth": "50"}},
    ],
)
def test_settings_beside_the_weights_say_max_depth(metric_state, images, logits, settings):
    torch.save(official_latest(metric_state, **settings), "latest.pth")
    with pytest.warns(
        CheckpointWarning, match=r"up to 50 m, because of the scores .* and max_depth 50 in its settings"
    ):
        model = load_model("latest.pth")
    assert "dav2-relative@latest.pth" in model.info.notes[0]
    torch.testing.assert_close(model(images).values, 50 * logits.sigmoid(), rtol=1e-5, atol=1e-5)
    assert quietly("latest.pth", max_depth=7).architecture["max_depth"] == 7


def test_settings_that_disagree_are_not_guessed_between(metric_state):
    torch.save(official_latest(metric_state, args={"max_depth": 50}, config={"max_depth": 60}), "latest.pth")
    with pytest.raises(DistillDepthError, match=r"max_depth 50, 60 in its settings.*several max_depth"):
        load_model("latest.pth")


def test_max_depth_in_the_metadata_of_safetensors(metric_state):
    save_file(metric_state, "a.safetensors", metadata={"format": "pt", "max_depth": "35"})
    with pytest.warns(CheckpointWarning, match="up to 35 m"):
        assert load_model("a.safetensors").architecture["max_depth"] == 35


@pytest.mark.parametrize(
    ("name", "max_depth"),
    [
        ("depth_anything_v2_metric_hypersim_vits", 20),
        ("depth_anything_v2_metric_vkitti_vitl", 80),
        ("mine-metric-outdoor", 80),
        ("Metric_Indoor", 20),
        ("depth_anything_v2_vits", None),
        ("depth_anything_vitb14", None),
        ("distill-any-depth-small", None),
    ],
)
def test_file_names_that_say_it_are_believed_in_silence(state, name, max_depth):
    torch.save(state, f"{name}.pth")
    assert quietly(f"{name}.pth").architecture["max_depth"] == max_depth


def test_metric_in_a_name_without_a_range_is_refused(state):
    torch.save(state, "metric_garden.pth")
    with pytest.raises(DistillDepthError, match=r"is metric \(the word metric in its name\), and no max_depth"):
        load_model("metric_garden.pth")
    assert quietly("metric_garden.pth", max_depth=3).info.quantity == "metric_depth"


@pytest.mark.parametrize("name", ["mine", "geometric_indoor", "hypersim"])
def test_what_cannot_be_told_is_said(state, name):
    torch.save(state, f"{name}.pth")
    with pytest.warns(CheckpointWarning, match="does not say whether it predicts disparity or metres") as caught:
        model = load_model(f"{name}.pth")
    assert model.info.quantity == "disparity"
    assert model.info.notes == (str(caught[0].message),)
    assert f"dav2-metric:METRES@{name}.pth" in model.info.notes[0]
    assert f"dav2-relative@{name}.pth" in model.info.notes[0]


def test_a_name_that_the_file_contradicts(state):
    torch.save(official_latest(state), "latest.pth")
    with pytest.raises(DistillDepthError, match=r"looks metric \(the scores.*'dav2-small' predicts disparity"):
        load_model("dav2-small@latest.pth")
    with pytest.raises(UsageError, match="'dav2-small' predicts disparity, and has no max_depth"):
        load_model("dav2-small@latest.pth", max_depth=80)
    with pytest.raises(DistillDepthError, match="name the right size"):
        load_model("dav2-metric-outdoor-small@latest.pth", max_depth=60)


@pytest.mark.parametrize(
    ("max_depth", "error", "message"),
    [
        (0, UsageError, "max_depth must be from 0.001"),
        (-80, UsageError, "max_depth must be from 0.001"),
        (float("nan"), UsageError, "max_depth must be from 0.001"),
        (float("inf"), UsageError, "max_depth must be from 0.001"),
        (True, TypeError, "max_depth must be a number of metres, got True"),
        ([80], TypeError, "max_depth must be a number of metres"),
    ],
)
def test_wrong_max_depth(state, max_depth, error, message):
    torch.save(state, "a.pth")
    with pytest.raises(error, match=message):
        load_model("a.pth", max_depth=max_depth)


@pytest.mark.parametrize("text", ["", "eighty", "-1", "nan", "1e9"])
def test_wrong_max_depth_in_a_name(state, text):
    torch.save(state, "a.pth")
    with pytest.raises(UsageError, match="max_depth must be"):
        load_model(f"dav2-metric:{text}@a.pth")


def test_contradicting_max_depths(state):
    torch.save(state, "a.pth")
    for spec in ("dav2-metric:20@a.pth", "dav2-relative@a.pth"):
        with pytest.raises(UsageError, match="max_depth 80 contradict each other"):
            load_model(spec, max_depth=80)
    assert quietly("dav2-metric:80@a.pth", max_depth=80).architecture["max_depth"] == 80


@pytest.mark.parametrize(
    "spec", ["distilldepth-mini", "dav2-mini", "genpercept-mini", "folder", "dav2-metric:9@folder"]
)
def test_max_depth_is_for_files_that_do_not_say_it(spec):
    tiny_network(metric=True).save_pretrained("folder")
    with pytest.raises(UsageError, match="says itself what its numbers are; leave max_depth out"):
        load_model(spec, max_depth=9)


# --- wrappers ---

WRAPPED = {
    "plain": lambda s: s,
    "ddp": lambda s: under("module.", s),
    "compile": lambda s: under("_orig_mod.", s),
    "compiled, then ddp": lambda s: under("module._orig_mod.", s),
    "ddp, then compiled": lambda s: {"model": under("_orig_mod.module.", s)},
    "two of ddp": lambda s: under("module.module.", s),
    "compiled parts": lambda s: {re.sub(r"^(pretrained|depth_head)", r"\1._orig_mod", k): v for k, v in s.items()},
    "inner blocks": lambda s: {re.sub(r"(blocks\.\d+)", r"\1._checkpoint_wrapped_module", k): v for k, v in s.items()},
    "ddp parts": lambda s: {k.replace("depth_head.", "depth_head.module."): v for k, v in s.items()},
    "lightning": lambda s: {"state_dict": under("model.", s), "epoch": 1, "hyper_parameters": {"lr": 1}, "loops": {}},
    "lightning net": lambda s: {"state_dict": under("net._orig_mod.", s), "pytorch-lightning_version": "2.5"},
    "lightning with a loss": lambda s: {"state_dict": under("model.", s) | {"loss.weight": torch.ones(2)}},
    "averaged": lambda s: {"n_averaged": torch.tensor(5), **under("module.", s)},
    "averaged at the top": lambda s: {"n_averaged": torch.tensor(5), **s},
    "shadow": lambda s: {"ema": {"decay": 0.99, "num_updates": 3, "shadow": s}},
    "ema prefix": lambda s: {"state_dict": under("ema_model.", s)},
    "own": lambda s: {"depth_anything": s},
    "own prefix": lambda s: under("depth_anything.", s),
    "unheard of": lambda s: {"a": {"b": [{"c": under("d.e.f.", s)}]}},
    "namespace": lambda s: {"state": argparse.Namespace(best=s)},
    "counters beside": lambda s: {**s, "epoch": 3, "optimizer": {"state": {}}, "args": argparse.Namespace(lr=1)},
    "numpy": lambda s: {"model": {key: value.numpy() for key, value in s.items()}},
    "parameters": lambda s: {key: torch.nn.Parameter(value) for key, value in s.items()},
    **{name: lambda s, name=name: {name: s, "epoch": np.int64(3)} for name in (
        "model", "state_dict", "model_state_dict", "model_state", "net", "network", "student", "teacher", "weights",
        "params", "ema", "model_ema", "params_ema", "state_dict_ema", "generator", "best_model", "module",
    )},
}  # fmt: skip


@pytest.mark.parametrize("name", WRAPPED)
def test_weights_are_found_in_any_wrapping(state, images, name):
    torch.save(WRAPPED[name](state), "depth_anything_v2_mine.pth")
    model = quietly("depth_anything_v2_mine.pth")
    assert model.info.notes == ()
    expected = load_built(tiny_network())(images).values
    torch.testing.assert_close(model(images).values, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("content", "taken", "left"),
    [
        (lambda a, b: {"model": b, "ema": a}, "'ema'", "'model'"),
        (lambda a, b: {"ema": a, "model": b}, "'ema'", "'model'"),
        (lambda a, b: {"state_dict": under("model.", b) | under("ema_model.module.", a)}, "ema_model.", "model."),
        (lambda a, b: under("online_model.", b) | under("ema_model.", a), "ema_model.", "online_model."),
        (lambda a, b: {"model": b, "swa": {"n_averaged": torch.tensor(3), **under("module.", a)}}, "'swa'", "'model'"),
        (lambda a, b: {"teacher": b, "student": a}, "'student'", "'teacher'"),
        (lambda a, b: under("teacher.", b) | under("student.", a), "student.", "teacher."),
        (lambda a, b: {"model": b, "teacher": dict(b), "student_ema": a}, "'student_ema'", "'model', 'teacher'"),
    ],
)
def test_the_moving_average_goes_first_and_a_teacher_last(state, content, taken, left):
    torch.save(content(state, changed(state)), "depth_anything_v2_mine.pth")
    with pytest.warns(CheckpointWarning, match="was taken") as caught:
        model = load_model("depth_anything_v2_mine.pth")
    assert bias(model) == state["depth_head.scratch.output_conv2.2.bias"].item()
    chosen, _, others = str(caught[0].message).partition("was taken, and not")
    assert taken in chosen
    assert left in others
    assert model.info.notes == (str(caught[0].message),)


def test_the_same_weights_twice_are_one(state):
    torch.save({"model": state, "net": {k: v.clone() for k, v in state.items()}}, "depth_anything_v2_mine.pth")
    assert quietly("depth_anything_v2_mine.pth").info.notes == ()


def test_two_networks_of_equal_rank_are_not_chosen_between(state):
    torch.save({"model": state, "best_model": changed(state)}, "a.pth")
    with pytest.raises(DistillDepthError, match=r"holds several networks.*'model', 'best_model'; save one of them"):
        load_model("a.pth")


def test_an_unknown_checkpoint_lists_what_it_holds():
    many = {f"layer{i}.weight": torch.ones(2) for i in range(500)}
    torch.save({"model": many, "epoch": 3, **{f"extra{i}": i for i in range(99)}}, "a.pth")
    with pytest.raises(DistillDepthError, match="not a checkpoint of a known model") as caught:
        load_model("a.pth")
    message = str(caught.value)
    assert "'model' ('layer0.weight', 'layer1.weight', 'layer2.weight' and 497 more), 'epoch', 'extra0'" in message
    assert "and 95 more" in message
    assert len(message) < 700
    assert "\n" not in message


def test_a_missing_tensor_is_still_missed_below_a_prefix(state):
    del (short := dict(state))["depth_head.scratch.output_conv1.bias"]
    torch.save({"state_dict": under("model.", short)}, "depth_anything_v2_mine.pth")
    with pytest.raises(DistillDepthError, match=r"1 missing: head\.conv1\.bias"):
        load_model("depth_anything_v2_mine.pth")


def test_optimiser_states_are_no_weights(state):
    content = {"model": state, "optimizer": {"exp_avg": changed(state)}, "ema_optimizer": {"x": changed(state)}}
    torch.save(content, "depth_anything_v2_mine.pth")
    assert bias(quietly("depth_anything_v2_mine.pth")) == bias(load_built(tiny_network()))


def test_many_names_take_no_time_that_grows_with_their_square():
    torch.save({f"a{i}.b{i}.c": torch.ones(1) for i in range(20_000)}, "a.pth")
    with pytest.raises(DistillDepthError, match="not a checkpoint of a known model"):
        load_model("a.pth")


def test_a_dictionary_that_holds_itself(state):
    content: dict = {"model": state}
    content["self"] = content
    torch.save(content, "depth_anything_v2_mine.pth")
    assert quietly("depth_anything_v2_mine.pth").info.quantity == "disparity"


# --- what lies beside the weights ---


@pytest.mark.parametrize("module", ["numpy.core", "numpy._core"])
def test_numpy_of_any_version_is_read(state, module):
    """The name of numpy's inner module is the only thing that differs, so it is exchanged in the pickle."""
    content = {
        "model": state,
        "best": np.float64(0.25),
        "half": np.float16(1.5),
        "flag": np.bool_(True),
        "words": np.str_("ü"),
        "array": np.arange(6, dtype=">f4").reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "empty": np.zeros((0, 3)),
        "objects": np.array([{"a": 1}, None], dtype=object),
        "dtype": np.dtype("<i2"),
        "type": np.float32,
        "args": argparse.Namespace(lr=np.float32(0.5), out=Path("runs/a")),
    }
    torch.save(content, "plain.pth")
    with zipfile.ZipFile("plain.pth") as plain, zipfile.ZipFile("depth_anything_v2_mine.pth", "w") as renamed:
        for item in plain.infolist():
            data = plain.read(item)
            if item.filename.endswith("data.pkl"):
                data = re.sub(rb"numpy\._?core\.", module.encode() + b".", data)
                assert module.encode() + b".multiarray" in data
            renamed.writestr(item.filename, data)
    assert quietly("depth_anything_v2_mine.pth").info.quantity == "disparity"

    from distilldepth.models.files import read_weights

    read, _ = read_weights(Path("depth_anything_v2_mine.pth"))
    assert [read[key] for key in ("best", "half", "flag", "words")] == [0.25, 1.5, True, "ü"]
    assert np.array_equal(read["array"].array, content["array"])
    assert np.array_equal(read["fortran"].array, content["fortran"])
    assert read["empty"].array.shape == (0, 3)
    assert read["objects"].array is None
    assert vars(read["args"])["lr"] == 0.5


class Bomb:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "bomb",
    [
        Bomb(os.system, "touch EXPLODED"),
        Bomb(exec, "open('EXPLODED', 'w')"),
        Bomb(np.load, "EXPLODED.npy"),
        Bomb(np.save, "EXPLODED", 1),
        Bomb(argparse.FileType("w"), "EXPLODED"),
    ],
)
def test_nothing_else_is_run(state, bomb):
    for place in ({"model": state, "args": bomb}, {"args": argparse.Namespace(lr=bomb), "best": np.float64(1)}):
        torch.save(place, "a.pth")
        with pytest.raises(DistillDepthError, match=r"holds other objects beside tensors \(") as caught:
            load_model("a.pth")
        assert "\n" not in str(caught.value)
        assert "add_safe_globals" not in str(caught.value)
        assert not list(Path().glob("EXPLODED*"))


def test_the_inert_stand_ins_are_gone_after_reading(state):
    """Whoever uses torch in the same process keeps its own list of what may be read."""
    torch.save({"model": state, "best": np.float64(1)}, "depth_anything_v2_mine.pth")
    before = set(torch.serialization.get_safe_globals())
    load_model("depth_anything_v2_mine.pth")
    assert set(torch.serialization.get_safe_globals()) == before


def test_an_array_with_wrong_sizes_is_refused():
    """A hostile shape never reaches numpy's memory."""
    from distilldepth.models.files import NumpyArray, _NumpyType

    kind = _NumpyType("f4")
    kind.__setstate__((3, "<", None))
    for shape, data in (((1 << 40,), bytes(4)), ((-1, -1), bytes(4)), ((2, 3), bytes(20))):
        with pytest.raises(Exception, match="number of bytes"):
            NumpyArray().__setstate__((1, shape, kind, False, data))
    NumpyArray().__setstate__((1, (2, 3), kind, False, bytes(24)))


# --- folders ---


@pytest.mark.parametrize("name", ["depth_anything_v2_vits.pth", "model.safetensors", "pytorch_model.bin", "last.ckpt"])
def test_a_folder_with_one_file_of_weights_is_that_file(state, images, name):
    Path("distill-any-depth").mkdir()
    (save_file if name.endswith("safetensors") else torch.save)(state, f"distill-any-depth/{name}")
    Path("distill-any-depth/README.md").touch()
    model = quietly("./distill-any-depth")
    assert model.info.name == "distill-any-depth"
    torch.testing.assert_close(model(images).values, load_built(tiny_network())(images).values, rtol=1e-5, atol=1e-6)
    assert quietly("dav2-metric:30@./distill-any-depth").architecture["max_depth"] == 30


def test_a_folder_with_several_files_names_them(state):
    Path("f").mkdir()
    for name in ("b.pth", "a.safetensors", "c.bin"):
        Path("f", name).write_bytes(b"x")
    with pytest.raises(
        DistillDepthError, match=r"f holds 3 files of weights .*\(a\.safetensors, b\.pth, c\.bin\); name"
    ):
        load_model("f")


def test_reference_is_transformers_own(images):
    """`load_built` without its positions is the network that transformers runs."""
    network = tiny_network()
    square = images[..., :70]
    torch.testing.assert_close(load_built(network)(square).values, reference_values(tiny_network(), square))


# --- the command line ---


def test_the_option_of_predict_and_evaluate(state, images):
    from click.testing import CliRunner
    from PIL import Image

    from distilldepth.cli.main import cli

    Image.fromarray((images[0, :, :30, :40].permute(1, 2, 0) * 255).byte().numpy()).save("a.png")
    torch.save(official_latest(state), "latest.pth")
    for model in (
        ["--model", "latest.pth", "--model-max-depth", "2.5"],
        ["--model", "dav2@latest.pth", "--model-max-depth", "2.5"],
        ["--model", "dav2-metric:2.5@latest.pth"],
    ):
        done = CliRunner().invoke(cli, ["predict", "a.png", "-o", "a.npy", "--precision", "float32", *model])
        assert done.exit_code == 0, done.output
        assert ": metric_depth" in done.stderr
        values = np.load("a.npy")
        expected = load_model("latest.pth", max_depth=2.5).predict("a.png").values
        np.testing.assert_allclose(values, expected, rtol=1e-5)
    done = CliRunner().invoke(cli, ["evaluate", "--data", "scenes:1", "--json", "r.json", *model[:2], "--size", "70"])
    assert done.exit_code == 0, done.output
    assert json.loads(Path("r.json").read_text())["metadata"]["model"]["quantity"] == "metric_depth"
    arguments = ["--model", "latest.pth", "--model-max-depth", "2.5", "--size", "70", "--json", "s.json"]
    done = CliRunner().invoke(cli, ["evaluate", "--data", "scenes:1", *arguments])
    assert done.exit_code == 0, done.output
    assert json.loads(Path("s.json").read_text())["mean"] == json.loads(Path("r.json").read_text())["mean"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--model", "latest.pth"], 1, "is metric"),
        (["--model", "latest.pth", "--model-max-depth", "0"], 2, "--model-max-depth"),
        (["--model", "dav2-mini", "--model-max-depth", "9"], 2, "--model-max-depth needs a file"),
        (["--model", "dav2-metric:8@latest.pth", "--model-max-depth", "9"], 2, "leave one of the two out"),
    ],
)
@pytest.mark.parametrize("command", [["predict", "a.png", "-o", "b.png"], ["evaluate", "--data", "scenes:1"]])
def test_the_option_is_refused_where_it_makes_no_sense(state, command, arguments, code, words):
    from click.testing import CliRunner
    from PIL import Image

    from distilldepth.cli.main import cli

    Image.new("RGB", (40, 30)).save("a.png")
    torch.save(official_latest(state), "latest.pth")
    done = CliRunner().invoke(cli, [*command, *arguments, "--offline"])
    assert done.exit_code == code, done.output
    assert words in done.stderr
    assert len([line for line in done.stderr.splitlines() if "error:" in line]) == 1


def test_teachers_are_told_one_by_one(state):
    from distilldepth.teachers.pool import load_teachers
    from distilldepth.teachers.spec import check_known, parse_teachers

    torch.save(official_latest(state), "latest.pth")
    torch.save(changed(state), "other.pth")
    specs = parse_teachers("dav2-metric:2.5@latest.pth=3,dav2-relative@other.pth")
    check_known(specs)
    pool = load_teachers(specs, device=torch.device("cpu"), offline=True, has_depth=False, seed=0)
    assert [teacher.info.quantity for teacher in pool.teachers] == ["metric_depth", "disparity"]
    assert [teacher.weight for teacher in pool.teachers] == [3, 1]
    assert pool.teachers[0].model.architecture["max_depth"] == 2.5


@pytest.mark.parametrize(
    "beside",
    [
        lambda state: {"model_ema": {name.replace(".", ""): value for name, value in state.items()}},
        lambda state: {"ema": {"decay": 0.99, "shadow_params": list(state.values())}},
        lambda state: {"callbacks": {"EMA": {"ema_weights": list(state.values())}}},
        lambda state: {"optimizer_states": [{"ema": list(state.values())}]},
    ],
)
def test_an_average_that_cannot_be_read_is_told_of(state, beside):
    torch.save({"model": state, **beside(changed(state))}, "a.pth")
    with pytest.warns(CheckpointWarning, match="looks like a moving average in a form that is not read"):
        model = load_model("dav2-relative@a.pth")
    assert bias(model) == bias(quietly("dav2-relative@" + _saved(state)))
    # Adam's averages are of gradients.
    torch.save({"model": state, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}}, "adam.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_model("dav2-relative@adam.pth")


def _saved(state: dict[str, Tensor]) -> str:
    torch.save(state, "alone.pth")
    return "alone.pth"
