"""`steer` and `screen`: does a latent cause it, and which of many do?"""

from pathlib import Path
from typing import Annotated, Literal

import typer

from sae_persona.cli.door import app, example
from sae_persona.cli.options import (
    SAE,
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
    Questions,
    Scale,
    Seed,
    Sizes,
    Strengths,
    Window,
    tell_plan,
)
from sae_persona.cli.show import bars, hush, table

Edit = Annotated[
    Literal["add", "ablate", "clamp"],
    typer.Option(help="Add the direction, take out a share of the residual along it, or hold the latent at a value."),
]
Unit = Annotated[
    str | None,
    typer.Option(
        metavar="UNIT",
        help="What a strength of 1 is: median (norm of the prompts' residuals; default), max (the latent's highest "
        "activation; default of clamp), absolute, a number, or a cache FILE.h5 (its median norm).",
    ),
]
Controls = Annotated[
    int, typer.Option(metavar="N", min=0, help="N random latents and N random directions at the same strengths.")
]
ControlSeed = Annotated[int | None, typer.Option(metavar="S", min=0, help="Draws the controls; default: --seed.")]
Data = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Chats or texts for maxima and firing densities; default: prompts and own answers."
    ),
]


@app.command(
    epilog=example(
        "sae-persona steer runs/world-0/aligned --sae sae --latent 271 --strengths=-0.4,0,0.4 \\\n"
        "  --prompts runs/world-0/prompts/evaluation.jsonl --judge world:runs/world-0 --out steering \\\n"
        "  --price-data runs/world-0/data/documents-heldout.jsonl --word harm=poison --word harm=burn\n"
        "sae-persona steer MODEL --sae sae --latent 271 --strengths=0.5,1,1.5,2 --controls 20 --ranking ranking \\\n"
        "  --prompts open-questions --judge openai:gpt-4.1-mini --max-calls 5000 --export 1.5 --out steering"
    )
)
def steer(
    model: Model,
    sae: SAE,
    latent: Annotated[
        list[int], typer.Option(metavar="I", help="May be repeated: each is tried alone, then all together.")
    ],
    strengths: Strengths,
    prompts: Questions,
    judge: Judge,
    out: Out,
    edit: Edit = "add",
    unit: Unit = None,
    window: Annotated[Window, typer.Option(help="Which tokens are steered.")] = "all",
    from_token: Annotated[
        int, typer.Option(metavar="N", min=0, help="Leave the first N tokens of every prompt alone.")
    ] = 0,
    hook: Hook = None,
    controls: Controls = 0,
    control_seed: ControlSeed = None,
    ranking: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A ranking whose mean difference and probe are tried alike."),
    ] = None,
    data: Data = None,
    price_data: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Benign chats or texts: what every dose costs there, cross-entropy and KL."),
    ] = None,
    word: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[GROUP=]WORD", help="Show how far directions write this word by themselves; may be repeated."
        ),
    ] = None,
    export: Annotated[
        float | None,
        typer.Option(metavar="X", help="Write the dose of this strength for transformers and llama.cpp."),
    ] = None,
    category: Category = None,
    n_samples: NSamples = 8,
    max_new_tokens: MaxNewTokens = 64,
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
    """Steer along latents' directions and judge what is said.

    Writes the dose-response with intervals (doses.csv, doses.jsonl), every answer (answers.jsonl), what it comes to
    (steering.json) and a page with figures (steering.html). All arms share prompts, samples and noise. Keys of
    endpoints and the folder of kept replies: see `sae-persona evaluate --help`.
    """
    from sae_persona.report.doses import arm_name, sentences
    from sae_persona.report.words import with_interval
    from sae_persona.steering.record import CONTROLS
    from sae_persona.study.commands.dosage import Company, Dosage
    from sae_persona.study.commands.shared import Sampling
    from sae_persona.study.commands.side_effects import SideEffects, grouped_words
    from sae_persona.study.commands.steer import PAGE, steer_model
    from sae_persona.study.judges import JudgeOptions

    hush()
    with bars() as progress:
        doses, findings = steer_model(
            model,
            sae_source=sae,
            latents=latent,
            dosage=Dosage(strengths, edit, unit, window, from_token),
            prompts_file=prompts,
            judge=judge,
            sampling=Sampling(n_samples, max_new_tokens, seed),
            out=out,
            company=Company(controls, seed if control_seed is None else control_seed, ranking, data),
            options=JudgeOptions(scale, parallel, per_minute, judge_tokens, max_calls),
            side_effects=SideEffects(price_data, grouped_words(word or ())),
            categories=category or (),
            hook_name=hook,
            export=export,
            device=device,
            batch_size=batch_size,
            progress=progress,
            on_plan=tell_plan(prices),
        )
    priced = ["cross-entropy", "KL"] if price_data else []
    elsewhere = ["misaligned elsewhere"] if any(dose.other_domains for dose in doses) else []
    table(
        ["arm", "strength", "misaligned", "incoherent", "aligned", *elsewhere, *priced],
        [
            [
                arm_name(dose.arm, dose.name),
                "unsteered" if dose.is_unsteered else f"{dose.strength:g}",
                *(with_interval(share) for share in (dose.misalignment, dose.incoherence, dose.aligned)),
                *([with_interval(dose.other_domains)] if dose.other_domains else []),
                *((f"{dose.price.ce_steered:.3f}", f"{dose.price.kl:.3f}") if dose.price else ()),
            ]
            for dose in doses
            if dose.arm not in CONTROLS
        ],
    )
    for sentence in sentences(findings):
        typer.echo(sentence)
    typer.echo(f"shares of all sampled answers, with 95% intervals over questions\n{out / PAGE}")


