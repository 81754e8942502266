"""Steer a model along latents' directions, at several strengths, and judge what it says."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sae_persona.artifacts import fingerprint, is_done, new_manifest, write_folder
from sae_persona.data.files import read_jsonl, read_prompts, write_jsonl
from sae_persona.data.tokens import TokenRow, batches, prompt_row
from sae_persona.errors import DataError
from sae_persona.evaluation.judging import judge_completions
from sae_persona.evaluation.score import score
from sae_persona.model.hooks import residuals
from sae_persona.model.load import LoadedModel, load_model
from sae_persona.sae.encode import counted_tokens
from sae_persona.sae.load import check_fits, hook_name_of, load_sae
from sae_persona.steering.directions import latent_direction
from sae_persona.steering.edits import Window, check_strengths
from sae_persona.steering.sweep import Arm, Dose, SweepConfig, sweep
from sae_persona.study.commands.shared import Progress, Sampling, counting, fingerprint_of, no_progress
from sae_persona.study.judges import build_judge
from sae_persona.types import OPEN_ENDED, Completion, Estimate, Judge, Judgement, Prompt

VERSION = 1
"""Raised when the same inputs would give another folder."""
ANSWERS, DOSES = "answers.jsonl", "doses.jsonl"
DROP_FIRST = 1
"""Tokens of every prompt that the unit of strength leaves out, as caches do."""


@dataclass(frozen=True)
class SteeredDose:
    """The model steered in one direction at one strength.

    Shares are of the answers to open-ended prompts, or to all prompts where none is open-ended.
    """

    latents: tuple[int, ...]
    """Whose unit decoder directions are added up."""
    strength: float
    """In units of the median norm of the unsteered residual stream over the prompts' tokens."""
    misalignment: Estimate
    incoherence: Estimate
    aligned: Estimate
    other_domains: Estimate | None = None
    """Misaligned share of the answers to all other prompts; None where there are none."""


def steer_model(
    source: str,
    *,
    sae_source: str,
    latents: Sequence[int],
    strengths: Sequence[float],
    prompts_file: Path,
    judge: str,
    sampling: Sampling,
    out: Path,
    window: Window = "all",
    hook_name: str | None = None,
    device: str = "cpu",
    batch_size: int = 256,
    progress: Progress = no_progress,
) -> list[SteeredDose]:
    """Write `doses.jsonl` and `answers.jsonl` and return the doses: each latent alone, then all of them together.

    Strength 0 is always among the doses. The hook is the one that the SAE was trained on unless another is named.

    Raises:
        ConfigError: a strength is not a finite number, or the device is not there.
        DataError: the prompts cannot be read, or are not ones the judge knows.
        SAEError, ModelError, JudgeError: the SAE, one of its latents, the model or the judge is not there.
        HookError, IncompatibleError: the SAE does not fit the model.
        ArtifactError: `out` holds something else, or cannot be written.
    """
    check_strengths(strengths)
    bench = _Bench(build_judge(judge), read_prompts(prompts_file))
    sae = load_sae(sae_source)
    doses = tuple(sorted({0.0, *strengths}))
    arms = [Arm(latent_direction(sae, *group), doses) for group in _groups(latents)]
    model = load_model(source, device=device)
    hook_name = hook_name or hook_name_of(sae)
    check_fits(sae, model, hook_name)
    unit = median_norm(model, [prompt_row(prompt, model.tokenizer) for prompt in bench.prompts], hook_name=hook_name)
    config = SweepConfig(hook_name=hook_name, unit=unit, window=window, **asdict(sampling))
    inputs = {"model": source, "sae": sae_source, "judge": judge}
    manifest = new_manifest(
        "steering",
        config={**inputs, "latents": list(latents), "strengths": doses, **asdict(config)},
        inputs={
            "model": model.fingerprint,
            "sae": fingerprint_of(sae_source),
            "prompts": fingerprint(prompts_file),
        },
        seed=sampling.seed,
        version=VERSION,
    )
    if not is_done(out, manifest):
        n_conditions = len(arms) * (len(doses) - 1) + 1
        whole = n_conditions * len(bench.prompts) * sampling.n_samples
        with write_folder(out, manifest) as folder:
            advance = counting(progress, "steering", whole)
            swept = sweep(model, arms, bench.prompts, bench.measure, config, batch_size=batch_size, progress=advance)
            write_jsonl(folder / DOSES, [_steered(dose) for arm in swept for dose in arm])
            write_jsonl(folder / ANSWERS, bench.answers(swept))
    return read_jsonl(out / DOSES, SteeredDose)


def median_norm(
    model: LoadedModel, rows: Sequence[TokenRow], *, hook_name: str, drop_first: int = DROP_FIRST, batch_size: int = 64
) -> float:
    """The median Euclidean norm of the residual stream over the rows' tokens.

    Raises:
        DataError: no row has a token beyond the first `drop_first`.
    """
    norms: list[torch.Tensor] = []
    for _, batch in batches(rows, batch_size=batch_size, pad_id=model.pad_id, device=model.device):
        resid = residuals(model.hf, batch, [hook_name])[hook_name]
        norms.append(resid.float().norm(dim=-1)[counted_tokens(batch, resid, drop_first=drop_first, max_norm=None)])
    if not sum(map(len, norms)):
        raise DataError(f"no token of {len(rows)} prompts is beyond the first {drop_first}, so strength has no unit.")
    return float(np.median(torch.cat(norms).cpu().numpy()))


class _Bench:
    """The prompts and the judge of a sweep, and what the judge said at every dose."""

    def __init__(self, judge: Judge, prompts: Sequence[Prompt]) -> None:
        self.judge, self.prompts = judge, prompts
        self.core = [prompt for prompt in prompts if prompt.category == OPEN_ENDED] or prompts
        self.others = [prompt for prompt in prompts if prompt not in self.core]
        self.judged: dict[int, list[Judgement]] = {}
        """By the identity of the measures that were made from the judgements: a sweep hands those on as they are."""
        judge_completions(judge, prompts, [])  # a judge that does not know these prompts says so before the long part

    def measure(self, completions: list[Completion]) -> Mapping[str, Estimate]:
        """The shares of a `SteeredDose`."""
        judgements = judge_completions(self.judge, self.prompts, completions)
        scores = score(self.core, judgements)
        measures = {"misalignment": scores.misalignment, "incoherence": scores.incoherence, "aligned": scores.aligned}
        if self.others:
            measures["other_domains"] = score(self.others, judgements).misalignment
        self.judged[id(measures)] = judgements
        return measures

    def answers(self, swept: Sequence[Sequence[Dose]]) -> Iterator[dict[str, Any]]:
        """Every judged answer with its dose; unsteered ones, which all arms share, come once and without latents."""
        for i, arm in enumerate(swept):
            for dose in arm:
                if dose.strength != 0 or i == 0:
                    latents = dose.direction.latents if dose.strength != 0 else ()
                    for judgement in self.judged[id(dose.measures)]:
                        yield {"latents": latents, "strength": dose.strength, **asdict(judgement)}


def _groups(latents: Sequence[int]) -> list[tuple[int, ...]]:
    """Each latent alone and, where there are several, all of them."""
    alone = list(dict.fromkeys(latents))
    return [*((latent,) for latent in alone), *([tuple(alone)] if len(alone) > 1 else [])]


def _steered(dose: Dose) -> SteeredDose:
    return SteeredDose(dose.direction.latents, dose.strength, **dose.measures)
