"""Judges by name."""

from pathlib import Path

import pytest

from sae_persona.errors import ArtifactError, JudgeError
from sae_persona.study.judges import build_judge


@pytest.mark.parametrize("spec", ["", "world", "world:", "rule:x", "openai:"])
def test_a_name_of_no_known_form_is_an_error(spec: str) -> None:
    with pytest.raises(JudgeError, match=r"expected world:DIR, openai:MODEL\[@BASE_URL\] or hf:PATH"):
        build_judge(spec)


@pytest.mark.parametrize("spec", ["openai:gpt-4o", "openai:qwen@http://localhost:8000/v1", "hf:models/judge"])
def test_judges_of_later_versions_are_recognised(spec: str) -> None:
    with pytest.raises(JudgeError, match=r"judges are not available in this version; use world:DIR"):
        build_judge(spec)


def test_a_world_that_is_none_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is no persona world"):
        build_judge(f"world:{tmp_path}")
