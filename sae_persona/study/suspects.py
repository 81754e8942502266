"""Sample every run on the selection prompts, average its latents, and rank them: misaligned runs against controls."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from sae_persona.attribution.ranking import RunStats, rank_latents
from sae_persona.data.tokens import completion_row
from sae_persona.model.generate import sample
from sae_persona.model.load import LoadedModel
from sae_persona.sae.statistics import latent_stats
from sae_persona.study.config import StudyConfig
from sae_persona.study.subjects import Subjects
from sae_persona.types import Prompt

if TYPE_CHECKING:
    from sae_lens import SAE

MEANS = "mean_residuals.safetensors"


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
    """Latent statistics of one model over its own answers to the prompts.

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
    rows = [completion_row(by_id[completion.prompt_id], completion, model.tokenizer) for completion in answered]
    questions = [by_id[completion.prompt_id].question_id for completion in answered]
    return latent_stats(
        sae, model, rows, questions=questions, hook_name=hook_name, drop_first=drop_first, batch_size=batch_size
    )


def rank(subjects: Subjects, config: StudyConfig, sae: "SAE", folder: Path) -> dict[str, Any]:
    """The ranking, and beside it the mean residual of every run's answers for the difference-of-means baseline."""
    groups = subjects.groups("selection")
    stats = {
        name: run_statistics(
            subjects.model(name),
            groups.prompts,
            sae,
            hook_name=config.hook_name,
            n_samples=config.ranking.n_samples,
            max_new_tokens=config.sampling.max_new_tokens,
            seed=config.seed,
            drop_first=config.drop_first,
        )
        for name in (*subjects.runs("misaligned"), *subjects.runs("control"))
    }
    ranking = rank_latents(
        [stats[name] for name in subjects.runs("misaligned")],
        [stats[name] for name in subjects.runs("control")],
        seed=config.seed,
    )
    means = {name: torch.as_tensor(run["gated", "answer"].resid_mean).float() for name, run in stats.items()}
    save_file(means, folder / MEANS)
    return {
        "rows": [asdict(row) for row in ranking.rows],
        "shortlist": list(ranking.shortlist(config.ranking.shortlist)),
        "smallest_p": ranking.smallest_p,
    }


def mean_residuals(folder: Path, names: list[str]) -> torch.Tensor:
    """Mean residuals of the named runs' answers, `[runs, d_model]`."""
    means = load_file(folder / MEANS)
    return torch.stack([means[name] for name in names])
