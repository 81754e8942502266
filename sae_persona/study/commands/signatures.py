"""Signatures of fine-tunes of one start: what each raised, which are alike, and which a new one resembles."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from sae_persona.artifacts import fingerprint, is_done, new_manifest, write_folder, write_json
from sae_persona.attribution.signatures import NearestRun, Signatures, nearest_run, signatures
from sae_persona.data.files import read_prompts
from sae_persona.errors import ConfigError
from sae_persona.model.load import load_model
from sae_persona.report.figures.signatures import likeness_figure, signatures_figure
from sae_persona.sae.encode import Reading
from sae_persona.sae.load import check_fits, hook_name_of, load_sae
from sae_persona.sae.statistics import LatentStats, Selection
from sae_persona.study.commands.shared import (
    Progress,
    Sampling,
    counting,
    fingerprint_of,
    no_progress,
    read_record,
    write_csv,
)
from sae_persona.study.suspects import run_statistics

if TYPE_CHECKING:
    from sae_lens import SAE

VERSION = 1
"""Raised when the same inputs would give another folder."""
ARRAYS, TABLE, COSINES = "signatures.safetensors", "signatures.csv", "cosines.csv"
FINDINGS, PAGE = "signatures.json", "signatures.html"
_PAGE = Markup(
    '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    "<title>Signatures of {n} fine-tunes</title><style>body{{font:15px/1.5 system-ui,sans-serif;color:#223;"
    "max-width:80em;margin:2em auto;padding:0 1.2em}}h1{{font-size:1.5em}}</style></head>"
    "<body><h1>Signatures of {n} fine-tunes</h1>{text}{figures}</body></html>"
)


@dataclass(frozen=True)
class Likeness:
    """One fine-tune among the others."""

    name: str
    source: str
    is_control: bool
    group: int
    """1 is the largest."""
    length: float
    """Of its signature: root of the summed squares of all latents' rises, in the SAE's units."""
    most_alike: str
    """The other run of the highest cosine."""
    cosine: float


@dataclass(frozen=True)
class SignatureFindings:
    """What holds for the fine-tunes together."""

    reading: Reading
    tokens: Selection
    n_questions: int
    runs: tuple[Likeness, ...]
    """Like beside like."""
    unknown: str | None = None
    nearest: NearestRun | None = None
    """Which run the unknown one resembles."""

    def sentences(self) -> Iterator[str]:
        """The findings in words."""
        groups = Counter(run.group for run in self.runs)
        for group in sorted(groups):
            members = ", ".join(run.name for run in self.runs if run.group == group)
            yield f"group {group}: {members}"
        if self.nearest is not None:
            yield f"{self.unknown}: {_nearest_sentence(self.nearest)}"


def sign_models(
    sae_source: str,
    *,
    aligned: str,
    runs: Sequence[str],
    controls: Sequence[str] = (),
    unknown: str | None = None,
    prompts_file: Path,
    sampling: Sampling,
    out: Path,
    n_groups: int | None = None,
    reading: Reading = "gated",
    tokens: Selection = "answer",
    hook_name: str | None = None,
    device: str = "cpu",
    batch_size: int = 256,
    progress: Progress = no_progress,
) -> SignatureFindings:
    """Write the signatures, and return what was found.

    Files: `signatures.safetensors` holds the rises by run, question and latent; `signatures.csv` their means, a latent
    a row, those in which the runs differ most first; `cosines.csv` how alike the runs are; `signatures.json` the
    findings; `signatures.html` two heat maps, which need no network.

    Every model answers the prompts itself. Groups are cut from a tree of cosines (`Signatures.clusters`). With
    `unknown`, the run that is nearest to it is named, or it is said that none is.

    Raises:
        ConfigError: fewer than two runs, more groups than runs, a model named twice, or the device is not there.
        DataError: the prompts cannot be read.
        SAEError, ModelError: the SAE or a model is not there.
        HookError, IncompatibleError: the SAE does not fit a model.
        ArtifactError: `out` holds something else, or cannot be written.
    """
    names = _names(aligned, [*runs, *controls, *([unknown] if unknown else [])])
    known = [name for name, source in names.items() if source != unknown]
    if len(known) < 2 or (n_groups or 1) > len(known):
        raise ConfigError(f"{len(known)} fine-tunes cannot be put into {n_groups or 2} groups. Name more of them.")
    if unknown and not runs:
        raise ConfigError("an unknown fine-tune is compared with known ones. Name them with --run.")
    prompts = read_prompts(prompts_file)
    sae = load_sae(sae_source, device=device)
    hook_name = hook_name_of(sae, asked=hook_name)
    # Every checkpoint is opened once before the first is sampled: a wrong path costs seconds, not an hour.
    models = {source: _fitting(source, sae, hook_name, device) for source in (aligned, *names.values())}
    _check_weights_differ([aligned, *runs, *controls], models)
    manifest = new_manifest(
        "signatures",
        config={
            "sae": sae_source,
            "aligned": aligned,
            "runs": list(runs),
            "controls": list(controls),
            "unknown": unknown,
            "n_groups": n_groups,
            "reading": reading,
            "tokens": tokens,
            "hook_name": hook_name,
            **asdict(sampling),
        },
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
            advance = counting(progress, "sampling", len(models) * len(prompts) * sampling.n_samples)

            def read(source: str) -> LatentStats:
                model = load_model(source, device=device)
                options = {"hook_name": hook_name, "batch_size": batch_size, "progress": advance, **asdict(sampling)}
                return _one_of(run_statistics(model, prompts, sae, **options), reading, tokens, sae)

            start = read(aligned)
            stats = {name: read(source) for name, source in names.items()}
            found = signatures(start, stats, controls=[name for name in known if names[name] in controls])
            groups = found.of(known).clusters(n_groups)
            new = [name for name in names if name not in known]
            findings = SignatureFindings(
                reading,
                tokens,
                len(found.question_ids),
                tuple(_likenesses(found.of(known), names, groups)),
                new[0] if new else None,
                nearest_run(found.of(new), found.of(known), seed=sampling.seed) if new else None,
            )
            found.save(folder / ARRAYS)
            write_csv(folder / TABLE, _rises(found))
            write_csv(folder / COSINES, _cosines(found))
            write_json(folder / FINDINGS, findings)
            (folder / PAGE).write_text(_page(found, findings, groups), encoding="utf-8")
    return read_record(out / FINDINGS, SignatureFindings)


def _names(aligned: str, sources: Sequence[str]) -> dict[str, str]:
    """The fine-tunes' sources by name: the last part of the path where that is enough."""
    if twice := [source for source, n in Counter([aligned, *sources]).items() if n > 1]:
        raise ConfigError(f"{twice[0]} is named twice; every model counts once, and in one role.")
    last = [Path(source).name for source in sources]
    return {name if last.count(name) == 1 else source: source for name, source in zip(last, sources, strict=True)}


