"""`label --ray`: the shards of one machine, made by a cluster that loses one of its machines meanwhile."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_label import command, photographs, start
from waiting import patience_s, wait_until

from distilldepth.label.check import check_labels

pytest.importorskip("ray")
SMALL = 80 << 20
"""Bytes of each object store: what Ray asks for at least, about."""


@pytest.fixture
def cluster(monkeypatch):
    for name, value in {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)
    from ray.cluster_utils import Cluster

    started = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "object_store_memory": SMALL, "include_dashboard": False},
    )
    yield started
    started.shutdown()


def test_a_machine_that_is_killed_costs_nothing(tmp_path, cluster):
    photos = photographs(tmp_path / "photos", 42)
    alone, many = tmp_path / "alone", tmp_path / "many"
    words = ("--teachers", "dav2-mini", "--shard-size", "60kB", "--heldout", "2")
    subprocess.run(command(photos, alone, *words), check=True, capture_output=True)
    _, doomed = (cluster.add_node(num_cpus=3, object_store_memory=SMALL) for _ in range(2))
    process = start(command(photos, many, *words, "--ray", cluster.address), stderr=subprocess.PIPE)
    try:
        wait_until(lambda: any(many.glob("*/.distilldepth-*.piece")) or process.poll() is not None)
        cluster.remove_node(doomed, allow_graceful=False)
        _, said = process.communicate(timeout=patience_s())
    finally:
        process.kill()
    assert process.returncode == 0, said
    assert shards(many) == shards(alone)
    report = check_labels(many)
    assert report.faults == []
    assert report.samples == 42


def shards(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_without_ray_the_line_says_what_to_install(tmp_path):
    code = "import sys\nsys.modules['ray'] = None\nfrom distilldepth.cli.main import main\nmain()"
    words = command(photographs(tmp_path / "photos", 6), tmp_path / "out", "--ray", "local")
    done = subprocess.run(
        [sys.executable, "-c", code, *words[words.index("label") :]],
        capture_output=True, text=True, check=False, env=os.environ,
    )  # fmt: skip
    assert done.returncode == 1
    assert "pip install 'distilldepth[ray]'" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
