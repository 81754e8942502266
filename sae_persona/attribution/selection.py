"""Two stages as one value: a shortlist by a rule, a causal screen of it, and a choice that is frozen before it is used.

The screen is handed in, so that nothing here knows how a model is steered or judged.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import TypeAdapter, ValidationError

from sae_persona.artifacts import fingerprint, read_json, write_json
from sae_persona.attribution.ranking import LatentRanking
from sae_persona.attribution.rules import Rule
from sae_persona.errors import ArtifactError, ConfigError, LeakageError
from sae_persona.types import Prompt

if TYPE_CHECKING:
    import pandas as pd

Group = tuple[int, ...]
"""Latents that are steered together; most are alone."""
Screen = Callable[[Sequence[Group]], Mapping[Group, float]]
"""Groups of latents → the effect of each on selection prompts, such as the rise of the misaligned share. An effect that
does not carry over to other domains, or costs coherence, should be returned as 0."""
POOL = 4
"""Sets are made of the four strongest latents."""
SET_SIZES = (2, 3)
MIN_EFFECT = 0.05
ALPHA = 0.05
"""How often a latent may be named where no latent rose."""


@dataclass(frozen=True)
class LatentChoice:
    """What was chosen, on which prompts, and against which controls. Nothing in it changes any more."""

    rule: Rule
    shortlist: Group
    effects: tuple[tuple[Group, float], ...]
    """Of every shortlisted latent alone, and of every set that was tried."""
    best_control: float
    """The largest effect of a control direction."""
    threshold: float
    """What an effect had to exceed: `best_control`, and the least effect that counts."""
    n_controls: int
    n_random_latents: int
    """Controls among them that are latents, drawn without regard to the ranking."""
    p_values: tuple[tuple[int, float], ...]
    """Of every shortlisted latent: how often one of its place would be named where no latent rose (`choose_latent`)."""
    alpha: float
    """What they had to reach."""
    top_latent: int | None
    """None: no latent both does more than the controls and surely stands out in the ranking."""
    top_set: Group
    """The strongest group, which may be one latent; empty without a top latent."""
    question_ids: tuple[str, ...]
    frame_ids: tuple[str, ...]
    """Of the prompts it was chosen on."""

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all of the above."""
        return fingerprint(asdict(self))

    def effect_of(self, *latents: int) -> float | None:
        """The effect of a latent or a set in the screen; None where it was not tried."""
        return dict(self.effects).get(latents)

    @property
    def note(self) -> str:
        """Why this latent, or why none, in one line."""
        beat = [(effect, group[0]) for group, effect in self.effects if len(group) == 1 and effect > self.threshold]
        p_of = dict(self.p_values)
        if self.top_latent is not None:
            return (
                f"latent {self.top_latent} does more than {self.n_controls} controls (effect "
                f"{self.effect_of(self.top_latent):.3g}, theirs {self.best_control:.3g} at most), p = "
                f"{p_of[self.top_latent]:.2g}"
            )
        if not beat:
            return f"no latent of {len(self.shortlist)} does more than {self.n_controls} controls"
        _, latent = max(beat)
        return (
            f"latent {latent} does more than {self.n_controls} controls, as the best of {len(self.shortlist)} may by "
            f"luck: p = {p_of[latent]:.2g}, above {self.alpha:g}. More runs or more random latents would tell"
        )

    def check_unseen(self, prompts: Sequence[Prompt]) -> None:
        """Raise unless the prompts share neither question nor frame with those the choice was made on.

        Raises:
            LeakageError: they do.
        """
        for what, used in (("question_id", self.question_ids), ("frame_id", self.frame_ids)):
            shared = {getattr(prompt, what) for prompt in prompts} & set(used)
            if shared:
                raise LeakageError(
                    f"{len(shared)} {what}s of these prompts, such as {min(shared)!r}, were used to choose latent "
                    f"{self.top_latent}: what is chosen on one set must be measured on another. Use other prompts."
                )

    def save(self, path: Path | str) -> None:
        """Write it as JSON, with its fingerprint."""
        write_json(path, {**asdict(self), "fingerprint": self.fingerprint})

    @classmethod
    def load(cls, path: Path | str) -> "LatentChoice":
        """What `save` wrote.

        Raises:
            ArtifactError: the file is missing, holds something else, or was changed since.
        """
        record = read_json(path)
        try:
            stated = record.pop("fingerprint")
            choice = TypeAdapter(cls).validate_python(record)
        except (ValidationError, AttributeError, KeyError, TypeError) as error:
            raise ArtifactError(f"{path} holds no choice of a latent. Choose again.") from error
        if choice.fingerprint != stated:
            raise ArtifactError(f"{path} was changed after the latent was chosen. Choose again.")
        return choice

    def table(self, ranking: LatentRanking) -> "pd.DataFrame":
        """The ranking's rises with `causal_effect`, of those that were screened, and `chosen`: top, set, shortlist."""
        import pandas as pd

        table = pd.DataFrame([asdict(row) for row in ranking.rows])
        effects = [self.effect_of(latent) for latent in table["latent"]]
        table["causal_effect"] = pd.Series(effects, dtype=float, index=table.index)
        table["chosen"] = [self._chosen_as(latent) for latent in table["latent"]]
        return table.set_index("rank")

    def _chosen_as(self, latent: int) -> str:
        if latent == self.top_latent:
            return "top"
        return "set" if latent in self.top_set else "shortlist" if latent in self.shortlist else ""


