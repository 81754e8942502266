"""Contexts coloured by activation: HTML in which every text is escaped, and text for a terminal."""

from collections.abc import Iterable, Iterator, Sequence

from markupsafe import Markup, escape

from sae_persona.attribution.contexts import Context
from sae_persona.attribution.reading import LatentReading

_MARK = Markup('<mark title="{:.3g}" style="background:rgba(213,94,0,{:.2f})"{}>{}</mark>')
_LINE = Markup(
    '<div class="context"><span class="value" title="document {}">{:.3g}</span><span class="text">{}</span></div>'
)
_STYLE = Markup(
    "<style>"
    ".context{display:flex;gap:.8em;margin:.3em 0;line-height:1.65}"
    ".context .value{flex:0 0 4em;text-align:right;color:#667;font-variant-numeric:tabular-nums}"
    ".context .text{white-space:pre-wrap;overflow-wrap:anywhere;min-width:0}"
    ".context mark{color:inherit;border-radius:3px}"
    ".context mark.peak{font-weight:600;box-shadow:0 0 0 1px rgba(213,94,0,.9)}"
    "</style>"
)
_DARKEST = 0.8
"""Opacity of the highest token: text on it stays readable."""
_LINE_BREAKS = str.maketrans({"\n": "⏎", "\r": "⏎", "\t": "⇥"})
_SHADES = (223, 216, 209, 202)
"""Of 256 terminal colours, from pale to strong orange."""


def contexts_html(contexts: Sequence[Context], *, most: float | None = None) -> Markup:
    """A line for each context: the activation at the peak, and its tokens shaded by theirs.

    The darkest shade stands for `most`, by default the highest of all these contexts; texts that are set side by side
    need the same. Tokens up to zero are plain.
    """
    return _STYLE + context_lines(contexts, most=most)


def context_lines(contexts: Sequence[Context], *, most: float | None = None) -> Markup:
    """The lines of `contexts_html` without their style."""
    if most is None:
        most = max((max(one.activations) for one in contexts), default=0.0)
    return Markup("").join(_LINE.format(one.document, one.value, _coloured(one, most)) for one in contexts)


def reading_html(reading: LatentReading) -> str:
    """A reading's highest contexts under a line that says how often it fires."""
    return str(Markup("<p>{}</p>").format(summary_line(reading)) + contexts_html(reading.contexts))


def summary_line(reading: LatentReading) -> str:
    """How often a latent fires, in one sentence."""
    where = f"{reading.n_tokens:,} {'' if reading.tokens == 'all' else f'{reading.tokens} '}tokens"
    if not reading.fires:
        return f"latent {reading.latent} never fires on these {where}"
    density = reading.density
    return (
        f"latent {reading.latent} fires on {density.value:.3%} [{density.low:.3%}, {density.high:.3%}] of {where}, in "
        f"{reading.n_firing_passages:,} of {reading.n_passages:,} passages, up to {reading.maximum:.3g} "
        f"({reading.reading})"
    )


def contexts_text(contexts: Iterable[Context], *, colour: bool) -> str:
    """A line for each context; with `colour` in the terminal's, without it the peak in brackets.

    Control characters, which could steer a terminal, are shown as what they are.
    """
    contexts = list(contexts)
    most = max((max(one.activations) for one in contexts), default=0.0)
    lines = []
    for one in contexts:
        pieces = [_piece(text, value / most if most > 0 else 0.0, peak, colour) for text, value, peak in _whole(one)]
        lines.append(f"{one.value:8.3g}  {''.join(pieces).strip()}")
    return "\n".join(lines)


def visible(text: str) -> str:
    """Text on one line, without a character that a terminal would obey."""
    shown = text.translate(_LINE_BREAKS)
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in shown)


def _piece(text: str, share: float, peak: bool, colour: bool) -> str:
    space, word = _space_and_word(visible(text))
    if share <= 0 or not (colour or peak):
        return space + word
    if not colour:
        return f"{space}[{word}]"
    shade = _SHADES[min(int(share * len(_SHADES)), len(_SHADES) - 1)]
    return f"{space}\x1b[38;5;0;48;5;{shade}m{word}\x1b[0m"


def _space_and_word(text: str) -> tuple[str, str]:
    """The spaces before a word stay plain, unless there is nothing else to colour."""
    word = text.lstrip(" ")
    return (text[: len(text) - len(word)], word) if word else ("", text)


def _coloured(context: Context, most: float) -> Markup:
    pieces = []
    for text, value, peak in _whole(context):
        if not (value > 0 and most > 0):
            pieces.append(escape(text))
            continue
        space, word = _space_and_word(text)
        marked = Markup(' class="peak"') if peak else Markup("")
        pieces.append(escape(space) + _MARK.format(value, _DARKEST * min(value / most, 1.0), marked, word))
    return Markup("").join(pieces)


def _whole(context: Context) -> Iterator[tuple[str, float, bool]]:
    """Tokens as text, activation, and whether it is the peak; parts of one character go with its last."""
    value, peak = 0.0, False
    for i, (text, activation) in enumerate(zip(context.tokens, context.activations, strict=True)):
        value, peak = max(value, activation), peak or i == context.peak
        if text:
            yield text, value, peak
            value, peak = 0.0, False
