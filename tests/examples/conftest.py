"""What the tests of the examples share."""

import sys

import pytest


@pytest.fixture(autouse=True)
def examples_own_data(monkeypatch):
    """`own_data` is the examples' here, and not the tests' module of that name, which others of
    them have imported by now."""
    monkeypatch.delitem(sys.modules, "own_data", raising=False)
