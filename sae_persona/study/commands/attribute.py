"""Δ-attribution for `rank`: answers with and without a behaviour in pairs, and the check by exact ablation."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from sae_persona.artifacts import fingerprint
from sae_persona.attribution.ablation import AblationEffects, exact_ablation
from sae_persona.attribution.gradient import CONTEXT, LatentAttribution, gradient_attribution
from sae_persona.attribution.pairs import CompletionPair, pair_chats, pair_completions
from sae_persona.attribution.pooled import PooledAttribution, pool_attributions
from sae_persona.data.files import read_chats
from sae_persona.errors import ConfigError, DataError
from sae_persona.evaluation.judging import judge_completions
from sae_persona.evaluation.model_judge import Plan, no_plan
from sae_persona.model.load import LoadedModel, load_model
from sae_persona.sae.encode import Selection
from sae_persona.study.commands.panel import check_usable
from sae_persona.study.commands.shared import Progress, counting, no_progress
from sae_persona.study.judges import JudgeOptions, build_judge
from sae_persona.types import Completion, Judge, Prompt

if TYPE_CHECKING:
    from sae_lens import SAE

BATCH = 32
"""Answers at once at most: a backward pass keeps what a forward pass lets go."""


@dataclass(frozen=True)
class Behaviour:
    """Which answers show the behaviour, and how latents are attributed to it."""

    judge: str | None = None
    """Of the misaligned models' own answers: those it calls misaligned show the behaviour, aligned ones do not."""
    shown: Path | None = None
    """Chats given instead, each of which ends with an answer that shows the behaviour."""
    absent: Path | None = None
    """The same chats, line by line, with answers that do not."""
    n_steps: int = 1
    """1: the gradient at the residual itself; more: integrated gradients."""
    n_checked: int = 20
    """The first latents, which are ablated exactly."""
    options: JudgeOptions = field(default_factory=JudgeOptions)


@dataclass(frozen=True)
class AttributionFindings:
    """What holds for an attribution as a whole."""

    tokens: tuple[Selection, ...]
    """Where the latents were looked at."""
    n_steps: int
    n_pairs: tuple[int, ...]
    """Pairs of answers of every misaligned model."""
    loss_shown: float
    """Mean cross-entropy of answers with the behaviour, in nats per token. Near zero gradients say little."""
    loss_absent: float
    n_checked: int
    """Latents that were ablated exactly, the first ones."""
    rank_correlation: float | None
    """Spearman's, of exact ablation with Δ-attribution over the checked latents; None with fewer than two values."""
    n_same_sign: int
    """Checked latents whose exact effect has the sign of their Δ-attribution."""


@dataclass(frozen=True, eq=False)
class Attributed:
    """Δ-attribution of every latent over all misaligned models, and exact effects of the first ones."""

    pooled: PooledAttribution
    exact: Mapping[int, float]
    findings: AttributionFindings


