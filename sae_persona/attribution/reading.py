"""Read latents: where they are high, how often they fire, on what else, and with whom; one pass, constant memory.

Axes: `n` tokens of a block, `latents` those that are read, `passages` documents or pieces of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_persona.attribution.contexts import Context, RunningSample, RunningTop, Window, keys, window_start
from sae_persona.attribution.corpus import Block, Source, TokensRead, as_tensor
from sae_persona.attribution.density import RunningRatios
from sae_persona.attribution.histogram import Histogram, RunningHistograms
from sae_persona.attribution.neighbours import Neighbour, check_latents, strongest
from sae_persona.errors import ConfigError, DataError
from sae_persona.sae.encode import Reading, blocks, readings
from sae_persona.sae.load import hook_name_of
from sae_persona.types import Estimate

if TYPE_CHECKING:
    import pandas as pd
    from sae_lens import SAE

N_COFIRING = 10
"""Latents that fire together with the one that is read: how many are named."""
_SILENT = 0x51
"""Tells the draw of silent windows from that of firing ones."""


@dataclass(frozen=True)
class Bin:
    """Passages by how high the latent rises in them: one of several bins of equally many."""

    low: float
    high: float
    share: float
    """Of the passages in which it rises above zero."""
    contexts: tuple[Context, ...]
    """Some of them, drawn at random."""


@dataclass(frozen=True)
class LatentReading:
    """What one latent does in one body of text. Activations are in the SAE's own units."""

    latent: int
    reading: Reading
    """`gated` (after the activation function) or `pre_activation`."""
    tokens: TokensRead
    """Which tokens count."""
    hook_name: str
    n_tokens: int
    n_passages: int
    n_firing: int
    """Tokens on which it fires: gated it is not zero (Absolute TopK's may be below), as a pre-activation above zero."""
    n_firing_passages: int
    density: Estimate
    """Share of tokens on which it fires, with an interval over passages."""
    mean: Estimate | None
    """Mean reading over tokens; None for a single passage, which has no interval."""
    histogram: Histogram
    """Of the readings above zero."""
    contexts: tuple[Context, ...] = field(repr=False)
    """The highest, one a passage, each text once."""
    bins: tuple[Bin, ...] = field(repr=False)
    """From the strongest to the weakest; maxima alone hide what a latent does on most texts."""
    firing: tuple[Context, ...] = field(repr=False)
    """Passages in which it rises above zero, drawn at random."""
    silent: tuple[Context, ...] = field(repr=False)
    """Windows in which it does not fire, drawn at random."""
    cofiring: tuple[Neighbour, ...]
    """Latents that fire on the same tokens, `n_both / sqrt(n_one * n_other)`."""

    @property
    def fires(self) -> bool:
        """False = not once in this text: a finding, no error."""
        return self.n_firing > 0

    @property
    def maximum(self) -> float:
        """The highest reading of all; 0 where there is none."""
        return self.contexts[0].value if self.contexts else 0.0

    def top(self, n: int = 20) -> tuple[Context, ...]:
        """The `n` highest contexts."""
        return self.contexts[:n]

    def to_pandas(self) -> "pd.DataFrame":
        """The highest contexts as a table."""
        import pandas as pd

        rows = [
            {"activation": one.value, "token": one.tokens[one.peak], "document": one.document, "text": one.text}
            for one in self.contexts
        ]
        return pd.DataFrame(rows, columns=pd.Index(["activation", "token", "document", "text"]))

    def _repr_html_(self) -> str:
        from sae_persona.attribution.colour import reading_html

        return reading_html(self)


