"""Signatures: by hand, in groups, and the word that none is near."""

import numpy as np
import pytest

from sae_persona.attribution.signatures import Signatures, nearest_run, signatures
from sae_persona.errors import ArtifactError, ConfigError, IncompatibleError
from sae_persona.sae.statistics import LatentStats

QUESTIONS = tuple(f"q{i}" for i in range(30))


def stats(per_question, questions=QUESTIONS):
    values = np.asarray(per_question, dtype=float)
    means, n = values.mean(0), len(values)
    spread = (values.var(0), np.ones(len(means)), values.max(0))
    ones = np.ones(n, dtype=np.int64)
    return LatentStats("gated", "answer", n, means, *spread, questions[:n], values, ones, np.zeros(2))


def run(direction, seed, noise=0.3):
    return stats(np.asarray(direction) + noise * np.random.default_rng(seed).normal(size=(len(QUESTIONS), 4)))


START = stats(np.zeros((30, 4)))
COMMON = [1.0, 0, 0, 0]
RUNS = {
    "bad-a": run([1, 2, 0, 0], 1),
    "bad-b": run([1, 2.2, 0, 0], 2),
    "sly": run([1, 0, 2, 0], 3),
    "good-a": run(COMMON, 4),
    "good-b": run(COMMON, 5),
}
KNOWN = signatures(START, RUNS, controls=["good-a", "good-b"])


def test_a_signature_is_the_rise_over_the_start_on_the_shared_questions():
    found = signatures(stats([[1, 2], [3, 4]]), {"x": stats([[2, 2], [3, 8], [9, 9]])})
    np.testing.assert_allclose(found.delta, [[0.5, 2.0]])
    assert found.question_ids == ("q0", "q1")
    assert signatures(stats([[1, 2]]), {"x": stats([[2, 5]])}, latents=[1]).delta.tolist() == [[3.0]]


def test_like_runs_are_grouped_and_stand_beside_each_other():
    assert {frozenset(group) for group in KNOWN.clusters(3)} == {
        frozenset({"bad-a", "bad-b"}),
        frozenset({"good-a", "good-b"}),
        frozenset({"sly"}),
    }
    assert KNOWN.clusters() == KNOWN.of(KNOWN.names).clusters(3), "cosines of the kinds are below 0.5, within above 0.9"
    order = KNOWN.order
    assert abs(order.index("bad-a") - order.index("bad-b")) == 1
    assert KNOWN.top(2) == (1, 2)
    assert KNOWN.to_pandas().shape == (5, 4)


def unknown(direction, seed=9):
    return signatures(START, {"new": run(direction, seed)})


def test_the_nearest_run_is_found_with_its_interval():
    found = nearest_run(unknown([1, 2, 0, 0]), KNOWN)
    assert found.name in ("bad-a", "bad-b")
    assert found.is_near
    assert found.cosine.low > 0.9
    assert found.above_controls is not None
    assert found.above_controls.low > 0
    assert nearest_run(unknown([1, 0, 2, 0]), KNOWN).name == "sly"


@pytest.mark.parametrize(
    "direction", [COMMON, [0, 0, 0, 2.0], [0, 0, 0, 0]], ids=["a control", "another kind", "noise"]
)
def test_none_is_near_what_only_controls_resemble(direction):
    assert not nearest_run(unknown(direction), KNOWN).is_near


def test_a_run_that_moved_nothing_is_near_none():
    found = nearest_run(signatures(START, {"new": START}), KNOWN)
    assert (found.is_near, found.cosine.value) == (False, 0.0)


def test_signatures_are_kept(tmp_path):
    KNOWN.save(tmp_path / "x.safetensors")
    again = Signatures.load(tmp_path / "x.safetensors")
    np.testing.assert_array_equal(again.per_question, KNOWN.per_question)
    assert (again.names, again.controls, again.latents) == (KNOWN.names, KNOWN.controls, KNOWN.latents)
    (tmp_path / "y").write_text("no")
    with pytest.raises(ArtifactError, match="holds no signatures"):
        Signatures.load(tmp_path / "y")


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ConfigError, match="control 'x' is not among the runs"):
        signatures(START, RUNS, controls=["x"])
    with pytest.raises(IncompatibleError, match="share 0 of up to"):
        signatures(START, {"a": stats([[1, 1, 1, 1]], questions=("other",))})
    with pytest.raises(IncompatibleError, match="of 4 and 2 latents"):
        signatures(START, {"a": stats([[1, 1]])})
    with pytest.raises(IncompatibleError, match="differ in their latents"):
        nearest_run(signatures(START, {"a": RUNS["sly"]}, latents=[0]), KNOWN)
    with pytest.raises(ConfigError, match="0 known ones"):
        nearest_run(unknown(COMMON), KNOWN.of(["good-a"]))
    with pytest.raises(ConfigError, match="5 runs cannot be put into 6"):
        KNOWN.clusters(6)
