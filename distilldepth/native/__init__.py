"""Builds, finds and loads the two native libraries: `distilldepth_cpu` and `distilldepth_cuda`.

`recipe` says what they are made from, `loading` finds the one that fits and loads it, `compiling` makes it. Their
sources are in `csrc`; what the operations are, and which backend runs them, is in `distilldepth.ops`.

Nothing is compiled when the package is installed, imported or used, only by `distilldepth doctor --build`. At install
it could not work: pip builds a wheel before torch, whose headers the sources need, is there; and a wheel with code for
this very processor would go into pip's cache and on to other machines. So wheels stay pure Python and carry the sources
(`csrc`), and the libraries lie in the user's cache folder as `native/distilldepth_<kind>-<key>.so`. The key covers
sources, flags and processor, so that checkouts and machines that share a home do not disturb each other.

Beside each library lies a JSON file that says what it was made from and what it needs. A library that does not fit the
sources, the flags or the machine, or that is damaged, is not loaded. It fits every torch from 2.10 on: the sources use
its stable ABI only.

Environment:
    DISTILLDEPTH_BUILD: `auto` builds what this machine has compilers for; `1` makes a missing compiler an error;
        `0` forbids compiling.
    DISTILLDEPTH_CXXFLAGS: added to the flags of the CPU library; one built with others is not loaded.
    DISTILLDEPTH_CUDA_ARCHS: what the CUDA library is compiled for, `80,90,100` if unset; later GPUs run the last one.
    CXX, CUDA_HOME, CUDA_PATH: where the compilers are.
"""

from distilldepth.native.compiling import Built, build
from distilldepth.native.loading import Status, describe, load
from distilldepth.native.recipe import BUILD, KINDS, build_policy, find_compiler, find_nvcc, obstacle, source_folder

__all__ = [
    "BUILD",
    "KINDS",
    "Built",
    "Status",
    "build",
    "build_policy",
    "describe",
    "find_compiler",
    "find_nvcc",
    "load",
    "obstacle",
    "source_folder",
]
