"""Rebuild the embedded whitened MNIST components: `python -m tools.embed_mnist [folder]`.

`folder` holds the official files (MNIST/raw/train-images-idx3-ubyte and train-labels-idx1-ubyte); default $RESID_DATA.
The result is made not to depend on the machine: the covariance of the pixels is computed in whole numbers, and the
coordinates are rounded to multiples of 2^-16, far above what the eigenvalue solver of one machine does otherwise than
that of another. Only a coordinate in the very middle between two multiples could still come out differently.
"""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

import numpy as np

from tools.paths import ROOT

TARGET = ROOT / "resid" / "data" / "embedded" / "mnist_whitened.npz"
#: SHA-256 of the official files, uncompressed.
OFFICIAL = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
}
COMPONENTS, GRID = 10, 2**16


def read_official(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images (60000, 784) and labels (60000,), uint8, from the official files, their hashes compared."""
    found = []
    for name, wanted in OFFICIAL.items():
        content = (folder / "MNIST" / "raw" / name).read_bytes()
        actual = hashlib.sha256(content).hexdigest()
        if actual != wanted:
            sys.exit(f"{folder}/MNIST/raw/{name}: SHA-256 is {actual}, the official file has {wanted}")
        found.append(np.frombuffer(content, np.uint8, offset=16 if "images" in name else 8))
    return found[0].reshape(-1, 784), found[1]


def whitened(images: np.ndarray) -> np.ndarray:
    """Ten leading principal components (60000, 10) of unit variance (divisor n), float32 on a grid of 2^-16.

    The entry of largest magnitude of each component vector is positive.
    """
    n = len(images)
    pixels = images.astype(np.int64)
    total = pixels.sum(0)
    # n^2 times the covariance, a whole number below 2^53: exact, in whatever order a matrix product adds
    values = images.astype(np.float64)
    gram = (values.T @ values).astype(np.int64)
    scatter = n * gram - np.outer(total, total)
    eigenvalues, vectors = np.linalg.eigh(scatter.astype(np.float64) / n**2)
    kept = vectors[:, ::-1][:, :COMPONENTS]
    largest = np.abs(kept).argmax(0)
    kept = kept * np.sign(kept[largest, np.arange(COMPONENTS)])
    coordinates = (values - total / n) @ kept / np.sqrt(eigenvalues[::-1][:COMPONENTS])
    return (np.round(coordinates * GRID) / GRID).astype(np.float32)


def main() -> None:
    """Command line."""
    folder = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("RESID_DATA")
    if not folder:
        sys.exit("say where the official files are: python -m tools.embed_mnist FOLDER, or set RESID_DATA")
    images, labels = read_official(Path(folder))
    TARGET.parent.mkdir(exist_ok=True)
    np.savez_compressed(TARGET, components=whitened(images), labels=labels)
    print(f"{TARGET.relative_to(ROOT)}: {TARGET.stat().st_size / 2**20:.2f} MiB")


if __name__ == "__main__":
    main()
