"""Several processes: as one with all their images, in whole or in parts, ended together or one by one."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from waiting import patience_s, wait_until

from distilldepth.distill.config import load_config
from distilldepth.distill.processes import make_accelerator
from distilldepth.distill.record.checkpoint import list_checkpoints
from distilldepth.distill.trainer import distill
from distilldepth.losses.anchor import anchor_loss
from distilldepth.losses.silog import silog_loss
from distilldepth.losses.uncertainty import response_uncertainty_loss

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="gloo and signals of POSIX")

FSDP = Path(__file__).resolve().parents[1] / "docs" / "fsdp.yaml"
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ACCELERATE = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
SHARDED = ["accelerate.commands.launch", "--config_file", str(FSDP)]
SETTINGS = {
    "teachers": "distilldepth-mini", "student": "dav2-mini", "initial_weights": "pretrained", "images": "scenes:30",
    "size": "42x56", "workers": 0, "heldout": 1, "steps": 4, "checkpoint_every": 2, "log_every": 1,
    "precision": "float32", "teacher_precision": "float32", "device": "cpu", "threads": 1, "agreement_every": 3,
}  # fmt: skip
TUNED = [
    "crop.min_crop=42", "crop.scene_size=42x56", "crop.patches=1", "crop.patch_share=0.6", "optimiser.lr=2e-5",
    "optimiser.ema=0.9", "log=none",
]  # fmt: skip


def words(out: Path, batch_size: int, **changes: object) -> list[str]:
    flags = {**SETTINGS, "out": out, "batch_size": batch_size, **changes}
    told = [text for key, value in flags.items() for text in (f"--{key.replace('_', '-')}", str(value))]
    return ["distill", *told, "--offline", *(text for setting in TUNED for text in ("--set", setting))]


def environment(**more: str) -> dict[str, str]:
    """Ours, without what a launcher around these tests may have left, or the configuration of accelerate's user."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("ACCELERATE_", "FSDP_"))}
    return {**kept, "OMP_NUM_THREADS": "1", "HF_HOME": os.devnull, **more}


def launched(launcher: list[str], arguments: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *launcher, "-m", "distilldepth", *arguments]
    return subprocess.run(command, env=environment(), capture_output=True, text=True)


def rows(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """One process, batches of four."""
    out = tmp_path_factory.mktemp("one") / "run"
    distill(load_config(settings=TUNED, flags={**SETTINGS, "out": str(out), "batch_size": 4, "offline": True}))
    return out


@pytest.fixture(scope="module", params=["torchrun", "fsdp"])
def two(request, tmp_path_factory):
    """Two processes, batches of two each."""
    out = tmp_path_factory.mktemp(request.param) / "run"
    done = launched(TORCHRUN if request.param == "torchrun" else SHARDED, words(out, 2))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("student: ") == 1
    if request.param == "fsdp":
        held, whole = map(float, done.stderr.partition("this process holds ")[2].split(" M ")[0].split(" of "))
        assert 0.4 * whole < held < 0.6 * whole
    return out


def test_two_processes_are_one_with_the_batch_of_both(one, two):
    """Loss and terms to 1e-4. Gradients to less, for rounding may make another pixel the median, to which all of the
    median's gradient goes: sums in another order have moved the gradient's norm by 1.3e-3, on one machine of two.
    """
    for alone, together in zip(rows(one), rows(two), strict=True):
        assert together["terms"].keys() == {"anchor", "feature", "gradient", "local_global", "shared_context"}
        assert together["samples"] == alone["samples"] == 4
        assert together["terms"] == pytest.approx(alone["terms"], rel=1e-4)
        for name in ("loss", "output_center"):
            assert together[name] == pytest.approx(alone[name], rel=1e-4), name
        assert together["grad_norm"] == pytest.approx(alone["grad_norm"], rel=5e-3)
    start = load_file(one / "checkpoints" / "step-00000002" / "weights.safetensors")
    for path in ("checkpoints/step-00000004/weights.safetensors", "checkpoints/step-00000004/average.safetensors"):
        alone, together = load_file(one / path), load_file(two / path)
        assert alone.keys() == together.keys()
        for name, value in alone.items():
            if name.endswith("k_proj.bias"):
                continue  # Of no effect on any output: what the optimiser steps by is rounding.
            moved = (value - start[name if name in start else f"student.{name}"]).norm()
            assert (together[name] - value).norm() <= 0.03 * moved + 1e-7, name
    optimiser = load_file(two / "checkpoints/step-00000004/optimiser.safetensors")
    expected = load_file(one / "checkpoints/step-00000004/optimiser.safetensors")
    assert {name: value.shape for name, value in optimiser.items()} == {n: v.shape for n, v in expected.items()}
    alone, together = load_file(one / "student/model.safetensors"), load_file(two / "student/model.safetensors")
    assert {name: value.shape for name, value in alone.items()} == {n: v.shape for n, v in together.items()}


@pytest.mark.parametrize("two", ["fsdp"], indirect=True)
def test_a_sharded_run_goes_on_bit_by_bit(two, tmp_path):
    again = Path(shutil.copytree(two, tmp_path / "run"))
    shutil.rmtree(again / "checkpoints" / "step-00000004")
    shutil.rmtree(again / "student")
    done = launched(
        SHARDED, ["distill", "--config", str(again / "config.toml"), "--out", str(again), "--resume", "auto"]
    )
    assert done.returncode == 0, done.stderr
    assert f"resuming {again} at step 2" in done.stderr
    for path in ("checkpoints/step-00000004/optimiser.safetensors", "student/model.safetensors"):
        expected, found = load_file(two / path), load_file(again / path)
        assert expected.keys() == found.keys()
        assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize(
    ("variable", "value", "settings", "message"),
    [
        ("FSDP_VERSION", "2", ["optimiser.algorithm=muon"], "optimiser.algorithm must be adamw"),
        ("FSDP_VERSION", "2", ["compile=true"], "compile must be false"),
        ("FSDP_VERSION", "1", [], "fsdp_version must be 2"),
        ("FSDP_OFFLOAD_PARAMS", "true", [], "fsdp_offload_params must be false"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "true", [], "fsdp_activation_checkpointing must be false"),
        ("FSDP_VERSION", "2", [], "shards over several processes"),
    ],
)
def test_what_cannot_be_sharded_is_refused(monkeypatch, variable, value, settings, message):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=message) as caught:
        make_accelerator(load_config(settings=["device=cpu", *settings]), "float32")
    assert "\n" not in str(caught.value)


