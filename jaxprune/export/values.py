"""Values of tensors in fewer bits."""

import ml_dtypes
import numpy as np

from jaxprune.errors import UserError

DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "int8": np.int8}
"""What values can be stored as; `stored`: as the source has them."""


def stored_as(array: np.ndarray, dtype: str) -> tuple[np.ndarray, np.ndarray | None]:
    """A tensor's values in `dtype`, rounded to nearest, ties to even; for int8 those of a matrix, with their scales.

    A scale is the largest magnitude of a row / 127, float32 (rows,). UserError where a type has no such value.
    """
    if dtype == "stored" or array.dtype.kind not in "fV" or (dtype == "int8" and array.ndim < 2):
        return array, None
    if dtype != "int8":
        with np.errstate(over="ignore"):
            values = array.astype(DTYPES[dtype])
        if not np.isfinite(values).all() and np.isfinite(array).all():
            raise UserError(
                f"{np.abs(array).max():g} is beyond {dtype}; use {'float32' if dtype == 'bfloat16' else 'bfloat16'}"
            )
        return values, None
    rows = array.astype(np.float32).reshape(-1, array.shape[-1])
    scales = np.abs(rows).max(1, initial=0) / np.float32(127)
    values = np.rint(rows / np.where(scales, scales, np.float32(1))[:, None]).clip(-127, 127)
    return values.astype(np.int8).reshape(array.shape), scales
