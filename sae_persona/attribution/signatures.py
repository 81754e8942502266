"""Signatures of fine-tunes: how far each raised every latent above the start they share, and which of them are alike.

Axes: `runs` fine-tunes, `questions` asked of all of them, `latents` those that are compared.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from scipy.cluster.hierarchy import fcluster, leaves_list, linkage
from scipy.spatial.distance import squareform

from sae_persona.artifacts import write_file
from sae_persona.attribution.difference import over, shared_questions
from sae_persona.errors import ArtifactError, ConfigError, IncompatibleError
from sae_persona.sae.statistics import LatentStats
from sae_persona.types import Estimate

if TYPE_CHECKING:
    import pandas as pd

ALIKE = 0.5
"""Average cosine from which groups of runs count as one kind: random signatures of many latents are near 0."""


@dataclass(frozen=True, eq=False)
class Signatures:
    """Rise of each latent's mean activation over the start, by run; in the SAE's own units."""

    names: tuple[str, ...]
    controls: tuple[str, ...]
    """Names of the runs on correct data: what every fine-tune does."""
    reading: str
    tokens: str
    question_ids: tuple[str, ...]
    latents: tuple[int, ...]
    per_question: Float[np.ndarray, "runs questions latents"]
    """Mean over a question's tokens, run minus start."""

    @property
    def delta(self) -> Float[np.ndarray, "runs latents"]:
        """The rise, each question counting alike (Wang et al. 2025, section 3.1, for each fine-tune apart)."""
        return self.per_question.mean(1)

    @property
    def cosines(self) -> Float[np.ndarray, "runs runs"]:
        """How alike the runs' signatures are; 0 where a run moved nothing."""
        unit = _unit(self.delta)
        return unit @ unit.T

    @property
    def order(self) -> tuple[str, ...]:
        """Names so that like stands beside like: the leaves of the tree."""
        return tuple(self.names[i] for i in leaves_list(self._tree())) if len(self.names) > 1 else self.names

    def clusters(self, n: int | None = None) -> tuple[tuple[str, ...], ...]:
        """The runs in groups, the largest first, by average linkage of the distance `1 - cosine`.

        Cut into `n` groups; without it, where the average cosine between two groups falls below `ALIKE`.

        Raises:
            ConfigError: there are not so many runs.
        """
        if n is not None and not 1 <= n <= len(self.names):
            raise ConfigError(f"{len(self.names)} runs cannot be put into {n} groups.")
        if len(self.names) == 1:
            return (self.names,)
        cut = {"t": 1 - ALIKE, "criterion": "distance"} if n is None else {"t": n, "criterion": "maxclust"}
        labels = fcluster(self._tree(), **cut)
        groups = [tuple(np.array(self.names)[labels == label].tolist()) for label in np.unique(labels)]
        return tuple(sorted(groups, key=lambda group: (-len(group), group)))

    def of(self, names: Sequence[str]) -> "Signatures":
        """Some of the runs."""
        index = {name: i for i, name in enumerate(self.names)}
        if unknown := [name for name in names if name not in index]:
            raise ConfigError(f"there is no run {unknown[0]!r}; there are {', '.join(self.names)}.")
        kept = tuple(name for name in self.controls if name in names)
        return self._with(tuple(names), kept, self.per_question[[index[name] for name in names]])

    def top(self, n: int = 20) -> tuple[int, ...]:
        """The `n` latents in which the runs differ most, by the spread of their rises."""
        spread = self.delta.std(0)
        return tuple(self.latents[i] for i in np.argsort(-spread, kind="stable")[:n])

    def to_pandas(self) -> "pd.DataFrame":
        """Runs by latents."""
        import pandas as pd

        return pd.DataFrame(self.delta, index=pd.Index(self.names, name="run"), columns=pd.Index(self.latents))

    def save(self, path: Path | str) -> None:
        """Write one `.safetensors` file, the words in its metadata."""
        words = {name: value for name, value in vars(self).items() if name != "per_question"}
        with write_file(path) as partial:
            arrays = {"per_question": np.ascontiguousarray(self.per_question)}
            save_file(arrays, partial, metadata={"signatures": json.dumps(words)})

    @classmethod
    def load(cls, path: Path | str) -> "Signatures":
        """The signatures that `save` wrote.

        Raises:
            ArtifactError: the file is missing or holds something else.
        """
        try:
            with safe_open(path, framework="np") as file:
                words = json.loads((file.metadata() or {})["signatures"])
                lists = {name: tuple(value) for name, value in words.items() if isinstance(value, list)}
                return cls(**{**words, **lists}, per_question=file.get_tensor("per_question"))
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"{path} holds no signatures ({error}). Compute them again.") from error

    def _with(self, names: tuple[str, ...], controls: tuple[str, ...], per_question: np.ndarray) -> "Signatures":
        return Signatures(names, controls, self.reading, self.tokens, self.question_ids, self.latents, per_question)

    def _tree(self) -> np.ndarray:
        distance = np.clip(1 - self.cosines, 0, None)
        np.fill_diagonal(distance, 0)
        return linkage(squareform(distance, checks=False), method="average")


