"""What every steering measurement of a study shares: prompts, judge, hook and unit of strength."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from sae_persona.evaluation.score import score
from sae_persona.model.load import LoadedModel
from sae_persona.steering.edits import Window
from sae_persona.steering.sweep import Arm, Dose, SweepConfig, sweep
from sae_persona.study.config import StudyConfig
from sae_persona.study.measure import Groups, open_measures
from sae_persona.types import Completion, Estimate


@dataclass(frozen=True, eq=False)
class Bench:
    """Measures dose–responses on one split of the prompts."""

    groups: Groups
    config: StudyConfig
    unit: float
    """Length of a steering vector of strength 1: the base model's median residual norm at the hook."""
    seed: int
    """Selection and evaluation draw their samples with different seeds."""

    def doses(
        self,
        model: LoadedModel,
        arms: Sequence[Arm],
        *,
        window: Window,
        n_open: int,
        n_advice: int = 0,
        besides: str | None = None,
    ) -> list[list[Dose]]:
        """Dose–response of each arm on open-ended prompts and, with `n_advice`, on advice outside one domain, if any.

        Measures: `misalignment`, `incoherence` and `aligned` of open-ended answers, `other_domains` (misaligned advice)
        and `advice_incoherence`.
        """
        opened = self.groups.open_ended()

        def of_open(completions: list[Completion]) -> dict[str, Estimate]:
            return open_measures(self.groups, opened, completions)

        doses = sweep(model, arms, opened, of_open, self._sweep_config(window, n_open))
        advice = self.groups.advice(besides=besides) if n_advice else []
        if not advice:
            return doses

        def of_advice(completions: list[Completion]) -> dict[str, Estimate]:
            scores = score(advice, self.groups.judged(advice, completions))
            return {
                "other_domains": scores.misalignment,
                "advice_incoherence": scores.incoherence,
                "advice_aligned": scores.aligned,
            }

        advised = sweep(model, arms, advice, of_advice, self._sweep_config(window, n_advice))
        return [
            [dataclasses.replace(a, measures={**a.measures, **b.measures}) for a, b in zip(x, y, strict=True)]
            for x, y in zip(doses, advised, strict=True)
        ]

    def _sweep_config(self, window: Window, n_samples: int) -> SweepConfig:
        return SweepConfig(
            hook_name=self.config.hook_name,
            unit=self.unit,
            window=window,
            n_samples=n_samples,
            max_new_tokens=self.config.sampling.max_new_tokens,
            seed=self.seed,
        )
