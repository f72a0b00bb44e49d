"""What a run folder may be used for: continued whatever became of it, replaced only if ours, never executed."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import distilldepth as dd
from distilldepth.distill import trainer
from distilldepth.distill.config import load_config
from distilldepth.distill.record.checkpoint import Trained, list_checkpoints, read_tensors
from distilldepth.distill.record.log import keep_lines_until
from distilldepth.distill.trainer import distill
from distilldepth.images.batches import split_heldout

SETTINGS = {
    "teachers": "distilldepth-mini", "student": "light-mini", "size": "32x64", "batch_size": 2, "workers": 0,
    "heldout": 1, "steps": 6, "checkpoint_every": 2, "log_every": 3, "keep_checkpoints": 3,
}  # fmt: skip
TUNED = ["crop.min_crop=32", "crop.patches=1", "crop.patch_share=0.6", "loss.feature=0", "optimiser.ema=0.9"]


def photographs(folder: Path, count: int = 11) -> Path:
    generator = np.random.default_rng(4)
    folder.mkdir(parents=True)
    for index in range(count):
        small = generator.integers(0, 255, (5, 6, 3), dtype=np.uint8)
        Image.fromarray(small).resize((90 + index, 70)).save(folder / f"photo {index}.png")
    return folder


def configured(photos: Path, out: Path, *settings: str, **changes):
    flags = {**SETTINGS, "images": [str(photos)], "out": str(out), **changes}
    return load_config(settings=[*TUNED, *settings], flags=flags)


def command(photos: Path, out: Path, *more: str) -> list[str]:
    flags = [text for key, value in SETTINGS.items() for text in (f"--{key.replace('_', '-')}", str(value))]
    tuned = [text for setting in TUNED for text in ("--set", setting)]
    return [
        sys.executable, "-m", "distilldepth.cli.main", "distill", *flags, "--images", str(photos), "--out", str(out),
        *tuned, "--offline", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    photos = photographs(folder / "photos")
    distill(configured(photos, folder / "run"))
    return photos, folder / "run"


@pytest.fixture
def run(tmp_path, finished):
    return finished[0], Path(shutil.copytree(finished[1], tmp_path / "run"))


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "student" / "model.safetensors")


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


class _Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (Path.touch, (self.target,))


def test_no_file_of_a_run_folder_is_ever_executed(tmp_path, run):
    photos, folder = run
    target = tmp_path / "executed"
    contents = (pickle.dumps(_Bomb(target)), _torch_pickle(tmp_path, target))
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert {"config.toml", "agreement.jsonl", ".distilldepth.json"} <= {str(path) for path in files}
    kept = shutil.copytree(folder, tmp_path / "kept")
    for number, name in enumerate(files):
        (folder / name).write_bytes(contents[number % 2])
        assert "\n" not in outcome(lambda: distill(configured(photos, folder, resume="auto"))), name
        (folder / name).write_bytes(contents[number % 2])
        assert "\n" not in outcome(lambda: dd.load_model(folder)), name
        assert not target.exists(), name
        shutil.copytree(kept, folder, dirs_exist_ok=True)
    for content in contents:
        for name in files:
            (folder / name).write_bytes(content)
        for changes in ({"resume": "auto"}, {"overwrite": True, "steps": 1}):
            assert "\n" not in outcome(lambda changes=changes: distill(configured(photos, folder, **changes)))
    assert not target.exists()


def outcome(work: Callable[[], object]) -> str:
    """What a user is told: nothing, or one error."""
    try:
        work()
    except (dd.DistillDepthError, ValueError, OSError) as error:
        return str(error)
    return ""


def _torch_pickle(tmp_path: Path, target: Path) -> bytes:
    path = tmp_path / "saved.pt"
    torch.save({"state": _Bomb(target)}, path)
    return path.read_bytes()


@pytest.mark.parametrize("file", ["optimizer.bin", "custom_checkpoint_0.pkl"])
def test_a_checkpoint_of_an_earlier_version_resumes_and_is_not_executed(tmp_path, run, file):
    photos, folder = run
    expected = weights(folder)
    whole = folder / "checkpoints" / "step-00000004"
    _as_earlier_version(whole)
    shutil.rmtree(folder / "checkpoints" / "step-00000006")
    (folder / ".distilldepth.json").unlink()
    # Such a run held out the last images.
    distill(configured(photos, folder, resume="auto"))
    assert (folder / ".distilldepth.json").is_file()
    assert weights(folder).keys() == expected.keys()
    _as_earlier_version(whole)
    (whole / file).write_bytes(_torch_pickle(tmp_path, tmp_path / "executed"))
    with pytest.raises(dd.DistillDepthError, match="is damaged"):
        read_tensors(whole)
    assert not (tmp_path / "executed").exists()


def _as_earlier_version(checkpoint: Path) -> None:
    """Rewrite a checkpoint in the layout of accelerate's `save_state`."""
    state = json.loads((checkpoint / "run_state.json").read_text())
    if "files" not in state:
        return
    files = read_tensors(checkpoint)
    save_file(files["weights.safetensors"], checkpoint / "model.safetensors")
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in files["optimiser.safetensors"].items():
        index, _, name = key.partition(".")
        moments.setdefault(int(index), {})[name] = value
    torch.save({"state": moments, "param_groups": []}, checkpoint / "optimizer.bin")
    torch.save(files["average.safetensors"], checkpoint / "custom_checkpoint_0.pkl")
    for name in ("weights", "optimiser", "average"):
        (checkpoint / f"{name}.safetensors").unlink()
    known = {key: state[key] for key in ("step", "before", "seconds", "skipped", "unreadable")}
    (checkpoint / "run_state.json").write_text(json.dumps(known))


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("weights", "truncated"), ("optimiser", "flipped"), ("average", "missing"), ("optimiser", "edited"),
        ("run_state", "truncated"), ("run_state", "missing"), ("run_state", "edited"),
    ],
)  # fmt: skip
def test_a_damaged_checkpoint_gives_way_to_the_one_before(run, capsys, file, damage):
    photos, folder = run
    expected = weights(folder)
    path = folder / "checkpoints" / "step-00000006" / (f"{file}.json" if file == "run_state" else f"{file}.safetensors")
    content = path.read_bytes()
    if damage == "truncated":
        os.truncate(path, 90)
    elif damage == "flipped":
        path.write_bytes(content[:-9] + bytes([content[-9] ^ 4]) + content[-8:])
    elif damage == "edited":
        path.write_bytes(content.replace(b'"step": 6', b'"step": "6"').replace(b"F32", b"I32"))
    elif file == "run_state":
        path.write_text('{"step": 6}')
    else:
        path.unlink()
    distill(configured(photos, folder, resume="auto"))
    told = capsys.readouterr().err
    assert "step-00000006 is damaged" in told
    assert "taking the one before it" in told
    assert "at step 4" in told
    assert_equal(weights(folder), expected)


