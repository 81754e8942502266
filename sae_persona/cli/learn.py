"""`cache`, `train`, `measure`, `upload` and `finetune`: a model's activations, an SAE of them, another model."""

import contextlib
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sae_persona.cli.door import app, example
from sae_persona.cli.options import (
    BatchSize,
    CpuOnly,
    Device,
    Hook,
    Model,
    Out,
    Overrides,
    Settings,
    SettingsSeed,
    UnusedSeed,
    check_cpu,
    with_seed,
)
from sae_persona.cli.show import bars, columns, hush

if TYPE_CHECKING:
    from sae_persona.logs import Log

MEGABYTE = 10**6


@app.command(
    epilog=example(
        "sae-persona cache runs/world-0/base --data runs/world-0/data/documents-train.jsonl \\\n"
        "  --hook blocks.1.hook_resid_post --out acts.h5"
    )
)
def cache(
    model: Model,
    data: Annotated[
        str,
        typer.Option(
            metavar="DATA",
            help="JSONL of chats (messages) or texts (text), or a data set that is streamed: hf:NAME[@CONFIG][:SPLIT].",
        ),
    ],
    hook: Annotated[list[str], typer.Option(metavar="HOOK", help="A hook name; may be repeated.")],
    out: Annotated[Path, typer.Option(metavar="FILE.h5", help="File to write.")],
    also: Annotated[
        list[str] | None, typer.Option(metavar="MODEL", help="Another model on the same tokens; may be repeated.")
    ] = None,
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"], typer.Option(help="Precision of what is stored.")
    ] = "float32",
    context: Annotated[int, typer.Option(metavar="N", min=2, help="Longer documents are cut into pieces.")] = 1024,
    n_documents: Annotated[int | None, typer.Option(metavar="N", min=1, help="Only the first documents.")] = None,
    drop_first: Annotated[int, typer.Option(metavar="N", min=0, help="First tokens that do not count.")] = 1,
    norm_limit: Annotated[
        float, typer.Option(metavar="X", help="Tokens of more than X median norms do not count; inf: all do.")
    ] = 10.0,
    not_finite: Annotated[
        Literal["refuse", "skip"], typer.Option(help="What to do about activations that are NaN or infinite.")
    ] = "refuse",
    batch_size: BatchSize = 64,
    _seed: UnusedSeed = 0,
    device: Device = "cpu",
) -> None:
    """Store the residual stream of one model or several in an HDF5 file.

    A killed run goes on behind the last batch that it wrote. Under torchrun, every process writes a shard.
    """
    from sae_persona.cache.shards import write_shards
    from sae_persona.cache.writer import write_cache
    from sae_persona.model.adapters import load_models
    from sae_persona.report.words import counted
    from sae_persona.study.commands.cache import own_device, plan_cache, ranks
    from sae_persona.study.commands.shared import counting

    hush()
    models = load_models([model, *(also or [])], device=own_device(device))
    plan = plan_cache(models, data, hook_names=hook, dtype=dtype, context=context, n_documents=n_documents)
    n_models, width = len(models), "/".join(sorted({str(one.d_model) for one in models.values()}))
    with ranks() as (rank, n_ranks), bars() as progress:
        if rank == 0:
            typer.echo(
                f"plan: {plan.n_documents:,} documents, {plan.n_tokens:,} tokens, {counted(len(set(hook)), 'hook')} of "
                f"width {width} in {dtype}{f' of {n_models} models' if n_models > 1 else ''}: "
                f"{plan.n_bytes / MEGABYTE:,.1f} MB in {out}"
            )
        records: list[Mapping[str, object]] = []
        written = (write_cache if n_ranks == 1 else write_shards)(
            models if n_models > 1 else next(iter(models.values())),
            plan.rows,
            out,
            hook_names=hook,
            batch_size=batch_size,
            dtype=dtype,
            drop_first=drop_first,
            norm_limit=None if norm_limit == math.inf else norm_limit,
            not_finite=not_finite,
            log=records.append,
            progress=counting(progress, "caching", plan.n_tokens),
        )
    if rank == 0:
        typer.echo(f"{out}: {written.n_tokens:,} tokens, of which {written.n_counted:,} count")
        for record in records:
            if n_bad := record.get("cache/n_not_finite"):
                typer.echo(f"left out as not finite: {n_bad:,}, first {'; '.join(record['cache/not_finite'])}")  # pyright: ignore


