"""Write a model in a form that other tools read, or that is smaller."""

from pathlib import Path

from jaxprune.errors import UserError
from jaxprune.experiments.own_folder import check_new
from jaxprune.experiments.weights import model_folder
from jaxprune.export.formats import FORMATS
from jaxprune.export.source import read_source
from jaxprune.files import new_directory


def export_model(
    model: str,
    directory: Path,
    *,
    form: str,
    dtype: str = "",
    coded: bool = False,
    revision: str = "",
    variant: str = "",
) -> None:
    """Write `model` (a workdir, a Hugging Face directory or hub name, or an exported `sparse`) in a form of FORMATS.

    `dtype`: one of the form's; `coded`: masks in fewer bits, of the form sparse. UserError, before anything is written,
    where `directory` holds something, or the form does not take the model.
    """
    if form not in FORMATS:
        raise UserError(f"--format {form}: is none of {', '.join(FORMATS)}")
    dtypes = FORMATS[form].dtypes
    if dtype and dtype not in dtypes:
        raise UserError(f"--dtype {dtype}: {form} takes {', '.join(dtypes)}")
    if coded and form != "sparse":
        raise UserError(f"--coded: {form} has no masks to code; use it with --format sparse")
    check_new(directory)
    source = read_source(model_folder(model), revision, variant)
    with new_directory(directory) as target:
        FORMATS[form].write(source, target, dtype=dtype or dtypes[0], coded=coded)
    sizes = {path: path.stat().st_size for path in directory.rglob("*") if path.is_file()}
    largest = max(sizes, key=sizes.__getitem__)
    dense = sum(4 * array.size for array in source.tensors.values())
    print(f"wrote {directory}: {largest.name} {_megabytes(sizes[largest])} (dense float32: {_megabytes(dense)})")


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
