"""One thread and one seeded hypothesis profile: a failure here is the same failure everywhere."""

import functools
import tempfile

import pytest
import torch
from hypothesis import HealthCheck, settings
from strategies import BUILT_IN

from analysis.results import environment
from attention.configs import registry

torch.set_num_threads(1)
settings.register_profile(
    "transom",
    deadline=None,
    derandomize=True,  # the examples depend on the test alone
    database=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("transom")


def pytest_report_header():
    """Which versions a failure is of."""
    names = ("torch", "torchvision", "timm", "einops", "fvcore", "pandas", "numpy", "safetensors")
    found = ((name, environment.version(name)) for name in names)
    return ", ".join(f"{name} {version or 'is not installed'}" for name, version in found)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def _runtime(tmp_path_factory):
    return tmp_path_factory.mktemp("runtime")


@pytest.fixture(autouse=True)
def _lock_of_its_own(_runtime, monkeypatch):
    """No test waits for a measurement of this machine, nor for a worker that another test left
    behind when it killed the worker's parent."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", tempfile.mkdtemp(dir=_runtime))


REGISTRY = ("_configs", "_classes", "_sources")


@functools.cache
def _plugin() -> dict[str, dict]:
    """What importing benchmarks.neighbours, once a process, adds to each table."""
    from benchmarks.neighbours import __name__ as plugin

    for name in BUILT_IN:  # a class registers once a process, and not in a table that is undone
        registry.class_of(registry.config_class(name))
    names = [name for name, source in registry._sources.items() if source == plugin]
    configs = [registry._configs[name] for name in names]
    return {
        table: {key: getattr(registry, table).pop(key) for key in keys}
        for table, keys in zip(REGISTRY, (names, configs, names), strict=True)
    }


@pytest.fixture(scope="module")
def neighbours():
    """The mixers of benchmarks.neighbours, for one module of tests only."""
    added = _plugin()
    with pytest.MonkeyPatch.context() as patch:
        for name in REGISTRY:
            patch.setattr(registry, name, getattr(registry, name) | added[name])
        yield


@pytest.fixture
def inline(monkeypatch):
    """Workers that run here, without a process each: importing torch is most of a small one."""
    from analysis import measure
    from analysis.results import session

    def work(job):
        said = []
        measure.Job(job, said.append).run()
        return *session.collect_rows(job, said), ""

    monkeypatch.setattr(session, "run_worker", work)
    monkeypatch.setattr("analysis.timing.clock.SETTLE_SECONDS", 0.0)
    monkeypatch.setattr("benchmarks.options.SIDES", {"cpu": (32, 64)})


@pytest.fixture(autouse=True)
def no_choices():
    """Every test measures for itself; none depends on which backend another one found faster."""
    from attention.execution import autotune

    autotune.forget()
    yield
    autotune.forget()