def start(launcher: list[str], out: Path, log: Path, **changes: object) -> subprocess.Popen:
    """Two processes that train until they are ended, in a session of their own."""
    command = [sys.executable, "-m", *launcher, "-m", "distilldepth", *words(out, 1, steps=100_000, **changes)]
    with log.open("w") as stream:
        return subprocess.Popen(command, env=environment(), stdout=stream, stderr=stream, start_new_session=True)


def ranks(process: subprocess.Popen) -> dict[int, int]:
    """Process ids of a launcher's processes by rank."""
    found = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(status.read_text().rpartition(")")[2].split()[1]) != process.pid:
                continue
            told = dict(
                part.split("=", 1) for part in (status.parent / "environ").read_text().split("\0") if "=" in part
            )
        except (OSError, ValueError):
            continue
        if "RANK" in told:
            found[int(told["RANK"])] = int(status.parent.name)
    return found


@pytest.mark.skipif(not Path("/proc/self/environ").is_file(), reason="needs /proc")
def test_a_killed_process_ends_the_other_which_says_how_to_go_on(tmp_path):
    out, log = tmp_path / "run", tmp_path / "log"
    process = start(ACCELERATE, out, log, agreement_every=0)
    wait_until(lambda: len(list_checkpoints(out / "checkpoints")) >= 2, process)
    os.kill(ranks(process)[0], signal.SIGKILL)
    assert process.wait(timeout=patience_s()) != 0
    told = log.read_text()
    newest = list_checkpoints(out / "checkpoints")[-1]
    assert told.count("another of the 2 processes ended") == 1
    assert f"the last checkpoint is {newest}; continue with: " in told
    # The line, as typed, for two steps more.
    line = shlex.split(told.partition("continue with: ")[2].splitlines()[0])
    steps = int(newest.name.removeprefix("step-")) + 2
    done = subprocess.run([*line, "--steps", str(steps)], env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert rows(out)[-1]["step"] == steps


def alone(rank: int, port: int) -> dict[str, str]:
    return environment(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )  # fmt: skip


def free_port() -> int:
    with socket.socket() as some:
        some.bind(("127.0.0.1", 0))
        return some.getsockname()[1]


def test_processes_end_together_with_a_checkpoint(tmp_path):
    out, port = tmp_path / "run", free_port()
    command = [
        sys.executable,
        "-m",
        "distilldepth",
        *words(out, 1, steps=100_000, log_every=100_000, agreement_every=0),
    ]
    logs = [(tmp_path / f"{rank}").open("w+") for rank in range(2)]
    processes = [
        subprocess.Popen(command, env=alone(rank, port), stderr=logs[rank], start_new_session=True) for rank in range(2)
    ]
    wait_until(lambda: bool(list_checkpoints(out / "checkpoints")), processes[0])
    for _ in range(2):  # What a terminal has sent, a launcher sends again.
        os.kill(processes[1].pid, signal.SIGINT)
    for process in processes:
        assert process.wait(timeout=patience_s()) == 128 + signal.SIGINT
    told = [log.seek(0) or log.read() for log in logs]
    for log in logs:
        log.close()
    assert (
        "to continue from the last checkpoint: torchrun --nproc_per_node 2 -m distilldepth distill --config" in told[0]
    )
    assert "to continue" not in told[1]
    assert not (out / "metrics.jsonl").exists()  # They did not wait for a line of the log.
    assert not (out / "student").exists()


def test_all_processes_learn_of_a_signal_one_step_later(tmp_path):
    script = tmp_path / "vote.py"
    script.write_text("""
import os, torch.distributed as dist
from distilldepth.distill.peers import StopVote, is_lost_peer
dist.init_process_group("gloo")
rank, vote = dist.get_rank(), StopVote(2)
agreed = [vote.agree(15 if rank == 1 and step >= 3 else 0) for step in range(6)]
assert agreed == [0, 0, 0, 0, 15, 15], agreed
assert vote.close() == 15
assert not is_lost_peer(RuntimeError("shape mismatch"))
if rank == 1:
    os._exit(0)
try:
    for step in range(3):
        vote.agree(0)
except RuntimeError as error:
    assert is_lost_peer(error), error
    os._exit(0)  # gloo's threads may abort a process that takes down a group with a peer that is gone
raise SystemExit("nobody noticed")
""")
    port = free_port()
    pair = [subprocess.Popen([sys.executable, script], env=alone(rank, port)) for rank in range(2)]
    assert [process.wait(timeout=patience_s()) for process in pair] == [0, 0]


def test_one_process_hears_its_own_signal_at_once():
    from distilldepth.distill.peers import StopVote

    vote = StopVote(1)
    assert [vote.agree(0), vote.agree(2), vote.close()] == [0, 2, 0]


def test_a_process_that_waits_for_ever_ends_when_asked_twice(tmp_path):
    code = """
import hashlib, sys
from distilldepth.distill import peers
from distilldepth.signals import StopRequest
peers.ECHO_S = peers._GRACE_S = 0.1
with peers.never_stuck(lambda: "the last checkpoint is x"), StopRequest(0.1).listening():
    print("waiting", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", (1 << 31) - 1)  # Lets other threads run, and hears no signal.
"""
    kept = {key: value for key, value in os.environ.items() if key != "TORCHELASTIC_RUN_ID"}
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=kept, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=1)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=patience_s())
    assert process.returncode == 128 + signal.SIGTERM
    assert told == ("distilldepth: ended by SIGTERM while other processes did not answer; the last checkpoint is x\n")


