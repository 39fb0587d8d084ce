# SPDX-License-Identifier: Apache-2.0
"""The pages and the tools agree: commands, options, targets, exit codes, names, versions.

The pages are README.md, what stands beside it and docs/; histories of measurements in docs/results
quote commands and options of their time, so of these only examples and links are held.
"""

from __future__ import annotations

import ast
import re
import shlex
import tomllib
from pathlib import Path

import click
import pytest

import lvqcodec
from lvqcodec import errors
from lvqcodec.cli import main
from lvqcodec.model.entropy import ENTROPY_MODELS
from lvqcodec.model.lattices import LATTICES
from lvqcodec.model.transforms import TRANSFORMS

ROOT = Path(__file__).parents[2]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
}
README = PAGES["README.md"]
HISTORIES = {
    name
    for name in PAGES
    if name == "CHANGELOG.md" or (name.startswith("docs/results/") and "README" not in name)
}
MANUAL = "\n".join(text for name, text in PAGES.items() if name not in HISTORIES)
EXTENDING = "docs/extending.md"
"""Its examples in Python build on each other: test_extending.py runs them in their order."""

MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def fenced(language: str, *names: str) -> list[str]:
    """Every block of a language, of all pages or of those named."""
    text = "\n".join(PAGES[name] for name in names or PAGES)
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def shell_commands(*names: str) -> list[list[str]]:
    """Every simple command of the shell blocks: pipes taken apart, no redirections."""
    commands: list[list[str]] = []
    for line in "\n".join(fenced("sh", *names)).replace("\\\n", " ").splitlines():
        words = shlex.shlex(line, posix=True, punctuation_chars=True)
        words.whitespace_split = True
        commands.append([])
        skip = False
        for word in words:
            if set(word) <= set("|&;"):
                commands.append([])
            elif set(word) <= set("<>"):
                skip = True
            elif skip:
                skip = False
            else:
                commands[-1].append(word)
    return [command for command in commands if command]


LVQ_LINES = [command[1:] for command in shell_commands() if command[0] == "lvq"]
TARGETS = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))


def long_options(command: click.Command) -> list[str]:
    return [o for p in command.params for o in p.opts if o.startswith("--") and o != "--help"]


def section(name: str) -> str:
    """What docs/cli.md says of a command."""
    page = PAGES["docs/cli.md"]
    found = re.search(rf"^## lvq {name}\n(.*?)(?=^## )", page, re.DOTALL | re.MULTILINE)
    assert found, f"docs/cli.md has no section on lvq {name}"
    return found[1]


def parse(name: str, arguments: list[str]) -> None:
    # below `lvq`, whose help options the command remembers from its first context on
    parent = click.Context(main, **main.context_settings)
    main.commands[name].make_context(name, list(arguments), parent=parent)


@pytest.mark.parametrize("words", LVQ_LINES, ids=" ".join)
def test_every_lvq_line_of_the_pages_parses(words: list[str]) -> None:
    name, *arguments = words
    assert name in main.commands, name
    parse(name, arguments)


def test_a_wrong_option_would_be_noticed() -> None:
    with pytest.raises(click.NoSuchOption):
        parse("encode", ["in.png", "--no-such-option"])


@pytest.mark.parametrize("name", main.commands)
def test_every_command_has_an_example_help_and_its_options_in_the_manual(name: str) -> None:
    assert any(words[0] == name for words in LVQ_LINES)
    assert main.commands[name].help
    text = section(name)
    assert re.search(rf"^(.* \| )?lvq {name}\b", text, re.MULTILINE)
    for option in long_options(main.commands[name]):
        shared = option in ("--model", "--device", "--threads") and name != "encode"
        assert option in text or (shared and option in section("encode")), option
    for parameter in main.commands[name].params:
        assert not isinstance(parameter, click.Option) or parameter.help, parameter.name


def test_every_option_that_the_manual_mentions_exists() -> None:
    commands = [main, *main.commands.values()]
    known = {option for command in commands for option in long_options(command)}
    # of every command, of mypy, of pip, of torchrun, of bench/ablate.py
    elsewhere = {"--help", "--strict", "--index-url", "--nproc-per-node", "--steps", "--val"}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", MANUAL)) <= known | elsewhere


def test_every_make_target_of_the_manual_exists() -> None:
    mentioned = set()
    for command in shell_commands():
        if command[0] == "make":
            mentioned |= {word for word in command[1:] if "=" not in word}
    mentioned |= set(re.findall(r"`make ([a-z-]+)`", MANUAL))
    assert {"run", "test", "lint", "types", "bench", "train", "wheel-smoke"} <= mentioned
    assert mentioned <= TARGETS


def test_the_readme_says_how_to_install_and_to_test() -> None:
    commands = shell_commands("README.md")
    for words in (["pip", "install", "."], ["make", "run"], ["make", "test"]):
        assert words in [command[: len(words)] for command in commands]
    assert "`make install`" in README
    assert len(README.encode()) < 10_000, "README.md is the front page; the rest goes to docs/"


def test_make_help_lists_every_target() -> None:
    described = set(re.findall(r"^([a-z-]+):.*## \S", MAKEFILE, re.MULTILINE))
    assert TARGETS - described == {"need-data"}


@pytest.mark.parametrize(
    "tool", sorted(set(re.findall(r"(?:bench|recipes|\.ci)/[\w./-]+\w", MAKEFILE + MANUAL)))
)
def test_every_file_that_the_makefile_and_manual_name_exists(tool: str) -> None:
    assert (ROOT / tool).is_file()


def test_ci_runs_what_the_readme_says() -> None:
    loop = re.search(r"for target in (.+); do", (ROOT / ".ci/run").read_text(encoding="utf-8"))
    assert loop
    assert loop[1].split() == ["install", "lint", "types", "test", "wheel-smoke", "lowest"]


def test_exit_codes_of_the_manual_are_those_of_the_errors() -> None:
    table = PAGES["docs/cli.md"].partition("## Exit codes")[2].partition("##")[0]
    told = {int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)}
    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    assert told == {0, 130, 143} | {value.exit_code for value in classes}


def test_python_of_the_pages_compiles_and_uses_public_names() -> None:
    blocks = fenced("python")
    assert blocks
    used = set()
    for block in blocks:
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                used |= {node.attr} if node.value.id == "lvqcodec" else set()
    assert used == set(lvqcodec.__all__) - {"__version__"}
    assert "lvqcodec.LvqError" in PAGES["docs/python.md"]


@pytest.mark.parametrize(
    ("axis", "choices"),
    [("transform", TRANSFORMS), ("lattice", LATTICES), ("entropy model", ENTROPY_MODELS)],
)
def test_the_architecture_names_every_choice_of_an_axis(axis: str, choices: list[str]) -> None:
    rows = re.findall(rf"^\| {axis} \| (.*?) \|", PAGES["docs/architecture.md"], re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`([\w-]+)`", row)} == set(choices)


def test_extras_of_the_pages_exist() -> None:
    extras = set(PROJECT["project"]["optional-dependencies"])
    told = set(re.findall(r"(?:\.|lvqcodec)\[(\w+)\]", MANUAL + MAKEFILE))
    assert "formats" in told
    assert told <= extras


def test_the_changelog_begins_with_this_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## \[([^\]]+)\]", changelog, re.MULTILINE)
    assert versions[0] in ("Unreleased", lvqcodec.__version__)
    assert lvqcodec.__version__ in versions
