"""Whom a study is about: models by role, prompts, judge and data, from a persona world's folder."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sae_persona.artifacts import fingerprint
from sae_persona.errors import LeakageError
from sae_persona.model.load import LoadedModel
from sae_persona.persona_world.build import BuiltWorld
from sae_persona.study.measure import Groups


@dataclass(frozen=True, eq=False)
class Subjects:
    """The world under study. Models are loaded when asked for and not kept."""

    world: BuiltWorld

    @classmethod
    def open(cls, folder: Path) -> "Subjects":
        """The subjects of a world's folder.

        Raises:
            ArtifactError: the folder is no built world.
            LeakageError: selection and evaluation prompts share a question or a frame.
        """
        subjects = cls(BuiltWorld.open(folder))
        chosen, measured = subjects.groups("selection").prompts, subjects.groups("evaluation").prompts
        for what in ("question_id", "frame_id"):
            shared = {getattr(prompt, what) for prompt in chosen} & {getattr(prompt, what) for prompt in measured}
            if shared:
                raise LeakageError(
                    f"selection and evaluation prompts share {len(shared)} {what}s, such as {min(shared)!r}: what is "
                    "chosen on one set must be measured on another. Build the world anew."
                )
        return subjects

    @cached_property
    def fingerprint(self) -> str:
        """Of everything in the world's folder."""
        return fingerprint(self.world.folder)

    def groups(self, split: str) -> Groups:
        """The prompts of a split with the world's judge."""
        return Groups(self.world.prompts(split), self.world.judge, self.world.world.unseen_harms)

    def model(self, name: str) -> LoadedModel:
        """A model by its name."""
        return self.world.model(name)

    def runs(self, role: str) -> list[str]:
        """Names of the fine-tunes with a role."""
        return self.world.names(role)

    def record(self, name: str) -> Mapping[str, Any]:
        """What is known of one fine-tune: role, domain, fault, configuration."""
        return self.world.run(name)

    @property
    def roles(self) -> dict[str, str]:
        """Role of every model that the summary lists; benign runs belong to the monitor alone."""
        roles = {"base": "base", "aligned": "aligned"}
        return roles | {run["name"]: run["role"] for run in self.world.runs if run["role"] != "benign"}
