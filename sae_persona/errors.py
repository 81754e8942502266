"""What can go wrong, as a tree. The command line prints one line for each of them and exits with status 2.

    SaePersonaError
    ├── ConfigError         an option or a configuration that cannot be meant
    ├── DataError           a file of chats, prompts, judgements that cannot be read as such
    ├── ModelError          a model that cannot be loaded, or lacks what is asked of it
    │   └── HookError       a hook name that this model does not have
    ├── CacheFileError      an activation cache that is missing, unfinished, foreign or corrupt
    ├── SAEError            an SAE that cannot be loaded or trained
    ├── IncompatibleError   two things that do not belong together: widths, tokenizers, worlds, studies
    │   └── LeakageError    what was chosen on some prompts is to be measured on the same
    ├── ArtifactError       an output folder that holds something else, or cannot be written
    └── JudgeError          a judge that cannot be built or cannot answer

Every message says what is wrong, what was found, what was expected and the next step.
"""


class SaePersonaError(Exception):
    """Base of every error that is the caller's to mend."""


class ConfigError(SaePersonaError):
    """An option or a configuration that cannot be meant."""


class DataError(SaePersonaError):
    """A file of chats, prompts or judgements that cannot be read as such."""


class ModelError(SaePersonaError):
    """A model that cannot be loaded, or lacks what is asked of it."""


class HookError(ModelError):
    """A hook name that this model does not have."""


class CacheFileError(SaePersonaError):
    """An activation cache that is missing, unfinished, foreign or corrupt."""


class SAEError(SaePersonaError):
    """An SAE that cannot be loaded or trained."""


class IncompatibleError(SaePersonaError):
    """Two things that do not belong together: widths, tokenizers, worlds, studies."""


class LeakageError(IncompatibleError):
    """What was chosen on some prompts is to be measured on the same."""


class ArtifactError(SaePersonaError):
    """An output folder that holds something else, or cannot be written."""


class JudgeError(SaePersonaError):
    """A judge that cannot be built or cannot answer."""
