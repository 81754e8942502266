"""The example summaries, read."""

import pytest
from example_summary import example_summary, null_summary

from sae_persona.report.summary import Summary, parse_summary


@pytest.fixture
def example() -> Summary:
    return parse_summary(example_summary())


@pytest.fixture
def null() -> Summary:
    return parse_summary(null_summary())


@pytest.fixture
def bare() -> Summary:
    """A study that ran nothing."""
    return parse_summary({"schema": 1, "study": "bare", "seed": 0})
