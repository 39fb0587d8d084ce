# SPDX-License-Identifier: Apache-2.0
"""EXIF and XMP as picture files hold them, and the orientation that they state."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from xml.dom import minidom
from xml.parsers import expat

from PIL import ExifTags, Image, ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import TiffImageFile

from lvqcodec.pictures.colour import means_srgb
from lvqcodec.pictures.picture import Picture

EXIF_PREFIX = b"Exif\0\0"
_XMP_TAG = 700  # of a TIFF file
_XMP_PADDING = b"\0\t\n\r "

# namespaces of XMP
_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_TIFF = "http://ns.adobe.com/tiff/1.0/"
_NOTE = "http://ns.adobe.com/xmp/note/"
_EXTENSION = b"http://ns.adobe.com/xmp/extension/\0"
_EXTENSION_HEAD = 32 + 4 + 4  # GUID, length of the whole, offset in it

# What of the first directory describes the picture: the rest of it describes the TIFF file.
_TIFF_TAGS = (
    ExifTags.Base.ImageDescription,
    ExifTags.Base.Make,
    ExifTags.Base.Model,
    ExifTags.Base.Orientation,
    ExifTags.Base.XResolution,
    ExifTags.Base.YResolution,
    ExifTags.Base.ResolutionUnit,
    ExifTags.Base.Software,
    ExifTags.Base.DateTime,
    ExifTags.Base.Artist,
    ExifTags.Base.HostComputer,
    ExifTags.Base.Copyright,
)
_DIRECTORIES = (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)


def read_exif(image: ImageFile.ImageFile) -> bytes | None:
    """Return the EXIF of a decoded picture; for a TIFF file call it before decoding."""
    exif = image.info.get("exif") or _raw_profile(image, "exif")
    if exif is None and isinstance(image, TiffImageFile):
        try:
            tags = _describing(image.getexif())
            exif = tags.tobytes() if len(tags) else None
        except Exception:  # broken metadata is no obstacle to any viewer
            return None
    return exif.removeprefix(EXIF_PREFIX) or None if exif else None


def read_xmp(image: ImageFile.ImageFile) -> tuple[bytes | None, str | None]:
    """Return the XMP packet of a decoded picture, and a remark if it is left out.

    The further segments that JPEG has for it (Extended XMP) are merged into the one packet.
    """
    xmp = image.info.get("xmp") or _raw_profile(image, "xmp")
    xmp = xmp.encode() if isinstance(xmp, str) else xmp
    if image.info.get("compressed_metadata"):
        return xmp, "EXIF or XMP that is compressed by Brotli is left out"
    if not isinstance(image, JpegImageFile):
        return xmp, None
    portions = [
        content[len(_EXTENSION) :]
        for name, content in image.applist
        if name == "APP1" and content.startswith(_EXTENSION)
    ]
    try:
        guid = _read_xmp_property(xmp, _NOTE, "HasExtendedXMP") if xmp else None
    except (expat.ExpatError, ValueError):
        guid = None  # a packet of any content, kept as it is
    if not xmp or guid is None:
        return xmp, "XMP without its first part is left out" if portions else None
    try:
        return _merge(xmp, _reassemble(guid, portions)), None
    except Exception as error:  # of broken XML the parsers raise much
        reason = error if isinstance(error, ValueError) else "it cannot be parsed"
        return None, f"its XMP is left out: its extended part is not intact ({reason})"


def _reassemble(guid: str, portions: list[bytes]) -> bytes:
    """Return the extension of this name from its portions; ValueError if one is missing."""
    whole, missing = b"", None
    for portion in sorted(portions, key=lambda portion: portion[36:_EXTENSION_HEAD]):
        if portion[:32].decode("ascii", "replace").upper() != guid.upper():
            continue
        length, offset = (int.from_bytes(portion[at : at + 4], "big") for at in (32, 36))
        if offset != len(whole):
            raise ValueError(f"what follows byte {len(whole)} is missing")
        whole += portion[_EXTENSION_HEAD:]
        missing = length - len(whole)
    if missing != 0:
        raise ValueError(f"{'all' if missing is None else missing} bytes are missing")
    return whole


def _merge(xmp: bytes, extension: bytes) -> bytes:
    """Put the properties of one packet into another, whose note of the first is removed."""
    packets = xmp, extension
    for packet in packets:
        _parse(packet)  # refuses a DTD, of which entities could be
    document, more = (minidom.parseString(packet.strip(_XMP_PADDING)) for packet in packets)
    target = document.getElementsByTagNameNS(_RDF, "RDF")[0]
    for description in document.getElementsByTagNameNS(_RDF, "Description"):
        if description.hasAttributeNS(_NOTE, "HasExtendedXMP"):
            description.removeAttributeNS(_NOTE, "HasExtendedXMP")
        for note in description.getElementsByTagNameNS(_NOTE, "HasExtendedXMP"):
            description.removeChild(note)
    for description in more.getElementsByTagNameNS(_RDF, "Description"):
        above: Any = description.parentNode
        if (above.namespaceURI, above.localName) != (_RDF, "RDF"):
            continue
        while above.nodeType == minidom.Node.ELEMENT_NODE:
            for name, value in above.attributes.items():  # prefixes that are declared further out
                if name.startswith("xmlns") and not description.hasAttribute(name):
                    description.setAttribute(name, value)
            above = above.parentNode
        target.appendChild(document.importNode(description, True))
    return "".join(node.toxml() for node in document.childNodes).encode()


def _read_xmp_property(xmp: bytes, namespace: str, name: str) -> str | None:
    """Return a simple property of the picture itself; raises expat.ExpatError and ValueError.

    It may be an attribute or an element of a description, under any prefixes.
    """
    wanted, description = f"{namespace} {name}", [f"{_RDF} RDF", f"{_RDF} Description"]
    path: list[str] = []
    found: list[str] = []

    def start(tag: str, attributes: dict[str, str]) -> None:
        path.append(tag)
        if path[-2:] == description and wanted in attributes:
            found.append(attributes[wanted])

    def text(content: str) -> None:
        if path[-3:] == [*description, wanted]:
            found.append(content)

    def end(tag: str) -> None:
        path.pop()

    _parse(xmp, start, text, end)
    return "".join(found).strip() or None


def _parse(xmp: bytes, start: Any = None, text: Any = None, end: Any = None) -> None:
    """Parse XML, names as "namespace name"; raises expat.ExpatError, and ValueError for a DTD."""
    parser = expat.ParserCreate(namespace_separator=" ")
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = text, _refuse_dtd
    parser.Parse(xmp.strip(_XMP_PADDING), True)


def _refuse_dtd(*declared: object) -> None:
    raise ValueError("it has a DTD")


def _raw_profile(image: ImageFile.ImageFile, kind: str) -> bytes | None:
    """Return metadata as ImageMagick put them into PNG files before PNG had chunks for them."""
    text = image.info.get(f"Raw profile type {kind}")
    try:
        _, _, length, *digits = text.split("\n") if text else ("", "", "0")
        return bytes.fromhex("".join(digits)[: 2 * int(length)]) or None
    except (AttributeError, ValueError):
        return None


def parse_exif(exif: bytes | None) -> Image.Exif | None:
    """Return the tags of EXIF, None if none can be read."""
    tags = Image.Exif()
    try:
        tags.load(exif or b"")
        return tags if len(tags) else None
    except Exception:  # Pillow lets out whatever its parsers stumble over
        return None


def rewritable(exif: bytes | None) -> bool:
    """Whether Pillow can take EXIF apart and put it together again."""
    tags = parse_exif(exif)
    try:
        return tags is not None and bool(tags.tobytes() and _describing(tags).tobytes())
    except Exception:  # values that are not of their type
        return False


def tiff_tags(exif: bytes | None, xmp: bytes | None) -> bytes:
    """Return EXIF (which must be `rewritable`) and XMP as tags for a TIFF file."""
    tags = _describing(parse_exif(exif) or Image.Exif())
    if xmp:
        tags[_XMP_TAG] = xmp
    return tags.tobytes()


def _describing(tags: Image.Exif) -> Image.Exif:
    """Return the tags that describe the picture, without those on how a TIFF file stores it."""
    out = Image.Exif()
    for tag in _TIFF_TAGS:
        if tag in tags:
            out[tag] = tags[tag]
    for directory in _DIRECTORIES:
        if directory in tags and (inner := tags.get_ifd(directory)):
            out[directory] = dict(inner)
    return out


def orientation(exif: bytes | None, xmp: bytes | None) -> int:
    """Return the orientation, 1 to 8, that EXIF or else XMP states; 1 if neither does."""
    tags = parse_exif(exif)
    found = tags.get(ExifTags.Base.Orientation) if tags else None
    if found is None and xmp:
        try:
            found = int(_read_xmp_property(xmp, _TIFF, "Orientation") or 1)
        except (expat.ExpatError, ValueError):  # broken metadata is no obstacle to any viewer
            return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def strip(picture: Picture) -> Picture:
    """Drop metadata without changing how the picture looks.

    The picture is turned upright, and keeps a colour profile only if its colours are not sRGB.
    """
    icc = picture.icc if picture.icc and not means_srgb(picture.icc) else None
    upright = picture.turned(orientation(picture.exif, picture.xmp))
    return replace(upright, icc=icc, exif=None, xmp=None)