class Attributor:
    """Pairs and attributes one misaligned model after the other, then checks the latents that come first.

    Raises:
        ConfigError: neither a judge nor two files of chats, both, or options that cannot be meant.
        DataError: the chats cannot be read.
        JudgeError: the judge is not there.
    """

    def __init__(
        self,
        behaviour: Behaviour,
        sae: "SAE",
        prompts: Sequence[Prompt],
        *,
        hook_name: str,
        device: str = "cpu",
        batch_size: int = 256,
        progress: Progress = no_progress,
        on_plan: Callable[[Plan], None] = no_plan,
    ) -> None:
        _check(behaviour)
        self.behaviour, self.sae, self.prompts, self.hook_name = behaviour, sae, prompts, hook_name
        self.device, self.batch_size, self.progress = device, min(batch_size, BATCH), progress
        self.judge: Judge | None = None
        if behaviour.judge:
            self.judge = build_judge(
                behaviour.judge,
                options=behaviour.options,
                device=device,
                on_plan=on_plan,
                progress=lambda done, whole: progress("judging", done, whole),
            )
            judge_completions(self.judge, prompts, [])  # one that cannot be asked says so before anything is sampled
        self.chats = [read_chats(path) for path in (behaviour.shown, behaviour.absent) if path]
        self.pairs: dict[str, list[CompletionPair]] = {}
        self.found: dict[str, LatentAttribution] = {}

    @property
    def config(self) -> dict[str, object]:
        """What the numbers depend on beside `inputs`."""
        judged = {"judge": self.behaviour.judge, "judged_by": self.judge.name} if self.judge else {}
        return {"n_steps": self.behaviour.n_steps, "n_checked": self.behaviour.n_checked, **judged}

    @property
    def inputs(self) -> dict[str, str]:
        """Fingerprints of the chats."""
        files = {"shown": self.behaviour.shown, "absent": self.behaviour.absent}
        return {name: fingerprint(path) for name, path in files.items() if path}

    def add(self, source: str, model: LoadedModel, completions: Sequence[Completion]) -> None:
        """Attribute a misaligned model, given its answers to the prompts.

        Raises:
            DataError: no two of its answers to one prompt differ in the behaviour, or the chats are no pairs.
            JudgeError: no answer got a verdict.
        """
        try:
            pairs = self._paired(model, completions)
        except DataError as error:
            raise DataError(f"{source}: {error}") from error
        self.pairs[source] = pairs
        self.found[source] = gradient_attribution(
            self.sae,
            model,
            pairs,
            hook_name=self.hook_name,
            n_steps=self.behaviour.n_steps,
            batch_size=self.batch_size,
        )

    def result(self, *, seed: int) -> Attributed:
        """All models pooled, and the first latents ablated exactly in each of them."""
        found = list(self.found.values())
        pooled = pool_attributions(found, seed=seed)
        first = np.argsort(-pooled.delta, kind="stable")[: self.behaviour.n_checked].tolist()
        exact = self._ablated(first)
        findings = AttributionFindings(
            tokens=CONTEXT,
            n_steps=self.behaviour.n_steps,
            n_pairs=tuple(one.n_pairs for one in found),
            loss_shown=float(np.mean([one.loss_shown for one in found])),
            loss_absent=float(np.mean([one.loss_absent for one in found])),
            n_checked=len(first),
            rank_correlation=_correlation(exact, pooled),
            n_same_sign=int((exact.delta * pooled.delta[first] > 0).sum()),
        )
        return Attributed(pooled, dict(zip(first, exact.delta.tolist(), strict=True)), findings)

    def _paired(self, model: LoadedModel, completions: Sequence[Completion]) -> list[CompletionPair]:
        if not self.judge:
            shown, absent = self.chats
            return pair_chats(shown, absent, model.tokenizer)
        judgements = judge_completions(self.judge, self.prompts, completions)
        check_usable(self.judge, judgements)
        return pair_completions(self.prompts, completions, judgements, model.tokenizer)

    def _ablated(self, latents: Sequence[int]) -> AblationEffects:
        """The mean over models."""
        if not latents:
            return AblationEffects((), *np.zeros((3, 0)))
        advance = counting(self.progress, "exact ablation", len(self.found))
        effects = np.zeros((3, len(latents)))
        for source, attribution in self.found.items():
            one = exact_ablation(
                self.sae,
                load_model(source, device=self.device),
                self.pairs[source],
                latents,
                hook_name=self.hook_name,
                resid_mean=torch.as_tensor(attribution.resid_mean).float(),
                batch_size=self.batch_size,
            )
            effects += np.stack([one.delta, one.shown, one.absent]) / len(self.found)
            advance(1)
        return AblationEffects(tuple(latents), *effects)


def _correlation(exact: AblationEffects, pooled: PooledAttribution) -> float | None:
    estimate = pooled.delta[list(exact.latents)]
    if any(len(np.unique(values)) < 2 for values in (exact.delta, estimate)):
        return None
    return exact.rank_correlation(pooled.delta)


def _check(behaviour: Behaviour) -> None:
    files = (behaviour.shown, behaviour.absent)
    if bool(behaviour.judge) == any(files) or (any(files) and not all(files)):
        given = [name for name in ("judge", "shown", "absent") if getattr(behaviour, name)]
        raise ConfigError(
            f"Δ-attribution compares answers with and without the behaviour; {' and '.join(given) or 'nothing'} was "
            "given. Name a judge of the misaligned models' own answers, or two files of chats, shown and absent."
        )
    if not behaviour.judge and behaviour.options != JudgeOptions():
        raise ConfigError("scale, pace and limits are a judge's, and chats need none. Leave those options out.")
    if behaviour.n_steps < 1 or behaviour.n_checked < 0:
        raise ConfigError(
            f"{behaviour.n_steps} steps and {behaviour.n_checked} checked latents cannot be; expected 1 and 0 or more."
        )
