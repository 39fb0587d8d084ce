# SPDX-License-Identifier: Apache-2.0
"""CITATION.cff says what the package is, in the terms of CFF 1.2.0."""

from __future__ import annotations

import re

from test_docs import PROJECT, ROOT

import lvqcodec

TEXT = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
FIELDS = dict(re.findall(r'^([a-z-]+): *"?(.*?)"?$', TEXT, re.MULTILINE))


def test_it_is_of_the_version_and_the_licence_of_the_package() -> None:
    assert FIELDS["version"] == lvqcodec.__version__
    assert FIELDS["license"] == PROJECT["project"]["license"]
    assert FIELDS["title"].partition(":")[0] == PROJECT["project"]["name"]


def test_it_has_every_required_field_and_no_unknown_one() -> None:
    required = {"cff-version", "message", "title", "authors"}
    assert required <= set(FIELDS)
    assert set(FIELDS) <= required | {"type", "version", "license", "keywords"}
    assert (FIELDS["cff-version"], FIELDS["type"]) == ("1.2.0", "software")
    assert re.search(r"^authors:\n  - name: \S", TEXT, re.MULTILINE)
