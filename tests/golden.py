# SPDX-License-Identifier: Apache-2.0
"""Add golden files: what today's encoder writes, kept so that every later decoder reads it.

    python tests/golden.py

writes those of CASES and DAMAGED that are not in tests/data yet, and never touches one that is: a
golden file that no longer decodes is a defect of the decoder. To add one, add a line here and run.
A change of the format appends files with names of their own.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conftest import install, make_model, make_photograph
from PIL import Image

from lvqcodec import codec, stream
from lvqcodec.catalog import find_by_digest, find_model, read_files
from lvqcodec.coding.rows import NUM_BINS, SIGMAS, RowTable
from lvqcodec.format import tiling
from lvqcodec.format.container import (
    SECTION_LATENTS,
    SECTION_TILES,
    Section,
    pack,
    read_header,
    unpack,
)
from lvqcodec.format.lvqfile import open_lvq
from lvqcodec.model.codec_model import CodecConfig
from lvqcodec.model.entropy import MultiScaleProgressive
from lvqcodec.model.entropy.base import LATENT_UNITS
from lvqcodec.model.lattices import LATTICES
from lvqcodec.model.lattices.base import Packing
from lvqcodec.model.lattices.tables import CodingTables, parametric_tables
from lvqcodec.model.loaded import load_card
from lvqcodec.model.quantizer import Quantizer
from lvqcodec.model.transforms import LappedTransform
from lvqcodec.model.weights import unpack_weights
from lvqcodec.pictures.picture import Picture

DATA = Path(__file__).parent / "data"
GOLDEN = DATA / "golden"
CORPUS = DATA / "corpus"
INDEX = "index.json"
MODEL = "golden"
LATTICE_MODEL = "lattices"
"""The networks and the rows of MODEL, and rows of PACKINGS besides."""

# seeds, several scales, both sets of networks, and a grid that no scale divides evenly
CONFIG = CodecConfig(
    LappedTransform.Config(latent_channels=24, analysis=((8, 8, 1),), synthesis=((8, 8, 1),)),
    MultiScaleProgressive.Config(scales=3, seeds=(4, 6), linear=8, hidden=12, trunk=8, depth=1),
)
MAX_RADIUS = 40  # short rows: a small file, and escapes are frequent


def _with_alpha(pixels: np.ndarray, **metadata: bytes) -> Picture:
    """A picture whose alpha falls off to one side."""
    height, width = pixels.shape[:2]
    alpha = np.linspace(0, 255, width).round().astype(np.uint8)
    return Picture(pixels, np.tile(alpha, (height, 1)), **metadata)


def _noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (height, width, 3), np.uint8)


# name: (picture, quality, lattice)
CASES: dict[str, tuple[Callable[[], np.ndarray | Picture], int, str]] = {
    "colour-e8-q50": (lambda: make_photograph(52, 77, seed=5), 50, "e8"),
    "colour-z-q50": (lambda: make_photograph(52, 77, seed=5), 50, "z"),
    "colour-e8-q0": (lambda: make_photograph(64, 64, seed=6), 0, "e8"),
    "colour-e8-q100": (lambda: make_photograph(40, 33, seed=7), 100, "e8"),
    "colour-z-q100": (lambda: make_photograph(40, 33, seed=7), 100, "z"),
    "grey-e8-q70": (lambda: make_photograph(61, 45, channels=1, seed=8), 70, "e8"),
    "grey-z-q20": (lambda: make_photograph(61, 45, channels=1, seed=8), 20, "z"),
    "noise-e8-q100": (lambda: _noise(24, 24), 100, "e8"),
    "flat-e8-q30": (lambda: np.full((130, 9, 3), 200, np.uint8), 30, "e8"),
    "one-pixel-colour": (lambda: np.array([[[250, 20, 60]]], np.uint8), 90, "e8"),
    "one-pixel-grey": (lambda: np.array([[77]], np.uint8), 90, "z"),
    "row-e8-q60": (lambda: make_photograph(1, 300, seed=9), 60, "e8"),
    "optional-section": (lambda: make_photograph(16, 24, seed=10), 40, "e8"),
    "alpha-colour": (lambda: _with_alpha(make_photograph(20, 31, seed=11)), 50, "e8"),
    "alpha-grey": (lambda: _with_alpha(make_photograph(20, 31, channels=1, seed=12)), 50, "z"),
    "metadata": (
        lambda: Picture(
            make_photograph(16, 17, seed=13), icc=b"no profile" * 9, exif=b"II*\0", xmp=b"<x/>"
        ),
        50,
        "e8",
    ),
    "tiles-colour": (lambda: make_photograph(75, 90, seed=14), 50, "e8"),
    "tiles-grey": (lambda: make_photograph(33, 160, channels=1, seed=15), 30, "z"),
    **{
        f"colour-{lattice}-q{quality}": (
            lambda seed=seed: make_photograph(61, 83, seed=seed),
            quality,
            lattice,
        )
        for seed, lattice in enumerate(("d4", "a2", "bw16", "leech", "trellis8"), 16)
        for quality in (45, 90)
    },
    **{  # so many latents that a trellis has several chains
        f"large-{lattice}-q95": (
            lambda seed=seed: make_photograph(190, 250, seed=seed),
            95,
            lattice,
        )
        for seed, lattice in enumerate(("d4", "a2", "bw16", "leech", "trellis8"), 21)
    },
}
TILES = {"tiles-colour": 32, "tiles-grey": 64}
"""Side of the tiles of those cases that have some."""

PACKINGS = {
    "d4": Packing(12, False),
    "a2": Packing(14, False),
    "bw16": Packing(10, True),
    "leech": Packing(13, False),
    "trellis8": Packing(15, True),
}


def integers_digest(data: bytes) -> str:
    """SHA-256 of the decoded integers, as the format orders them for their CRC."""
    file = open_lvq(data)
    loaded = load_card(find_by_digest(file.header.model), torch.device("cpu"))
    coder = stream.TileCoder(file.header, loaded)
    tiles = zip(file.tiling, file.tiles, strict=True)
    found = [coder.read(payload, place.grid) for place, payload in tiles]
    integers = [(y_hat * LATENT_UNITS).to(torch.int32).numpy().astype("<i4") for y_hat in found]
    return sha256(b"".join(part.tobytes() for part in integers))


def metadata_digests(data: bytes) -> dict[str, str]:
    """SHA-256 of the metadata in a file."""
    picture = codec.decode_picture(data, device="cpu")
    found = {name: getattr(picture, name) for name in ("icc", "exif", "xmp")}
    return {name: sha256(value) for name, value in found.items() if value is not None}


def sha256(data: bytes) -> str:
    """In hex."""
    return hashlib.sha256(data).hexdigest()


def load_index(folder: Path) -> dict[str, Any]:
    """What is known of the files of a folder, by name."""
    path = folder / INDEX
    return json.loads(path.read_text()) if path.exists() else {}


def _save_index(folder: Path, index: dict[str, Any]) -> None:
    (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n")


def _shorten(table: RowTable) -> RowTable:
    """Rows of at most MAX_RADIUS to either side; what lies beyond goes to the escape."""
    rows, offsets = [], []
    for probs, size, offset in zip(table.probs, table.sizes, table.offsets, strict=True):
        first = max(offset - MAX_RADIUS, 0)
        kept = probs[first : min(offset + MAX_RADIUS + 1, size - 1)].astype(np.float64)
        rows.append(np.append(kept, probs[:size].sum(dtype=np.float64) - kept.sum()))
        offsets.append(int(offset - first))
    return RowTable.from_rows(rows, offsets)


def _add_model() -> None:
    if (GOLDEN / f"{MODEL}.toml").exists():
        return
    full = parametric_tables()
    e8 = full.others["e8"]
    tables = {
        **full.to_arrays(),
        **{f"scalar.{key}": value for key, value in _shorten(full.z.rows).to_arrays().items()},
        **{f"lattice.{key}": value for key, value in _shorten(e8.rows).to_arrays().items()},
    }
    install(make_model(CONFIG), GOLDEN, MODEL, tables=CodingTables.from_arrays(tables))


def _add_lattice_model() -> None:
    if (GOLDEN / f"{LATTICE_MODEL}.toml").exists():
        return
    model = unpack_weights(*read_files(find_model(MODEL)))
    assert model.tables is not None
    rng = np.random.default_rng(0)
    bins = torch.from_numpy(rng.integers(0, NUM_BINS, 200_000))
    x = torch.from_numpy(rng.laplace(size=len(bins)) * SIGMAS[bins] / 2**0.5).float()
    others = dict(model.tables.others)
    for name, packing in PACKINGS.items():
        start = LATTICES[name].fit(None, packing)
        quantizer = Quantizer(name, CodingTables(model.tables.z, {name: start}))
        counts = quantizer.count(quantizer.choose(x, bins), bins, x)
        fitted = LATTICES[name].fit(counts[name], packing)
        others[name] = dataclasses.replace(fitted, rows=_shorten(fitted.rows))
    tables = dataclasses.replace(model.tables, others=others)
    install(model, GOLDEN, LATTICE_MODEL, tables=tables)


def _add_golden() -> None:
    index = load_index(GOLDEN)
    for name, (make, quality, lattice) in CASES.items():
        path = GOLDEN / f"{name}.lvq"
        if path.exists():
            continue
        data = codec.encode(
            make(),
            model=LATTICE_MODEL if lattice in PACKINGS else MODEL,
            quality=quality,
            lattice=lattice,
            tile=TILES.get(name),
            device="cpu",
        )
        if name == "optional-section":
            header, sections = unpack(data)
            parts = [Section(kind, payload) for kind, payload in sections.items()]
            data = pack(header, [Section(0xFE, b"of a later version"), *parts])
        picture = codec.decode(data, device="cpu")
        path.write_bytes(data)
        Image.fromarray(picture).save(path.with_suffix(".png"))
        index[name] = {"sha256": sha256(data), "integers": integers_digest(data)}
        index[name] |= metadata_digests(data)
    _save_index(GOLDEN, index)


# --- damaged files ------------------------------------------------------------------------------


def crc(data: bytes) -> bytes:
    """Data with its checksum."""
    return data + zlib.crc32(data).to_bytes(4, "little")


def _vp8l(width: int, height: int) -> bytes:
    """The beginning of a VP8L stream of that size, as alpha."""
    return b"\x01\x2f" + (width - 1 | height - 1 << 14).to_bytes(4, "little") + bytes(9)


def _damaged() -> dict[str, tuple[bytes, int, str]]:
    """(bytes, exit code of `lvq decode`, part of the message) by name, from one golden file."""
    data = (GOLDEN / "colour-e8-q50.lvq").read_bytes()
    header = read_header(data)
    end = 17 + 2 + 4  # both sides take one byte
    fixed, head, body = bytearray(data[:17]), data[:end], data[end:]
    payload = unpack(data)[1][SECTION_LATENTS]

    def fixed_with(at: int, value: int, sides: bytes = data[17:19]) -> bytes:
        changed = fixed.copy()
        changed[at] = value
        return crc(bytes(changed) + sides) + body

    def sides(value: bytes) -> bytes:
        return crc(bytes(fixed) + value) + body

    def latents(value: bytes) -> bytes:
        return pack(header, [Section(SECTION_LATENTS, value)])

    def beside(kind: int, value: bytes) -> bytes:
        return pack(header, [Section(kind, value), Section(SECTION_LATENTS, payload)])

    tiled, sections = unpack((GOLDEN / "tiles-colour.lvq").read_bytes())
    parts = sections[SECTION_TILES]
    layout, each, _ = tiling.find_tiles(tiled, sections)
    first, *others = each

    def tiles(value: bytes) -> bytes:
        return pack(tiled, [Section(SECTION_TILES, value)])

    flipped = bytearray(payload)
    flipped[20] ^= 4
    wide = b"\xff\xff\x03\x80\x20"  # 65535 x 4096
    return {
        "empty": (b"", 3, "the file is empty"),
        "other-format": (b"\x89PNG\r\n\x1a\n" + bytes(40), 3, "it looks like PNG"),
        "no-format": (bytes(64), 3, "not an lvq file"),
        "magic-cut": (data[:5], 3, "the header is truncated"),
        "magic-as-text": (data.replace(b"\r\n", b"\n"), 3, "transfer it again in binary mode"),
        "header-cut": (data[:20], 3, "the header is truncated"),
        "header-crc": (head[:-1] + bytes([head[-1] ^ 1]) + body, 3, "the header is damaged"),
        "container-version": (fixed_with(8, 2), 3, "container version 2 is not known"),
        "stream-version": (fixed_with(9, 2), 3, "stream version 2 is not known"),
        "flags": (fixed_with(10, 0x80), 3, "flags 0x80 are not known"),
        "quality": (fixed_with(11, 101), 3, "quality 101 is outside 0..100"),
        "lattice": (fixed_with(12, 9), 3, "lattice 9 is not known"),
        "model": (fixed_with(13, fixed[13] ^ 1), 4, "is needed"),
        "width-zero": (sides(b"\0\x34"), 3, "width 0 is outside"),
        "width-too-large": (sides(b"\x80\x80\x04\x01"), 3, "width 65536 is outside"),
        "width-not-shortest": (sides(b"\xcd\x00\x34"), 3, "not in its shortest form"),
        "width-endless": (sides(b"\xff" * 9), 3, "more than 5 bytes"),
        "size-too-large": (sides(b"\xff\xff\x03" * 2), 3, "more than 268435456 pixels"),
        "size-not-of-the-file": (sides(b"\x64\x34"), 3, ""),
        "size-beyond-the-bytes": (sides(wide), 3, "too short for their picture"),
        "quality-of-another": (fixed_with(11, 51), 3, ""),
        "lattice-of-another": (fixed_with(12, 0), 3, ""),
        "no-latents": (head, 3, "ends before its latents"),
        "only-optional": (head + crc(b"\xfe\x01a"), 3, "ends before its latents"),
        "section-cut": (data[:-9], 3, "is truncated"),
        "section-crc": (data[:-20] + bytes(1) + data[-19:], 3, "is damaged (CRC-32 differs)"),
        "section-length-endless": (head + b"\x01" + b"\xff" * 8, 3, "more than 5 bytes"),
        "section-length-large": (head + b"\x01\xff\xff\xff\xff\x7f" + body, 3, "is truncated"),
        "section-twice": (data + body, 3, "two sections of kind 0x01"),
        "section-unknown": (head + crc(b"\x70\x01a") + body, 3, "kind 0x70 is needed"),
        "alpha-empty": (beside(2, b""), 3, "is empty"),
        "alpha-coding": (beside(2, b"\x09abc"), 3, "coding 9 of the alpha"),
        "alpha-constant": (beside(2, b"\x00ab"), 3, "the alpha is damaged"),
        "alpha-size": (beside(2, _vp8l(16383, 16383)), 3, "the alpha is damaged"),
        "alpha-damaged": (beside(2, _vp8l(77, 52)), 3, "the alpha is damaged"),
        "alpha-png": (beside(2, b"\x02\x89PNG\r\n\x1a\n"), 3, "the alpha is damaged"),
        "alpha-avif": (beside(2, b"\x03" + bytes(30)), 3, "the alpha is damaged"),
        "icc-empty": (beside(0x81, b""), 3, "is empty"),
        "exif-coding": (beside(0x82, b"\x07II*"), 3, "coding 7 of the EXIF"),
        "xmp-damaged": (beside(0x83, b"\x01garbage"), 3, "XMP section is damaged"),
        "xmp-cut": (beside(0x83, b"\x01" + zlib.compress(bytes(99))[:-5]), 3, "is damaged"),
        "icc-bomb": (
            beside(0x81, b"\x01" + zlib.compress(bytes(2**24 + 1), 9)),
            3,
            "has not 1 to 16777216 bytes",
        ),
        "trailing-bytes": (data + b"\0", 3, "what follows the picture"),
        "latents-empty": (latents(b""), 3, "too short"),
        "latents-cut": (latents(payload[: len(payload) // 2]), 3, ""),
        "latents-none": (latents(payload[:4]), 3, ""),
        "latents-flipped": (latents(bytes(flipped)), 3, ""),
        "latents-impossible": (latents(payload[:4] + b"\xff" * 40), 3, "no encoder writes"),
        "latents-of-another": (latents(bytes(4) + payload[4:]), 3, "do not match their checksum"),
        "two-pictures": (data + crc(b"\x03\x01\x02"), 3, "two pictures"),
        "tiles-empty": (tiles(b""), 3, "the section of tiles is empty"),
        "tiles-side": (tiles(b"\x0d" + parts[1:]), 3, "tiles of 2^13 positions are not known"),
        "tiles-larger": (tiles(crc(b"\x0c\x7f")), 3, "1 tiles do not fit into"),
        "tiles-cut": (tiles(parts[:20]), 3, "9 tiles do not fit into 20 bytes"),
        "tiles-table": (tiles(parts[:2] + bytes(1) + parts[3:]), 3, "the table of tiles"),
        "tiles-lengths": (tiles(parts[:-1]), 3, "are not what"),
        "tiles-flipped": (
            pack(tiled, [tiling.to_section(layout, [bytes(4) + bytes(first[4:]), *others])]),
            3,
            "do not match their checksum",
        ),
    }


def _add_corpus() -> None:
    index = load_index(CORPUS)
    for name, (data, code, message) in _damaged().items():
        path = CORPUS / f"{name}.lvq"
        if not path.exists():
            path.write_bytes(data)
            index[name] = {"exit_code": code, "message": message}
    _save_index(CORPUS, index)


def main() -> None:
    """Add what is missing."""
    os.environ["LVQ_MODEL_PATH"] = str(GOLDEN)
    for folder in (GOLDEN, CORPUS):
        folder.mkdir(parents=True, exist_ok=True)
    _add_model()
    _add_lattice_model()
    _add_golden()
    _add_corpus()


if __name__ == "__main__":
    main()
