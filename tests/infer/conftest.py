"""A server in the test's process."""

import pytest
from serving import Served


@pytest.fixture
def step_by_step(monkeypatch, fake_cascade):
    """The cascade that stands in for the networks has no chains to stop."""
    from mv2_jax.infer import generate
    from mv2_jax.infer.serve import maker

    monkeypatch.setattr(maker._StepByStep, "loaded", generate.Videos.loaded)


@pytest.fixture
def served(tmp_path, tiny_weights, step_by_step):
    return Served(tmp_path / "served", tiny_weights)
