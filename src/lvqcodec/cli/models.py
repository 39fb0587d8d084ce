# SPDX-License-Identifier: Apache-2.0
"""`lvq models`: which models are installed."""

from __future__ import annotations

import json
from typing import Any

import click

from lvqcodec.catalog import DEFAULT_MODEL, ModelCard, broken_models, list_models
from lvqcodec.errors import printable


@click.command()
@click.option("--json", "as_json", is_flag=True, help="A JSON list with everything the cards say.")
def models(as_json: bool) -> None:
    """List the installed models; `*` marks the default. Cards that are broken are named last."""
    cards, broken = list_models(), broken_models()
    if as_json:
        facts = [_card_facts(card) for card in cards]
        facts += [{"name": name, "error": str(error)} for name, error in broken.items()]
        click.echo(json.dumps(facts, indent=1, default=str))
        return
    if not cards and not broken:
        click.echo("no models installed: set LVQ_MODEL_PATH to a folder of them", err=True)
    widest = max(map(len, [*(card.name for card in cards), *broken]), default=0)
    for card in cards:
        mark = "*" if card.name == DEFAULT_MODEL else " "
        missing = [path.name for path in card.paths if not path.is_file()]
        note = f"  (lacks {', '.join(missing)})" if missing else ""
        click.echo(f"{mark} {card.name:<{widest}}  {card.digest[:8]}  {card.description}{note}")
    for name, error in broken.items():
        click.echo(f"  {printable(name):<{widest}}  broken    {error}")


def _card_facts(card: ModelCard) -> dict[str, Any]:
    paths = [str(path) for path in card.paths]
    return {**card.raw, "paths": paths, "default": card.name == DEFAULT_MODEL}
