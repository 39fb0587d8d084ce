# SPDX-License-Identifier: Apache-2.0
"""Every relative link of the pages leads to a file, and every #anchor to a heading of its page."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

import pytest
from test_docs import PAGES, ROOT

CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def links(text: str) -> list[str]:
    """Targets of all links; what is code has none."""
    return LINK.findall(CODE.sub("code", text))


def anchor(heading: str) -> str:
    """The anchor that a heading gets where pages are shown: words in lower case, with hyphens."""
    heading = LINK.sub(lambda link: link[0][1:].partition("]")[0], heading).replace("`", "")
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def anchors(text: str) -> set[str]:
    headings = HEADING.findall(re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))
    found = [anchor(heading) for heading in headings]
    before = [found[:place].count(name) for place, name in enumerate(found)]
    return {f"{name}-{n}" if n else name for name, n in zip(found, before, strict=True)}


def fault(name: str, link: str) -> str | None:
    """What is wrong with a link of the page `name`, if anything is."""
    if re.match(r"[a-z]+:", link):
        return None if re.match(r"https://[\w.-]+\.\w+/?\S*$|https://doi\.org/10\.", link) else link
    path, _, fragment = link.partition("#")
    target = (ROOT / PurePosixPath(name).parent / path).resolve() if path else ROOT / name
    if ROOT not in target.parents or not target.exists():
        return f"{link} leads nowhere"
    page = target.relative_to(ROOT).as_posix()
    if fragment and fragment not in anchors(PAGES.get(page, "")):
        return f"{page} has no heading #{fragment}"
    return None


@pytest.mark.parametrize("name", PAGES)
def test_every_link_leads_somewhere(name: str) -> None:
    faults = [found for link in links(PAGES[name]) if (found := fault(name, link))]
    assert not faults


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, ahead = set(), ["README.md"]
    while ahead:
        name = ahead.pop()
        if name in PAGES and name not in reached:
            reached.add(name)
            folder = ROOT / PurePosixPath(name).parent
            local = [link.partition("#")[0] for link in links(PAGES[name]) if ":" not in link]
            ahead += [
                (folder / link).resolve().relative_to(ROOT).as_posix() for link in local if link
            ]
    assert reached == set(PAGES)


@pytest.mark.parametrize(
    "link", ["no.md", "docs/cli.md#no-such-heading", "../outside.md", "http://plain.example", "#no"]
)
def test_a_wrong_link_would_be_noticed(link: str) -> None:
    assert fault("README.md", link)


def test_anchors_are_those_of_the_headings() -> None:
    text = "# A `b` of [c](d.md): e?\n```\n# no heading\n```\n## lvq encode\n## lvq encode\n"
    assert anchors(text) == {"a-b-of-c-e", "lvq-encode", "lvq-encode-1"}
