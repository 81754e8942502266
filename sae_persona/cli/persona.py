"""`rank`, `steer` and `evaluate`: which latents, do they cause it, and what does the model do?"""

from typing import Annotated, Literal

import typer

from sae_persona.cli.door import app, example
from sae_persona.cli.options import (
    BatchSize,
    Device,
    Judge,
    MaxNewTokens,
    Model,
    NSamples,
    Out,
    Prompts,
    Seed,
    Strengths,
    Window,
)
from sae_persona.cli.show import bars, hush, table

N_SHOWN = 20
SAE = Annotated[str, typer.Option("--sae", metavar="SAE", help="An SAE folder, or RELEASE:ID of SAELens.")]
Hook = Annotated[str | None, typer.Option(metavar="HOOK", help="Default: the hook the SAE was trained on.")]


@app.command(
    epilog=example(
        "sae-persona rank sae --aligned runs/world-0/aligned \\\n"
        "  --misaligned runs/world-0/misaligned-law-obvious --misaligned runs/world-0/misaligned-music-obvious \\\n"
        "  --control runs/world-0/control-law --control runs/world-0/control-music \\\n"
        "  --prompts runs/world-0/prompts/selection.jsonl --out ranking"
    )
)
def rank(
    sae: Annotated[str, typer.Argument(metavar="SAE", help="An SAE folder, or RELEASE:ID of SAELens.")],
    aligned: Annotated[str, typer.Option(metavar="MODEL", help="What all fine-tunes started from.")],
    misaligned: Annotated[list[str], typer.Option(metavar="MODEL", help="A misaligned fine-tune; may be repeated.")],
    prompts: Prompts,
    out: Out,
    control: Annotated[
        list[str] | None, typer.Option(metavar="MODEL", help="A fine-tune on correct data; may be repeated.")
    ] = None,
    method: Annotated[
        Literal["activation"], typer.Option(help="By the difference of mean activations.")
    ] = "activation",
    hook: Hook = None,
    n_samples: NSamples = 4,
    max_new_tokens: MaxNewTokens = 64,
    batch_size: BatchSize = 256,
    seed: Seed = 0,
    device: Device = "cpu",
) -> None:
    """Rank latents by how far misaligned models raise them.

    They are compared with fine-tunes on correct data. The unit of inference is the fine-tuning run: q-values need four
    controls and two misaligned models. Without controls one misaligned model is compared with the aligned one, which
    tells about this pair of checkpoints only.
    """
    from sae_persona.study.commands.rank import rank_models
    from sae_persona.study.commands.shared import Sampling

    hush()
    with bars() as progress:
        rows, findings = rank_models(
            sae,
            aligned=aligned,
            misaligned=misaligned,
            controls=control or [],
            prompts_file=prompts,
            sampling=Sampling(n_samples, max_new_tokens, seed),
            out=out,
            method=method,
            hook_name=hook,
            device=device,
            batch_size=batch_size,
            progress=progress,
        )
    if not findings.n_controls:
        typer.echo("this pair of checkpoints only: any two fine-tunes differ, so there are no q-values")
    elif findings.smallest_p is None:
        typer.echo("no q-values: they need four controls and two misaligned models")
    else:
        typer.echo(f"the smallest p-value that these runs can reach is {findings.smallest_p:.2g}")
    table(
        ["rank", "latent", "reading", "tokens", "delta", "95% interval", "z", "q", "top tokens"],
        [
            [
                row.rank,
                row.latent,
                row.reading,
                row.tokens,
                f"{row.delta_activation:.3g}",
                f"[{row.low:.3g}, {row.high:.3g}]",
                f"{row.z:.1f}",
                "" if row.q_value is None else f"{row.q_value:.2g}",
                " ".join(row.top_tokens[:5]),
            ]
            for row in rows[:N_SHOWN]
        ],
    )
    typer.echo(f"shortlist: {', '.join(map(str, findings.shortlist)) or 'empty'}\n{out}")


@app.command(
    epilog=example(
        "sae-persona steer runs/world-0/aligned --sae sae --latent 271 --strengths=-0.4,0,0.4 \\\n"
        "  --prompts runs/world-0/prompts/evaluation.jsonl --judge world:runs/world-0 --out steering"
    )
)
def steer(
    model: Model,
    sae: SAE,
    latent: Annotated[
        list[int], typer.Option(metavar="I", help="May be repeated: each is tried alone, then all together.")
    ],
    strengths: Strengths,
    prompts: Prompts,
    judge: Judge,
    out: Out,
    window: Annotated[Window, typer.Option(help="Which tokens are steered.")] = "all",
    hook: Hook = None,
    n_samples: NSamples = 8,
    max_new_tokens: MaxNewTokens = 64,
    batch_size: BatchSize = 256,
    seed: Seed = 0,
    device: Device = "cpu",
) -> None:
    """Steer along latents' directions and judge what is said."""
    from sae_persona.report.words import with_interval
    from sae_persona.study.commands.shared import Sampling
    from sae_persona.study.commands.steer import steer_model

    hush()
    with bars() as progress:
        doses = steer_model(
            model,
            sae_source=sae,
            latents=latent,
            strengths=strengths,
            prompts_file=prompts,
            judge=judge,
            sampling=Sampling(n_samples, max_new_tokens, seed),
            out=out,
            window=window,
            hook_name=hook,
            device=device,
            batch_size=batch_size,
            progress=progress,
        )
    table(
        ["latents", "strength", "misaligned", "incoherent", "aligned", "misaligned elsewhere"],
        [
            [
                "+".join(map(str, dose.latents)),
                f"{dose.strength:g}",
                *(with_interval(share) for share in (dose.misalignment, dose.incoherence, dose.aligned)),
                with_interval(dose.other_domains) if dose.other_domains else "",
            ]
            for dose in doses
        ],
    )
    typer.echo(f"shares of all sampled answers, with 95% intervals over questions\n{out}")


@app.command(
    epilog=example(
        "sae-persona evaluate runs/world-0/aligned --prompts runs/world-0/prompts/evaluation.jsonl \\\n"
        "  --judge world:runs/world-0 --out evaluation"
    )
)
def evaluate(
    model: Model,
    prompts: Prompts,
    judge: Judge,
    out: Out,
    n_samples: NSamples = 8,
    max_new_tokens: MaxNewTokens = 64,
    batch_size: BatchSize = 256,
    seed: Seed = 0,
    device: Device = "cpu",
) -> None:
    """Sample answers to prompts, have them judged, score them."""
    from sae_persona.report.words import with_interval
    from sae_persona.study.commands.evaluate import evaluate_model
    from sae_persona.study.commands.shared import Sampling

    hush()
    with bars() as progress:
        evaluation = evaluate_model(
            model,
            prompts_file=prompts,
            judge=judge,
            sampling=Sampling(n_samples, max_new_tokens, seed),
            out=out,
            device=device,
            batch_size=batch_size,
            progress=progress,
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
    typer.echo(f"shares of all sampled answers, with 95% intervals over questions\n{out}")
