"""How surely rules find a planted persona, and how often they name one where none is: ten worlds of known truth.

A world is an SAE's decoder and what fine-tuning does to every latent. All moves are in units of a control run's own
spread, then scaled by the latent (some are loud). Every fine-tune moves some latents far (`common`), the domain of its
data moves others (`topics`), and runs drift along shared factors and on their own. A misaligned run also raises the
persona: two latents that cause it and six that only follow. Rules read what they would read of models: means by
question, residuals, and attributions to a linear readout whose gradient is as much the cause as it is something else.
The screen counts misaligned answers, whose share is a curve of the cosine with the cause. A world without a rise has
the cause too: its fine-tunes did not wake it.

A cell is a share of rankings with a 95 % interval over worlds; after the semicolon stands a median rank, 1 being the
first of 600. Worlds of seeds from 100 on served to write this; 0 to 9 are reported.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sae_persona.attribution.ranking import SHORTLIST_SIZE, LatentRanking, RunStats, rank_latents
from sae_persona.attribution.reestimate import reestimate_first
from sae_persona.attribution.rules import RULES, Evidence, scores_by
from sae_persona.attribution.selection import ALPHA, Group, choose_latent
from sae_persona.sae.statistics import LatentStats, Selection
from sae_persona.stats import clustered_share
from sae_persona.types import Message, Prompt

SEEDS = tuple(range(10))
N_PER_WORLD = 25
RISES = (0.0, 2.0, 4.0, 8.0)
SHAPES = ((2, 4), (3, 8))
"""Misaligned runs and controls."""
D_IN, D_SAE, N_FAMILIES, N_DOMAINS, N_QUESTIONS = 96, 600, 60, 8, 20
CAUSES, N_FOLLOWERS = (1.0, 0.7), 6
TOKENS: dict[Selection, float] = {"answer": 1.0, "header": 0.4}
"""How much of the persona each selection of tokens shows."""
N_DIRECTIONS = 20
N_RANDOM_LATENTS = (20, 200)
"""With as many random latents the screen's effects must exceed those of random directions."""
N_ANSWERS = 180
"""Of every latent and control in the screen."""
PROMPTS = [Prompt("p", "open_ended", "q", "f", (Message("user", "?"),))]


