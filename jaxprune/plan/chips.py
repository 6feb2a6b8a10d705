"""Published figures of TPU chips. Sources: cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}, "System architecture"."""

from typing import NamedTuple


class Chip(NamedTuple):
    """One chip; a chip of two cores (v4, v5p) is one device to JAX."""

    name: str
    flops: float
    """Peak bf16 FLOP/s."""
    hbm: float
    """HBM, bytes. Google writes GB and means GiB."""
    hbm_rate: float
    """HBM bytes/s."""
    ici_rate: float
    """ICI bytes/s that leave the chip over all ports together: half of the published bidirectional figure."""
    ports: int
    """ICI links of a chip inside a torus."""
    wraps: int
    """Axes of a slice close to a ring where all (cubes) or one (2-D pods) of them are multiples of this."""
    cores: int
    """Cores a chip, which the names of v4 and v5p slices count."""
    config: str | None = None
    """libtpu's chip configuration, where the default is not one device a chip."""


CHIPS = {
    # v4: 275 TFLOP/s, 32 GiB, 1200 GB/s; 6 links of 50 GB/s each way (Jouppi et al. 2023, arXiv 2304.01433, table 4).
    "v4": Chip("v4", 275e12, 32 * 2**30, 1200e9, 300e9, 6, 4, 2, "megacore"),
    # v5e: 197 TFLOP/s, 16 GB, 819 GB/s, 400 GB/s bidirectional over 4 ports.
    "v5e": Chip("v5e", 197e12, 16 * 2**30, 819e9, 200e9, 4, 16, 1),
    # v5p: 459 TFLOP/s, 95 GB, 2765 GB/s, 1200 GB/s bidirectional; 3-D torus, 6 ports.
    "v5p": Chip("v5p", 459e12, 95 * 2**30, 2765e9, 600e9, 6, 4, 2),
    # v6e: 918 TFLOP/s, 32 GB, 1638 GB/s, 800 GB/s bidirectional over 4 ports.
    "v6e": Chip("v6e", 918e12, 32 * 2**30, 1638e9, 400e9, 4, 16, 1),
}