def test_when_all_are_damaged_it_is_said_once(run):
    photos, folder = run
    for checkpoint in list_checkpoints(folder / "checkpoints"):
        os.truncate(checkpoint / "weights.safetensors", 5)
    with pytest.raises(dd.DistillDepthError, match=r"step-00000002 is damaged .*--overwrite"):
        distill(configured(photos, folder, resume="auto"))
    with pytest.raises(dd.DistillDepthError, match="step-00000006 is damaged"):
        distill(configured(photos, folder, resume=str(folder / "checkpoints" / "step-00000006")))


@pytest.mark.parametrize(
    "state",
    [
        b"[]", b'{"step": 1e400}', b'{"a": ' * 5000, b'{"step": ' + b"9" * 5000 + b"}", b'{"step": true}', b"\xff\xfe",
        b'{"step": -1, "before": {}, "seconds": 0, "skipped": 0, "unreadable": 0}',
        b'{"step": 6, "before": {"teachers": {"x": 3}}, "seconds": 0, "skipped": 0, "unreadable": 0}',
        b'{"step": 6, "before": {}, "seconds": "long", "skipped": 0, "unreadable": 0}',
    ],
)  # fmt: skip
def test_a_hostile_state_is_one_line(run, state, capsys):
    photos, folder = run
    for checkpoint in list_checkpoints(folder / "checkpoints"):
        (checkpoint / "run_state.json").write_bytes(state)
    with pytest.raises(dd.DistillDepthError, match="damaged") as caught:
        distill(configured(photos, folder, resume="auto"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["thesis.txt", "student/notes.md", "checkpoints/mine/x", "samples/before/x.png"])
def test_overwrite_names_what_is_foreign_and_removes_nothing(run, path):
    photos, folder = run
    foreign = folder / path
    foreign.parent.mkdir(exist_ok=True)
    foreign.write_text("mine")
    before = sorted(folder.rglob("*"))
    with pytest.raises(dd.DistillDepthError, match=path.partition("/")[0]):
        distill(configured(photos, folder, overwrite=True))
    assert sorted(folder.rglob("*")) == before


def test_overwrite_follows_no_link(tmp_path, run):
    photos, folder = run
    shutil.move(folder / "samples", tmp_path / "elsewhere")
    (folder / "samples").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(dd.DistillDepthError, match="samples was not made by"):
        distill(configured(photos, folder, overwrite=True))
    assert (tmp_path / "elsewhere" / "before" / "image.npy").is_file()


@pytest.mark.parametrize("config", ["", "# nothing\n", "steps = 5\n"])
def test_a_folder_with_a_familiar_config_is_not_ours(tmp_path, finished, config):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "config.toml").write_text(config)
    (mine / "photos").mkdir()
    with pytest.raises(dd.DistillDepthError, match="does not carry the mark"):
        distill(configured(finished[0], mine, overwrite=True))
    assert (mine / "photos").is_dir()


