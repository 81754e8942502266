"""What a cache gives back, and which files it refuses."""

import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from sae_persona.cache.reader import ActivationCache
from sae_persona.cache.unfinished import open_unfinished
from sae_persona.cache.writer import write_cache
from sae_persona.data.tokens import Part, TokenRow
from sae_persona.errors import CacheFileError, HookError
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
