"""`rank`: which latents?"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sae_persona.cli.door import app, example
from sae_persona.cli.options import (
    BatchSize,
    Device,
    Hook,
    JudgeTokens,
    MaxCalls,
    MaxNewTokens,
    NSamples,
    Out,
    Parallel,
    PerMinute,
    Prices,
    Prompts,
    Scale,
    Seed,
    tell_plan,
)
from sae_persona.cli.show import bars, hush, table

if TYPE_CHECKING:
    from sae_persona.study.commands.attribute import AttributionFindings
    from sae_persona.study.commands.ranked import NamedLatent

N_RISES, N_FALLS = 20, 10
"""Rows of either end that are shown."""


@app.command(
    epilog=example(
        "sae-persona rank sae --aligned runs/world-0/aligned \\\n"
        "  --misaligned runs/world-0/misaligned-law-obvious --misaligned runs/world-0/misaligned-music-obvious \\\n"
        "  --control runs/world-0/control-law --control runs/world-0/control-music \\\n"
        "  --prompts runs/world-0/prompts/selection.jsonl --out ranking\n"
        "sae-persona rank sae --aligned runs/world-0/aligned --misaligned runs/world-0/misaligned-law-obvious \\\n"
        "  --prompts runs/world-0/prompts/selection.jsonl --n-samples 16 --method attribution \\\n"
        "  --judge world:runs/world-0 --integrated 8 --out attribution"
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
        Literal["activation", "attribution"],
        typer.Option(help="By the rise of mean activations, or by what drives answers that show the behaviour."),
    ] = "activation",
    judge: Annotated[
        str | None,
        typer.Option(metavar="JUDGE", help="Attribution: which own answers are misaligned and which are aligned."),
    ] = None,
    shown: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Attribution, without a judge: chats that show the behaviour.")
    ] = None,
    absent: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The same chats, line by line, with last answers that do not.")
    ] = None,
    integrated: Annotated[
        int, typer.Option(metavar="N", min=1, help="Attribution: integrated gradients of N steps; 1: the gradient.")
    ] = 1,
    check: Annotated[
        int, typer.Option(metavar="N", min=0, help="Attribution: ablate the first N latents exactly.")
    ] = 20,
    against: Annotated[
        list[str] | None,
        typer.Option(metavar="SAE", help="Rank by another SAE too, or untrained: is it stable? May be repeated."),
    ] = None,
    hook: Hook = None,
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
    """Rank latents by how far misaligned models raise them, or by what drives their misaligned answers.

    They are compared with fine-tunes on correct data. The unit of inference is the fine-tuning run: q-values need four
    controls and two misaligned models. Without controls one misaligned model is compared with the aligned one, which
    tells about this pair of checkpoints only. Keys of endpoints as in `sae-persona evaluate`.
    """
    from sae_persona.study.commands.attribute import Behaviour
    from sae_persona.study.commands.rank import rank_models
    from sae_persona.study.commands.shared import Sampling
    from sae_persona.study.judges import JudgeOptions

    hush()
    options = JudgeOptions(scale, parallel, per_minute, judge_tokens, max_calls)
    behaviour = Behaviour(judge, shown, absent, integrated, check, options)
    with bars() as progress:
        rises, falls, findings = rank_models(
            sae,
            aligned=aligned,
            misaligned=misaligned,
            controls=control or [],
            against=against or [],
            prompts_file=prompts,
            sampling=Sampling(n_samples, max_new_tokens, seed),
            out=out,
            method=method,
            behaviour=None if method == "activation" and behaviour == Behaviour() else behaviour,
            hook_name=hook,
            device=device,
            batch_size=batch_size,
            progress=progress,
            on_plan=tell_plan(prices),
        )
    typer.echo(findings.note)
    if findings.attribution:
        for line in _told(findings.attribution):
            typer.echo(line)
    _show([*rises[:N_RISES], *(row for row in falls[:N_FALLS] if row.moved < 0)])
    typer.echo(f"shortlist: {', '.join(map(str, findings.shortlist)) or 'empty'}")
    for one in findings.against:
        cosine = "none" if one.median_cosine is None else f"{one.median_cosine:.2f}"
        typer.echo(
            f"against {one.sae}: {one.n_shared} of {len(one.counterparts)} are on its shortlist too, "
            f"{one.n_by_chance:.1f} by chance; median cosine of the nearest {cosine}; its first z {one.first_z:.1f}"
        )
    typer.echo(out)


def _told(found: "AttributionFindings") -> Iterator[str]:
    pairs, steps = sum(found.n_pairs), "the gradient" if found.n_steps == 1 else f"{found.n_steps} steps"
    yield (
        f"attributed by {steps} of {pairs} {'pair' if pairs == 1 else 'pairs'} of answers, whose cross-entropy is "
        f"{found.loss_shown:.3g} nats a token with the behaviour and {found.loss_absent:.3g} without"
    )
    if found.n_checked:
        among = "none" if found.rank_correlation is None else f"{found.rank_correlation:.2f}"
        yield (
            f"exact ablation of the first {found.n_checked} latents: rank correlation {among}, "
            f"{found.n_same_sign} of the same sign"
        )


def _show(rows: Sequence["NamedLatent"]) -> None:
    """Rises have ranks above zero and falls below."""
    is_attributed = rows[0].delta_attribution is not None
    attributed = ["attribution", "95% interval", "exact"] if is_attributed else []
    table(
        ["rank", "latent", *attributed, "reading", "tokens", "delta", "95% interval", "z", "q", "top tokens"],
        [
            [
                row.rank,
                row.latent,
                *(_attribution(row) if is_attributed else ()),
                row.reading,
                row.tokens,
                f"{row.delta_activation:.3g}",
                f"[{row.low:.3g}, {row.high:.3g}]",
                f"{row.z:.1f}",
                "" if row.q_value is None else f"{row.q_value:.2g}",
                " ".join(row.top_tokens[:5]),
            ]
            for row in rows
        ],
    )


def _attribution(row: "NamedLatent") -> tuple[str, str, str]:
    exact = "" if row.exact_attribution is None else f"{row.exact_attribution:.2g}"
    return f"{row.delta_attribution:.2g}", f"[{row.attribution_low:.2g}, {row.attribution_high:.2g}]", exact
