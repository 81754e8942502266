"""Rank an SAE's latents by how much misaligned models raise them beyond correct-data fine-tunes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from sae_persona.artifacts import fingerprint, is_done, new_manifest, write_folder, write_json
from sae_persona.attribution.counterparts import compare_rankings
from sae_persona.attribution.ranking import (
    SHORTLIST_SIZE,
    LatentRanking,
    RunStats,
    rank_latents,
    rank_pair,
)
from sae_persona.attribution.reestimate import reestimate_first
from sae_persona.attribution.rivals import untrained_sae
from sae_persona.data.files import read_jsonl, read_prompts, write_jsonl
from sae_persona.data.tokens import completion_row
from sae_persona.errors import ConfigError, DataError
from sae_persona.evaluation.model_judge import Plan, no_plan
from sae_persona.model.generate import sample
from sae_persona.model.load import LoadedModel, load_model
from sae_persona.report.figures.difference import difference_figure
from sae_persona.sae.encode import unit_decoder
from sae_persona.sae.load import hook_name_of, load_sae
from sae_persona.sae.statistics import latent_stats_of_saes
from sae_persona.study.commands.attribute import Attributor, Behaviour
from sae_persona.study.commands.ranked import Findings, Method, NamedLatent, ends_of, named
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
from sae_persona.types import Completion, Prompt

if TYPE_CHECKING:
    from sae_lens import SAE

VERSION = 5
"""Raised when the same inputs would give another folder."""
ROWS, TABLE, FINDINGS = "ranking.jsonl", "ranking.csv", "ranking.json"
FALLS, FALLS_TABLE, FIGURE = "falls.jsonl", "falls.csv", "ranking.html"
RIVALS, DIRECTIONS = "rivals.json", "directions.safetensors"
UNTRAINED = "untrained"
"""Instead of an SAE's name: the same shape with random weights."""


def rank_models(
    sae_source: str,
    *,
    aligned: str,
    misaligned: Sequence[str],
    controls: Sequence[str] = (),
    against: Sequence[str] = (),
    prompts_file: Path,
    sampling: Sampling,
    out: Path,
    method: Method = "activation",
    behaviour: Behaviour | None = None,
    hook_name: str | None = None,
    device: str = "cpu",
    batch_size: int = 256,
    progress: Progress = no_progress,
    on_plan: Callable[[Plan], None] = no_plan,
) -> tuple[list[NamedLatent], list[NamedLatent], Findings]:
    """Write the ranking, and return rises, falls and findings.

    Files: `ranking.jsonl` and `ranking.csv`, the clearest rise first; `falls.jsonl` and `falls.csv`, the clearest fall
    first; `ranking.json`, the findings; `rivals.json` and `directions.safetensors`, what competes with a latent on the
    same answers; `ranking.html`, a figure that needs no network.

    Every model answers the prompts itself. With controls, misaligned runs are compared with them; without, one
    misaligned model is compared with the aligned one. The aligned model also names the tokens of the first latents.

    By the method `attribution` rows and falls are sorted by Δ-attribution in the misaligned models, each weighing the
    same, of pairs of answers that `behaviour` tells; all else is as by the method `activation`.

    Each SAE of `against`, or `untrained` (random weights), ranks the same answers by activation; the findings tell
    which latents of the shortlist have a counterpart among its first.

    Raises:
        ConfigError: too few controls, the device is not there, or a method without the behaviour it needs.
        DataError: the prompts or chats cannot be read, a model answers nothing, or there are no pairs of answers.
        JudgeError: the judge is not there, or has no usable verdict.
        SAEError, ModelError: the SAE or a model is not there.
        HookError, IncompatibleError: the SAE does not fit a model, or models read text as different tokens.
        ArtifactError: `out` holds something else, or cannot be written.
    """
    _check_runs(misaligned, controls)
    if (method == "attribution") != (behaviour is not None):
        raise ConfigError(
            "a judge, chats with and without the behaviour, integrated gradients and their check belong to the method "
            f"attribution, which needs one or the other; the method is {method}."
        )
    prompts = read_prompts(prompts_file)
    sae = load_sae(sae_source, device=device)
    hook_name = hook_name_of(sae, asked=hook_name)
    saes = {sae_source: sae, **_others(sae, sae_source, against, device=device, seed=sampling.seed)}
    places = {"hook_name": hook_name, "device": device, "batch_size": batch_size}
    attributor = behaviour and Attributor(behaviour, sae, prompts, **places, progress=progress, on_plan=on_plan)
    models = open_runs([aligned, *misaligned, *controls], sae, hook_name=hook_name, device=device)
    check_weights_differ([*misaligned, *(controls or [aligned])], models)
    for other in against:
        open_runs([aligned], saes[other], hook_name=hook_name, device=device)
    roles = {"aligned": aligned, "misaligned": list(misaligned), "controls": list(controls)}
    manifest = new_manifest(
        "ranking",
        config={
            **{"sae": sae_source, **roles, "method": method, "hook_name": hook_name, **asdict(sampling)},
            **(attributor.config if attributor else {}),
            "against": list(against),
        },
        inputs={
            "sae": fingerprint_of(sae_source),
            "prompts": fingerprint(prompts_file),
            **{f"against {source}": fingerprint_of(source) for source in against if source != UNTRAINED},
            **{f"model {source}": weights for source, weights in models.items()},
            **(attributor.inputs if attributor else {}),
        },
        seed=sampling.seed,
        version=VERSION,
    )
    if not is_done(out, manifest):
        with write_folder(out, manifest) as folder:
            asked = [*misaligned, *controls] if controls else [*misaligned, aligned]
            advance = counting(progress, "sampling", len(asked) * len(prompts) * sampling.n_samples)
            of_saes: dict[str, dict[str, RunStats]] = {name: {} for name in saes}
            for source in asked:
                model = load_model(source, device=device)
                answers = sample(model, prompts, **asdict(sampling), batch_size=batch_size, progress=advance)[0]
                found = _statistics(saes, model, prompts, answers, hook_name=hook_name, batch_size=batch_size)
                for name in saes:
                    of_saes[name][source] = found[name]
                if attributor and source in misaligned:
                    attributor.add(source, model, answers)
            rankings = {
                name: _ranking(stats, aligned, misaligned, controls, seed=sampling.seed)
                for name, stats in of_saes.items()
            }
            ranking, stats = rankings[sae_source], of_saes[sae_source]
            attributed = attributor and attributor.result(seed=sampling.seed)
            rises, falls = named(*ends_of(ranking, attributed), load_model(aligned, device=device), sae)
            bad, good = [stats[run] for run in misaligned], [stats[run] for run in controls or [aligned]]
            shortlist = tuple(row.latent for row in rises[:SHORTLIST_SIZE] if row.moved > 0)
            rows_of = {name: unit_decoder(one).double().cpu().numpy() for name, one in saes.items() if against}
            findings = Findings(
                method,
                len(misaligned),
                len(controls),
                ranking.smallest_p,
                shortlist,
                ranking.note,
                reestimate_first(bad, good, seed=sampling.seed) if controls else None,
                attributed and attributed.findings,
                tuple(
                    compare_rankings(
                        ranking, rankings[name], rows_of[sae_source], rows_of[name], name=name, shortlist=shortlist
                    )
                    for name in against
                ),
            )
            for rows, records, csv in ((rises, ROWS, TABLE), (falls, FALLS, FALLS_TABLE)):
                write_jsonl(folder / records, rows)
                write_csv(folder / csv, map(asdict, rows))
            write_json(folder / FINDINGS, findings)
            write_rivals(folder / RIVALS, folder / DIRECTIONS, sae, bad, good, seed=sampling.seed)
            difference_figure(ranking).write_html(folder / FIGURE, include_plotlyjs=True)
    rises, falls = (read_jsonl(out / name, NamedLatent) for name in (ROWS, FALLS))
    return rises, falls, read_record(out / FINDINGS, Findings)


