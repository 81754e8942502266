"""Rank an SAE's latents by how much misaligned models raise them beyond correct-data fine-tunes."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sae_persona.artifacts import fingerprint, is_done, new_manifest, write_folder, write_json
from sae_persona.attribution.ranking import LatentRanking, RankedLatent, RunStats, rank_latents, rank_pair
from sae_persona.attribution.reestimate import Reestimate, reestimate_first
from sae_persona.data.files import read_jsonl, read_prompts, write_jsonl
from sae_persona.errors import ConfigError
from sae_persona.model.load import LoadedModel, load_model
from sae_persona.report.figures.difference import difference_figure
from sae_persona.sae.load import hook_name_of, load_sae
from sae_persona.study.commands.rivals import write_rivals
from sae_persona.study.commands.runs import check_named_once, check_weights_differ, open_runs
from sae_persona.study.commands.shared import (
    Progress,
    Sampling,
    counting,
    fingerprint_of,
    no_progress,
    read_record,
    write_csv,
)
from sae_persona.study.summary import N_RANKED, top_tokens
from sae_persona.study.suspects import run_statistics

if TYPE_CHECKING:
    from sae_lens import SAE

VERSION = 3
"""Raised when the same inputs would give another folder."""
ROWS, TABLE, FINDINGS = "ranking.jsonl", "ranking.csv", "ranking.json"
FALLS, FALLS_TABLE, FIGURE = "falls.jsonl", "falls.csv", "ranking.html"
RIVALS, DIRECTIONS = "rivals.json", "directions.safetensors"
Method = Literal["activation"]
"""`activation`: by the difference of mean activations (Wang et al. 2025, section 3.1)."""


@dataclass(frozen=True)
class NamedLatent(RankedLatent):
    """A row of a ranking, with the tokens that the latent's direction writes."""

    top_tokens: tuple[str, ...] = ()
    """The most promoted by logit lens in the aligned model; empty beyond the first rows."""


@dataclass(frozen=True)
class Findings:
    """What holds for a ranking as a whole."""

    method: Method
    n_misaligned: int
    n_controls: int
    """0: the ranking says something about this pair of checkpoints only, and has no q-values."""
    smallest_p: float | None
    """The smallest p-value that so many runs could have reached; None where there are too few for any."""
    shortlist: tuple[int, ...]
    """What a causal screen should try."""
    note: str = ""
    """What these runs can and cannot say."""
    first: Reestimate | None = None
    """The first latent, measured anew on runs and questions that did not choose it; None with too few of either."""


def rank_models(
    sae_source: str,
    *,
    aligned: str,
    misaligned: Sequence[str],
    controls: Sequence[str] = (),
    prompts_file: Path,
    sampling: Sampling,
    out: Path,
    method: Method = "activation",
    hook_name: str | None = None,
    device: str = "cpu",
    batch_size: int = 256,
    progress: Progress = no_progress,
) -> tuple[list[NamedLatent], Findings]:
    """Write the ranking, and return rows and findings.

    Files: `ranking.jsonl` and `ranking.csv`, the clearest rise first; `falls.jsonl` and `falls.csv`, the clearest fall
    first; `ranking.json`, the findings; `rivals.json` and `directions.safetensors`, what competes with a latent on the
    same answers; `ranking.html`, a figure that needs no network.

    Every model answers the prompts itself. With controls, misaligned runs are compared with them; without, one
    misaligned model is compared with the aligned one. The aligned model also names the tokens of the first latents.

    Raises:
        ConfigError: too few controls, or the device is not there.
        DataError: the prompts cannot be read.
        SAEError, ModelError: the SAE or a model is not there.
        HookError, IncompatibleError: the SAE does not fit a model, or models read text as different tokens.
        ArtifactError: `out` holds something else, or cannot be written.
    """
    _check_runs(misaligned, controls)
    prompts = read_prompts(prompts_file)
    sae = load_sae(sae_source, device=device)
    hook_name = hook_name or hook_name_of(sae)
    models = open_runs([aligned, *misaligned, *controls], sae, hook_name=hook_name, device=device)
    check_weights_differ([*misaligned, *(controls or [aligned])], models)
    roles = {"aligned": aligned, "misaligned": list(misaligned), "controls": list(controls)}
    manifest = new_manifest(
        "ranking",
        config={"sae": sae_source, **roles, "method": method, "hook_name": hook_name, **asdict(sampling)},
        inputs={
            "sae": fingerprint_of(sae_source),
            "prompts": fingerprint(prompts_file),
            **{f"model {source}": weights for source, weights in models.items()},
        },
        seed=sampling.seed,
        version=VERSION,
    )
    if not is_done(out, manifest):
        with write_folder(out, manifest) as folder:
            asked = [*misaligned, *controls] if controls else [aligned, *misaligned]
            advance = counting(progress, "sampling", len(asked) * len(prompts) * sampling.n_samples)
            stats: dict[str, RunStats] = {}
            for source in asked:
                model = load_model(source, device=device)
                stats[source] = run_statistics(
                    model,
                    prompts,
                    sae,
                    hook_name=hook_name,
                    **asdict(sampling),
                    batch_size=batch_size,
                    progress=advance,
                )
            ranking = _ranking(stats, aligned, misaligned, controls, seed=sampling.seed)
            rows = _named(ranking, load_model(aligned, device=device), sae)
            bad, good = [stats[run] for run in misaligned], [stats[run] for run in controls or [aligned]]
            findings = Findings(
                method,
                len(misaligned),
                len(controls),
                ranking.smallest_p,
                ranking.shortlist(),
                ranking.note,
                reestimate_first(bad, good, seed=sampling.seed) if controls else None,
            )
            write_jsonl(folder / ROWS, rows)
            write_csv(folder / TABLE, map(asdict, rows))
            write_jsonl(folder / FALLS, ranking.falls)
            write_csv(folder / FALLS_TABLE, map(asdict, ranking.falls))
            write_json(folder / FINDINGS, findings)
            write_rivals(folder / RIVALS, folder / DIRECTIONS, sae, bad, good, seed=sampling.seed)
            difference_figure(ranking).write_html(folder / FIGURE, include_plotlyjs=True)
    return read_jsonl(out / ROWS, NamedLatent), read_record(out / FINDINGS, Findings)


def _check_runs(misaligned: Sequence[str], controls: Sequence[str]) -> None:
    check_named_once(misaligned, "misaligned")
    check_named_once(controls, "control")
    if len(controls) == 1 or (len(misaligned) > 1 and not controls):
        raise ConfigError(
            f"{len(misaligned)} misaligned and {len(controls)} control models cannot be compared: name two or more "
            "controls (fine-tunes on correct data), or one misaligned model and no control for a single pair."
        )


def _ranking(
    stats: Mapping[str, RunStats], aligned: str, misaligned: Sequence[str], controls: Sequence[str], *, seed: int
) -> LatentRanking:
    if not controls:
        return rank_pair(stats[aligned], stats[misaligned[0]], seed=seed)
    return rank_latents([stats[run] for run in misaligned], [stats[run] for run in controls], seed=seed)


def _named(ranking: LatentRanking, aligned: LoadedModel, sae: "SAE") -> list[NamedLatent]:
    names = top_tokens(aligned, sae, [row.latent for row in ranking.top(N_RANKED)])
    return [NamedLatent(**asdict(row), top_tokens=tuple(names.get(str(row.latent), ()))) for row in ranking.rows]