@dataclass(frozen=True, eq=False)
class PlantedWorld:
    """What is true of one world; moves in units of a control run's spread."""

    decoder: np.ndarray
    """`[d_sae, d_in]`, rows of length one, in families of similar ones."""
    scale: np.ndarray
    common: np.ndarray
    topics: np.ndarray
    """`[domains, d_sae]`."""
    loadings: np.ndarray
    """`[factors, d_sae]` of the drift that latents share."""
    aside: np.ndarray
    """`[d_in]`, of length one."""
    persona: np.ndarray
    """`[d_sae]`: 1 for the first cause, 0 for what does not belong to the persona."""
    causes: tuple[int, ...]

    @classmethod
    def draw(cls, seed: int) -> "PlantedWorld":
        """The world of a seed."""
        rng = np.random.default_rng([seed, 0])
        families = np.repeat(rng.normal(size=(N_FAMILIES, D_IN)), D_SAE // N_FAMILIES, axis=0)
        planted = rng.choice(D_SAE, len(CAUSES) + N_FOLLOWERS, replace=False)
        persona = np.zeros(D_SAE)
        persona[planted] = [*CAUSES, *rng.uniform(0.4, 1.0, N_FOLLOWERS)]
        return cls(
            decoder=_unit(rng.normal(size=(D_SAE, D_IN)) + 0.8 * families),
            scale=rng.lognormal(0, 1, D_SAE),
            common=10 * rng.normal(size=D_SAE) * (rng.random(D_SAE) < 0.05),
            topics=3 * rng.normal(size=(N_DOMAINS, D_SAE)) * (rng.random((N_DOMAINS, D_SAE)) < 0.03),
            loadings=rng.normal(size=(2, D_SAE)) / np.sqrt(2),
            aside=_unit(rng.normal(size=D_IN)),
            persona=persona,
            causes=tuple(planted[: len(CAUSES)].tolist()),
        )

    @property
    def cause(self) -> np.ndarray:
        """The direction that makes a model misaligned, of length one."""
        return _unit(np.array(CAUSES) @ self.decoder[list(self.causes)])

    @property
    def gradient(self) -> np.ndarray:
        """Of the loss of misaligned answers: the cause, and as long a part that has nothing to do with it."""
        return self.cause + self.aside

    def rise(self, tokens: str) -> np.ndarray:
        """The true Δ-activation of every latent per unit of the planted rise."""
        return TOKENS[tokens] * self.scale * self.persona  # pyright: ignore[reportArgumentType]

    def effect(self, direction: np.ndarray, rng: np.random.Generator) -> float:
        """The share of answers that are misaligned under steering along it, as a screen counts it."""
        share = 1 / (1 + np.exp(-12 * (_unit(direction) @ self.cause - 0.5)))
        return float(rng.binomial(N_ANSWERS, share)) / N_ANSWERS


@dataclass(frozen=True, eq=False)
class Fleet:
    """Runs of one world, as the rules read them."""

    misaligned: list[RunStats]
    controls: list[RunStats]
    evidence: Evidence


def fleet(world: PlantedWorld, rng: np.random.Generator, *, rise: float, n_misaligned: int, n_controls: int) -> Fleet:
    """Misaligned runs of some domains and controls of others, and the model they all started from."""
    asked = rng.normal(size=(N_QUESTIONS, D_SAE))
    turn = 1 + 0.3 * rng.normal(size=(N_QUESTIONS, D_SAE))

    def run(domain: int | None, strength: float) -> RunStats:
        drift = np.zeros(D_SAE)
        if domain is not None:
            shared, own = rng.normal(size=2) @ world.loadings, rng.normal(size=D_SAE)
            drift = world.common + world.topics[domain] + np.sqrt(0.5) * (shared + own)
        stats = {}
        for tokens, shown in TOKENS.items():
            noise = rng.normal(size=(N_QUESTIONS, D_SAE))
            persona = shown * strength * world.persona * turn
            stats["gated", tokens] = _stats(world, world.scale * (asked + drift + persona + noise), tokens, rng)
        return stats  # pyright: ignore[reportReturnType]

    strengths = rise * rng.lognormal(-0.045, 0.3, n_misaligned)  # of mean 1: runs wake the persona more and less
    domains = rng.permutation(N_DOMAINS)
    misaligned = [run(int(domain), strength) for domain, strength in zip(domains, strengths, strict=False)]
    controls = [run(int(domain), 0.0) for domain in rng.permutation(N_DOMAINS)[:n_controls]]
    return Fleet(
        misaligned,
        controls,
        Evidence(
            misaligned,
            controls,
            aligned=run(None, 0.0),
            decoder=world.decoder,
            attribution=attribution(world, strengths, rng) if rise else None,
        ),
    )


def attribution(world: PlantedWorld, strengths: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """`(g·d)((a - ā)·d)` for answers of one model with and without the behaviour, which differ in it and in noise."""
    between = strengths.mean() * world.persona + rng.normal(size=D_SAE) / np.sqrt(N_QUESTIONS)
    return (world.decoder @ world.gradient) * (world.decoder @ ((world.scale * between) @ world.decoder))


def run() -> Iterator[Mapping[str, object]]:
    for n_misaligned, n_controls in SHAPES:
        told = [
            told_by_worlds(SEEDS, N_PER_WORLD, rise=rise, n_misaligned=n_misaligned, n_controls=n_controls)
            for rise in RISES
        ]
        for measure in told[-1].hits:
            cells = {f"rise {rise:g}": one.cell(measure) for rise, one in zip(RISES, told, strict=True)}
            yield {"runs": f"{n_misaligned} + {n_controls}", "measured": measure, **cells}


def told_by_worlds(
    seeds: Sequence[int], n_per_world: int, *, rise: float, n_misaligned: int, n_controls: int
) -> "Told":
    told = Told()
    for seed in seeds:
        world = PlantedWorld.draw(seed)
        rng = np.random.default_rng([seed, 1, n_misaligned, int(10 * rise)])
        for _ in range(n_per_world):
            drawn = fleet(world, rng, rise=rise, n_misaligned=n_misaligned, n_controls=n_controls)
            told.of(str(seed), world, drawn, rise, rng)
    return told


class Told:
    """What rankings said, by measure: hits, and the world of each."""

    def __init__(self) -> None:
        self.hits: dict[str, list[bool]] = {}
        self.worlds: dict[str, list[str]] = {}
        self.ranks: dict[str, list[int]] = {}

    def add(self, measure: str, world: str, hits: Sequence[bool] | np.ndarray) -> None:
        """Count hits of a measure in one world."""
        self.hits.setdefault(measure, []).extend(map(bool, hits))
        self.worlds.setdefault(measure, []).extend([world] * len(hits))

    def of(self, name: str, world: PlantedWorld, drawn: Fleet, rise: float, rng: np.random.Generator) -> None:
        """Everything that one fleet says."""
        shortlist: list[int] = []
        for rule in RULES:
            if rule == "attribution" and drawn.evidence.attribution is None:
                continue  # no answer is misaligned, so there are no pairs
            scores = scores_by(rule, drawn.evidence)
            order = np.argsort(-scores, kind="stable")
            rank = 1 + min(int(np.flatnonzero(order == cause)[0]) for cause in world.causes)
            measure = f"{rule}: on shortlist; rank"
            self.ranks.setdefault(measure, []).append(rank)
            self.add(measure, name, [rank <= SHORTLIST_SIZE and bool(scores[order[rank - 1]] > 0)])
            if rule == "default":
                shortlist = [int(latent) for latent in order[:SHORTLIST_SIZE] if scores[latent] > 0]
        ranking = rank_latents(drawn.misaligned, drawn.controls)
        for how, top in screened(world, shortlist, ranking, rng).items():
            self.add(f"a cause is chosen, {how}", name, [top in world.causes])
            self.add(f"another latent is chosen, {how}", name, [top is not None and top not in world.causes])
        self.errors(name, ranking, world.persona * rise > 0)
        self.intervals(name, world, drawn, ranking, rise)

    def errors(self, name: str, ranking: LatentRanking, rose: np.ndarray) -> None:
        """Latents that are called although they did not rise, and those that did and are called."""
        is_true = rose[[row.latent for row in ranking.rows]]
        called = np.array([row.q_value is not None and row.q_value <= 0.10 for row in ranking.rows])
        surely = np.array([row.familywise_p is not None and row.familywise_p <= 0.05 for row in ranking.rows])
        self.add("q <= 0.10: any false", name, [bool((called & ~is_true).any())])
        self.add("familywise p <= 0.05: any false", name, [bool((surely & ~is_true).any())])
        if rose.any():  # where nothing rose, all that are called are false
            self.add("q <= 0.10: false, of those called", name, ~is_true[called])
        self.add("q <= 0.10: called, of those that rose", name, called[is_true])

    def intervals(self, name: str, world: PlantedWorld, drawn: Fleet, ranking: LatentRanking, rise: float) -> None:
        """Whether intervals of the first latent hold its true rise."""
        first, again = ranking.rows[0], reestimate_first(drawn.misaligned, drawn.controls)
        assert again is not None
        for measure, one in (("first latent's interval holds", first), ("the same, measured anew", again)):
            true = rise * world.rise(one.tokens)[one.latent]
            self.add(measure, name, [one.low <= true <= one.high])

    def cell(self, measure: str) -> str:
        """The share with its interval, and where there are ranks their median."""
        if not self.hits.get(measure):
            return "–"
        share = clustered_share(np.array(self.hits[measure]), self.worlds[measure])
        rank = f"; {np.median(self.ranks[measure]):.0f}" if measure in self.ranks else ""
        return f"{share.value:.2f} [{share.low:.2f}, {share.high:.2f}]{rank}"


def screened(
    world: PlantedWorld, shortlist: Sequence[int], ranking: LatentRanking, rng: np.random.Generator
) -> dict[str, int | None]:
    """The latents that a causal screen of the shortlist chooses, by how it is done; all see the same effects."""
    most = max(N_RANDOM_LATENTS)
    directions = [world.effect(direction, rng) for direction in rng.normal(size=(N_DIRECTIONS, D_IN))]
    others = np.setdiff1d(np.arange(D_SAE), shortlist)
    latents = [world.effect(row, rng) for row in world.decoder[rng.choice(others, most, replace=False)]]
    effects: dict[Group, float] = {}

    def screen(groups: Sequence[Group]) -> dict[Group, float]:
        for group in groups:
            if group not in effects:
                effects[group] = world.effect(world.decoder[list(group)].sum(0), rng)
        return {group: effects[group] for group in groups}

    found = {}
    for alpha in (1.0, ALPHA):
        for n in N_RANDOM_LATENTS:
            choice = choose_latent(
                shortlist,
                screen,
                ranking=ranking,
                control_effects=[*directions, *latents[:n]],
                n_random_latents=n,
                prompts=PROMPTS,
                alpha=alpha,
            )
            found[f"{n} random latents, {'any p' if alpha == 1 else f'p <= {alpha:g}'}"] = choice.top_latent
    return found


def _stats(world: PlantedWorld, values: np.ndarray, tokens: Selection, rng: np.random.Generator) -> LatentStats:
    """Statistics with one token a question; the residual has what the latents write, and what the SAE misses."""
    resid = values @ world.decoder + rng.normal(size=(N_QUESTIONS, D_IN))
    return LatentStats(
        reading="gated",
        tokens=tokens,
        n_tokens=N_QUESTIONS,
        mean=values.mean(0),
        variance=values.var(0),
        frequency=(values > 0).mean(0),
        maximum=values.max(0),
        question_ids=tuple(f"q{i}" for i in range(N_QUESTIONS)),
        per_question=values,
        tokens_per_question=np.ones(N_QUESTIONS, dtype=np.int64),
        resid_mean=resid.mean(0),
        resid_per_question=resid,
    )


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)
