# SPDX-License-Identifier: Apache-2.0
"""Which well-known format the first bytes of a file are of."""

# (offset, bytes, name): what is handed in by mistake, to name it in the message
_LOOKS_LIKE = (
    (0, b"\x89PNG", "PNG"),
    (0, b"\xff\xd8\xff", "JPEG"),
    (8, b"WEBP", "WebP"),
    (0, b"GIF8", "GIF"),
    (8, b"CR\x02", "camera raw"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (0, b"II+\0", "TIFF"),
    (0, b"MM\0+", "TIFF"),
    (4, b"ftypavi", "AVIF"),
    (4, b"ftyphe", "HEIC"),
    (4, b"ftypmif1", "HEIC"),
    (4, b"ftypcrx ", "camera raw"),
    (4, b"ftyp", "a video"),
    (4, b"JXL ", "JPEG XL"),
    (0, b"\xff\x0a", "JPEG XL"),
    (4, b"jP  ", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"II\xbc", "JPEG XR"),
    (0, b"BM", "BMP"),
    (0, b"P7 332", "an XV thumbnail"),
    (0, b"P7", "PAM"),
    (0, b"PF", "PFM"),
    (0, b"Pf", "PFM"),
    (0, b"P5", "PGM"),
    (0, b"P6", "PPM"),
    (0, b"qoif", "QOI"),
    (0, b"8BPS", "Photoshop"),
    (0, b"\0\0\1\0", "ICO"),
    (0, b"\0\0\2\0", "CUR"),
    (0, b"icns", "ICNS"),
    (0, b"\x76\x2f\x31\x01", "OpenEXR"),
    (0, b"#?RADIANCE", "Radiance HDR"),
    (0, b"#?RGBE", "Radiance HDR"),
    (0, b"DDS ", "DDS"),
    (0, b"SIMPLE  =", "FITS"),
    (0, b"FLIF", "FLIF"),
    (0, b"BPG\xfb", "BPG"),
    (0, b"FUJIFILMCCD-RAW", "camera raw"),
    (0, b"IIRO", "camera raw"),
    (0, b"IIU\0", "camera raw"),
    (0, b"FOVb", "camera raw"),
    (0, b"<svg", "SVG"),
    (0, b"<?xml", "XML or SVG"),
    (0, b"%!PS", "PostScript"),
    (0, b"%PDF", "PDF"),
    (0, b"PK\x03\x04", "zip"),
    (0, b"\x1f\x8b", "gzip"),
)


_TARGA_KINDS = (1, 2, 3, 9, 10, 11)


_TARGA_DEPTHS = (8, 15, 16, 24, 32)


def looks_like(data: bytes) -> str | None:
    """Return the name of the well-known format that the first bytes are of, if any."""
    for offset, signature, name in _LOOKS_LIKE:
        if data[offset : offset + len(signature)] == signature:
            return name
    # Targa has no signature, but a header of few possible values
    targa = len(data) >= 18 and data[1] < 2 and data[2] in _TARGA_KINDS
    targa = targa and data[16] in _TARGA_DEPTHS and not data[17] & 0xC0
    return "Targa" if targa and any(data[12:14]) and any(data[14:16]) else None
