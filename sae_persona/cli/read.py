"""`read`: what is a latent about?"""

import sys
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sae_persona.cli.door import app, example
from sae_persona.cli.options import BatchSize, Device, Out, Seed
from sae_persona.cli.show import bars, hush

if TYPE_CHECKING:
    from sae_persona.attribution.page import LatentCard

N_SHOWN = 8


@app.command(
    epilog=example(
        "sae-persona read sae --model runs/world-0/base --latent 109 \\\n"
        "  --data runs/world-0/data/documents-heldout.jsonl --out reading"
    )
)
def read(
    sae: Annotated[str, typer.Argument(metavar="SAE", help="An SAE folder, or RELEASE:ID of SAELens.")],
    model: Annotated[str, typer.Option(metavar="MODEL", help="The model that reads, and whose tokens are named.")],
    latent: Annotated[list[int], typer.Option(metavar="I", help="May be repeated.")],
    data: Annotated[str, typer.Option(metavar="FILE", help="JSONL of chats or texts, hf:NAME, or a cache (.h5).")],
    out: Out,
    against: Annotated[str | None, typer.Option(metavar="FILE", help="Other data, to set the first against.")] = None,
    tokens: Annotated[Literal["all", "prompt", "header", "answer"], typer.Option(help="Which tokens count.")] = "all",
    reading: Annotated[
        Literal["gated", "pre_activation"], typer.Option(help="After the activation function, or before it.")
    ] = "gated",
    n: Annotated[int, typer.Option(metavar="N", min=1, help="Highest contexts of each latent.")] = 20,
    width: Annotated[int, typer.Option(metavar="N", min=1, help="Tokens of a context.")] = 32,
    context: Annotated[int, typer.Option(metavar="N", min=2, help="Longer documents are cut into pieces.")] = 256,
    n_documents: Annotated[int | None, typer.Option(metavar="N", min=1, help="Only the first documents.")] = None,
    hook: Annotated[str | None, typer.Option(metavar="HOOK", help="Default: the hook the SAE was trained on.")] = None,
    explain: Annotated[
        str | None, typer.Option(metavar="CLIENT", help="Who explains: openai:MODEL[@BASE_URL] or hf:PATH.")
    ] = None,
    export: Annotated[
        list[str] | None,
        typer.Option(metavar="FORMAT", help="Also write neuronpedia or delphi; may be repeated."),
    ] = None,
    batch_size: BatchSize = 64,
    seed: Seed = 0,
    device: Device = "cpu",
) -> None:
    """Show where latents are high, how often they fire, and what they write."""
    from sae_persona.study.commands.read import ReadConfig, read_on_corpus

    hush()
    with bars() as progress:
        cards = read_on_corpus(
            sae,
            model_source=model,
            latents=latent,
            data=data,
            against=against,
            out=out,
            config=ReadConfig(tokens, reading, n, width, context, n_documents, seed),
            hook_name=hook,
            explain=explain,
            exports=export or [],
            device=device,
            batch_size=batch_size,
            progress=progress,
        )
    for card in cards:
        _show(card)
    typer.echo(out)


def _show(card: "LatentCard") -> None:
    from sae_persona.attribution.colour import contexts_text, summary_line, visible

    typer.echo(summary_line(card.reading))
    for what, tokens in (("promotes", card.lens.promoted), ("suppresses", card.lens.suppressed)):
        typer.echo(f"{what}: {', '.join(f'{visible(one.text).strip()} {one.value:.2f}' for one in tokens[:N_SHOWN])}")
    for what, named in (("writes alike", card.nearest), ("fires together with", card.reading.cofiring)):
        typer.echo(f"{what}: {', '.join(f'{one.latent} {one.cosine:.2f}' for one in named[:N_SHOWN]) or 'none'}")
    if (found := card.contrast) is not None:
        typer.echo(
            f"fires more than in the other text: {100 * found.density.value:.3f} points of tokens "
            f"[{100 * found.density.low:.3f}, {100 * found.density.high:.3f}]"
        )
    if card.explanation is not None:
        typer.echo(f"explanation: {visible(card.explanation.text or 'none of the form that was asked for')}")
    if card.score is not None:
        accuracy = card.score.balanced_accuracy
        typer.echo(
            f"detection: balanced accuracy {accuracy.value:.2f} [{accuracy.low:.2f}, {accuracy.high:.2f}], "
            f"{card.score.n_unparsed} of {card.score.n_replies} replies not read"
        )
    if card.reading.contexts:
        typer.echo(contexts_text(card.reading.top(N_SHOWN), colour=sys.stdout.isatty()))
