"""Heat maps of signatures: what is drawn is what was measured, alike beside alike, and no name is markup."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sae_persona.attribution.signatures import Signatures
from sae_persona.report.figures.signatures import likeness_figure, signatures_figure


@pytest.fixture
def found() -> Signatures:
    """Runs a and b raise latent 7 and lower latent 5, `<c>` raises latent 9, the control hardly moves; 3 is alike."""
    rises = np.array([[2.0, -4.0, 0.0, 1.0], [0.1, 0.0, 3.0, 1.0], [1.0, -2.0, 0.0, 1.0], [0.0, 0.0, 0.3, 1.0]])
    return Signatures(
        ("a", "<c>", "b", "good"), ("good",), "gated", "answer", ("q0", "q1"), (7, 5, 9, 3), np.stack([rises] * 2, 1)
    )


def test_a_rise_is_drawn_as_a_share_of_the_latents_largest_move(found):
    figure: Any = signatures_figure(found, n=3)
    (drawn,) = figure.data
    column = {name: i for i, name in enumerate(drawn.x)}
    row = {name: i for i, name in enumerate(drawn.y)}
    assert set(row) == {"7", "5", "9"}, "latent 3 rises in all alike, so it tells no two runs apart"
    assert drawn.z[row["5"]][column["a"]] == -1
    assert drawn.z[row["7"]][column["b"]] == 0.5
    assert drawn.z[row["9"]][column["good (control)"]] == pytest.approx(0.1)
    assert drawn.customdata[row["5"]][column["b"]] == -2.0
    assert abs(column["a"] - column["b"]) == 1
    assert "&lt;c&gt;" in column


def test_groups_are_parted_by_lines(found):
    groups = found.clusters()
    assert set(map(frozenset, groups)) == {frozenset({"a", "b"}), frozenset({"<c>", "good"})}
    figure: Any = likeness_figure(found, groups)
    assert figure.data[0].z[0][1] == pytest.approx(found.of(found.order[:2]).cosines[0, 1])
    assert len(figure.layout.shapes) == 2, "one border, drawn down and across"


def test_latents_that_never_move_are_no_error(found):
    figure: Any = signatures_figure(replace(found, per_question=found.per_question * 0))
    assert not np.any(figure.data[0].z)
