"""One thread and one seeded hypothesis profile: a failure here is the same failure everywhere."""

import pytest
import torch
from hypothesis import HealthCheck, settings

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


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def inline(monkeypatch):
    """Workers that run here, without a process each: importing torch is most of a small one."""
    from analysis import campaign, measure

    def work(job):
        said = []
        measure.Job(job, said.append).run()
        return *campaign.answers(job, said), ""

    monkeypatch.setattr(campaign, "work", work)
    monkeypatch.setattr("analysis.timing.PATIENCE", 0.0)
    monkeypatch.setattr("benchmarks.options.SIDES", {"cpu": (32, 64)})