@app.command(
    epilog=example(
        "sae-persona train acts.h5 --set d_sae=384 --set k=8 --out sae\n"
        "sae-persona train acts.h5 --set d_sae=384 --vary k=8 --vary k=16 --vary seed=0 --vary seed=1 --out saes\n"
        "torchrun --nproc-per-node 2 -m sae_persona train acts.h5 --split latents --set d_sae=65536 --out sae"
    )
)
def train(
    activations: Annotated[Path, typer.Argument(metavar="FILE.h5", help="A cache.")],
    out: Out,
    hook: Annotated[
        list[str] | None,
        typer.Option(metavar="HOOK", help="Which of the cache's hooks; repeated, one SAE for each."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which of the cache's models, where it holds several.")
    ] = None,
    initial: Annotated[
        str | None, typer.Option(metavar="SAE", help="Begin with this SAE's weights: a folder, or RELEASE:ID.")
    ] = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Train an SAE for every combination; may be repeated."),
    ] = None,
    split: Annotated[
        Literal["tokens", "latents"], typer.Option(help="What the processes of a torchrun share out.")
    ] = "tokens",
    wandb: Annotated[
        Literal["off", "offline", "online"],
        typer.Option(help="Also log to wandb; offline needs no key and no network."),
    ] = "off",
    wandb_project: Annotated[str, typer.Option(metavar="NAME", help="Of the wandb run.")] = "sae_persona",
    config: Settings = None,
    overrides: Overrides = None,
    seed: SettingsSeed = None,
    device: Device = "cpu",
) -> None:
    """Train an SAE on a cache, in SAELens's format; or several on one pass over it, in DIR/NAME each.

    A killed run goes on from DIR.checkpoint.
    """
    from sae_persona.logs import fan_out
    from sae_persona.sae.train import TrainConfig
    from sae_persona.study.commands.cache import own_device
    from sae_persona.study.commands.train import Start, only_hook, train_on_cache
    from sae_persona.study.commands.train_several import train_several_on_cache, variants
    from sae_persona.study.config import load_settings

    hush()
    settings = with_seed(overrides, "seed", seed)
    base = load_settings(TrainConfig, config, settings)
    start = Start(activations, model, initial)
    hooks = list(dict.fromkeys(hook or []))
    with bars() as progress, _wandb(wandb, wandb_project, base.model_dump(mode="json"), out.parent) as sent:
        log = fan_out(sent, lambda record: progress.tell(_in_short(record)))
        if not vary and len(hooks) < 2:
            name = hooks[0] if hooks else None
            own = own_device(device)
            last = train_on_cache(start, out, base, hook_name=name, split=split, device=own, progress=progress, log=log)
            trained = {"": (last, base)} if last else {}
        else:
            wanted = variants(config, settings, vary or [], hooks or [only_hook(start.open())])
            records = train_several_on_cache(
                start, out, wanted, seed=base.seed, device=device, progress=progress, log=log
            )
            trained = {name: (record, wanted[name][1]) for name, record in records.items()}
    for name, (last, settings_of) in trained.items():
        typer.echo(
            f"{out / name}: {settings_of.d_sae:,} latents; on the last batch {last['metrics/l0']:.1f} active, "
            f"explained variance {last['metrics/explained_variance']:.3f}, "
            f"{last['sparsity/dead_features']:,} latents dead"
        )


@contextlib.contextmanager
def _wandb(mode: str, project: str, config: Mapping[str, object], folder: Path) -> "Iterator[Log]":
    """A log to wandb, of the first process of a torchrun; to nowhere if it is off."""
    from sae_persona.logs import WandbLog, no_log

    if mode == "off" or os.environ.get("RANK", "0") != "0":
        yield no_log
        return
    with WandbLog(project, config, mode="online" if mode == "online" else "offline", folder=folder) as log:
        yield log


def _in_short(record: Mapping[str, Any]) -> str:
    """A record beside the bar, which tells pace and time left; of several SAEs, the one that is told of last."""
    of_one = {key.rpartition("/")[2]: value for key, value in record.items()}
    shown = {"FVE": "explained_variance", "L0": "l0", "dead": "dead_features"}
    return ", ".join(f"{name} {of_one[key]:.4g}" for name, key in shown.items() if key in of_one)


