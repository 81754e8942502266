"""The causal screen of both ends of a ranking: how long it takes, and where planted persona latents stand in it.

On the committed world and on every other built world in `runs/` (`make world SEED=73` builds one): the four
dictionaries of the study are trained on the base, and of each the 40 clearest rises and 10 clearest falls are screened
as `sae-persona screen` does it, added to the aligned model at the token that opens the answer, subtracted from and
added to a misaligned one, beside 20 random latents and 20 random directions, on selection prompts alone. A row is a
latent of the screen that is a planted persona's (AUROC of 0.95 at least), or that drives or protects without being one.
"""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from sae_persona.logs import no_log
from sae_persona.persona_world.truth import persona_auroc
from sae_persona.sae.load import load_sae
from sae_persona.steering.record import ScreenedLatent
from sae_persona.study.commands.dosage import Company, Dosage
from sae_persona.study.commands.rank import rank_models
from sae_persona.study.commands.screen import screen_latents
from sae_persona.study.commands.shared import Sampling
from sae_persona.study.config import StudyConfig, load_config
from sae_persona.study.learn import CACHE, cache_base, learn_saes
from sae_persona.study.subjects import Subjects

ROOT = Path(__file__).parents[1]
STUDY = ROOT / "experiments" / "persona_world.yaml"
N_RISES, N_FALLS, N_CONTROLS = 40, 10, 20
STRENGTHS = (1.0, 1.5, 2.0, 2.5)
N_ANSWERS = 2
"""Of each prompt; a world has 25 open-ended ones to choose with."""
BATCH = 2048
COLUMNS = ("latent", "place in ranking", "persona", "place in screen", "role", "induces", "repairs", "protects")


def run() -> Iterator[Mapping[str, object]]:
    config = load_config(STUDY)
    for folder in (ROOT / config.world, *sorted(Path("runs").glob("world-*"))):
        yield from of_world(folder, config)


def of_world(folder: Path, config: StudyConfig) -> Iterator[Mapping[str, object]]:
    """The rows of a world, dictionary by dictionary."""
    subjects = Subjects.open(folder)
    base = subjects.model("base")
    with TemporaryDirectory() as name:
        work = Path(name)
        cache_base(subjects, config, work)
        for dictionary in learn_saes(subjects, config, work, work, log=no_log):
            rows, seconds = timed_screen(subjects, work / dictionary, work / CACHE, work)
            sae = load_sae(work / dictionary)
            truth = persona_auroc(subjects.world.world, base, sae, hook_name=config.hook_name)
            found: Mapping[str, object] = {"world": folder.name, "dictionary": dictionary, "seconds": seconds}
            yield {**found, **dict.fromkeys(COLUMNS, ""), "latent": f"all {len(rows)}"}
            for row in rows:
                persona = truth.persona_of(row.latent)
                if persona or row.role != "none":
                    yield {**found, **as_row(row, persona)}


def timed_screen(subjects: Subjects, sae: Path, cache: Path, work: Path) -> tuple[list[ScreenedLatent], float]:
    """The screen of one dictionary, and its seconds without those of training and ranking."""
    world = subjects.world.folder
    prompts, aligned = world / "prompts" / "selection.jsonl", str(world / "aligned")
    bad, good = ([str(world / run) for run in subjects.runs(role)] for role in ("misaligned", "control"))
    ranking = work / f"ranking-{sae.name}"
    rank_models(
        str(sae),
        aligned=aligned,
        misaligned=bad,
        controls=good,
        prompts_file=prompts,
        sampling=Sampling(2, 16),
        out=ranking,
        batch_size=BATCH,
    )
    start = time.perf_counter()
    rows, _ = screen_latents(
        aligned,
        sae_source=str(sae),
        n_top=N_RISES,
        n_bottom=N_FALLS,
        misaligned=bad[:1],
        dosage=Dosage(STRENGTHS, unit=str(cache), window="header"),
        prompts_file=prompts,
        judge=f"world:{world}",
        sampling=Sampling(N_ANSWERS, 16),
        out=work / f"screen-{sae.name}",
        company=Company(N_CONTROLS, ranking=ranking),
        categories=["open_ended"],
        batch_size=BATCH,
    )
    return rows, time.perf_counter() - start


def as_row(row: ScreenedLatent, persona: str | None) -> dict[str, object]:
    """Cells of a latent; effects in points.

    One that induces nothing has no place: it ties with all others that do not, in the order of what they protect.
    """
    shares = (row.induced, row.repaired, row.protected)
    cells = (
        row.latent,
        row.place,
        persona or "",
        row.rank if row.induced > 0 else "none",
        row.role,
        *(round(100 * share) for share in shares if share is not None),
    )
    return dict(zip(COLUMNS, cells, strict=True))
