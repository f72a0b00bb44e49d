"""Plants one fault at a time in a copy of the project and checks that the tests notice.

    python tests/planted_faults.py [--only native|emulated|triton|reference] [--device cpu|cuda]

A test that cannot fail is worth nothing: every fault here is a mistake that someone could make, and every one must turn
the tests of its operation red. Faults of the CUDA kernels are planted for the emulation, unless the device is a GPU;
those that a GPU shows or not, depending on which thread is faster, for the emulation only. Prints a table; exit code 1
if a fault went unnoticed. Takes some minutes, mostly compiling.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from distilldepth.files import cache_folder

REPOSITORY = Path(__file__).resolve().parents[1]


class Fault(NamedTuple):
    """A mistake: what stands in the file, what is put there instead, and where the tests are."""

    name: str
    backend: str
    file: str
    right: str
    wrong: str
    tests: str


MEDIAN, VALID, AXES = "median off by one", "dropped valid", "swapped box axes"
TEMPERATURE, CENTER, SWAPPED = "missing temperature", "swapped principal point", "swapped coordinates"
RELATIVE, SIGN = "error over the prediction", "zero taken as positive"
BARRIER, LAST_BLOCK, INDEX, CAST = "missing barrier", "wrong last block", "wrong index", "wrong cast"
FAULTS = (
    Fault(
        MEDIAN, "reference", "distilldepth/reference/hybrid_norm.py",
        "(self.counts - 1).clamp(min=0) // 2", "self.counts // 2", "hybrid_norm",
    ),
    Fault(
        AXES, "reference", "distilldepth/reference/crop_ssi.py",
        "_sample_points(boxes[:, 0], boxes[:, 2], size[1], width)",
        "_sample_points(boxes[:, 1], boxes[:, 3], size[1], width)", "crop_ssi",
    ),
    Fault(
        TEMPERATURE, "reference", "distilldepth/reference/channel_kl.py",
        "return temperature**2 * divergence.sum()", "return divergence.sum()", "channel_kl",
    ),
    Fault(
        CENTER, "reference", "distilldepth/reference/backproject.py",
        "x = (u - matrix[:, 0, 2])", "x = (u - matrix[:, 1, 2])", "backproject",
    ),
    Fault(
        MEDIAN, "native", "csrc/normalise_cpu.h",
        "context.rank = std::max<int64_t>(context.rank - 1, 0) / 2", "context.rank = context.rank / 2", "hybrid_norm",
    ),
    Fault(
        VALID, "native", "csrc/hybrid_norm_cpu.cpp",
        "valids == nullptr ? nullptr : valids + first, height", "nullptr, height", "hybrid_norm",
    ),
    Fault(
        AXES, "native", "csrc/crop_ssi_cpu.cpp",
        "Axis(edge[1], edge[3], height, map_height), Axis(edge[0], edge[2], width, map_width)",
        "Axis(edge[0], edge[2], height, map_height), Axis(edge[1], edge[3], width, map_width)", "crop_ssi",
    ),
    Fault(
        TEMPERATURE, "native", "csrc/channel_kl_cpu.cpp",
        "temperature * temperature * total", "total", "channel_kl",
    ),
    Fault(
        CENTER, "native", "csrc/backproject_cpu.cpp",
        "cx(matrix[2]), fy(matrix[4]), cy(matrix[5])", "cx(matrix[5]), fy(matrix[4]), cy(matrix[2])", "backproject",
    ),
    Fault(
        VALID, "native", "csrc/depth_sums_cpu.cpp",
        "(valid[i] != 0) & (g[i] >= image.near)", "(g[i] >= image.near)", "depth_sums",
    ),
    Fault(
        RELATIVE, "native", "csrc/depth_sums_cpu.cpp",
        "relative = apart / g[lane]", "relative = apart / d[lane]", "depth_sums",
    ),
    Fault(
        SIGN, "native", "csrc/depth_sums_cpu.cpp",
        "kept += p > 0;", "kept += p >= 0;", "depth_sums",
    ),
    Fault(
        MEDIAN, "triton", "distilldepth/kernels/selection.py",
        "tl.maximum(pixels - 1, 0) // 2", "pixels // 2", "hybrid_norm",
    ),
    Fault(
        VALID, "triton", "distilldepth/kernels/hybrid_norm.py",
        "maps = Maps(prediction, target, as_bytes(valid), height, width, None)",
        "maps = Maps(prediction, target, None, height, width, None)", "hybrid_norm",
    ),
    Fault(
        AXES, "triton", "distilldepth/kernels/crop_ssi.py",
        "rows, row_shares, row_starts = axis(1, height, map_height)",
        "rows, row_shares, row_starts = axis(0, height, map_height)", "crop_ssi",
    ),
    Fault(
        TEMPERATURE, "triton", "distilldepth/kernels/channel_kl.py",
        "temperature * temperature * tl.sum(total, 0)", "tl.sum(total, 0)", "channel_kl",
    ),
    Fault(
        SWAPPED, "triton", "distilldepth/kernels/backproject.py",
        "tl.where(axis == 0, a * z, tl.where(axis == 1, b * z, z))",
        "tl.where(axis == 1, a * z, tl.where(axis == 0, b * z, z))",
        "backproject",
    ),
    Fault(
        MEDIAN, "native", "csrc/selection_cuda.cuh",
        "edge_rank(plan, total, q) : (total - 1) / 2", "edge_rank(plan, total, q) : total / 2", "hybrid_norm",
    ),
    Fault(
        VALID, "native", "csrc/hybrid_norm_cuda.cu",
        "const_data<bool>(valid), height * width", "nullptr, height * width", "hybrid_norm",
    ),
    Fault(
        AXES, "native", "csrc/crop_ssi_cuda.cu",
        "box[axis == 0 ? 1 : 0], last = box[axis == 0 ? 3 : 2]",
        "box[axis == 0 ? 0 : 1], last = box[axis == 0 ? 2 : 3]",
        "crop_ssi",
    ),
    Fault(
        TEMPERATURE, "native", "csrc/channel_kl_cuda.cu",
        "problem.temperature * problem.temperature * sum", "sum", "channel_kl",
    ),
    Fault(
        CENTER, "native", "csrc/backproject_cuda.cu",
        "cx(matrix[2]), cy(matrix[5])", "cx(matrix[5]), cy(matrix[2])", "backproject",
    ),
    Fault(
        BARRIER, "emulated", "csrc/channel_kl_cuda.cu",
        "  __syncthreads();\n  return last;", "  return last;", "channel_kl",
    ),
    Fault(
        LAST_BLOCK, "emulated", "csrc/channel_kl_cuda.cu",
        "atomicAdd(counter, 1u) == expected - 1",
        "atomicAdd(counter, 1u) == expected - (expected > 1 ? 2 : 1)", "channel_kl",
    ),
    Fault(
        "ticket before the result", "emulated", "csrc/channel_kl_cuda.cu",
        "  if (threadIdx.x == 0) forward.parts[blockIdx.x] = part;\n"
        "  if (!last_to_arrive(forward.measured + map, problem.tiles_per_map)) return;\n",
        "  const bool last = last_to_arrive(forward.measured + map, problem.tiles_per_map);\n"
        "  if (threadIdx.x == 0) forward.parts[blockIdx.x] = part;\n"
        "  if (!last) return;\n", "channel_kl",
    ),
    Fault(
        "missing barrier in a reduction", "emulated", "csrc/cuda.cuh",
        "per_warp[threadIdx.x / kWarp][n] = x[n];\n  }\n  __syncthreads();\n",
        "per_warp[threadIdx.x / kWarp][n] = x[n];\n  }\n", "channel_kl",
    ),
    Fault(
        "missing barrier of a warp", "emulated", "csrc/backproject_cuda.cu",
        "  __syncwarp();\n  Acc* of_image", "  Acc* of_image", "backproject",
    ),
    Fault(
        BARRIER, "emulated", "csrc/backproject_cuda.cu",
        "    __syncthreads();  // the last round's readers are done\n", "", "point_cloud",
    ),
    Fault(
        "missing barrier in a scan", "emulated", "csrc/backproject_cuda.cu",
        "before[threadIdx.x - step] : 0;\n    __syncthreads();\n", "before[threadIdx.x - step] : 0;\n", "point_cloud",
    ),
    Fault(
        INDEX, "emulated", "csrc/backproject_cuda.cu",
        "pixel < problem.pixels) depth_of_image", "pixel <= problem.pixels) depth_of_image", "backproject",
    ),
    Fault(
        INDEX, "emulated", "csrc/crop_ssi_cuda.cu",
        "taps[crop * count + i] = {", "taps[crop * count + i + 1] = {", "crop_ssi",
    ),
    Fault(
        CAST, "emulated", "csrc/atoms_cuda.cuh",
        "slice.offset[at] = static_cast<uint16_t>(i)", "slice.offset[at] = static_cast<uint8_t>(i)", "hybrid_norm",
    ),
    Fault(
        "missing barrier of a cluster", "emulated", "csrc/clusters_cuda.cuh",
        "memory.narrowed[q / blocks] = query;\n    }\n    cluster.sync();\n",
        "memory.narrowed[q / blocks] = query;\n    }\n", "hybrid_norm",
    ),
    Fault(
        "block ends while it is read", "emulated", "csrc/clusters_cuda.cuh",
        "memory.slice, image, gradient);\n  cluster.sync();\n", "memory.slice, image, gradient);\n", "hybrid_norm",
    ),
    Fault(
        "barrier for some threads", "emulated", "csrc/clusters_cuda.cuh",
        "open = __syncthreads_or(left);", "open = left != 0;", "hybrid_norm",
    ),
    Fault(
        "missing barrier of a warp", "emulated", "csrc/atoms_cuda.cuh",
        "        __syncwarp();\n        if (valid[k]", "        if (valid[k]", "hybrid_norm",
    ),
)  # fmt: skip


def is_cuda(fault: Fault) -> bool:
    return Path(fault.file).suffix in (".cu", ".cuh")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("native", "emulated", "triton", "reference"))
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    on_gpu = options.device.startswith("cuda")
    unnoticed = 0
    for fault in FAULTS:
        if is_cuda(fault) and not on_gpu:
            fault = fault._replace(backend="emulated")
        if options.only not in (None, fault.backend) or (fault.backend == "native" and is_cuda(fault) != on_gpu):
            continue
        if fault.backend == "emulated" and on_gpu:
            continue
        result = "noticed" if noticed(fault, options.device) else "NOT NOTICED"
        unnoticed += result != "noticed"
        print(f"{fault.backend:10} {fault.tests:12} {fault.name:32} {result}", flush=True)
    return int(unnoticed > 0)


def noticed(fault: Fault, device: str) -> bool:
    """Whether the tests of an operation fail with a fault."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in ("distilldepth", "cli", "csrc", "tests", "pyproject.toml"):
            source = REPOSITORY / name
            (shutil.copytree if source.is_dir() else shutil.copy)(source, copy / name)
        file = copy / fault.file
        text = file.read_text(encoding="utf-8")
        if text.count(fault.right) != 1:
            raise SystemExit(
                f"planted_faults: {fault.file} does not hold {fault.right!r} once; bring the fault up to date"
            )
        file.write_text(text.replace(fault.right, fault.wrong), encoding="utf-8")
        environment = {**os.environ, "PYTHONPATH": str(copy), "DISTILLDEPTH_CACHE": str(copy / "cache")}
        if fault.backend == "triton" and device == "cpu":
            environment["TRITON_INTERPRET"] = "1"
        if fault.backend == "emulated":
            # What is compiled is kept under a hash of its sources: a fault compiles only what it is in.
            environment["DISTILLDEPTH_CACHE"] = str(cache_folder())
            build = f"from tests import cuda_emulation as cuda; cuda.build(cuda.sources({fault.tests!r}))"
            subprocess.run([sys.executable, "-c", build], cwd=copy, env=environment, check=True)
        if fault.backend == "native":
            kind = "cpu" if device == "cpu" else "cuda"
            build = f"from distilldepth import native; native.build({kind!r})"
            subprocess.run([sys.executable, "-c", build], cwd=copy, env=environment, check=True)
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", f"tests/test_{fault.tests}.py"]
        command += ["--backend", fault.backend, "--device", device]
        if fault.backend == "emulated":
            command = [sys.executable, "-m", "tests.cuda_emulation", "--only", fault.tests]
        run = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
        # A kernel that writes anywhere may end the process that emulates it.
        if fault.backend == "emulated" and run.returncode < 0:
            return True
        # 1: tests ran and some failed. Anything else is a fault of this script, not a find.
        if run.returncode not in (0, 1):
            raise SystemExit(
                f"planted_faults: the tests ended with {run.returncode}:\n{run.stdout[-2000:]}{run.stderr[-2000:]}"
            )
        return run.returncode == 1


if __name__ == "__main__":
    sys.exit(main())
