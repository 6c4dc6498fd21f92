"""Eight fake CPU devices, one compilation cache, and rank promotion as an error."""

import gc
import os
import tempfile
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

CACHE = os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / "genfield_test_jax_cache")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
jax.config.update("jax_compilation_cache_dir", CACHE)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with real CIFAR-10 and cells; tests that want it skip without it."""
    folder = os.environ.get("GENFIELD_DATA")
    if not folder:
        pytest.skip("GENFIELD_DATA is unset: no real data here")
    return Path(folder)


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """A module's programs go with it: thousands in one process exhaust its memory maps."""
    yield
    jax.clear_caches()
    gc.collect()