@pytest.mark.parametrize("name", ["silog", "response_uncertainty"])
def test_losses_of_metres_of_parts_are_those_of_the_whole(name):
    generator = torch.Generator().manual_seed(5)

    def draw() -> torch.Tensor:
        return (0.5 + 9 * torch.rand(5, 6, 7, generator=generator)).double()

    maps, target, spread = draw().requires_grad_(), draw(), draw() / 9
    valid = torch.rand(5, 6, 7, generator=generator) > torch.linspace(0.1, 0.9, 5)[:, None, None]

    def loss(part, together=None):
        if name == "silog":
            return silog_loss(maps[part], target[part], valid[part], together=together)
        return response_uncertainty_loss(maps[part], target[part], spread[part], valid[part], together=together)

    expected = loss(slice(None))
    (gradient,) = torch.autograd.grad(expected, maps)
    parts, whole = [slice(0, 2), slice(2, 5)], list[torch.Tensor]()

    def run(part):
        """The loss of a part with the sums of all that are known by now, and the first that is not."""
        asked = list[torch.Tensor]()

        def together(own):
            asked.append(own.detach())
            if len(asked) > len(whole):
                return own
            return whole[len(asked) - 1] + 2 * (own - own.detach())

        return loss(part, together), asked

    while len(run(parts[0])[1]) > len(whole):
        whole.append(sum(run(part)[1][len(whole)] for part in parts))
    assert len(whole) == (2 if name == "silog" else 1)
    for part in parts:
        value = run(part)[0]
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(torch.autograd.grad(value, maps)[0][part], 2 * gradient[part])


def test_the_anchor_of_parts_is_that_of_the_whole():
    generator = torch.Generator().manual_seed(3)
    maps = torch.rand(5, 6, 7, generator=generator).double().requires_grad_()
    valid = torch.rand(5, 6, 7, generator=generator) > 0.3
    valid[1] = False
    target = {"center": 0.7, "spread": 0.1}
    expected = anchor_loss(maps, valid, **target)
    (gradient,) = torch.autograd.grad(expected, maps)
    sums: list[torch.Tensor] = []

    def note(values):
        sums.append(values.detach())
        return values

    parts = [slice(0, 2), slice(2, 5)]
    for part in parts:
        anchor_loss(maps[part], valid[part], together=note, **target)
    whole = sums[0] + sums[1]
    for part in parts:
        value = anchor_loss(maps[part], valid[part], together=lambda own: whole + 2 * (own - own.detach()), **target)
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(torch.autograd.grad(value, maps)[0][part], 2 * gradient[part])
