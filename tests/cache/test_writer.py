"""What is stored of a model, and what a kill, a full disk or a broken model does to it."""

import os
import resource
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from sae_persona.cache import layout, statistics
from sae_persona.cache.reader import ActivationCache, partial_path
from sae_persona.cache.unfinished import UnfinishedCache
from sae_persona.cache.writer import write_cache
from sae_persona.data.tokens import Part, TokenRow, pad_rows
from sae_persona.errors import ArtifactError, CacheFileError, ConfigError, DataError, HookError, IncompatibleError
from sae_persona.model.hooks import edit_residual, residuals
from sae_persona.model.load import LoadedModel, load_model

FIRST, LAST = "blocks.0.hook_resid_post", "blocks.1.hook_resid_post"


def documents(n: int = 9) -> list[TokenRow]:
    """Rows of 2 to 6 tokens, each with a header in second place."""
    parts = (Part.PROMPT, Part.HEADER, Part.ANSWER, Part.ANSWER, Part.ANSWER, Part.ANSWER)
    return [TokenRow(tuple(range(2 + i % 50, 4 + i % 50 + i % 5)), parts[: 2 + i % 5]) for i in range(n)]


def new_tiny_model(like: LoadedModel, folder: Path, *, seed: int, dtype: torch.dtype = torch.float32) -> LoadedModel:
    """The same architecture and tokenizer, with other weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        type(like.hf)(like.hf.config).save_pretrained(folder)
    like.tokenizer.save_pretrained(folder)
    return load_model(folder, dtype=dtype)


def cache_documents(
    model: LoadedModel, path: Path, rows: Sequence[TokenRow] | None = None, **options: object
) -> ActivationCache:
    rows = documents() if rows is None else rows
    return write_cache(model, rows, path, **{"hook_names": [FIRST, LAST], "batch_size": 4, **options})  # pyright: ignore


def arrays(path: Path) -> dict[str, np.ndarray]:
    """Every array and counter of a cache file."""
    found: dict[str, np.ndarray] = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: found.update({name: item[()]} if isinstance(item, h5py.Dataset) else {}))
    return found


def assert_same_bytes(a: Path, b: Path) -> None:
    left, right = arrays(a), arrays(b)
    assert left.keys() == right.keys()
    for name, array in left.items():
        assert array.tobytes() == right[name].tobytes(), name


def test_each_token_has_the_residual_of_its_document_alone(tiny_model: LoadedModel, tmp_path: Path) -> None:
    cache = cache_documents(tiny_model, tmp_path / "a.h5")
    for document, row in enumerate(documents()):
        mine = cache.document_ids == document
        assert cache.token_ids[mine].tolist() == list(row.ids)
        assert cache.positions[mine].tolist() == list(range(len(row)))
        assert cache.parts[mine].tolist() == list(row.parts)
        alone = residuals(tiny_model.hf, pad_rows([row], pad_id=0), [FIRST, LAST])
        for hook_name in (FIRST, LAST):
            # Padding changes the order of float32 additions in attention, nothing else.
            torch.testing.assert_close(cache.read(hook_name)[mine], alone[hook_name][0], rtol=1e-5, atol=1e-6)


def test_first_tokens_do_not_count_and_statistics_are_over_the_others(tiny_model: LoadedModel, tmp_path: Path) -> None:
    cache = cache_documents(tiny_model, tmp_path / "a.h5", drop_first=2)
    assert cache.counts.tolist() == (cache.positions >= 2).tolist()
    assert cache.n_counted == cache.counts.sum() < cache.n_tokens == sum(map(len, documents()))
    counted = cache.read(LAST)[cache.counts].double()
    torch.testing.assert_close(cache.mean(LAST), counted.mean(0))
    torch.testing.assert_close(cache.variance(LAST), counted.var(0, correction=0))
    assert cache.median_norm(LAST) == pytest.approx(np.median(counted.norm(dim=-1)), rel=1e-6)


def test_an_outlier_at_one_hook_counts_at_none(tiny_model: LoadedModel, tmp_path: Path) -> None:
    def sink(resid: torch.Tensor, _position: object) -> torch.Tensor:
        resid = resid.clone()
        resid[:, 2] *= 1000
        return resid

    with edit_residual(tiny_model.hf, LAST, sink):
        cache = cache_documents(tiny_model, tmp_path / "a.h5", norm_limit=10.0)
    assert cache.counts.tolist() == ((cache.positions >= 1) & (cache.positions != 2)).tolist()
    assert cache.median_norm(FIRST) == pytest.approx(np.median(cache.hooks[FIRST].norms[cache.counts]))
    for hook in (FIRST, LAST):
        counted = cache.read(hook)[cache.counts].double()
        torch.testing.assert_close(cache.mean(hook), counted.mean(0))
        torch.testing.assert_close(cache.variance(hook), counted.var(0, correction=0))


def test_the_limit_on_norms_can_be_lifted(tiny_model: LoadedModel, tmp_path: Path) -> None:
    with edit_residual(tiny_model.hf, LAST, lambda resid, _: resid * torch.linspace(1, 1e4, resid.shape[1])[:, None]):
        cache = cache_documents(tiny_model, tmp_path / "a.h5", norm_limit=None, drop_first=0)
    assert cache.counts.all()


@pytest.mark.parametrize(("dtype", "rounding"), [("float32", 0), ("float16", 2**-11), ("bfloat16", 2**-8)])
def test_precisions_round_and_nothing_else(
    tiny_model: LoadedModel, tmp_path: Path, dtype: str, rounding: float
) -> None:
    exact = cache_documents(tiny_model, tmp_path / "exact.h5").read(LAST)
    stored = cache_documents(tiny_model, tmp_path / "stored.h5", dtype=dtype).read(LAST)
    torch.testing.assert_close(stored, exact, rtol=rounding, atol=1e-6 * bool(rounding))


def test_several_models_stand_side_by_side_under_one_mask(tiny_model: LoadedModel, tmp_path: Path) -> None:
    other = new_tiny_model(tiny_model, tmp_path / "other", seed=1)
    cache = cache_documents({"base": tiny_model, "tuned.1": other}, tmp_path / "a.h5")  # pyright: ignore
    assert cache.hook_names == (f"base/{FIRST}", f"base/{LAST}", f"tuned.1/{FIRST}", f"tuned.1/{LAST}")
    for name, model in (("base", tiny_model), ("tuned.1", other)):
        alone = cache_documents(model, tmp_path / f"{name}.h5")
        mine = cache.of_model(name)
        assert (mine.model, mine.hook_names) == (model.source, (FIRST, LAST))
        assert torch.equal(mine.read(LAST), alone.read(LAST))
        assert torch.equal(mine.mean(LAST), alone.mean(LAST))
        batches = [next(one.batches(LAST, batch_size=8, seed=4)) for one in (mine, alone)]
        assert torch.equal(*batches)
    with pytest.raises(CacheFileError, match="another model base"):
        cache_documents({"base": other, "tuned.1": other}, tmp_path / "a.h5")  # pyright: ignore


def test_models_that_do_not_belong_together_are_refused(tiny_model: LoadedModel, tmp_path: Path) -> None:
    half = new_tiny_model(tiny_model, tmp_path / "half", seed=1, dtype=torch.bfloat16)
    with pytest.raises(IncompatibleError, match=r"'a' is in torch.float32 and 'b' in torch.bfloat16"):
        cache_documents({"a": tiny_model, "b": half}, tmp_path / "a.h5")  # pyright: ignore
    with pytest.raises(ConfigError, match="a model is called 'a/b'"):
        cache_documents({"a/b": tiny_model, "b": tiny_model}, tmp_path / "a.h5")  # pyright: ignore
    with pytest.raises(ConfigError, match="a model is called 'c d'"):
        cache_documents({"c d": tiny_model}, tmp_path / "a.h5")  # pyright: ignore
    with pytest.raises(ConfigError, match="no model was given"):
        cache_documents({}, tmp_path / "a.h5")  # pyright: ignore
    assert os.listdir(tmp_path) == ["half"]


def test_moments_of_blocks_are_those_of_the_whole_file(
    tiny_model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (layout, statistics):
        monkeypatch.setattr(module, "BLOCK_ROWS", 5)  # batches end within blocks, blocks within batches
    read: list[int] = []
    of_block = statistics._of_block
    monkeypatch.setattr(
        statistics, "_of_block", lambda rows, start, wanted: read.append(start) or of_block(rows, start, wanted)
    )
    cache = cache_documents(tiny_model, tmp_path / "a.h5", hook_names=[LAST])
    assert read == list(range(0, cache.n_tokens, 5)), "every block once, as it was written"
    counted = cache.read(LAST)[cache.counts].double()
    torch.testing.assert_close(cache.mean(LAST), counted.mean(0))
    torch.testing.assert_close(cache.variance(LAST), counted.var(0, correction=0))


def killed_at(monkeypatch: pytest.MonkeyPatch, n_counter_moves: int, write: Callable[[], object]) -> None:
    """Run `write` in a process that kills itself with SIGKILL just before a counter moves for the n-th time."""
    pid = os.fork()
    if pid:
        assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
        return
    set_counter, moves = UnfinishedCache.set_counter, iter(range(1, n_counter_moves))

    def set_counter_or_die(self: UnfinishedCache, name: str, value: int) -> None:
        if next(moves, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        set_counter(self, name, value)

    monkeypatch.setattr(UnfinishedCache, "set_counter", set_counter_or_die)
    try:
        write()
    finally:
        os._exit(1)


# Three batches, then n_counted, then complete: a kill before the 1st, 2nd, 4th and 5th move of a counter.
@pytest.mark.parametrize("kills", [[1], [2], [4], [5], [2, 1, 2]])
def test_after_kill_9_the_same_call_continues_and_gives_the_same_bytes(
    tiny_model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kills: list[int]
) -> None:
    path = tmp_path / "killed.h5"
    for n_counter_moves in kills:
        killed_at(monkeypatch, n_counter_moves, lambda: cache_documents(tiny_model, path))
        assert not path.exists()
        with pytest.raises(CacheFileError, match=r"unfinished.*Run the same"):
            ActivationCache.open(path)
    cache_documents(tiny_model, path)
    cache_documents(tiny_model, tmp_path / "whole.h5")
    assert_same_bytes(path, tmp_path / "whole.h5")
    assert sorted(os.listdir(tmp_path)) == ["killed.h5", "whole.h5"]


def test_five_kills_at_any_moment_leave_the_same_bytes(tiny_model: LoadedModel, tmp_path: Path) -> None:
    """Not between steps of ours, but whenever the signal comes."""
    path, rows = tmp_path / "killed.h5", documents(1000)
    kills, seconds = 0, 0.02
    while kills < 5:
        pid = os.fork()
        if not pid:
            try:
                cache_documents(tiny_model, path, rows, batch_size=20)
            finally:
                os._exit(0)
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        if path.exists():  # too late: begin again, and kill earlier
            path.unlink()
            seconds /= 2
        else:
            kills += 1
    cache_documents(tiny_model, path, rows, batch_size=20)
    cache_documents(tiny_model, tmp_path / "whole.h5", rows, batch_size=20)
    assert_same_bytes(path, tmp_path / "whole.h5")


def test_committed_batches_are_not_computed_again(tiny_model: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "a.h5"

    def stop(_n: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache_documents(tiny_model, path, progress=stop)
    seen: list[int] = []
    with edit_residual(tiny_model.hf, FIRST, lambda resid, _: seen.append(len(resid)) or resid):
        cache_documents(tiny_model, path)
    assert seen == [4, 1], "of the batches of 4, 4 and 1 documents the first was there"


def test_a_file_that_an_older_writer_left_is_gone_on_with(tiny_model: LoadedModel, tmp_path: Path) -> None:
    """Layout version 1 kept no moments of blocks."""

    def stop(_n: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache_documents(tiny_model, tmp_path / "old.h5", progress=stop)
    with h5py.File(partial_path(tmp_path / "old.h5"), "r+") as file:
        file.attrs["format_version"] = 1
        for hook in (FIRST, LAST):
            del file[f"hooks/{hook}/block_mean"], file[f"hooks/{hook}/block_squares"]
    old, new = (cache_documents(tiny_model, tmp_path / f"{name}.h5") for name in ("old", "new"))
    for hook in (FIRST, LAST):
        assert torch.equal(old.read(hook), new.read(hook))
        assert torch.equal(old.mean(hook), new.mean(hook))
        assert torch.equal(old.variance(hook), new.variance(hook))


def test_a_finished_cache_is_opened_and_not_written_again(tiny_model: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    cache_documents(tiny_model, path)
    before = path.stat().st_mtime_ns
    assert cache_documents(tiny_model, path).n_tokens == sum(map(len, documents()))
    assert path.stat().st_mtime_ns == before


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("change", "named"), [({"dtype": "float16"}, "dtype='float32'"), ({"rows": documents(5)}, "another rows")]
)
def test_another_call_does_not_continue_or_overwrite(
    tiny_model: LoadedModel, tmp_path: Path, change: dict[str, object], named: str, finished: bool
) -> None:
    path = tmp_path / "a.h5"
    cache_documents(tiny_model, path)
    if not finished:
        path.rename(partial_path(path))
    with pytest.raises(CacheFileError, match=named):
        cache_documents(tiny_model, path, **change)


def test_a_full_disk_keeps_what_was_committed(tiny_model: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "full.h5"
    rows = documents(400)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_the_disk(_n: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))

    try:
        with pytest.raises(ArtifactError, match=r"full\.h5\.partial.*Free some space"):
            cache_documents(tiny_model, path, rows, batch_size=64, progress=fill_the_disk)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert arrays(partial_path(path))["committed"] > 0
    cache_documents(tiny_model, path, rows, batch_size=64)
    cache_documents(tiny_model, tmp_path / "whole.h5", rows, batch_size=64)
    assert_same_bytes(path, tmp_path / "whole.h5")


def test_a_number_that_is_not_finite_is_found_with_its_place(tiny_model: LoadedModel, tmp_path: Path) -> None:
    def poison(resid: torch.Tensor, _position: object) -> torch.Tensor:
        resid = resid.clone()
        resid[0, 1] = torch.nan
        return resid

    with edit_residual(tiny_model.hf, LAST, poison), pytest.raises(CacheFileError, match="document 0, position 1"):
        cache_documents(tiny_model, tmp_path / "a.h5")


def test_what_is_not_finite_can_be_left_out_and_is_named(tiny_model: LoadedModel, tmp_path: Path) -> None:
    def poison(resid: torch.Tensor, _position: object) -> torch.Tensor:
        resid = resid.clone()
        resid[0, 1, 3] = torch.inf
        return resid

    records: list[dict[str, object]] = []
    with edit_residual(tiny_model.hf, LAST, poison):
        cache = cache_documents(tiny_model, tmp_path / "a.h5", not_finite="skip", log=records.append)
    bad = (cache.positions == 1) & np.isin(cache.document_ids, [0, 2, 4])  # the first of each batch
    assert records[0]["cache/n_not_finite"] == bad.sum() == 3
    assert records[0]["cache/not_finite"] == tuple(f"document {i}, position 1" for i in cache.document_ids[bad])
    assert records[0]["cache/n_outliers"] == 0
    assert cache.counts.tolist() == ((cache.positions >= 1) & ~bad).tolist()
    assert all(cache.mean(hook).isfinite().all() and np.isfinite(cache.median_norm(hook)) for hook in (FIRST, LAST))
    with pytest.raises(CacheFileError, match="not_finite='skip'"):
        cache_documents(tiny_model, tmp_path / "a.h5")


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(
    tiny_model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=1000))
    with pytest.raises(ArtifactError, match=r"will take 0\.\d MB, and .* has 0\.0 MB left"):
        cache_documents(tiny_model, tmp_path / "a.h5")
    assert not os.listdir(tmp_path)


def test_what_float16_cannot_hold_is_refused(tiny_model: LoadedModel, tmp_path: Path) -> None:
    with (
        edit_residual(tiny_model.hf, LAST, lambda resid, _: resid + 1e5),
        pytest.raises(CacheFileError, match="store bfloat16"),
    ):
        cache_documents(tiny_model, tmp_path / "a.h5", dtype="float16")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"hook_names": ["blocks.0.hook_resid_pst"]}, HookError, "nearest"),
        ({"hook_names": []}, ConfigError, "hook_name"),
        ({"dtype": "int8"}, ConfigError, "bfloat16"),
        ({"norm_limit": 0.5}, ConfigError, "norm_limit=0.5"),
        ({"norm_limit": float("nan")}, ConfigError, "norm_limit=nan"),
        ({"not_finite": "zero"}, ConfigError, "'refuse' or 'skip'"),
        ({"rows": []}, DataError, "no rows"),
        ({"rows": [TokenRow((5,), (Part.PROMPT,))]}, DataError, "longer than 1"),
        ({"rows": [TokenRow((5, 6), (Part.PROMPT,) * 2), TokenRow((), ())]}, DataError, "document 1"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_written(
    tiny_model: LoadedModel, tmp_path: Path, options: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        cache_documents(tiny_model, tmp_path / "a.h5", **options)
    assert not os.listdir(tmp_path)


def test_progress_adds_up_to_all_tokens_and_the_log_says_what_was_left_out(
    tiny_model: LoadedModel, tmp_path: Path
) -> None:
    finished: list[int] = []
    records: list[dict[str, object]] = []
    cache = cache_documents(tiny_model, tmp_path / "a.h5", progress=finished.append, log=records.append)
    assert sum(finished) == cache.n_tokens
    assert records == [{"cache/n_tokens": cache.n_tokens, "cache/n_counted": cache.n_counted, "cache/n_outliers": 0}]