def test_a_run_of_ours_is_replaced(run):
    photos, folder = run
    distill(configured(photos, folder, steps=2, overwrite=True))
    assert [path.name for path in list_checkpoints(folder / "checkpoints")] == ["step-00000002"]
    assert "overwrite" not in (folder / "config.toml").read_text()


def test_weights_that_are_not_finite_are_never_saved(tmp_path, finished, monkeypatch):
    photos, _ = finished
    poisoned_from = 5
    original = trainer.set_learning_rate

    def poison(optimiser, config, step):
        original(optimiser, config, step)
        if step >= poisoned_from:
            with torch.no_grad():
                optimiser.param_groups[0]["params"][0][0] = float("nan")

    monkeypatch.setattr(trainer, "set_learning_rate", poison)
    folder = tmp_path / "run"
    with pytest.raises(dd.DistillDepthError, match="not finite") as caught:
        distill(configured(photos, folder, steps=8, log_every=100, checkpoint_every=2))
    newest = list_checkpoints(folder / "checkpoints")[-1]
    assert newest.name == "step-00000004"
    for tensors in read_tensors(newest).values():
        assert all(torch.isfinite(value).all() for value in tensors.values() if value.is_floating_point())
    monkeypatch.setattr(trainer, "set_learning_rate", original)
    # The advice, as typed.
    told = str(caught.value)
    words = told[told.index("distilldepth distill --config") :].split()
    done = subprocess.run([sys.executable, "-m", "distilldepth.cli.main", *words[1:]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "changed from step 4 on: optimiser.lr" in done.stderr
    assert "optimiser.lr" in (folder / "student" / "README.md").read_text()
    assert "optimiser.lr" in (folder / "report.html").read_text()


def test_more_steps_change_the_schedule_and_are_told(run, capsys):
    photos, folder = run
    distill(configured(photos, folder, steps=8, resume="auto"))
    told = capsys.readouterr().err
    assert "changed from step 6 on: steps: 6 -> 8; the learning rate now falls to its end at the new last step" in told
    assert load_config(file=folder / "config.toml").steps == 8
    assert "step 6: steps: 6 -> 8" in (folder / "student" / "README.md").read_text()


def test_other_images_are_another_run(run, tmp_path):
    photos, folder = run
    shutil.copytree(photos, tmp_path / "photos")
    shutil.copy(photos / "photo 3.png", tmp_path / "photos" / "photo 99.png")
    config = configured(photos, folder, resume="auto")
    text = (folder / "config.toml").read_text().replace(str(photos), str(tmp_path / "photos"))
    (folder / "config.toml").write_text(text)
    config.images = [str(tmp_path / "photos")]
    with pytest.raises(ValueError, match=r"the images are not those .*11 images.* then, 12 images.* now"):
        distill(config)
    (tmp_path / "photos" / "photo 99.png").unlink()
    assert distill(config).steps == 6


def test_held_out_images_are_chosen_by_name():
    class Named:
        has_depth, description = False, ""

        def __init__(self, names):
            self.names = names

        def __len__(self):
            return len(self.names)

    def heldout(names):
        source = Named(names)
        training, kept = split_heldout(source, 8)
        assert sorted([*training.indices, *kept.indices]) == list(range(len(names)))
        return {names[index] for index in kept.indices}

    names = [f"a/{index}.jpg" for index in range(200)]
    assert heldout(names) == heldout(names[::-1])
    more = ["0/first.jpg", *names, "z.jpg"]
    assert len(heldout(names) & heldout(more)) >= 6


def test_another_number_of_processes_is_another_order(run):
    photos, folder = run
    for checkpoint in list_checkpoints(folder / "checkpoints"):
        state = json.loads((checkpoint / "run_state.json").read_text())
        (checkpoint / "run_state.json").write_text(json.dumps({**state, "processes": 2}))
    with pytest.raises(ValueError, match="continue with torchrun --nproc_per_node 2"):
        distill(configured(photos, folder, resume="auto"))


@pytest.mark.parametrize("name", ["before", "before/image.npy", "before/student.npy"])
def test_missing_pictures_are_no_reason_to_fail(run, name, capsys):
    photos, folder = run
    path = folder / "samples" / name
    shutil.rmtree(path) if path.is_dir() else path.write_bytes(b"no array")
    distill(configured(photos, folder, resume="auto"))
    assert (folder / "report.html").is_file()


def test_edited_records_are_no_reason_to_fail(run):
    photos, folder = run
    (folder / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2, "loss": "x", "terms": 3}\nno json\n')
    (folder / "agreement.jsonl").write_text('{"step": 0, "teachers": 3}\n{"step": "1"}\n[]\n')
    distill(configured(photos, folder, resume="auto"))
    assert (folder / "report.html").is_file()


def test_metrics_with_foreign_lines_are_read(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n[3]\n{"other": 1}\n\xff\n{"step": "1"}\n{"step": 3}\n' + b"[" * 9000)
    keep_lines_until(path, 2)
    assert path.read_text() == '{"step": 1}\n'


def test_the_moments_keep_the_memory_order_of_their_parameters():
    module = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(module.parameters(), fused=True)
    module(torch.rand(1, 3, 5, 6)).sum().backward()
    optimiser.step()
    trained = Trained(module, optimiser)
    files = {name: {k: v.clone().contiguous() for k, v in file.items()} for name, file in trained.tensors().items()}
    expected = optimiser.state_dict()["state"][0]["exp_avg"].clone(memory_format=torch.preserve_format)
    trained.restore(files)
    found = optimiser.state_dict()["state"][0]["exp_avg"]
    assert torch.equal(found, expected)
    assert found.stride() == module.weight.stride()


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the processes that decode in /proc")
def test_a_killed_decoding_process_is_one_line(tmp_path, finished):
    photos, folder = finished[0], tmp_path / "run"
    process = subprocess.Popen(
        command(photos, folder, "--steps", "100000", "--workers", "1"), stderr=subprocess.PIPE, text=True
    )
    while not list_checkpoints(folder / "checkpoints") and process.poll() is None:
        time.sleep(0.01)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for child in children:
        if "distilldepth" in Path(f"/proc/{child}/cmdline").read_text():
            os.kill(int(child), signal.SIGKILL)
    _, told = process.communicate()
    assert process.returncode == 1, told
    (line,) = [line for line in told.splitlines() if "error: " in line]
    assert "a process that decodes images ended" in line
    assert line.count("; continue with: distilldepth distill --config") == 1
    assert "Traceback" not in told


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize(
    ("number", "code", "moment"),
    [
        (signal.SIGTERM, 143, "start"),
        (signal.SIGHUP, 129, "config.toml"),
        (signal.SIGTERM, 143, "checkpoints/step-*"),
        (signal.SIGINT, 130, "metrics.jsonl"),
        (signal.SIGTERM, 143, "checkpoints/.partial-*"),
    ],
)
def test_a_signal_saves_and_says_how_to_go_on(tmp_path, finished, number, code, moment):
    photos, folder = finished[0], tmp_path / "run"

    def usual_signals():
        for name in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(name, signal.SIG_DFL if name != signal.SIGINT else signal.default_int_handler)

    process = subprocess.Popen(
        command(photos, folder, "--steps", "100000", "--workers", "1", "--log-every", "1"),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=usual_signals,
    )
    while moment != "start" and not any(folder.glob(moment)) and process.poll() is None:
        time.sleep(0.01)
    if moment == "start":
        time.sleep(1)  # Somewhere before the training; anywhere is right.
    os.killpg(process.pid, number)
    _, told = process.communicate()
    if moment == "start" and process.returncode == -number:
        return  # Python itself was still starting.
    assert process.returncode == code, told
    assert "Traceback" not in told
    if list_checkpoints(folder / "checkpoints"):
        assert f"--config {folder}/config.toml --resume auto" in told
    else:
        assert moment in ("start", "config.toml")
    left = [path for path in tmp_path.rglob(".*") if path.name != ".distilldepth.json"]
    assert not left
    if moment == "metrics.jsonl":
        saved = list_checkpoints(folder / "checkpoints")[-1]
        step = int(saved.name.removeprefix("step-"))
        whole = distill(configured(photos, folder, steps=step + 1, resume="auto"))
        assert whole.steps == step + 1
