"""Predictions for every single image: one Parquet file per result cell, in a folder beside the results.

`pandas.read_parquet(folder)` (or polars, or DuckDB) reads all of them as one table.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from advflyp.evaluation.results import SAMPLES, Cell
from advflyp.files import write_atomically
from advflyp.limits import MAX_PREDICTIONS, open_regular

SCHEMA = pa.schema(
    [
        ("model", pa.string()),
        ("checkpoint_sha256", pa.string()),
        ("set", pa.string()),
        ("split", pa.string()),
        ("attack", pa.string()),
        ("norm", pa.string()),
        ("eps", pa.float64()),
        ("seed", pa.int64()),
        ("index", pa.int64()),
        ("key", pa.string()),
        ("label", pa.int64()),
        ("predicted_clean", pa.int64()),
        ("predicted_attacked", pa.int64()),
        ("correct", pa.bool_()),
    ]
)
# These say which cell a row belongs to; Parquet stores a repeated value once.
OF_CELL = SCHEMA.names[: SCHEMA.names.index("index")]
_OF_IMAGE = SCHEMA.names[len(OF_CELL) :]
_READ = [name for name in _OF_IMAGE if name != "correct"]  # which follows from the others


class Samples(NamedTuple):
    """The images of a cell, in the order in which they were evaluated: arrays of the same length n.

    Attributes:
        index: int64, positions in the whole dataset.
        key: The images' names, None if they have none.
        label: int64.
        clean: int64, predicted for the unchanged image.
        attacked: int64, predicted after the attack; `clean` if the image was not attacked.
        correct: bool, attacked == label.
    """

    index: np.ndarray
    key: np.ndarray
    label: np.ndarray
    clean: np.ndarray
    attacked: np.ndarray
    correct: np.ndarray


def write_samples(
    store: Path,
    cell: Cell,
    *,
    index: Any,
    label: Any,
    clean: Any,
    attacked: Any,
    keys: Sequence[str] | None = None,
) -> Path:
    """Store the predictions for the images of `cell`, in one file that appears only when it is complete.

    Args:
        store: The results file that holds the cell.
        cell: The cell.
        index: (n,) positions in the dataset. This and the following arrays are numpy's or torch's (on the CPU).
        label: (n,) class indices.
        clean: (n,) predictions for the clean images.
        attacked: (n,) predictions after the attack; ignored for images that are misclassified when clean, which are
            not attacked.
        keys: n names of the images.

    Returns:
        The file.
    """
    index, label, clean, attacked = (
        np.asarray(values, dtype=np.int64) for values in (index, label, clean, attacked)
    )
    attacked = np.where(clean == label, attacked, clean)
    columns = {name: [getattr(cell, name)] * len(index) for name in OF_CELL} | {
        "index": index,
        "key": keys or [None] * len(index),
        "label": label,
        "predicted_clean": clean,
        "predicted_attacked": attacked,
        "correct": attacked == label,
    }
    table, path = pa.table(columns, schema=SCHEMA), _path(store, cell)
    with write_atomically(path) as file:
        pq.write_table(table, file, compression="zstd")
    return path


def has_samples(store: Path, cell: Cell) -> bool:
    """Whether the predictions for the images of `cell` are stored."""
    return _path(store, cell).is_file()


def read_samples(store: Path, cell: Cell) -> Samples:
    """The predictions for the images of `cell`; ValueError if they were not stored or the file holds others."""
    path = _path(store, cell)
    try:
        with open_regular(path) as file:
            _check(pq.ParquetFile(file), cell)
            table = pq.ParquetFile(file, read_dictionary=["key"]).read(_READ)
            if any(table[name].null_count for name in _READ if name != "key"):
                raise ValueError("it lacks predictions")
            table.validate(full=True)
            index, label, clean, attacked = (table[name].to_numpy() for name in _READ if name != "key")
            if len(np.unique(index)) < len(index):
                raise ValueError("it holds an image twice")
            if index.min() < 0 or index.max() >= cell.subset.get("of", math.inf):
                raise ValueError("it holds images that the dataset lacks")
            return Samples(index, _names(table["key"]), label, clean, attacked, attacked == label)
    except FileNotFoundError:
        raise ValueError(
            f"{path}, which holds the predictions of {cell.model} for each image of {cell.set} ({cell.attack}), is "
            "missing; keep its folder beside the results, or measure again with `advflyp eval` and the same --out"
        ) from None
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the system's, not Parquet's
        raise ValueError(
            f"{path} cannot be read ({error}); delete it and measure again with `advflyp eval`"
        ) from None


def per_class(label: Any, correct: Any) -> dict[str, list[int]]:
    """`Cell.per_class` of (n,) class indices and whether each image is classified correctly, of NumPy or torch."""
    classes, inverse, total = np.unique(label, return_inverse=True, return_counts=True)
    right = np.bincount(inverse, weights=correct).astype(int)
    rows = zip(classes.tolist(), right.tolist(), total.tolist(), strict=True)
    return {str(one): [correct, n] for one, correct, n in rows}


def _names(column: pa.ChunkedArray) -> np.ndarray:
    """(n,) the values of a dictionary column, each in memory only once, however often it occurs; None if missing."""
    chunk = column.combine_chunks()
    known = np.array([*chunk.dictionary.to_pylist(), None], dtype=object)
    return known[chunk.indices.fill_null(len(chunk.dictionary)).to_numpy()]


def _check(parquet: pq.ParquetFile, cell: Cell) -> None:
    """ValueError, before anything is unpacked, if a file is not what `write_samples` wrote for the cell."""
    # Not the file's own total, which reading ignores.
    rows = sum(parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups))
    if rows != cell.n or rows > MAX_PREDICTIONS:
        raise ValueError(f"it holds {rows:,} predictions, not the {cell.n:,} of the results")
    for name in _OF_IMAGE:
        kinds = [field.type for field in parquet.schema_arrow if field.name == name]
        if kinds != [SCHEMA.field(name).type]:
            raise ValueError(f"its column '{name}' is missing or of another type")


def _path(store: Path, cell: Cell) -> Path:
    return store.with_suffix(SAMPLES) / f"{cell.slug()}.parquet"
