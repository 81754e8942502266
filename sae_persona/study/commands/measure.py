"""How well an SAE reconstructs a model on text that it was not trained on."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from sae_persona.artifacts import fingerprint, write_json
from sae_persona.model.load import load_model
from sae_persona.sae.load import check_tokens, hook_name_of, load_sae
from sae_persona.sae.metrics import SAEMetrics, reconstruction_metrics
from sae_persona.study.commands.cache import plan_cache
from sae_persona.study.commands.shared import Progress, counting, fingerprint_of, no_progress


def measure_sae(
    sae_source: str,
    source: str,
    *,
    data: str,
    hook_name: str | None = None,
    context: int = 1024,
    n_documents: int | None = None,
    drop_first: int = 1,
    max_norm: float | None = None,
    splice: bool = True,
    batch_size: int = 8,
    device: str = "cpu",
    out: Path | None = None,
    progress: Progress = no_progress,
) -> SAEMetrics:
    """Metrics of an SAE at the hook it was trained on, or at another, of a model that reads `data`.

    With `out`, they are written there as JSON, the firing density of every latent and what was measured among them.

    Raises:
        SAEError, ModelError: the SAE or the model cannot be loaded, or an activation is not finite.
        HookError, IncompatibleError: they do not fit each other.
        DataError: the data cannot be read, or no token of it counts.
    """
    sae = load_sae(sae_source, device=device)
    model = load_model(source, device=device)
    check_tokens(sae, model)
    hook_name = hook_name_of(sae, asked=hook_name)
    plan = plan_cache(
        {source: model}, data, hook_names=[hook_name], dtype="float32", context=context, n_documents=n_documents
    )
    metrics = reconstruction_metrics(
        sae,
        model,
        plan.rows,
        hook_name=hook_name,
        splice=splice,
        drop_first=drop_first,
        max_norm=max_norm,
        batch_size=batch_size,
        progress=counting(progress, "measuring", len(plan.rows)),
    )
    if out is not None:
        measured: Mapping[str, object] = {
            "sae": fingerprint_of(sae_source),
            "model": model.fingerprint,
            "data": fingerprint(Path(data)) if Path(data).exists() else data,
            "hook_name": hook_name,
            "context": context,
            "n_documents": plan.n_documents,
            "drop_first": drop_first,
            "max_norm": max_norm,
        }
        write_json(out, {**asdict(metrics), "of": measured})
    return metrics