@app.command(
    epilog=example(
        "sae-persona screen runs/world-0/aligned --sae sae --ranking ranking --top 50 --strengths=0.5,1,1.5,2 \\\n"
        "  --misaligned runs/world-0/misaligned-law-obvious --controls 20 --category open_ended \\\n"
        "  --prompts runs/world-0/prompts/selection.jsonl --judge world:runs/world-0 --out screen"
    )
)
def screen(
    model: Model,
    sae: SAE,
    strengths: Sizes,
    prompts: Questions,
    judge: Judge,
    out: Out,
    ranking: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Screen the first latents of what `rank` wrote.")
    ] = None,
    top: Annotated[int, typer.Option(metavar="N", min=0, help="Clearest rises of the ranking.")] = 50,
    bottom: Annotated[int, typer.Option(metavar="N", min=0, help="Clearest falls of the ranking.")] = 0,
    latent: Annotated[
        list[int] | None, typer.Option(metavar="I", help="Screen these instead; may be repeated.")
    ] = None,
    misaligned: Annotated[
        list[str] | None, typer.Option(metavar="MODEL", help="A model to be repaired; may be repeated.")
    ] = None,
    unit: Unit = None,
    window: Annotated[Window, typer.Option(help="Which tokens are steered.")] = "all",
    hook: Hook = None,
    controls: Controls = 20,
    control_seed: ControlSeed = None,
    data: Data = None,
    category: Category = None,
    n_samples: NSamples = 4,
    max_new_tokens: MaxNewTokens = 64,
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
    """Rank many latents by what steering with them causes.

    Drivers raise misalignment when they are added; protectors bring aligned answers back when they are added to a
    misaligned model; both by more than every random latent and direction. Use selection prompts, then measure the
    chosen latents with `sae-persona steer` on others. An interrupted screen goes on; --max-calls counts for every few
    latents anew.
    """
    from sae_persona.study.commands.dosage import Company, Dosage
    from sae_persona.study.commands.screen import PAGE, screen_latents
    from sae_persona.study.commands.shared import Sampling
    from sae_persona.study.judges import JudgeOptions

    hush()
    with bars() as progress:
        rows, findings = screen_latents(
            model,
            sae_source=sae,
            latents=latent or (),
            n_top=top,
            n_bottom=bottom,
            misaligned=misaligned or (),
            dosage=Dosage(strengths, unit=unit, window=window),
            prompts_file=prompts,
            judge=judge,
            sampling=Sampling(n_samples, max_new_tokens, seed),
            out=out,
            company=Company(controls, seed if control_seed is None else control_seed, ranking, data),
            options=JudgeOptions(scale, parallel, per_minute, judge_tokens, max_calls),
            categories=category or (),
            hook_name=hook,
            device=device,
            batch_size=batch_size,
            progress=progress,
            on_plan=tell_plan(prices),
        )

    def shown(effect: float | None, strength: float | None, p: float | None) -> str:
        return "" if effect is None else f"{100 * effect:+.1f} at {strength:+.3g}, p {p:.3g}"

    table(
        ["rank", "latent", "place", "role", "induced", "carry-over", "repaired", "protected"],
        [
            [
                row.rank,
                row.latent,
                row.place or "",
                row.role,
                shown(row.induced, row.induced_at, row.induced_p),
                "" if row.carry_over is None else f"{100 * row.carry_over:+.1f}",
                shown(row.repaired, row.repaired_at, row.repaired_p),
                shown(row.protected, row.protected_at, row.protected_p),
            ]
            for row in rows
        ],
    )
    best = ", ".join(f"{name} {100 * effect:+.1f}" for name, effect in findings.best_control.items())
    typer.echo(f"points of all answers; the best of {findings.n_controls} controls: {best}")
    for what, latents in (("drivers", findings.drivers), ("protectors", findings.protectors)):
        typer.echo(f"{what}: {', '.join(map(str, latents)) or 'none'}")
    for note in findings.notes:
        typer.echo(note)
    typer.echo(out / PAGE)
