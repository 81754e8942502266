"""Two stages: a choice must beat every control, is frozen, and is not measured where it was made."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attribution.made_up import Fleet

from sae_persona.attribution.ranking import LatentRanking, RankedLatent, rank_latents
from sae_persona.attribution.selection import Group, LatentChoice, choose_latent
from sae_persona.errors import ArtifactError, ConfigError, LeakageError
from sae_persona.types import Message, Prompt

EFFECTS = {5: 0.30, 2: 0.20, 9: 0.0, 4: 0.10}


def prompt(question: str, frame: str = "f") -> Prompt:
    return Prompt(f"{question}-{frame}", "open_ended", question, frame, (Message("user", "?"),))


def screen(groups: Sequence[Group]) -> dict[Group, float]:
    """A set does what its latents do together, up to 0.45."""
    return {group: min(0.45, sum(EFFECTS[latent] for latent in group)) for group in groups}


def ranked(q_of: Mapping[int, float | None]) -> LatentRanking:
    """Ten latents, of which only the q-values matter."""
    rows = [RankedLatent(i + 1, i, "gated", "answer", 0.1, 0.0, 0.2, 1.0, q_of.get(i, 1.0)) for i in range(10)]
    return LatentRanking(tuple(rows), 0.01, 3, 8)


SURE = ranked(dict.fromkeys(range(10), 0.01))


def chosen(control: float = 0.08, **options: Any) -> LatentChoice:
    given = {"ranking": SURE, "control_effects": [0.01, control], "prompts": [prompt("a"), prompt("b")]} | options
    return choose_latent([9, 5, 2, 4], screen, **given)


def test_the_latent_with_the_largest_effect_is_chosen_and_then_the_strongest_set() -> None:
    choice = chosen()
    assert (choice.top_latent, choice.top_set, choice.best_control) == (5, (5, 2), 0.08)
    assert choice.effect_of(9) == 0
    assert choice.effect_of(5, 2) == 0.45
    assert choice.effect_of(7) is None
    assert {group for group, _ in choice.effects if len(group) == 3} == {(5, 2, 4)}  # 9 does nothing


def test_nothing_is_chosen_where_a_control_does_as_much() -> None:
    choice = chosen(control=0.30)
    assert (choice.top_latent, choice.top_set) == (None, ())
    assert len(choice.effects) == 4  # no set is tried


def test_an_effect_below_the_least_is_none() -> None:
    options = {"control_effects": [-0.1], "prompts": [prompt("a")]}
    assert choose_latent([9], screen, ranking=SURE, **options).top_latent is None


def test_a_latent_without_a_significant_rise_is_not_chosen_and_the_choice_says_so() -> None:
    choice = chosen(ranking=ranked({5: 0.06, 2: 0.05}))
    assert choice.top_latent == 2, "5 does more, and may have risen by luck"
    assert choice.note == "latent 2 does more than 2 controls (effect 0.2, theirs 0.08 at most), p = 0.05"
    nothing = chosen(ranking=ranked({}))
    assert (nothing.top_latent, nothing.top_set) == (None, ())
    assert nothing.note.startswith(
        "latent 5 does more than 2 controls, as the best of 4 may by luck: p = 1, above 0.05."
    )
    assert chosen(control=0.4).note == "no latent of 4 does more than 2 controls"
    assert chosen(ranking=ranked({}), alpha=1.0).top_latent == 5, "all that beat the controls are asked for"


def test_sets_are_made_of_latents_whose_rise_is_significant() -> None:
    choice = chosen(ranking=ranked({2: 0.01, 4: 0.01}))
    assert (choice.top_latent, choice.top_set) == (2, (2, 4))


def test_p_values_are_those_worked_out_by_hand() -> None:
    """Places: 9, 5, 2, 4. Of 98 random latents and the first two, 2 % are the first two."""
    controls = [0.0] * 98 + [0.15]
    by_screen = chosen(ranking=ranked(dict.fromkeys(range(10))), control_effects=controls, n_random_latents=98)
    assert dict(by_screen.p_values) == {9: 1.0, 5: 2 / 100, 2: 3 / 101, 4: 1.0}  # 9 and 4 do not beat 0.15
    assert by_screen.top_latent == 5
    by_both = chosen(ranking=ranked({9: 0.5, 5: 0.5, 2: 0.001}), control_effects=controls, n_random_latents=98)
    assert dict(by_both.p_values) == pytest.approx({9: 1.0, 5: 4 / 100, 2: 0.002, 4: 1.0})  # twice the smaller
    by_neither = chosen(ranking=ranked(dict.fromkeys(range(10))))
    assert set(dict(by_neither.p_values).values()) == {1.0}


@pytest.mark.parametrize(
    ("fleet", "n_random", "least"),
    [
        (Fleet(n_misaligned=3, n_controls=8), 0, 0.9),
        (Fleet(n_misaligned=3, n_controls=8), 20, 0.8),
        (Fleet(n_misaligned=2, n_controls=4), 80, 0.8),
        (Fleet(n_misaligned=1, n_controls=2), 80, 0.4),
    ],
)
def test_nothing_is_named_where_nothing_rose_and_a_planted_latent_is(fleet: Fleet, n_random: int, least: float) -> None:
    """Effects are drawn anew for every latent, as of a screen that knows nothing; the planted one's is the largest."""
    n = 200
    tops = [choices_of(fleet, n_random, seed) for seed in range(n)]
    named = {alpha: np.mean([one[alpha] is not None for one in tops]) for alpha in (0.05, 1.0)}
    assert named[1.0] > 20 / (20 + 20 + n_random) - 0.1, "the best of the shortlist often beats all controls"
    assert named[0.05] <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / n)  # two standard errors of a share of 5 %
    planted = [choices_of(fleet, n_random, seed, rise=10.0)[0.05] for seed in range(60)]
    assert np.mean([top == 7 for top in planted]) >= least


