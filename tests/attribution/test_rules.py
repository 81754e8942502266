"""Rules of the shortlist: each sorts by what it says."""

from dataclasses import replace

import numpy as np
import pytest
from attribution.made_up import Fleet, stats_of

from sae_persona.attribution.ranking import RunStats, rank_latents
from sae_persona.attribution.rules import RULES, Evidence, Rule, scores_by, shortlist_by
from sae_persona.errors import ConfigError


def run(latents: list[float], resid: list[float]) -> RunStats:
    per_question, of_question = np.array([latents, latents]), np.array([resid, resid])
    return {("gated", "answer"): stats_of(per_question, resid=of_question)}


@pytest.fixture
def evidence() -> Evidence:
    """Latent 0 rises by little and reliably, 1 by much in one control too, 2 by as much as fine-tuning always does."""
    return Evidence(
        misaligned=[run([1.0, 5.0, 9.0], [1.0, 0.2]), run([1.1, 5.2, 9.1], [1.0, 0.1])],
        controls=[run([0.1, 0.0, 9.0], [0.0, 0.3]), run([0.0, 4.0, 8.9], [0.0, 0.0])],
        aligned=run([0.0, 0.0, 0.0], [0.0, 0.0]),
        decoder=np.array([[0.0, 1.0], [1.0, 1.0], [2.0, 0.0]]),
        attribution=np.array([0.5, 0.0, -1.0]),
    )


def test_each_rule_sorts_by_its_own_measure(evidence: Evidence) -> None:
    np.testing.assert_allclose(scores_by("plain", evidence), [1.05, 5.1, 9.05])
    np.testing.assert_allclose(scores_by("control_subtracted", evidence), [1.0, 3.1, 0.1])
    np.testing.assert_allclose(scores_by("mean_difference", evidence), [0, np.sqrt(0.5), 1], atol=1e-12)
    assert shortlist_by("default", evidence)[0] == 0
    assert shortlist_by("plain", evidence) == (2, 1, 0)
    assert shortlist_by("probe", evidence)[0] == 2
    assert shortlist_by("attribution", evidence) == (0,)  # nothing at or below zero is suspicious


def test_the_default_is_the_order_of_the_ranking() -> None:
    misaligned, controls = Fleet().runs(np.random.default_rng(0))
    assert shortlist_by("default", Evidence(misaligned, controls), n=5) == rank_latents(misaligned, controls).shortlist(
        5
    )


@pytest.mark.parametrize(
    ("rule", "missing", "message"),
    [
        ("plain", {"aligned": None}, "the start model"),
        ("probe", {"decoder": None}, "reads the SAE's `decoder`"),
        ("attribution", {"attribution": None}, "reads `attribution` scores"),
        ("attribution", {"attribution": np.array([np.nan, 0, 0])}, "not finite"),
        ("mean_difference", {"key": ("gated", "header")}, "no gated statistics over header tokens"),
        ("loudest", {}, "expected one of default, plain"),
    ],
)
def test_a_rule_without_its_evidence_is_refused(
    evidence: Evidence, rule: Rule, missing: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        scores_by(rule, replace(evidence, **missing))  # pyright: ignore[reportArgumentType]


def test_all_rules_are_listed() -> None:
    assert RULES == ("default", "plain", "control_subtracted", "mean_difference", "probe", "attribution")
