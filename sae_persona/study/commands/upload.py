"""Hand SAEs to others, in a repository of the Hugging Face hub that SAELens reads."""

from collections.abc import Sequence
from pathlib import Path

from sae_persona.errors import ConfigError, SAEError
from sae_persona.sae.load import load_sae


def upload_saes(
    folders: Sequence[Path], repository: str, *, revision: str = "main", private: bool = False
) -> list[str]:
    """Upload SAE folders with SAELens, each under its own name, and return the names.

    `SAE.from_pretrained(repository, name)` of SAELens loads what was uploaded, and so does `load_sae` as
    `repository:name`. A repository that is not there yet is made.

    Raises:
        SAEError: a folder is no SAE or damaged, or the hub refuses or cannot be reached.
        ConfigError: two folders have one name.
    """
    names = [folder.resolve().name for folder in folders]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"several SAEs are called {twice[0]!r}; on the hub each needs a name. Rename a folder.")
    for folder in folders:
        if not folder.is_dir():
            raise SAEError(f"{folder} is no folder, and SAEs are uploaded from folders. Check the path.")
        load_sae(folder)
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        HFValidationError,
        HTTPError,  # pyright: ignore[reportPrivateImportUsage] -- of the library that its client speaks HTTP with
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
    )
    from sae_lens import upload_saes_to_huggingface

    try:
        HfApi().create_repo(repository, private=private, exist_ok=True)
        upload_saes_to_huggingface(
            dict(zip(names, folders, strict=True)), repository, hf_revision=revision, show_progress=False
        )
    except OfflineModeIsEnabled as error:
        raise SAEError("the hub is switched off by HF_HUB_OFFLINE. Unset it to upload.") from error
    except LocalTokenNotFoundError as error:
        raise SAEError("the hub wants to know who uploads. Run `hf auth login`, or set HF_TOKEN.") from error
    except HFValidationError as error:
        raise SAEError(f"{repository!r} is no name of a repository; expected USER/NAME.") from error
    except (HTTPError, OSError) as error:
        reason = " ".join(str(error).split())[:250]
        raise SAEError(
            f"{repository} took no upload ({type(error).__name__}: {reason}). Check its name, your rights "
            "(`hf auth whoami`) and the network, and run again: what is there already is not sent twice."
        ) from error
    return names
