# SPDX-License-Identifier: Apache-2.0
"""A Pillow plugin: after `import lvqcodec.plugin`, Pillow opens and saves .lvq files.

    import lvqcodec.plugin
    from PIL import Image

    Image.open("photo.lvq").convert("L").save("grey.lvq", quality=30, effort=2)

Opening reads the header alone; numpy and torch are loaded when the pixels are wanted. Saving takes
the options of `lvqcodec.encode` by the same names. Errors are those that Pillow's own plugins
raise: UnidentifiedImageError for what is no lvq file, OSError for a broken one, a model that is not
installed and a mode that is not coded, ValueError for a wrong option.
"""

from __future__ import annotations

from typing import IO, TYPE_CHECKING, Any

from PIL import Image, ImageFile

from lvqcodec.container import MAGIC, MAX_HEADER_BYTES, read_header, unpack
from lvqcodec.errors import FormatError, LvqError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FORMAT = "LVQ"
MIME_TYPE = "image/x-lvq"

_MODES = {1: "L", 3: "RGB"}  # by channels
_OPTIONS = (
    "model",
    "quality",
    "target_bytes",
    "target_psnr",
    "lattice",
    "effort",
    "max_seconds",
    "device",
)
_METADATA = ("icc_profile", "exif", "xmp")


class LvqImageFile(ImageFile.ImageFile):
    """An opened .lvq file; `info` has its quality and lattice."""

    format = FORMAT
    format_description = "Learned image codec"

    def _open(self) -> None:
        assert self.fp is not None
        start = self.fp.tell()
        try:
            header = read_header(self.fp.read(MAX_HEADER_BYTES))
        except FormatError as error:
            raise SyntaxError(str(error)) from error
        self._size = header.width, header.height
        self._mode = _MODES[header.channels]
        self.info.update(quality=header.quality, lattice=header.lattice)
        self.tile = [ImageFile._Tile("lvq", (0, 0, *self.size), start, None)]

    def load_seek(self, pos: int) -> None:
        """Go to the start; that there is this method tells Pillow's Parser to wait for the end."""
        assert self.fp is not None
        self.fp.seek(pos)

    def verify(self) -> None:
        """Check every length and checksum, without decoding; raises OSError."""
        if self.fp is None or not self.tile:
            raise RuntimeError("verify must be called directly after open")
        self.fp.seek(self.tile[0].offset)
        try:
            unpack(self.fp.read())
        except FormatError as error:
            raise OSError(str(error)) from error
        finally:
            super().verify()


class LvqDecoder(ImageFile.PyDecoder):
    """What Pillow calls for the pixels."""

    _pulls_fd = True

    def decode(self, buffer: Any) -> tuple[int, int]:
        """Decode all that is left of the file into the image; raises OSError."""
        from lvqcodec import codec

        assert self.fd is not None
        try:
            pixels = codec.decode(self.fd.read())
        except LvqError as error:
            raise OSError(str(error)) from error
        self.set_as_raw(pixels.tobytes())
        return -1, 0


def _accept(prefix: bytes) -> bool:
    return prefix.startswith(MAGIC)


def _save(image: Image.Image, fp: IO[bytes], filename: str | bytes) -> None:
    pixels = _to_array(image)
    given = image.encoderinfo
    metadata = {"icc_profile": image.info.get("icc_profile")} | given
    for name in _METADATA:
        if metadata.get(name):
            raise OSError(f"cannot write {name} as {FORMAT}: convert to sRGB, give {name}=None")
    from lvqcodec import codec

    try:
        data = codec.encode(pixels, **{name: given[name] for name in _OPTIONS if name in given})
    except UsageError as error:
        raise ValueError(str(error)) from error
    except LvqError as error:
        raise OSError(str(error)) from error
    fp.write(data)


def _to_array(image: Image.Image) -> NDArray[np.uint8]:
    """Return what is coded of an image; OSError for a mode that is not."""
    if image.mode not in _MODES.values():
        raise OSError(f"cannot write mode {image.mode} as {FORMAT}")
    import numpy as np

    return np.array(image)


Image.register_open(FORMAT, LvqImageFile, _accept)
Image.register_decoder("lvq", LvqDecoder)
Image.register_save(FORMAT, _save)
Image.register_extension(FORMAT, ".lvq")
Image.register_mime(FORMAT, MIME_TYPE)
