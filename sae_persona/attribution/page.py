"""One HTML page of what was read of some latents: no script, nothing loaded, every text escaped."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from sae_persona.attribution.colour import context_lines, contexts_html, summary_line
from sae_persona.attribution.contrast import Contrast
from sae_persona.attribution.explanation import DetectionScore, Explanation
from sae_persona.attribution.histogram import Histogram
from sae_persona.attribution.lens import LogitLens
from sae_persona.attribution.neighbours import Neighbour
from sae_persona.attribution.reading import LatentReading

_STYLE = Markup(
    "<style>"
    "body{font:15px/1.5 system-ui,sans-serif;color:#223;max-width:70em;margin:2em auto;padding:0 1.2em}"
    "h1{font-size:1.5em}h2{font-size:1.2em;margin-top:2.2em;border-top:1px solid #ccd;padding-top:1em}"
    "h3{font-size:1em;margin:1.4em 0 .3em}.note{color:#667}"
    ".chip{display:inline-block;background:#eef;border-radius:4px;padding:0 .45em;margin:.1em .3em .1em 0}"
    ".chip small{color:#667}.bars{display:flex;align-items:flex-end;height:70px;max-width:36em;"
    "border-bottom:1px solid #99a}.bars i{flex:1;background:#d55e00;opacity:.7;margin-right:1px}"
    ".sides{display:grid;grid-template-columns:1fr 1fr;gap:2em}"
    "@media(max-width:50em){.sides{display:block}}"
    "</style>"
)


@dataclass(frozen=True)
class LatentCard:
    """All that was found out about one latent."""

    reading: LatentReading
    lens: LogitLens
    nearest: tuple[Neighbour, ...]
    """By what they write."""
    contrast: Contrast | None = None
    explanation: Explanation | None = None
    score: DetectionScore | None = None


def page(cards: Sequence[LatentCard], *, title: str, names: tuple[str, str]) -> str:
    """The page; `names` are those of the text that was read and of the text it is held against."""
    body = Markup("").join(_card(card, names) for card in cards)
    head = Markup(
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        "<title>{}</title>{}</head><body><h1>{}</h1>{}</body></html>"
    )
    return str(head.format(title, _STYLE + contexts_html(()), title, body))


def _card(card: LatentCard, names: tuple[str, str]) -> Markup:
    reading = card.reading
    parts = [Markup("<h2>Latent {}</h2><p>{}.</p>").format(reading.latent, summary_line(reading))]
    if card.explanation is not None:
        parts.append(_explained(card.explanation, card.score))
    parts += [
        _chips("Promotes", [(token.text, token.value) for token in card.lens.promoted]),
        _chips("Suppresses", [(token.text, token.value) for token in card.lens.suppressed]),
        _chips("Writes alike", [(str(one.latent), one.cosine) for one in card.nearest]),
        _chips("Fires together with", [(str(one.latent), one.cosine) for one in reading.cofiring]),
        _bars(reading.histogram),
    ]
    if card.contrast is None:
        parts.append(Markup("<h3>Highest, one a passage</h3>{}").format(context_lines(reading.contexts)))
    else:
        parts.append(_sides(card.contrast, names))
    for group in reading.bins:
        head = Markup(
            "<h3>Passages that peak at {:.3g} to {:.3g} <span class=note>({:.0%}, drawn at random)</span></h3>"
        )
        lines = context_lines(group.contexts, most=reading.maximum)
        parts.append(head.format(group.low, group.high, group.share) + lines)
    return Markup("").join(parts)


def _explained(explanation: Explanation, score: DetectionScore | None) -> Markup:
    if explanation.text is None:
        return Markup('<p class="note">The client gave no explanation of the form that was asked for.</p>')
    said = Markup("<p><b>{}</b></p>").format(explanation.text)
    if score is None:
        return said
    found = score.balanced_accuracy
    return said + Markup(
        '<p class="note">Told from it alone, {:.0%} [{:.0%}, {:.0%}] of {} unseen passages are called rightly '
        "(balanced; a coin: 50%); {} of {} replies could not be read.</p>"
    ).format(found.value, found.low, found.high, found.n, score.n_unparsed, score.n_replies)


def _chips(what: str, named: Sequence[tuple[str, float]]) -> Markup:
    if not named:
        return Markup("")
    chips = [Markup('<span class="chip">{} <small>{:.2f}</small></span>').format(text, value) for text, value in named]
    return Markup("<h3>{} <span class=note>(cosine)</span></h3><div>{}</div>").format(what, Markup("").join(chips))


def _bars(histogram: Histogram) -> Markup:
    if not histogram.counts:
        return Markup("")
    most = max(histogram.counts)
    bars = [
        Markup('<i style="height:{:.1f}%" title="{:.3g}: {}"></i>').format(100 * count / most, centre, count)
        for centre, count in zip(histogram.centres, histogram.counts, strict=True)
    ]
    right = histogram.width * len(histogram.counts)
    return Markup(
        '<h3>How high it fires <span class="note">(tokens by activation, 0 to {:.3g})</span></h3>'
        '<div class="bars">{}</div>'
    ).format(right, Markup("").join(bars))


def _sides(found: Contrast, names: tuple[str, str]) -> Markup:
    most = max(found.first.maximum, found.second.maximum)
    sides = [
        Markup("<div><h3>{}</h3><p class=note>{}</p>{}</div>").format(
            name, summary_line(one), context_lines(one.contexts, most=most)
        )
        for name, one in zip(names, (found.first, found.second), strict=True)
    ]
    difference = found.density
    head = Markup(
        "<h3>One text against the other</h3><p>Share of firing tokens, difference: {:+.3%} [{:+.3%}, {:+.3%}].</p>"
    ).format(difference.value, difference.low, difference.high)
    return head + Markup('<div class="sides">{}</div>').format(Markup("").join(sides))