def read_latents(
    sae: "SAE",
    source: Source,
    latents: Sequence[int],
    *,
    hook_name: str | None = None,
    reading: Reading = "gated",
    n: int = 20,
    width: int = 32,
    n_bins: int = 4,
    n_per_bin: int = 5,
    n_drawn: int = 100,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> dict[int, LatentReading]:
    """Go once through a source and read the chosen latents, by latent.

    Of every passage the latent's highest counted token is a candidate, the first of equals; the `n` highest are kept,
    and `n_drawn` of those in which it is above zero are drawn at random, from which come the bins; and as many silent
    windows. A window has up to `width` tokens. Memory does not grow with the data, and the result does not depend on
    the order of the passages. `progress` gets the number of tokens just read.

    Raises:
        SAEError: a latent is not one of the SAE's, or the SAE names no hook.
        ConfigError: no latent, sizes below one, or a reading that this SAE's architecture does not have.
        DataError: the source has no token that counts.
        HookError, IncompatibleError: the source does not fit the SAE.
    """
    check_latents(sae, latents)
    if not latents or min(n, width, n_bins, n_per_bin, n_drawn) < 1:
        raise ConfigError("reading needs a latent, and n, width, n_bins, n_per_bin and n_drawn of at least 1.")
    hook_name = hook_name_of(sae, asked=hook_name)
    latents = list(dict.fromkeys(latents))
    running = _Running(sae, latents, reading, n=n, width=width, n_drawn=n_drawn, seed=seed)
    for block in source.blocks(sae, hook_name):
        running.add(block)
        if progress:
            progress(len(block.ids))
    if not running.ratios.n_tokens:
        raise DataError(
            f"the data hold no token to read ({source.tokens} tokens, the first of each document left out). "
            "Give more or longer documents, or read all tokens."
        )
    decoded: dict[Window, Context] = {}

    def context(window: Window) -> Context:
        if window not in decoded:
            decoded[window] = window.context(source.tokenizer)
        return decoded[window]

    result = {}
    for column, latent in enumerate(latents):
        ratios, drawn = running.ratios, running.firing[column].windows()
        result[latent] = LatentReading(
            latent=latent,
            reading=reading,
            tokens=source.tokens,
            hook_name=hook_name,
            n_tokens=ratios.n_tokens,
            n_passages=ratios.n_passages,
            n_firing=int(ratios.firing.sums[column]),
            n_firing_passages=int(running.n_firing_passages[column]),
            density=ratios.density(column),
            mean=ratios.mean(column),
            histogram=running.histograms.histogram(column),
            contexts=tuple(context(window) for window in running.tops[column].windows()),
            bins=_bins([context(window) for window in drawn], n_bins, n_per_bin),
            firing=tuple(context(window) for window in drawn),
            silent=tuple(context(window) for window in running.silent[column].windows()),
            cofiring=running.cofiring(column, latent),
        )
    return result


def _bins(drawn: Sequence[Context], n_bins: int, n_per_bin: int) -> tuple[Bin, ...]:
    """Quantiles of the drawn contexts, the strongest first; fewer where there are fewer contexts than bins."""
    order = np.argsort([-one.value for one in drawn], kind="stable")
    bins = []
    for group in np.array_split(order, min(n_bins, len(drawn))) if drawn else ():
        inside = [drawn[i] for i in sorted(group.tolist())]  # in the order in which they were drawn
        values = [one.value for one in inside]
        bins.append(Bin(min(values), max(values), len(inside) / len(drawn), tuple(inside[:n_per_bin])))
    return tuple(bins)


class _Running:
    """Everything that is gathered while blocks go by."""

    def __init__(
        self, sae: "SAE", latents: list[int], reading: Reading, *, n: int, width: int, n_drawn: int, seed: int
    ) -> None:
        self.sae, self.latents, self.reading = sae, latents, reading
        self.width, self.seed = width, seed
        self.tops = [RunningTop(n) for _ in latents]
        self.firing = [RunningSample(n_drawn) for _ in latents]
        self.silent = [RunningSample(n_drawn) for _ in latents]
        self.histograms = RunningHistograms(len(latents))
        self.ratios = RunningRatios(len(latents))
        self.n_firing_passages = np.zeros(len(latents), dtype=np.int64)
        self.both = torch.zeros(len(latents), sae.cfg.d_sae, dtype=torch.float64)
        self.alone = torch.zeros(sae.cfg.d_sae, dtype=torch.float64)

    def add(self, block: Block) -> None:
        values = self._values(block)
        counted = np.where(block.counts[:, None], values, 0.0)
        self.histograms.add(counted)
        fires = counted != 0 if self.reading == "gated" else counted > 0
        self.ratios.add(counted, fires, block.counts, block.starts)
        self.n_firing_passages += np.logical_or.reduceat(fires, block.starts, axis=0).sum(0)
        peaks = np.maximum.reduceat(np.where(block.counts[:, None], values, -np.inf), block.starts, axis=0)
        sums = np.add.reduceat(block.ids.astype(np.int64), block.starts)
        stops = np.append(block.starts[1:], len(block.ids))
        for column, latent in enumerate(self.latents):
            self._high(
                block,
                stops,
                counted[:, column],
                peaks[:, column],
                column,
                keys(self.seed, latent, block.documents, sums),
            )
            self._low(
                block,
                stops,
                counted[:, column],
                fires[:, column],
                column,
                keys(self.seed + _SILENT, latent, block.documents, sums),
            )

    def cofiring(self, column: int, latent: int) -> tuple[Neighbour, ...]:
        n_one = self.alone[latent]
        likeness = self.both[column] / (n_one * self.alone).sqrt().clamp(min=1)
        return strongest(likeness, N_COFIRING, exclude=latent, above=0.0)

    def _values(self, block: Block) -> Float[np.ndarray, "n latents"]:
        """The chosen latents' reading on every token; who fires together is counted on the way."""
        resid = block.resid.to(self.sae.W_dec.device)
        counts = as_tensor(block.counts, resid)
        values = torch.empty(len(resid), len(self.latents))
        for part in blocks(len(resid), self.sae.cfg.d_sae):
            taken = readings(self.sae, resid[part])
            if self.reading not in taken:
                raise ConfigError(
                    f"an SAE of architecture {self.sae.cfg.architecture()!r} has no {self.reading}. Read it gated."
                )
            values[part] = taken[self.reading][:, self.latents].float().cpu()
            self._count_together(taken["gated"][counts[part]])
        return values.numpy()

    def _count_together(self, gated: Float[Tensor, "n d_sae"]) -> None:
        fires = (gated != 0).float()
        self.both += (fires[:, self.latents].T @ fires).double().cpu()
        self.alone += fires.sum(0).double().cpu()

    def _high(
        self,
        block: Block,
        stops: Int[np.ndarray, " passages"],
        values: Float[np.ndarray, " n"],
        peaks: Float[np.ndarray, " passages"],
        column: int,
        drawn: np.ndarray,
    ) -> None:
        top, sample = self.tops[column], self.firing[column]
        # A silent gated latent has no context; a silent pre-activation tells how near it came.
        floor = 0.0 if self.reading == "gated" else -np.inf
        wanted = (peaks > floor) & ((peaks >= top.bar) | ((peaks > 0) & (drawn <= np.uint64(sample.bar))))
        for i in np.flatnonzero(wanted).tolist():
            where = slice(int(block.starts[i]), int(stops[i]))
            peak = int(np.where(block.counts[where], values[where], -np.inf).argmax())
            window = self._window(
                block, where, values, window_start(peak, where.stop - where.start, self.width), peak, i
            )
            if peaks[i] >= top.bar:
                top.offer(window)
            if peaks[i] > 0:
                sample.offer(int(drawn[i]), window)

    def _low(
        self,
        block: Block,
        stops: Int[np.ndarray, " passages"],
        values: Float[np.ndarray, " n"],
        fires: Bool[np.ndarray, " n"],
        column: int,
        drawn: np.ndarray,
    ) -> None:
        sample = self.silent[column]
        for i in np.flatnonzero(drawn <= np.uint64(sample.bar)).tolist():
            where = slice(int(block.starts[i]), int(stops[i]))
            start = int(drawn[i]) % max(1, int(where.stop - where.start) - self.width + 1)
            inside = slice(where.start + start, min(where.start + start + self.width, where.stop))
            if block.counts[inside].any() and not fires[inside].any():
                sample.offer(int(drawn[i]), self._window(block, where, values, start, start, i))

    def _window(
        self, block: Block, where: slice, values: Float[np.ndarray, " n"], start: int, peak: int, passage: int
    ) -> Window:
        inside = slice(where.start + start, min(where.start + start + self.width, where.stop))
        shown = tuple(values[inside].tolist())
        return Window(
            minus_value=-shown[peak - start],
            document=int(block.documents[passage]),
            start=start,
            ids=tuple(block.ids[inside].tolist()),
            activations=shown,
            peak=peak - start,
        )
