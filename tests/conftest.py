"""Eight fake CPU devices, a compilation cache that is kept, and rank promotion as an error."""

import gc
import os
import platform
import tempfile
from importlib import metadata
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
# Compiling takes most of the time of these tests, and half as long without LLVM's optimiser.
for flag in (
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",
):
    if flag.split("=")[0] not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()

import jax  # noqa: E402
import pytest  # noqa: E402
from meshes import devices  # noqa: E402

# Programs of other versions would be compiled anew anyway; so their folder can be thrown away.
VERSIONS = "_".join([platform.python_version(), *map(metadata.version, ("jax", "jaxlib"))])
CACHE = os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / f"genfield_tests_{VERSIONS}")
)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"  # of the programs that tests start
jax.config.update("jax_compilation_cache_dir", CACHE)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_numpy_rank_promotion", "raise")

TESTS = Path(__file__).parent
CORE = ("couplings", "losses", "sampling", "test_fields.py", "test_core_imports.py")
PROCESSES = (
    "test_guard.py",
    "test_launchers.py",
    "test_processes.py",
    "test_signals.py",
    "test_distributed.py",
    "test_rows.py",
    "test_core_imports.py",
    "test_prepare_signals.py",
)
MAPS = Path("/proc/self/maps")
MOST_MAPS = 30_000  # of the 65,530 memory maps that Linux gives a process


def pytest_collection_modifyitems(items):
    """Marks what lies in the core's folders, and what starts processes."""
    for item in items:
        place = item.path.relative_to(TESTS)
        if place.parts[0] in CORE:
            item.add_marker(pytest.mark.core)
        if place.name in PROCESSES:
            item.add_marker(pytest.mark.process)


@pytest.fixture(autouse=True, scope="session")
def one_device():
    """A mesh of eight costs a run several times its work: tests of meshes ask for it."""
    with devices(1):
        yield


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with real CIFAR-10 and cells; tests that want it skip without it."""
    folder = os.environ.get("GENFIELD_DATA")
    if not folder:
        pytest.skip("GENFIELD_DATA is unset: no real data here")
    return Path(folder)


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Thousands of programs in one process exhaust its memory maps: they go when they are many."""
    yield
    if not MAPS.exists() or MAPS.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()
        gc.collect()
