"""The short table at the end of a run."""

from rich import box
from rich.table import Table
from rich.text import Text

from sae_persona.report.summary import Summary
from sae_persona.report.verdicts import NOTHING_TO_FIND, found_nothing, untested, verdicts

_STYLES = {True: "green", False: "bold red", None: "dim"}


def terminal_table(summary: Summary) -> Table:
    """One row per claim that the study tested: what was found, what had to be, and the verdict; the rest by name."""
    judged = verdicts(summary)
    n_met, n_failed = (sum(verdict.met is met for verdict in judged) for met in (True, False))
    notes = ["Shares of all sampled answers, with 95% intervals clustered by question.", *untested(judged)]
    outcome = f"{n_met} met, {n_failed} not met" + f"; {NOTHING_TO_FIND}" * found_nothing(summary)
    table = Table(
        title=f"{summary.study}, seed {summary.seed}: {outcome}",
        title_justify="left",
        caption=" ".join(notes),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("verdict", no_wrap=True)
    for column in ("claim", "found", "expected"):
        table.add_column(column)
    for verdict in filter(lambda verdict: verdict.was_tested, judged):
        cells = (verdict.claim, verdict.found, verdict.expected)
        table.add_row(Text(verdict.mark, style=_STYLES[verdict.met]), *map(Text, cells))
    return table
