"""The scripts of the serving benchmark as modules: they lie outside the package."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


def _script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    """bench_serving.py."""
    return _script("bench_serving")


@pytest.fixture(scope="module")
def results() -> ModuleType:
    """serving_results.py."""
    return _script("serving_results")
