"""Browsing the first latents of a finished run, from top to bottom."""

import pytest
from example_summary import example_summary


@pytest.mark.slow
def test_the_first_latents_are_shown_from_all_sides(execute):
    summary = example_summary()
    shown = execute("02_browse_latents.ipynb", summary)
    first = [summary["top_latent"], *(row["latent"] for row in summary["ranking"][:2])]
    for latent in dict.fromkeys(first):
        assert f"latent {latent} fires on" in shown
    assert "rgba(213,94,0" in shown, "the passages are coloured"
    for column in (
        "promotes",
        "writes alike",
        "fires in misaligned-health-obvious",
        "95 % interval",
        "balanced accuracy",
        "fires in 40 of the passages drawn",
    ):
        assert column in shown
