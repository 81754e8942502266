"""Write latents' activations in the input format of Delphi (EleutherAI), which explains and scores them.

Followed: Delphi's `latents/cache.py` (`LatentCache.save_splits`, `save_config`) and `latents/loader.py`
(`LatentDataset`) as of commits cd43058b and 4a446469:

    FOLDER/HOOK/START_END.safetensors    locations [n, 3] uint16 or uint32: row, position, latent - START
                                         activations [n] float16
                                         tokens [rows, context] int64, whole rows
    FOLDER/HOOK/config.json              Delphi's CacheConfig and the model's name

Hand `FOLDER` to Delphi as `raw_dir`; nothing else may lie in it. Delphi passes over latents with fewer than
`min_examples` (200) windows. Padding is there as tokens on which no latent fires.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors.numpy import save_file

from sae_persona.artifacts import write_file, write_json
from sae_persona.attribution.corpus import Corpus
from sae_persona.attribution.neighbours import check_latents
from sae_persona.errors import ConfigError, DataError
from sae_persona.sae.encode import blocks, readings

if TYPE_CHECKING:
    from sae_lens import SAE

MULTIPLE = 32
"""Delphi cuts rows into examples of 32 tokens (`example_ctx_len`), so rows are as long as a multiple of it."""
SMALLEST = 1e-5
"""Activations up to it are left out, as there."""


def write_delphi(
    folder: Path, sae: "SAE", corpus: Corpus, latents: Sequence[int], *, hook_name: str, dataset: str = ""
) -> Path:
    """Write one split that holds every firing of the chosen latents on tokens that count; returns the hook's folder.

    All of them are in memory at once, and so are the tokens.

    Raises:
        SAEError: a latent is not one of the SAE's.
        ConfigError: no latents.
        DataError: none of them fires: Delphi cannot open an empty split.
        HookError, IncompatibleError: the corpus does not fit the SAE.
    """
    check_latents(sae, latents)
    if not latents:
        raise ConfigError("no latents were named to be written for Delphi.")
    chosen = sorted(set(latents))
    rows: list[np.ndarray] = []
    locations: list[np.ndarray] = []
    activations: list[np.ndarray] = []
    for block in corpus.blocks(sae, hook_name):
        lengths = np.diff(np.append(block.starts, len(block.ids)))
        row = np.repeat(np.arange(len(lengths)), lengths)
        position = np.arange(len(block.ids)) - block.starts[row]
        row += len(rows)
        rows += np.split(block.ids, block.starts[1:])
        resid = block.resid.to(sae.W_dec.device)
        for part in blocks(len(resid), sae.cfg.d_sae):
            gated = readings(sae, resid[part])["gated"][:, chosen].float().cpu().numpy()
            gated[~block.counts[part]] = 0
            token, column = np.nonzero(np.abs(gated) > SMALLEST)
            where = np.stack([row[part][token], position[part][token], np.array(chosen)[column]], axis=1)
            locations.append(where)
            activations.append(gated[token, column].astype(np.float16))
    where = np.concatenate(locations) if locations else np.zeros((0, 3), dtype=np.int64)
    if not len(where):
        raise DataError(f"latents {', '.join(map(str, chosen))} never fire on these data; Delphi needs firings.")
    context = -(-max(map(len, rows)) // MULTIPLE) * MULTIPLE
    tokens = np.full((len(rows), context), corpus.model.pad_id, dtype=np.int64)
    for i, ids in enumerate(rows):
        tokens[i, : len(ids)] = ids
    kind = np.uint16 if where.max() < 2**16 else np.uint32
    out = folder / hook_name
    out.mkdir(parents=True, exist_ok=True)
    with write_file(out / f"0_{sae.cfg.d_sae - 1}.safetensors") as partial:
        arrays = {"locations": where.astype(kind), "activations": np.concatenate(activations), "tokens": tokens}
        save_file(arrays, partial)
    config = {
        "dataset_repo": dataset,
        "dataset_split": "train",
        "dataset_name": "",
        "dataset_column": "text",
        "batch_size": corpus.batch_size,
        "ctx_len": context,
        "n_tokens": int(tokens.size),
        "n_splits": 1,
        "model_name": corpus.model.source,
    }
    write_json(out / "config.json", config)
    return out
