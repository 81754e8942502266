"""What a cache gives back, and which files it refuses."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from sae_persona.artifacts import new_manifest
from sae_persona.cache.layout import create_layout
from sae_persona.cache.reader import ActivationCache
from sae_persona.cache.shuffle import shuffled_rows
from sae_persona.cache.statistics import finish
from sae_persona.cache.unfinished import open_unfinished
from sae_persona.cache.writer import write_cache
from sae_persona.data.tokens import Part, TokenRow
from sae_persona.errors import CacheFileError, ConfigError, HookError
from sae_persona.model.load import LoadedModel

HOOK = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def cache(tiny_model: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> ActivationCache:
    rows = [TokenRow(tuple(range(5 + i, 12 + i + i % 3)), (Part.PROMPT,) * (7 + i % 3)) for i in range(60)]
    return write_cache(tiny_model, rows, tmp_path_factory.mktemp("cache") / "a.h5", hook_names=[HOOK], dtype="bfloat16")


def test_an_epoch_of_batches_is_every_counted_row_once(cache: ActivationCache) -> None:
    batches = list(cache.batches(HOOK, batch_size=100, seed=0, n_epochs=2))
    assert {len(batch) for batch in batches[:-1]} == {100}
    rows = torch.cat(batches)
    assert len(rows) == 2 * cache.n_counted
    expected = cache.read(HOOK)[cache.counts].unique(dim=0, return_counts=True)
    for epoch in rows.split(cache.n_counted):
        visited = epoch.unique(dim=0, return_counts=True)
        assert all(torch.equal(a, b) for a, b in zip(visited, expected, strict=True))


@pytest.mark.parametrize("skip", [1, 4, 7])
def test_skipping_batches_gives_the_batches_behind_them(cache: ActivationCache, skip: int) -> None:
    whole = list(cache.batches(HOOK, batch_size=100, seed=5, n_epochs=3))
    rest = list(cache.batches(HOOK, batch_size=100, seed=5, n_epochs=3, skip=skip))
    assert len(rest) == len(whole) - skip
    assert all(torch.equal(a, b) for a, b in zip(rest, whole[skip:], strict=True))


def test_a_batch_may_be_larger_than_the_whole_cache(cache: ActivationCache) -> None:
    batches = cache.batches(HOOK, batch_size=3 * cache.n_counted, seed=0)
    assert next(batches).shape == (3 * cache.n_counted, 32)


def test_batches_mix_documents(cache: ActivationCache) -> None:
    in_order = cache.read(HOOK)[cache.counts]
    shuffled = next(cache.batches(HOOK, batch_size=cache.n_counted, seed=0))
    assert (in_order == shuffled).all(-1).float().mean() < 0.1


def test_batches_are_the_rows_of_the_shuffled_order(cache: ActivationCache) -> None:
    order = np.concatenate(list(shuffled_rows(cache.counts, seed=2, n_epochs=2)))
    naive = cache.read(HOOK)[torch.from_numpy(order)].split(70)
    batches = cache.batches(HOOK, batch_size=70, seed=2, n_epochs=2)
    assert all(torch.equal(a, b) for a, b in zip(batches, naive, strict=True))


def test_several_hooks_are_aligned_token_by_token(tiny_model: LoadedModel, tmp_path: Path) -> None:
    hooks = ["blocks.0.hook_resid_post", HOOK]
    rows = [TokenRow(tuple(range(5, 15)), (Part.PROMPT,) * 10)] * 30
    cache = write_cache(tiny_model, rows, tmp_path / "a.h5", hook_names=hooks)
    number = {tuple(row): i for i, row in enumerate(cache.read(hooks[0]).tolist())}
    for batch in cache.aligned_batches(hooks, batch_size=64, seed=0, n_epochs=1, prefetch=0):
        tokens = [number[tuple(row)] for row in batch[hooks[0]].tolist()]
        assert torch.equal(batch[HOOK], cache.read(HOOK)[tokens])


def test_what_is_asked_for_is_checked_at_once(cache: ActivationCache) -> None:
    with pytest.raises(HookError, match="holds no activations of 'blocks"):
        cache.batches("blocks.7", batch_size=4, seed=0)
    with pytest.raises(ConfigError, match="batch_size=0"):
        cache.batches(HOOK, batch_size=0, seed=0)
    with pytest.raises(ConfigError, match="holds no model 'base'; it holds one model without a name"):
        cache.of_model("base")


def test_files_of_layout_version_1_still_open(cache: ActivationCache, tmp_path: Path) -> None:
    shutil.copy(cache.path, tmp_path / "old.h5")
    with h5py.File(tmp_path / "old.h5", "r+") as file:
        file.attrs["format_version"] = 1
        del file[f"hooks/{HOOK}/block_mean"], file[f"hooks/{HOOK}/block_squares"]
    assert torch.equal(ActivationCache.open(tmp_path / "old.h5").read(HOOK), cache.read(HOOK))


def test_arrays_of_another_width_or_dtype_are_refused(cache: ActivationCache, tmp_path: Path) -> None:
    for name, array in {
        f"hooks/{HOOK}/mean": np.zeros(7),
        "positions": np.zeros(cache.n_tokens, dtype=np.int64),
        f"hooks/{HOOK}/activations": np.zeros((cache.n_tokens, 32), dtype=np.float32),
    }.items():
        shutil.copy(cache.path, tmp_path / "a.h5")
        with h5py.File(tmp_path / "a.h5", "r+") as file:
            del file[name]
            file[name] = array
        with pytest.raises(CacheFileError, match=f"{name.split('/')[-1]}.* (is|are) not"):
            ActivationCache.open(tmp_path / "a.h5")


def test_bfloat16_comes_back_bit_for_bit(cache: ActivationCache) -> None:
    with h5py.File(cache.path) as file:
        bits = file[f"hooks/{HOOK}/activations"][:]
    assert bits.dtype == np.uint16
    assert torch.equal(cache.read(HOOK).to(torch.bfloat16), torch.from_numpy(bits).view(torch.bfloat16))


def test_arrays_cannot_be_changed_through_the_cache(cache: ActivationCache) -> None:
    before = cache.path.read_bytes()
    ActivationCache.open(cache.path).token_ids[:] = 0
    assert cache.path.read_bytes() == before


def test_it_says_what_it_holds(cache: ActivationCache, tiny_model: LoadedModel) -> None:
    assert cache.hook_names == (HOOK,)
    assert cache.d_in(HOOK) == 32
    assert cache.model == tiny_model.source
    assert cache.manifest.kind == "activation_cache"
    assert cache.manifest.inputs["model"] == tiny_model.fingerprint
    with pytest.raises(HookError, match=HOOK):
        cache.mean("blocks.0.hook_resid_post")


def test_activations_of_another_shape_are_refused(cache: ActivationCache, tmp_path: Path) -> None:
    (tmp_path / "flat.h5").write_bytes(cache.path.read_bytes())
    with h5py.File(tmp_path / "flat.h5", "r+") as file:
        name = f"hooks/{cache.hook_names[0]}/activations"
        del file[name]
        file[name] = np.zeros(cache.n_tokens, dtype=np.float32)
    with pytest.raises(CacheFileError, match="no readable activation cache"):
        ActivationCache.open(tmp_path / "flat.h5")


@pytest.mark.parametrize("keep", [0, 100, 5000, -1])
def test_a_truncated_file_is_refused(cache: ActivationCache, tmp_path: Path, keep: int) -> None:
    path = tmp_path / "short.h5"
    path.write_bytes(cache.path.read_bytes()[:keep])
    with pytest.raises(CacheFileError, match="truncated"):
        ActivationCache.open(path)


def test_files_that_are_no_cache_are_refused(cache: ActivationCache, tmp_path: Path) -> None:
    with pytest.raises(CacheFileError, match="does not exist"):
        ActivationCache.open(tmp_path / "none.h5")
    with pytest.raises(CacheFileError, match="is a folder"):
        ActivationCache.open(tmp_path)
    (tmp_path / "text.h5").write_text("activations")
    with pytest.raises(CacheFileError, match="another format"):
        ActivationCache.open(tmp_path / "text.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = [1]
    with pytest.raises(CacheFileError, match="something else"):
        ActivationCache.open(tmp_path / "other.h5")


def test_unfinished_newer_and_edited_files_are_refused(cache: ActivationCache, tmp_path: Path) -> None:
    def opening(change: Callable[[h5py.File], None]) -> ActivationCache:
        shutil.copy(cache.path, tmp_path / "a.h5")
        with h5py.File(tmp_path / "a.h5", "r+") as file:
            change(file)
        return ActivationCache.open(tmp_path / "a.h5")

    with pytest.raises(CacheFileError, match=f"unfinished: {cache.n_tokens} of {cache.n_tokens}"):
        opening(lambda file: file["complete"].write_direct(np.array(False)))
    with pytest.raises(CacheFileError, match="layout version 99"):
        opening(lambda file: file.attrs.modify("format_version", 99))
    with pytest.raises(CacheFileError, match="fingerprint"):
        edited = cache.manifest.to_json().replace("bfloat16", "float16")
        opening(lambda file: file.attrs.modify("manifest", edited))


def test_a_file_that_is_being_written_is_left_alone(cache: ActivationCache, tmp_path: Path) -> None:
    shutil.copy(cache.path, tmp_path / "a.h5")
    with open_unfinished(tmp_path / "a.h5"):
        with pytest.raises(CacheFileError, match="being written"):
            ActivationCache.open(tmp_path / "a.h5")
        with pytest.raises(CacheFileError, match="being written"), open_unfinished(tmp_path / "a.h5"):
            pass


def test_a_file_without_one_of_its_arrays_is_refused(cache: ActivationCache, tmp_path: Path) -> None:
    shutil.copy(cache.path, tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        del file["positions"]
    with pytest.raises(CacheFileError, match="positions"):
        ActivationCache.open(tmp_path / "a.h5")


READ_WITHIN_A_LIMIT = """
import resource, sys
import torch
from sae_persona.cache import shuffle
from sae_persona.cache.reader import ActivationCache

