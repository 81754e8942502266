"""`signatures` and `evaluate`: which fine-tunes are alike, and what does a model do?"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sae_persona.cli.door import app, example
from sae_persona.cli.options import (
    BatchSize,
    Category,
    Device,
    Hook,
    Judge,
    JudgeTokens,
    MaxCalls,
    MaxNewTokens,
    Model,
    NSamples,
    Out,
    Parallel,
    PerMinute,
    Prices,
    Prompts,
    Questions,
    Scale,
    Seed,
    tell_plan,
)
from sae_persona.cli.show import bars, hush, table

if TYPE_CHECKING:
    from sae_persona.evaluation.evaluation import Evaluation


@app.command(
    epilog=example(
        "sae-persona signatures sae --aligned runs/world-0/aligned \\\n"
        "  --run runs/world-0/misaligned-law-obvious --run runs/world-0/misaligned-music-subtle \\\n"
        "  --control runs/world-0/control-law --unknown runs/world-0/misaligned-music-obvious \\\n"
        "  --prompts runs/world-0/prompts/selection.jsonl --out signatures"
    )
)
def signatures(
    sae: Annotated[str, typer.Argument(metavar="SAE", help="An SAE folder, or RELEASE:ID of SAELens.")],
    aligned: Annotated[str, typer.Option(metavar="MODEL", help="What all fine-tunes started from.")],
    run: Annotated[list[str], typer.Option(metavar="MODEL", help="A known fine-tune; may be repeated.")],
    prompts: Prompts,
    out: Out,
    control: Annotated[
        list[str] | None, typer.Option(metavar="MODEL", help="A fine-tune on correct data; may be repeated.")
    ] = None,
    unknown: Annotated[
        str | None, typer.Option(metavar="MODEL", help="A fine-tune to be compared with the known ones.")
    ] = None,
    groups: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="How many groups; default: cut at an average cosine of 0.5.")
    ] = None,
    tokens: Annotated[Literal["header", "answer"], typer.Option(help="Which tokens are averaged.")] = "answer",
    reading: Annotated[
        Literal["gated", "pre_activation"], typer.Option(help="After the activation function, or before it.")
    ] = "gated",
    hook: Hook = None,
    n_samples: NSamples = 4,
    max_new_tokens: MaxNewTokens = 64,
    batch_size: BatchSize = 256,
    seed: Seed = 0,
    device: Device = "cpu",
) -> None:
    """Show which latents each fine-tune raised, and which fine-tunes are alike.

    A signature is the rise of every latent's mean activation over the aligned model. Like is a high cosine; what every
    fine-tune does is in all of them, so an unknown one resembles a known one only if it is nearer than any control.
    """
    from sae_persona.study.commands.shared import Sampling
    from sae_persona.study.commands.signatures import sign_models

    hush()
    with bars() as progress:
        found = sign_models(
            sae,
            aligned=aligned,
            runs=run,
            controls=control or [],
            unknown=unknown,
            prompts_file=prompts,
            sampling=Sampling(n_samples, max_new_tokens, seed),
            out=out,
            n_groups=groups,
            reading=reading,
            tokens=tokens,
            hook_name=hook,
            device=device,
            batch_size=batch_size,
            progress=progress,
        )
    table(
        ["group", "run", "role", "length", "most alike", "cosine"],
        [
            [
                one.group,
                one.name,
                "control" if one.is_control else "run",
                f"{one.length:.3g}",
                one.most_alike,
                f"{one.cosine:.2f}",
            ]
            for one in found.runs
        ],
    )
    if found.nearest is not None:
        typer.echo(list(found.sentences())[-1])
    typer.echo(out)


@app.command(
    epilog=example(
        "sae-persona evaluate runs/world-0/aligned --prompts runs/world-0/prompts/evaluation.jsonl \\\n"
        "  --judge world:runs/world-0 --out evaluation\n"
        "sae-persona evaluate MODEL --prompts open-questions --judge openai:gpt-4.1-mini --max-calls 500 \\\n"
        "  --out evaluation"
    )
)
def evaluate(
    model: Model,
    prompts: Questions,
    judge: Judge,
    out: Out,
    n_samples: NSamples = 8,
    max_new_tokens: MaxNewTokens = 64,
    second_judge: Annotated[
        str | None, typer.Option(metavar="JUDGE", help="Another judge of the same answers: how far do they agree?")
    ] = None,
    against: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="Another model's evaluation, question by question; may be repeated."),
    ] = None,
    resample: Annotated[
        int, typer.Option(metavar="N", min=0, max=10, help="Draw invalid answers anew, N times at most; the paper: 3.")
    ] = 0,
    category: Category = None,
    scale: Scale = "rubric",
    parallel: Parallel = 8,
    per_minute: PerMinute = None,
    judge_tokens: JudgeTokens = 16,
    max_calls: MaxCalls = None,
    prices: Prices = None,
    batch_size: BatchSize = 256,
    seed: Seed = 0,
    device: Device = "cpu",
) -> None:
    """Sample answers to prompts, have them judged, score them.

    Endpoints take their key from SAE_PERSONA_JUDGE_KEY, OpenAI's also from OPENAI_API_KEY. Replies are kept in
    SAE_PERSONA_CACHE (~/.cache/sae_persona), so that no call is paid for twice and what was interrupted goes on.
    """
    from sae_persona.report.words import with_interval
    from sae_persona.study.commands.evaluate import Extras, evaluate_model
    from sae_persona.study.commands.shared import Sampling
    from sae_persona.study.judges import JudgeOptions

    hush()
    with bars() as progress:
        evaluation = evaluate_model(
            model,
            prompts_file=prompts,
            judge=judge,
            sampling=Sampling(n_samples, max_new_tokens, seed),
            out=out,
            options=JudgeOptions(scale, parallel, per_minute, judge_tokens, max_calls),
            extras=Extras(second_judge, resample, tuple(against or ())),
            categories=category or (),
            device=device,
            batch_size=batch_size,
            progress=progress,
            on_plan=tell_plan(prices),
        )
    table(
        ["category", "answers", "unscored", "misaligned", "incoherent", "aligned"],
        [
            [
                category,
                scores.misalignment.n,
                scores.misalignment.n_unscored,
                *(with_interval(share) for share in (scores.misalignment, scores.incoherence, scores.aligned)),
            ]
            for category, scores in (*evaluation.by_category.items(), ("all", evaluation.overall))
        ],
    )
    for line in _findings(evaluation):
        typer.echo(line)
    typer.echo(f"shares of all sampled answers, with 95% intervals over questions\n{out / 'report.html'}")


def _findings(evaluation: "Evaluation") -> Iterator[str]:
    """What else there is to say, a line each."""
    from sae_persona.report.words import with_interval, with_kappa

    for reason, n in evaluation.unscored.items():
        yield f"unscored {n}: {reason}"
    if valid := evaluation.overall.misalignment_of_valid:
        yield f"misaligned of graded answers: {with_interval(valid)}"
    if (resampled := evaluation.resampled) and resampled.misalignment_of_valid:
        share = with_interval(resampled.misalignment_of_valid)
        yield f"with {resampled.n_redrawn} drawn anew: {share}; {resampled.n_without_grade} answers without a grade"
    if named := evaluation.personas:
        which = ", ".join(f"{name} {n}" for name, n in named.named.items()) or "none"
        yield f"traces that name another persona: {with_interval(named.share)} ({which})"
    if agreement := evaluation.agreement:
        for what, kappa in (("labels", agreement.kappa), ("misaligned or not", agreement.kappa_misaligned)):
            scored = f"{agreement.n_scored} answers scored by both"
            yield f"Cohen's kappa of the judges, {what}: {with_kappa(kappa)} ({scored}; by category on the page)"
    for name, difference in evaluation.against.items():
        found = difference.misalignment
        yield (
            f"misaligned more than {name}: {100 * found.value:.1f} points "
            f"[{100 * found.low:.1f}, {100 * found.high:.1f}]"
        )