@dataclass(frozen=True)
class NearestRun:
    """Which known fine-tune an unknown one resembles."""

    name: str
    """The most alike of the known runs that are no controls."""
    cosine: Estimate
    """Of the two signatures, with a 95 % interval over questions."""
    nearest_control: str | None
    """The most alike control."""
    above_controls: Estimate | None
    """The cosine less the highest that any control has, either with the unknown run or with the known one."""
    is_near: bool
    """False = none is near: the best is not distinguishable from what controls reach, or the run moved nothing."""


def signatures(
    start: LatentStats,
    runs: Mapping[str, LatentStats],
    *,
    controls: Sequence[str] = (),
    latents: Sequence[int] | None = None,
) -> Signatures:
    """The signature of every run, over the questions that the start and all runs have tokens for.

    `latents` takes some latents only; None takes all, which for wide SAEs is `runs * questions * d_sae` numbers.

    Raises:
        ConfigError: no run, a control that is no run, or a latent that is none.
        IncompatibleError: statistics of other readings, tokens or SAEs, or that share too few questions.
    """
    if not runs or (unknown := set(controls) - set(runs)):
        raise ConfigError(
            f"control {min(unknown)!r} is not among the runs." if runs else "signatures need at least one run."
        )
    questions = tuple(shared_questions([start, *runs.values()]))
    d_sae = len(start.mean)
    chosen = list(range(d_sae) if latents is None else latents)
    if not chosen or min(chosen) < 0 or max(chosen) >= d_sae:
        raise ConfigError(f"latents {chosen[:5]} are asked for, and there are 0 to {d_sae - 1}.")
    before = over(start, questions)[:, chosen]
    per_question = np.stack([over(run, questions)[:, chosen] - before for run in runs.values()])
    return Signatures(tuple(runs), tuple(controls), start.reading, start.tokens, questions, tuple(chosen), per_question)


def nearest_run(unknown: Signatures, known: Signatures, *, seed: int = 0, n_boot: int = 1000) -> NearestRun:
    """The known fine-tune whose signature is nearest to that of the one run in `unknown`, or the word that none is.

    Near means nearer to it than to any control, and nearer to it than any control is, both with a lower 95 % bound
    above zero over draws of questions: what every fine-tune does alike is no kinship. Without controls, near means a
    cosine with a lower bound above zero. The unit is this pair of runs; other runs of the same recipe may differ.

    Raises:
        ConfigError: `unknown` holds not one run, or all known runs are controls.
        IncompatibleError: the two are over other questions, latents, tokens or readings.
    """
    for what in ("reading", "tokens", "question_ids", "latents"):
        if getattr(unknown, what) != getattr(known, what):
            raise IncompatibleError(f"the signatures differ in their {what}. Compute them over the same.")
    candidates = [name for name in known.names if name not in known.controls]
    if len(unknown.names) != 1 or not candidates:
        raise ConfigError(
            f"{len(unknown.names)} unknown runs and {len(candidates)} known ones beside controls: expected 1 and more."
        )
    of_run, of_known = unknown.per_question[0], known.of(candidates).per_question
    of_controls = known.of(known.controls).per_question
    whole = np.full((1, len(known.question_ids)), 1 / len(known.question_ids))
    best = int(_cosines(of_run, of_known, whole)[0].argmax())
    n = len(known.question_ids)
    draws = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=n_boot) / n

    def measured(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The cosine, and the same less the highest of any control, for each row of weights of questions."""
        cosine = _cosines(of_run, of_known[[best]], weights)[:, 0]
        rivals = np.concatenate(
            [_cosines(of_run, of_controls, weights), _cosines(of_known[best], of_controls, weights)], axis=1
        )
        return cosine, cosine - rivals.max(1, initial=0.0)

    value, drawn = measured(whole), measured(draws)
    cosine, above = (_estimate(value[i][0], drawn[i], n) for i in (0, 1))
    moved = bool(np.abs(of_run.mean(0)).max() > 0)
    nearest = known.controls[int(_cosines(of_run, of_controls, whole)[0].argmax())] if known.controls else None
    return NearestRun(
        name=candidates[best],
        cosine=cosine,
        nearest_control=nearest,
        above_controls=above if known.controls else None,
        is_near=moved and above.low > 0,
    )


def _unit(rows: Float[np.ndarray, "*axes latents"]) -> Float[np.ndarray, "*axes latents"]:
    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    return np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)


def _cosines(
    one: Float[np.ndarray, "questions latents"],
    others: Float[np.ndarray, "runs questions latents"],
    weights: Float[np.ndarray, "draws questions"],
) -> Float[np.ndarray, "draws runs"]:
    """Of one run's rise with each of the others', both averaged over questions with the same weights."""
    mine = _unit(weights @ one)
    theirs = [(mine * _unit(weights @ other)).sum(-1) for other in others]
    return np.stack(theirs, axis=1) if theirs else np.zeros((len(weights), 0))


def _estimate(value: float, drawn: Float[np.ndarray, " draws"], n_questions: int) -> Estimate:
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Estimate(
        float(value), min(float(value), float(low)), max(float(value), float(high)), n_questions, n_questions, 0
    )
