"""What several processes write is what one would have written."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import torch.distributed as dist

from sae_persona.cache.reader import ActivationCache, partial_path
from sae_persona.cache.shards import shard_path, share_out, write_shards
from sae_persona.cache.task import plan_writing
from sae_persona.cache.writer import write_cache
from sae_persona.data.tokens import Part, TokenRow, text_row
from sae_persona.errors import CacheFileError, ConfigError
from sae_persona.model.load import LoadedModel

HOOKS = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
ROWS = [TokenRow(tuple(range(5 + i, 9 + i + i % 4)), (Part.PROMPT,) * (4 + i % 4)) for i in range(20)]


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A group of this process only."""
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()
    (tmp_path / "store").unlink(missing_ok=True)


@pytest.mark.slow
def test_two_processes_write_what_one_writes(tiny_model: LoadedModel, tmp_path: Path) -> None:
    texts = [tiny_model.tokenizer.decode(range(10 + i, 20 + i + i % 7)) for i in range(30)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    options = ["cache", tiny_model.source, "--data", str(tmp_path / "texts.jsonl"), "--batch-size", "4"]
    options += ["--hook", HOOKS[0], "--hook", HOOKS[1], "--dtype", "bfloat16", "--out"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *torchrun, "-m", "sae_persona", *options, str(tmp_path / "two.h5")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("plan: 30 documents") == 1
    rows = [text_row(text, tiny_model.tokenizer) for text in texts]
    one = write_cache(tiny_model, rows, tmp_path / "one.h5", hook_names=HOOKS, batch_size=4, dtype="bfloat16")
    assert sorted(path.name for path in tmp_path.glob("two*")) == [
        "two-00000-of-00002.h5",
        "two-00001-of-00002.h5",
        "two.h5",
    ]
    two = ActivationCache.open(tmp_path / "two.h5")
    assert (one.n_tokens, one.n_counted) == (two.n_tokens, two.n_counted)
    for column in ("token_ids", "positions", "document_ids", "parts", "counts"):
        assert np.array_equal(getattr(one, column), getattr(two, column)), column
    for hook in HOOKS:
        assert torch.equal(one.read(hook), two.read(hook))
        assert one.median_norm(hook) == two.median_norm(hook)
        torch.testing.assert_close(one.mean(hook), two.mean(hook), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(one.variance(hook), two.variance(hook), rtol=1e-12, atol=1e-12)
        batches = [one.batches(hook, batch_size=16, seed=0, n_epochs=1) for one in (one, two)]
        assert all(torch.equal(a, b) for a, b in zip(*batches, strict=True))


@pytest.mark.usefixtures("alone")
def test_an_index_is_made_of_the_shards_that_are_there_and_read_by_any_hdf5_reader(
    tiny_model: LoadedModel, tmp_path: Path
) -> None:
    path = tmp_path / "acts.h5"
    whole = write_cache(tiny_model, ROWS, tmp_path / "whole.h5", hook_names=HOOKS, batch_size=4)
    write_shards(tiny_model, ROWS, path, hook_names=HOOKS, batch_size=4)
    path.unlink()
    shard = shard_path(path, 0, 1)
    written = shard.stat().st_mtime_ns
    joined = write_shards(tiny_model, ROWS, path, hook_names=HOOKS, batch_size=4)
    assert shard.stat().st_mtime_ns == written
    assert torch.equal(joined.read(HOOKS[1]), whole.read(HOOKS[1]))
    assert torch.equal(joined.mean(HOOKS[1]), whole.mean(HOOKS[1]))
    with h5py.File(path) as file:
        assert np.array_equal(file[f"hooks/{HOOKS[0]}/activations"][:], whole.read(HOOKS[0]).numpy())
    with pytest.raises(CacheFileError, match="batch_size=4"):
        write_shards(tiny_model, ROWS, path, hook_names=HOOKS, batch_size=5)


@pytest.mark.usefixtures("alone")
def test_a_cache_that_one_process_began_is_left_alone(tiny_model: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "acts.h5"
    write_cache(tiny_model, ROWS, path, hook_names=HOOKS, batch_size=4)
    path.rename(partial_path(path))
    with pytest.raises(CacheFileError, match=r"acts\.h5\.partial was made otherwise: without n_shards=1"):
        write_shards(tiny_model, ROWS, path, hook_names=HOOKS, batch_size=4)
    assert sorted(entry.name for entry in tmp_path.glob("acts*")) == ["acts.h5.partial"]


@pytest.mark.usefixtures("alone")
def test_shards_that_are_missing_foreign_or_opened_alone_are_refused(tiny_model: LoadedModel, tmp_path: Path) -> None:
    path, other = tmp_path / "acts.h5", tmp_path / "other.h5"
    write_shards(tiny_model, ROWS, path, hook_names=HOOKS, batch_size=4)
    write_shards(tiny_model, ROWS[1:], other, hook_names=HOOKS, batch_size=4)
    shard = shard_path(path, 0, 1)
    with pytest.raises(CacheFileError, match="is one shard of a cache"):
        ActivationCache.open(shard)
    shard.write_bytes(shard_path(other, 0, 1).read_bytes())
    with pytest.raises(CacheFileError, match="is no shard of"):
        ActivationCache.open(path)
    shard.write_bytes(b"foreign")
    with pytest.raises(
        CacheFileError, match=r"acts-00000-of-00001\.h5, a shard of .*acts\.h5, cannot be read: truncated"
    ):
        ActivationCache.open(path)
    shard.unlink()
    with pytest.raises(CacheFileError, match=r"acts-00000-of-00001\.h5 is not beside it"):
        ActivationCache.open(path)


@pytest.mark.parametrize("n_shards", [1, 2, 3, 5])
def test_shares_are_runs_of_batches_of_about_as_many_tokens(tiny_model: LoadedModel, n_shards: int) -> None:
    options = {"hook_names": HOOKS, "dtype": "float32", "drop_first": 1, "norm_limit": None, "not_finite": "refuse"}
    task = plan_writing(tiny_model, ROWS, batch_size=4, **options)  # pyright: ignore[reportArgumentType]
    shares = share_out(task, n_shards)
    assert [tuple(batch) for share in shares for batch in share] == [tuple(batch) for batch in task.batches]
    tokens = [task.n_tokens(share) for share in shares]
    assert min(tokens) > 0
    assert max(tokens) <= sum(tokens) / n_shards + max(task.n_tokens([batch]) for batch in task.batches)
    with pytest.raises(ConfigError, match="6 processes cannot share 5 batches"):
        share_out(task, 6)
