"""Options and fixtures that all tests share."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Generator

import cuda_emulation
import pytest
import torch
from hypothesis import HealthCheck, settings

from distilldepth.errors import DistillDepthError

# No example is a failure because a machine is slow or loaded.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="where the operations are tested: cpu or cuda")
    parser.addoption(
        "--backend",
        default="",
        help="what runs the operations: native, triton, reference, or the CUDA kernels emulated",
    )
    parser.addoption("--emulate", default="", metavar="GPU:ORDER:SEED", help="see tests/cuda_emulation/__init__.py")


def pytest_configure(config: pytest.Config) -> None:
    for name in ("COLUMNS", "LINES", "FORCE_COLOR", "CLICOLOR_FORCE", "DISTILLDEPTH_DEBUG"):
        # The look of what is printed is that of a pipe, whatever terminal the tests were started from.
        os.environ.pop(name, None)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # As in the background of a shell; what tests start would ignore it too.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    backend = config.getoption("--backend")
    if backend == "emulated":
        if cuda_emulation.obstacle() is not None:
            raise pytest.UsageError(f"--backend emulated: {cuda_emulation.obstacle()}")
        emulator = cuda_emulation.load_operations()
        cuda_emulation.use(emulator, config.getoption("--emulate"))
        backend = "native"
    if backend:
        os.environ["DISTILLDEPTH_BACKEND"] = backend


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Slow tests run only when they are asked for."""
    if not config.getoption("-m"):
        slow = [item for item in items if item.get_closest_marker("slow")]
        items[:] = [item for item in items if item not in slow]
        config.hook.pytest_deselected(items=slow)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """With --backend triton, which has no float64, a test in float64 is skipped; it says so."""
    try:
        return (yield)
    except DistillDepthError as error:
        if item.config.getoption("--backend") == "triton" and "tensors of float64" in str(error):
            pytest.skip(str(error))
        raise


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    """The device under test."""
    device = torch.device(request.config.getoption("--device"))
    if device.type == "cuda" and not torch.cuda.is_available():
        pytest.fail("--device cuda was asked for, but torch sees no GPU")
    return device


@pytest.fixture(autouse=True)
def _process() -> Generator[None, None, None]:
    """A command that ran in this process leaves its handlers and number of threads, which are not for the next test."""
    threads = torch.get_num_threads()
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    earlier = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in earlier.items():
        signal.signal(number, handler)
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """No test leaves a process behind: Python would wait for it at its end."""
    left = multiprocessing.active_children()
    for process in left:
        process.kill()
    if left:
        print(f"\ntests left processes behind: {left}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