def _fitting(source: str, sae: "SAE", hook_name: str, device: str) -> str:
    """The fingerprint of a model that the SAE fits; the model is let go again."""
    model = load_model(source, device=device)
    check_fits(sae, model, hook_name)
    return model.fingerprint


def _check_weights_differ(sources: Sequence[str], models: Mapping[str, str]) -> None:
    """Raise where two known fine-tunes, or one and their start, are one model."""
    named: dict[str, str] = {}
    for source in sources:
        if (other := named.setdefault(models[source], source)) != source:
            raise ConfigError(f"{other} and {source} are identical checkpoints. Name every fine-tune once.")


def _one_of(
    stats: Mapping[tuple[Reading, Selection], LatentStats], reading: Reading, tokens: Selection, sae: "SAE"
) -> LatentStats:
    if (reading, tokens) not in stats:
        raise ConfigError(f"an SAE of architecture {sae.cfg.architecture()!r} has no {reading}. Read it gated.")
    return stats[reading, tokens]


def _likenesses(found: Signatures, names: Mapping[str, str], groups: Sequence[Sequence[str]]) -> Iterator[Likeness]:
    group_of = {name: i for i, group in enumerate(groups, start=1) for name in group}
    ordered = found.of(found.order)
    cosines = ordered.cosines - 2 * np.eye(len(ordered.names))  # no run is its own neighbour
    for i, name in enumerate(ordered.names):
        nearest = int(cosines[i].argmax())
        yield Likeness(
            name=name,
            source=names[name],
            is_control=name in found.controls,
            group=group_of[name],
            length=float(np.linalg.norm(ordered.delta[i])),
            most_alike=ordered.names[nearest],
            cosine=float(cosines[i, nearest]),
        )


def _rises(found: Signatures) -> Iterator[dict[str, object]]:
    """A row for each latent, those in which the runs differ most first."""
    delta, column = found.delta, {latent: i for i, latent in enumerate(found.latents)}
    for latent in found.top(len(found.latents)):
        yield {"latent": latent, **dict(zip(found.names, delta[:, column[latent]].tolist(), strict=True))}


def _cosines(found: Signatures) -> Iterator[dict[str, object]]:
    ordered = found.of(found.order)
    for name, row in zip(ordered.names, ordered.cosines.tolist(), strict=True):
        yield {"run": name, **dict(zip(ordered.names, row, strict=True))}


def _page(found: Signatures, findings: SignatureFindings, groups: Sequence[Sequence[str]]) -> str:
    known = found.of([run.name for run in findings.runs])
    drawn = [
        signatures_figure(found).to_html(full_html=False, include_plotlyjs=True),
        likeness_figure(known, groups).to_html(full_html=False, include_plotlyjs=False),
    ]
    text = Markup("").join(Markup("<p>{}</p>").format(sentence) for sentence in findings.sentences())
    return str(_PAGE.format(n=len(known.names), text=text, figures=Markup("".join(drawn))))  # noqa: S704


def _nearest_sentence(nearest: NearestRun) -> str:
    cosine = f"cosine {nearest.cosine.value:.2f} [{nearest.cosine.low:.2f}, {nearest.cosine.high:.2f}]"
    if (above := nearest.above_controls) is None:
        beside = "no control to hold it against"
    else:
        beside = f"{above.value:+.2f} [{above.low:+.2f}, {above.high:+.2f}] against the most alike control"
    verdict = f"most like {nearest.name}" if nearest.is_near else f"like none; the nearest is {nearest.name}"
    return f"{verdict} ({cosine}; {beside})"