def choices_of(fleet: Fleet, n_random: int, seed: int, *, rise: float = 0.0) -> dict[float, int | None]:
    """What is named, by alpha, beside `n_random` random latents and 20 directions that are as weak."""
    rng = np.random.default_rng(seed)
    raised = np.zeros(fleet.d_sae)
    raised[7] = rise
    ranking = rank_latents(*fleet.runs(rng, raised=raised))
    effects = rng.uniform(0.06, 0.5, fleet.d_sae + 20 + n_random)
    if rise:
        effects[7] = 0.9
    given = {"control_effects": effects[fleet.d_sae :].tolist(), "n_random_latents": n_random, "prompts": [prompt("a")]}

    def measure(groups: Sequence[Group]) -> dict[Group, float]:
        return {group: float(max(effects[latent] for latent in group)) for group in groups}

    return {
        alpha: choose_latent(ranking.shortlist(), measure, ranking=ranking, alpha=alpha, **given).top_latent
        for alpha in (0.05, 1.0)
    }


def test_an_empty_shortlist_screens_nothing() -> None:
    def never(_groups: Sequence[Group]) -> Mapping[Group, float]:
        raise AssertionError

    choice = choose_latent([], never, ranking=SURE, control_effects=[0.0], prompts=[prompt("a")])
    assert (choice.top_latent, choice.effects) == (None, ())


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (None, "the screen returned nothing for 2 groups"),
        ([0.1, 0.2], "the screen returned list for 2 groups"),
        ({(5,): 0.1}, r"answered for 1; \(2,\) is in one and not"),
        ({(5,): 0.1, (2,): 0.2, (8,): 0.3}, r"answered for 3; \(8,\) is in one and not"),
        ({(5,): float("nan"), (2,): 0.1}, r"effect of latents \(5,\) is nan"),
    ],
)
def test_a_screen_that_does_not_answer_is_refused(answer: object, message: str) -> None:
    def broken(_groups: Sequence[Group]) -> Mapping[Group, float]:
        return answer  # pyright: ignore[reportReturnType]

    with pytest.raises(ConfigError, match=message):
        choose_latent([5, 2], broken, ranking=SURE, control_effects=[0.0], prompts=[prompt("a")])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"control_effects": []}, "0 control effects were given"),
        ({"control_effects": [float("nan")]}, "must be finite"),
        ({"prompts": []}, "none were given"),
        ({"shortlist": [5, 5]}, "names a latent twice"),
        ({"shortlist": [5, 11]}, "latent 11 of the shortlist is not in the ranking"),
        ({"n_random_latents": 2}, "2 of 1 controls are random latents"),
        ({"alpha": 0.0}, "alpha 0: expected .* above 0 and up to 1"),
    ],
)
def test_a_choice_that_cannot_be_made_is_refused(change: dict[str, Any], message: str) -> None:
    given = {"shortlist": [5], "control_effects": [0.0], "prompts": [prompt("a")], "ranking": SURE} | change
    with pytest.raises(ConfigError, match=message):
        choose_latent(given.pop("shortlist"), screen, **given)


def test_what_was_chosen_on_some_questions_or_frames_is_not_measured_on_them() -> None:
    choice = chosen()
    choice.check_unseen([prompt("c", "g")])
    with pytest.raises(LeakageError, match="1 question_ids of these prompts, such as 'a', were used"):
        choice.check_unseen([prompt("a", "g"), prompt("c", "g")])
    with pytest.raises(LeakageError, match="1 frame_ids"):
        choice.check_unseen([prompt("c", "f")])


def test_a_choice_is_saved_with_its_fingerprint_and_not_changed_afterwards(tmp_path: Path) -> None:
    choice, path = chosen(), tmp_path / "choice.json"
    choice.save(path)
    assert LatentChoice.load(path) == choice
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"top_latent": 2}))
    with pytest.raises(ArtifactError, match="was changed after the latent was chosen"):
        LatentChoice.load(path)
    path.write_text("[]")
    with pytest.raises(ArtifactError, match="holds no choice"):
        LatentChoice.load(path)


def test_other_prompts_or_effects_give_another_fingerprint() -> None:
    others = [chosen(prompts=[prompt("a"), prompt("c")]), chosen(0.09), chosen(alpha=0.06)]
    assert chosen().fingerprint == chosen().fingerprint
    assert len({choice.fingerprint for choice in (chosen(), *others)}) == 4


def test_effects_are_joined_to_the_ranking() -> None:
    ranking = rank_latents(*Fleet(d_sae=10).runs(np.random.default_rng(0)))
    table = chosen().table(ranking).set_index("latent")
    assert table.loc[5, "causal_effect"] == 0.30
    assert np.isnan(table.loc[7, "causal_effect"])
    assert [table.loc[latent, "chosen"] for latent in (5, 2, 9, 7)] == ["top", "set", "shortlist", ""]
