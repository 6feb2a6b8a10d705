"""Files of a model: in a local directory, or on the Hugging Face hub under a name."""

from pathlib import Path

from jaxprune.errors import UserError


def find_file(path_or_name: str | Path, filename: str, revision: str | None = None) -> Path | None:
    """The file in a local directory, else in the hub's cache, fetched if it is not there; None if it has none.

    UserError where `path_or_name` is neither a directory nor a model on the hub.
    """
    folder = Path(path_or_name).expanduser()
    if folder.is_dir():
        return folder / filename if (folder / filename).is_file() else None
    name = str(path_or_name)
    if folder.exists() or folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise UserError(f"{name}: no such directory; give a Hugging Face model directory or hub name")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(name, filename, revision=revision))
    except LocalEntryNotFoundError as error:
        raise UserError(f"{name}: neither a directory nor reachable on the hub ({_first_line(error)})") from None
    except EntryNotFoundError:
        return None
    except (OSError, ValueError) as error:  # unknown repository or revision, no access, not a valid name
        raise UserError(f"{name}: neither a directory nor a model on the hub ({_first_line(error)})") from None


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
