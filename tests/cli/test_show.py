"""Bars and stages are for terminals; tables are for everybody."""

import io
import sys

import pytest

from sae_persona.cli.show import bars, stages, table


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Puts a terminal in the place of stderr; no fixture, as pytest takes stderr back between setup and test."""
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert isinstance(sys.stderr, Terminal)
    return sys.stderr


def work() -> None:
    with bars() as progress:
        for done in (2, 4):
            progress("sampling", done, 4)
        progress("judging", 3, 3)


def test_one_bar_after_the_other_reaches_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = terminal(monkeypatch)
    work()
    assert "sampling: 100%" in stderr.getvalue()
    assert "4/4" in stderr.getvalue()
    assert "judging: 100%" in stderr.getvalue()


def test_stages_are_told_with_what_they_took(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = terminal(monkeypatch)
    with stages() as announce:
        announce("cache", True)
        announce("sae", False)
        announce("rank", False)
    assert stderr.getvalue() == "cache: already done\nsae: ... 0.0 s\nrank: ... 0.0 s\n"


def test_nothing_is_said_where_stderr_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    work()
    with stages() as announce:
        announce("sae", False)
    assert capsys.readouterr().err == ""


def test_the_columns_of_a_table_are_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    table(["latent", "z"], [[7, 1.5], [12345678, ""]])
    assert capsys.readouterr().out == "latent    z\n7         1.5\n12345678\n"
