"""Sample every run on the selection prompts, average its latents, and rank them: misaligned runs against controls."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from sae_persona.attribution.ranking import RunStats, rank_latents
from sae_persona.attribution.rivals import linear_probe
from sae_persona.data.tokens import TokenRow, completion_row
from sae_persona.model.generate import sample
from sae_persona.model.load import LoadedModel
from sae_persona.sae.statistics import latent_stats, latent_stats_of_saes
from sae_persona.steering.directions import Direction, mean_difference
from sae_persona.study.config import StudyConfig
from sae_persona.study.subjects import Subjects
from sae_persona.types import Prompt

if TYPE_CHECKING:
    from sae_lens import SAE

MEANS = "mean_residuals.safetensors"
PROBE = "linear_probe.safetensors"


@dataclass(frozen=True, eq=False)
class Answers:
    """What a model answered, as tokens."""

    rows: list[TokenRow]
    questions: list[str]
    """Of each row, for errors clustered by question."""


def own_answers(
    model: LoadedModel,
    prompts: Sequence[Prompt],
    *,
    n_samples: int,
    max_new_tokens: int,
    seed: int,
    batch_size: int = 512,
    progress: Callable[[int], None] | None = None,
) -> Answers:
    """The model's own answers to the prompts; empty ones are left out.

    `progress` is called with the number of answers just sampled.
    """
    completions = sample(
        model,
        prompts,
        n_samples=n_samples,
        seed=seed,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        progress=progress,
    )[0]
    by_id = {prompt.id: prompt for prompt in prompts}
    answered = [completion for completion in completions if completion.token_ids]
    return Answers(
        [completion_row(by_id[completion.prompt_id], completion, model.tokenizer) for completion in answered],
        [by_id[completion.prompt_id].question_id for completion in answered],
    )


def run_statistics(
    model: LoadedModel,
    prompts: Sequence[Prompt],
    sae: "SAE",
    *,
    hook_name: str,
    n_samples: int,
    max_new_tokens: int,
    seed: int,
    drop_first: int = 1,
    batch_size: int = 512,
    progress: Callable[[int], None] | None = None,
) -> RunStats:
    """Latent statistics of one model over its own answers to the prompts, sampled as `own_answers` does."""
    answers = own_answers(
        model,
        prompts,
        n_samples=n_samples,
        max_new_tokens=max_new_tokens,
        seed=seed,
        batch_size=batch_size,
        progress=progress,
    )
    return latent_stats(
        sae,
        model,
        answers.rows,
        questions=answers.questions,
        hook_name=hook_name,
        drop_first=drop_first,
        batch_size=batch_size,
    )


def rank(subjects: Subjects, config: StudyConfig, saes: Mapping[str, "SAE"], folder: Path) -> dict[str, dict[str, Any]]:
    """The ranking of every dictionary's latents, over the same answers.

    Beside it `folder` gets two baselines that need no dictionary: the mean residual of every run's answers, and the
    direction of a linear probe between both sides.
    """
    prompts = subjects.groups("selection").prompts
    stats: dict[str, dict[str, RunStats]] = {name: {} for name in saes}
    for run in (*subjects.runs("misaligned"), *subjects.runs("control")):
        model = subjects.model(run)
        answers = own_answers(
            model,
            prompts,
            n_samples=config.ranking.n_samples,
            max_new_tokens=config.sampling.max_new_tokens,
            seed=config.seed,
        )
        found = latent_stats_of_saes(
            saes,
            model,
            answers.rows,
            questions=answers.questions,
            hook_name=config.hook_name,
            drop_first=config.drop_first,
            batch_size=512,
        )
        for name in saes:
            stats[name][run] = found[name]
    of_answers = {run: of_run["gated", "answer"] for run, of_run in next(iter(stats.values())).items()}
    save_file({run: torch.as_tensor(one.resid_mean).float() for run, one in of_answers.items()}, folder / MEANS)
    bad, good = ([of_answers[run] for run in subjects.runs(role)] for role in ("misaligned", "control"))
    probe = linear_probe(bad, good, seed=config.seed).direction
    save_file({"direction": torch.as_tensor(probe).float()}, folder / PROBE)
    return {name: _ranked(subjects, config, of_runs) for name, of_runs in stats.items()}


def _ranked(subjects: Subjects, config: StudyConfig, stats: Mapping[str, RunStats]) -> dict[str, Any]:
    misaligned, control = ([stats[name] for name in subjects.runs(role)] for role in ("misaligned", "control"))
    ranking = rank_latents(misaligned, control, seed=config.seed)
    return {
        "rows": [asdict(row) for row in ranking.rows],
        "shortlist": list(ranking.shortlist(config.ranking.shortlist)),
        "smallest_p": ranking.smallest_p,
    }


def rival_directions(subjects: Subjects, folder: Path) -> dict[str, Direction]:
    """What is steered along without a dictionary, from the files that `rank` wrote: lengths are divided out."""
    means = load_file(folder / MEANS)
    bad, good = (torch.stack([means[name] for name in subjects.runs(role)]) for role in ("misaligned", "control"))
    probe = load_file(folder / PROBE)["direction"]
    return {
        "mean_difference": mean_difference(bad, good),
        "linear_probe": Direction("linear probe", "linear_probe", probe),
    }