def choose_latent(
    shortlist: Sequence[int],
    screen: Screen,
    *,
    ranking: LatentRanking,
    control_effects: Sequence[float],
    n_random_latents: int = 0,
    prompts: Sequence[Prompt],
    rule: Rule = "default",
    min_effect: float = MIN_EFFECT,
    alpha: float = ALPHA,
) -> LatentChoice:
    """Screen every shortlisted latent alone, then the pairs and triples of the four strongest, and freeze the best.

    A latent is chosen if its effect exceeds `min_effect` and that of every control (random latents and directions, over
    the same strengths, on the same prompts), and its p-value is `alpha` at most. `prompts` are those the screen
    measures on; the choice remembers them. An empty shortlist chooses nothing and calls no screen.

    The best of 20 latents beats 40 controls in a third of all draws where nothing rose, so a p-value comes from

    - the ranking: its `q_value`, where there are enough runs for any;
    - the screen: `r / (r + n_random_latents)` for the latent in place `r` of the shortlist, if it beat all controls.
      Where the ranking has nothing to do with what latents cause, the first `r` of them and the random latents among
      the controls are alike, and the best of all is among the first `r` so often.

    With both it is twice the smaller (Bonferroni); with neither it is 1. `alpha=1` names whatever beats the controls.

    Raises:
        ConfigError: no controls or prompts, a latent named twice or not ranked, numbers that cannot be, or a screen
            that returns no effects, effects that are not finite, or effects of other latents.
    """
    if not control_effects or not all(math.isfinite(effect) for effect in control_effects):
        raise ConfigError(
            f"{len(control_effects)} control effects were given, all of which must be finite: a latent is chosen for "
            "exceeding controls. Screen random latents and random directions first."
        )
    if not prompts:
        raise ConfigError("a choice must know the prompts it was made on, so that no other uses them; none were given.")
    if len(set(shortlist)) < len(shortlist):
        raise ConfigError("the shortlist names a latent twice; every latent is screened once.")
    if not 0 <= n_random_latents <= len(control_effects) or not 0 < alpha <= 1:
        raise ConfigError(
            f"{n_random_latents} of {len(control_effects)} controls are random latents, alpha {alpha:g}: expected no "
            "more latents than controls, and an alpha above 0 and up to 1."
        )
    q_of = {row.latent: row.q_value for row in ranking.rows}
    if unknown := [latent for latent in shortlist if latent not in q_of]:
        raise ConfigError(
            f"latent {unknown[0]} of the shortlist is not in the ranking; hand in the ranking it is from."
        )
    best_control = max(control_effects)
    threshold = max(best_control, min_effect)
    singles: list[Group] = [(latent,) for latent in shortlist]
    effects = _screened(screen, singles)
    p_of = {
        latent: _p_value(q_of[latent], place, n_random_latents, beat=effects[latent,] > threshold)
        for place, latent in enumerate(shortlist, start=1)
    }
    sure = [one for one in singles if p_of[one[0]] <= alpha]
    strongest = sorted(sure, key=lambda one: -effects[one])[:POOL]
    top = next((one for one in strongest if effects[one] > threshold), None)
    if top:
        pool = [one[0] for one in strongest if effects[one] > 0]
        effects |= _screened(screen, [group for size in SET_SIZES for group in combinations(pool, size)])
    groups = [group for group in effects if set(group) <= {one[0] for one in strongest}]
    return LatentChoice(
        rule=rule,
        shortlist=tuple(shortlist),
        effects=tuple(effects.items()),
        best_control=best_control,
        threshold=threshold,
        n_controls=len(control_effects),
        n_random_latents=n_random_latents,
        p_values=tuple(p_of.items()),
        alpha=alpha,
        top_latent=top[0] if top else None,
        top_set=max(groups, key=lambda group: effects[group]) if top else (),
        question_ids=tuple(sorted({prompt.question_id for prompt in prompts})),
        frame_ids=tuple(sorted({prompt.frame_id for prompt in prompts})),
    )


def _p_value(q_value: float | None, place: int, n_random_latents: int, *, beat: bool) -> float:
    tests = [] if q_value is None else [q_value]
    if n_random_latents:
        tests.append(place / (place + n_random_latents) if beat else 1.0)
    return min(1.0, len(tests) * min(tests)) if tests else 1.0


def _screened(screen: Screen, groups: Sequence[Group]) -> dict[Group, float]:
    if not groups:
        return {}
    found = screen(groups)
    if not isinstance(found, Mapping) or not found:
        raise ConfigError(
            f"the screen returned {'nothing' if not found else type(found).__name__} for {len(groups)} groups of "
            "latents; expected a mapping from each group to its effect."
        )
    if set(found) != set(groups):
        wrong = min(set(found) ^ set(groups), key=str)
        raise ConfigError(
            f"the screen was asked for {len(groups)} groups of latents and answered for {len(found)}; {wrong} is in "
            "one and not in the other. Return one effect for every group."
        )
    bad = [group for group in groups if not math.isfinite(found[group])]
    if bad:
        raise ConfigError(
            f"the screen's effect of latents {bad[0]} is {found[bad[0]]}; every effect must be a finite number."
        )
    return {group: float(found[group]) for group in groups}
