# SPDX-License-Identifier: Apache-2.0
"""A Pillow plugin: after `import lvqcodec.plugin`, Pillow opens and saves .lvq files.

    import lvqcodec.plugin
    from PIL import Image

    Image.open("photo.lvq").convert("L").save("grey.lvq", quality=30, effort=2)

Opening reads header and metadata; torch is loaded when the pixels are wanted. Saving takes the
options of `lvqcodec.encode` by the same names, and `icc_profile`, `exif` and `xmp`; as Pillow's own
formats do, it takes the profile alone from the image if none is given. A profile of other colours
than the pixels is left out, with a warning. Errors are those that Pillow's plugins raise:
UnidentifiedImageError for what is no lvq file, OSError for a broken one, a model that is not
installed and a mode that is not coded, ValueError for a wrong option.
"""

from __future__ import annotations

from typing import IO, TYPE_CHECKING, Any, cast

from PIL import Image, ImageFile

from lvqcodec.errors import FormatError, LvqError, UsageError
from lvqcodec.format.container import (
    MAGIC,
    MAX_HEADER_BYTES,
    SECTION_ALPHA,
    read_beside,
    read_header,
)
from lvqcodec.format.lvqfile import open_lvq
from lvqcodec.options import OPTIONS

if TYPE_CHECKING:
    from typing import BinaryIO

FORMAT = "LVQ"
MIME_TYPE = "image/x-lvq"

_MODES = {(1, False): "L", (1, True): "LA", (3, False): "RGB", (3, True): "RGBA"}
"""By the number of channels and whether there is alpha."""
_KEYWORDS = (*OPTIONS, "model", "device")  # of `codec.encode`


class LvqImageFile(ImageFile.ImageFile):
    """An opened .lvq file; `info` has its quality, lattice and metadata."""

    format = FORMAT
    format_description = "Learned image codec"

    def _open(self) -> None:
        assert self.fp is not None
        start = self.fp.tell()
        try:
            header = read_header(self.fp.read(MAX_HEADER_BYTES))
        except FormatError as error:
            raise SyntaxError(str(error)) from error
        self.fp.seek(start)
        try:
            _, sections = read_beside(cast("BinaryIO", self.fp))
            alpha = sections.pop(SECTION_ALPHA, None) is not None
            if sections:
                from lvqcodec.pictures.colour import profile_misfit
                from lvqcodec.pictures.sections import unpack_sections
                from lvqcodec.pictures.sources import METADATA

                beside = unpack_sections(header, sections)
                mode = _MODES[header.channels, alpha]
                if "icc" in beside and profile_misfit(beside["icc"], mode.removesuffix("A")):
                    del beside["icc"]  # whatever saves the picture again would write it
                for name, value in beside.items():
                    self.info[METADATA[name]] = value
        except FormatError:
            alpha = False  # the file is ours, but broken: loading will say how
        self._size = header.width, header.height
        self._mode = _MODES[header.channels, alpha]
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
            open_lvq(self.fp.read())
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
    given = image.encoderinfo
    from lvqcodec import codec
    from lvqcodec.pictures.sources import from_pillow

    try:
        picture = from_pillow(image, {"icc_profile": image.info.get("icc_profile")} | given)
        data = codec.encode(picture, **{name: given[name] for name in _KEYWORDS if name in given})
    except UsageError as error:
        raise ValueError(str(error)) from error
    except LvqError as error:
        raise OSError(str(error)) from error
    fp.write(data)


Image.register_open(FORMAT, LvqImageFile, _accept)
Image.register_decoder("lvq", LvqDecoder)
Image.register_save(FORMAT, _save)
Image.register_extension(FORMAT, ".lvq")
Image.register_mime(FORMAT, MIME_TYPE)