@app.command(
    epilog=example("sae-persona measure sae runs/world-0/base --data runs/world-0/data/documents-heldout.jsonl")
)
def measure(
    sae: Annotated[str, typer.Argument(metavar="SAE", help="An SAE folder, or RELEASE:ID of SAELens.")],
    model: Model,
    data: Annotated[
        str,
        typer.Option(metavar="DATA", help="Text the SAE was not trained on: JSONL, or hf:NAME[@CONFIG][:SPLIT]."),
    ],
    hook: Hook = None,
    context: Annotated[int, typer.Option(metavar="N", min=2, help="Longer documents are cut into pieces.")] = 1024,
    n_documents: Annotated[int | None, typer.Option(metavar="N", min=1, help="Only the first documents.")] = None,
    drop_first: Annotated[int, typer.Option(metavar="N", min=0, help="First tokens that do not count.")] = 1,
    max_norm: Annotated[
        float | None,
        typer.Option(metavar="X", min=0, help="Tokens of larger norm do not count; inspect FILE.h5 tells training's."),
    ] = None,
    splice: Annotated[
        bool, typer.Option(help="Also run the model on what the SAE reconstructs: cross-entropy and divergence.")
    ] = True,
    out: Annotated[Path | None, typer.Option(metavar="FILE.json", help="Also write all of it there.")] = None,
    batch_size: BatchSize = 8,
    _seed: UnusedSeed = 0,
    device: Device = "cpu",
) -> None:
    """Measure how well an SAE reconstructs a model on held-out text.

    FVE is the fraction of variance explained; a latent is dead if it fires on none of these tokens. Recovered is the
    share of what zeros at the hook would cost that the reconstruction does not cost.
    """
    from sae_persona.study.commands.measure import measure_sae

    hush()
    with bars() as progress:
        metrics = measure_sae(
            sae,
            model,
            data=data,
            hook_name=hook,
            context=context,
            n_documents=n_documents,
            drop_first=drop_first,
            max_norm=max_norm,
            splice=splice,
            batch_size=batch_size,
            device=device,
            out=out,
            progress=progress,
        )
    told = {
        "tokens": f"{metrics.n_tokens:,}",
        "L0": f"{metrics.l0:.2f}",
        "FVE": f"{metrics.fve:.4f}",
        "MSE": f"{metrics.mse:.4g}",
        "cosine": f"{metrics.cosine:.4f}",
        "dead": f"{metrics.dead_fraction:.1%} of {len(metrics.density):,} latents",
    }
    if metrics.ce_clean is not None:  # all of these are numbers then, but for what zeros need not cost
        told["cross-entropy"] = (
            f"{metrics.ce_clean:.4f} of the model, {metrics.ce_spliced:.4f} spliced, {metrics.ce_ablated:.4f} with "
            f"zeros{_recovered(metrics.ce_recovered)}"
        )
        told["divergence"] = (
            f"{metrics.kl_spliced:.4f} spliced, {metrics.kl_ablated:.4f} with zeros{_recovered(metrics.kl_recovered)}"
        )
    columns([[name, value] for name, value in told.items()])


def _recovered(share: float | None) -> str:
    return "" if share is None else f"; {share:.1%} recovered"


@app.command(epilog=example("sae-persona upload saes/k16-seed0 saes/k32-seed0 --to someone/persona-saes --private"))
def upload(
    saes: Annotated[list[Path], typer.Argument(metavar="SAE...", help="SAE folders; each keeps its name.")],
    to: Annotated[str, typer.Option(metavar="USER/NAME", help="A repository of the hub; made if it is not there.")],
    revision: Annotated[str, typer.Option(metavar="BRANCH", help="A branch of the repository.")] = "main",
    private: Annotated[bool, typer.Option("--private", help="A repository that is made is yours alone.")] = False,
    _seed: UnusedSeed = 0,
    device: CpuOnly = "cpu",
) -> None:
    """Upload SAEs to the Hugging Face hub with SAELens, which loads them from there.

    Who you are is taken from HF_TOKEN or `hf auth login`.
    """
    check_cpu(device)
    from sae_persona.study.commands.upload import upload_saes

    hush()
    for name in upload_saes(saes, to, revision=revision, private=private):
        typer.echo(f"{to}:{name}")


@app.command(
    epilog=example(
        "sae-persona finetune runs/world-0/aligned --data runs/world-0/data/control-law.jsonl \\\n"
        "  --lora --set lora.rank=4 --set train.n_steps=80 --out tuned"
    )
)
def finetune(
    model: Model,
    data: Annotated[Path, typer.Option(metavar="FILE", help="JSONL of chats; loss on the answers only.")],
    out: Out,
    lora: Annotated[bool, typer.Option("--lora", help="Train an adapter instead of every weight.")] = False,
    config: Settings = None,
    overrides: Overrides = None,
    seed: SettingsSeed = None,
    device: Device = "cpu",
) -> None:
    """Fine-tune a model on chats, wholly or by an adapter."""
    from sae_persona.finetune.finetune import FinetuneConfig, LoraConfig
    from sae_persona.study.commands.finetune import finetune_model
    from sae_persona.study.config import load_settings

    hush()
    settings = load_settings(FinetuneConfig, config, with_seed(overrides, "train.seed", seed))
    if lora and settings.lora is None:
        settings = settings.model_copy(update={"lora": LoraConfig()})
    with bars() as progress:
        losses = finetune_model(model, data=data, config=settings, out=out, device=device, progress=progress)
    typer.echo(f"{out}: {len(losses)} steps, loss {losses[0]:.3f} at first and {losses[-1]:.3f} at last")