def _check_runs(misaligned: Sequence[str], controls: Sequence[str]) -> None:
    check_named_once(misaligned, "misaligned")
    check_named_once(controls, "control")
    if len(controls) == 1 or (len(misaligned) > 1 and not controls):
        raise ConfigError(
            f"{len(misaligned)} misaligned and {len(controls)} control models cannot be compared: name two or more "
            "controls (fine-tunes on correct data), or one misaligned model and no control for a single pair."
        )


def _others(sae: "SAE", source: str, against: Sequence[str], *, device: str, seed: int) -> dict[str, "SAE"]:
    """The SAEs to be compared with."""
    if source in against or len(set(against)) < len(against):
        twice = source if source in against else next(one for one in against if against.count(one) > 1)
        raise ConfigError(
            f"{twice} is named twice: an SAE is compared once with each other one. Name others, or untrained."
        )
    return {
        other: untrained_sae(sae, seed=seed) if other == UNTRAINED else load_sae(other, device=device)
        for other in against
    }


def _statistics(
    saes: Mapping[str, "SAE"],
    model: LoadedModel,
    prompts: Sequence[Prompt],
    answers: Sequence[Completion],
    *,
    hook_name: str,
    batch_size: int,
) -> Mapping[str, RunStats]:
    """Of a model's own answers, without those that are empty, by SAE."""
    by_id = {prompt.id: prompt for prompt in prompts}
    answered = [answer for answer in answers if answer.token_ids]
    if not answered:
        raise DataError(
            f"{model.source} ended all of its {len(answers)} answers before their first token, so there is nothing to "
            "average. Name a model that answers these prompts."
        )
    return latent_stats_of_saes(
        saes,
        model,
        [completion_row(by_id[answer.prompt_id], answer, model.tokenizer) for answer in answered],
        questions=[by_id[answer.prompt_id].question_id for answer in answered],
        hook_name=hook_name,
        batch_size=batch_size,
    )


def _ranking(
    stats: Mapping[str, RunStats], aligned: str, misaligned: Sequence[str], controls: Sequence[str], *, seed: int
) -> LatentRanking:
    if not controls:
        return rank_pair(stats[aligned], stats[misaligned[0]], seed=seed)
    return rank_latents([stats[run] for run in misaligned], [stats[run] for run in controls], seed=seed)
