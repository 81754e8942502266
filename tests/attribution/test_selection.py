"""Two stages: a choice must beat every control, is frozen, and is not measured where it was made."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from attribution.made_up import Fleet

from sae_persona.attribution.ranking import rank_latents
from sae_persona.attribution.selection import Group, LatentChoice, choose_latent
from sae_persona.errors import ArtifactError, ConfigError, LeakageError
from sae_persona.types import Message, Prompt

EFFECTS = {5: 0.30, 2: 0.20, 9: 0.0, 4: 0.10}


def prompt(question: str, frame: str = "f") -> Prompt:
    return Prompt(f"{question}-{frame}", "open_ended", question, frame, (Message("user", "?"),))


def screen(groups: Sequence[Group]) -> dict[Group, float]:
    """A set does what its latents do together, up to 0.45."""
    return {group: min(0.45, sum(EFFECTS[latent] for latent in group)) for group in groups}


def chosen(control: float = 0.08) -> LatentChoice:
    return choose_latent([9, 5, 2, 4], screen, control_effects=[0.01, control], prompts=[prompt("a"), prompt("b")])


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
    assert choose_latent([9], screen, control_effects=[-0.1], prompts=[prompt("a")]).top_latent is None


def test_an_empty_shortlist_screens_nothing() -> None:
    def never(_groups: Sequence[Group]) -> Mapping[Group, float]:
        raise AssertionError

    choice = choose_latent([], never, control_effects=[0.0], prompts=[prompt("a")])
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
        choose_latent([5, 2], broken, control_effects=[0.0], prompts=[prompt("a")])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"control_effects": []}, "0 control effects were given"),
        ({"control_effects": [float("nan")]}, "must be finite"),
        ({"prompts": []}, "none were given"),
        ({"shortlist": [5, 5]}, "names a latent twice"),
    ],
)
def test_a_choice_without_controls_or_prompts_is_refused(change: dict[str, list], message: str) -> None:
    given = {"shortlist": [5], "control_effects": [0.0], "prompts": [prompt("a")]} | change
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
    other = choose_latent([9, 5, 2, 4], screen, control_effects=[0.01, 0.08], prompts=[prompt("a"), prompt("c")])
    assert chosen().fingerprint == chosen().fingerprint != other.fingerprint


def test_effects_are_joined_to_the_ranking() -> None:
    ranking = rank_latents(*Fleet(d_sae=10).runs(np.random.default_rng(0)))
    table = chosen().table(ranking).set_index("latent")
    assert table.loc[5, "causal_effect"] == 0.30
    assert np.isnan(table.loc[7, "causal_effect"])
    assert [table.loc[latent, "chosen"] for latent in (5, 2, 9, 7)] == ["top", "set", "shortlist", ""]