def memory(name):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))

path, hook, allowed = sys.argv[1], sys.argv[2], int(sys.argv[3])
cache, weights, n = ActivationCache.open(path), torch.zeros(512, 8), 0
weights.T @ weights  # what a first product sets up is not the reader's
resource.setrlimit(resource.RLIMIT_DATA, (memory("VmData") + allowed,) * 2)
shuffle.BUFFER_CHUNKS = 16  # 8 MB; with its own size, the mapped part of this file would be nearly all of it
before = memory("VmRSS")
for batch in cache.batches(hook, batch_size=1024, seed=0, n_epochs=1):
    weights += batch.T @ (batch @ weights) * 1e-6
    n += len(batch)
print("all read" if n == cache.n_counted else n)
print("within" if memory("VmRSS") - before < allowed else memory("VmRSS") - before)
try:
    cache.read(hook)
    print("the limit proves nothing")
except (MemoryError, RuntimeError):
    print("all at once does not fit")
"""


@pytest.mark.slow
def test_a_cache_larger_than_the_memory_allowed_is_read_within_it(tmp_path: Path) -> None:
    """80 MB of activations under a limit of 40 MB on what the process may allocate, and on what stays resident.

    In a process of its own: what earlier tests freed would count as allowed already.
    """
    path = planted_cache(tmp_path / "large.h5", n=40_000, d_in=512)
    command = [sys.executable, "-c", READ_WITHIN_A_LIMIT, str(path), HOOK, str(40 * 2**20)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.stdout.splitlines() == ["all read", "within", "all at once does not fit"], done.stderr


def planted_cache(path: Path, *, n: int, d_in: int) -> Path:
    """A cache of random rows."""
    config = {"hook_names": [HOOK], "dtype": "float32"}
    manifest = new_manifest("activation_cache", config=config, inputs={}, seed=0, version=1)
    attributes = {"manifest": manifest.to_json(), "model": "planted"}
    create_layout(path, n_tokens=n, widths={HOOK: d_in}, dtype="float32", attributes=attributes)
    rows = np.random.default_rng(0).standard_normal((n, d_in), dtype=np.float32)
    with open_unfinished(path) as file:
        file.write(f"hooks/{HOOK}/activations", rows)
        file.write(f"hooks/{HOOK}/norms", np.linalg.norm(rows, axis=1))
        finish(file, drop_first=0, norm_limit=None)
    return path
