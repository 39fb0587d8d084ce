# SPDX-License-Identifier: Apache-2.0
"""The codecs that ours is compared with, each through its own bytes."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lvqcodec import metrics
from lvqcodec.cli import main
from lvqcodec.errors import UsageError
from lvqcodec.evaluation.codecs import PEERS, Peer, find_peers


@pytest.fixture(params=PEERS)
def peer(request: pytest.FixtureRequest) -> Peer:
    found = PEERS[request.param]
    if found.plugin:
        pytest.importorskip(found.plugin)
    found.prepare()
    return found


def test_more_quality_is_more_bytes_and_a_nearer_picture(
    peer: Peer, photograph: Callable[..., Any]
) -> None:
    picture = photograph(72, 104)
    ladder = [peer.encode(picture, quality) for quality in peer.qualities]
    assert sorted(map(len, ladder)) == list(map(len, ladder))
    first, last = (peer.decode(data, grey=False) for data in (ladder[0], ladder[-1]))
    assert metrics.psnr(picture, last) > max(33, metrics.psnr(picture, first) + 5)


def test_greyscale_comes_back_as_greyscale(peer: Peer, photograph: Callable[..., Any]) -> None:
    picture = photograph(40, 56, channels=1)
    back = peer.decode(peer.encode(picture, peer.qualities[-1]), grey=True)
    assert metrics.psnr(picture, back) > 30


def test_chroma_is_whole_where_the_format_has_it(peer: Peer) -> None:
    """Columns of red and blue, a pixel each: halved chroma would mix them."""
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[:, ::2, 0] = picture[:, 1::2, 2] = 200
    back = peer.decode(peer.encode(picture, peer.qualities[-1]), grey=False).astype(int)
    kept = (back[:, ::2, 0] - back[:, 1::2, 0]).mean()
    assert kept < 100 if peer.name == "webp" else kept > 150


def test_facts_are_plain_and_name_the_settings(peer: Peer) -> None:
    facts = json.loads(json.dumps(peer.facts()))
    assert facts["settings"] == peer.settings
    assert facts["qualities"] == list(peer.qualities)
    assert 6 <= len(peer.qualities) <= 8
    assert list(peer.qualities) == sorted(set(peer.qualities))
    assert pickle.loads(pickle.dumps(peer)) == peer


def test_find_peers_keeps_order_and_names_what_exists() -> None:
    assert [peer.name for peer in find_peers(["webp", "jpeg", "webp"])] == ["webp", "jpeg"]
    with pytest.raises(UsageError, match="no codec 'vvc': choose among jpeg, webp"):
        find_peers(["jpeg", "vvc"])


def test_a_missing_package_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_jxl", None)
    with pytest.raises(UsageError, match=r"jxl needs .*lvqcodec\[bench\]") as caught:
        find_peers(["jxl"])
    assert "\n" not in str(caught.value)


def test_a_pillow_without_the_codec_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="built without odd"):
        Peer("odd", "ODD", ".odd", (1,)).prepare()


def test_a_picture_that_a_codec_cannot_hold_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match=r"webp cannot code a picture of 16384x1 "):
        PEERS["webp"].encode(np.zeros((1, 16384), np.uint8), 50)


def test_the_help_of_eval_names_them_all() -> None:
    (option,) = (p for p in main.commands["eval"].params if p.name == "codecs")
    assert f"some of {', '.join(PEERS)}." in option.help  # type: ignore[attr-defined]
