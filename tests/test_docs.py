"""The README, the manual and the packaging say what is true."""

from __future__ import annotations

import fnmatch
import re
import shlex
import tomllib
from pathlib import Path

import pytest
from typer.main import get_command

from avtool.__main__ import COMMANDS, build_app


@pytest.fixture(scope="module")
def readme(repository: Path) -> str:
    return (repository / "README.md").read_text(encoding="utf-8")


def invocations(text: str) -> list[list[str]]:
    """Every `avtool ...` in code spans and indented code, as words."""
    spans = re.findall(r"`(avtool [^`]+)`", text.replace("\n", " ")) + re.findall(r"^    (avtool .*)$", text, re.MULTILINE)
    return [shlex.split(span) for span in spans if "COMMAND" not in span]


def test_the_first_two_commands_are_the_demo_and_the_tests(readme: str, repository: Path) -> None:
    blocks = re.findall(r"^    (\S.*)$", readme, re.MULTILINE)
    assert blocks[:2] == ["sh examples/quickstart.sh", "sh examples/run_tests.sh"]
    for block in blocks[:2]:
        assert (repository / block.split()[1]).is_file()
    assert "sh examples/run_tests.sh" in (repository / ".ci" / "run").read_text()


def test_every_command_that_is_shown_parses(readme: str) -> None:
    shown = invocations(readme)
    assert {words[1] for words in shown} == set(COMMANDS)
    commands = get_command(build_app()).commands
    for words in shown:
        context = commands[words[1]].make_context(" ".join(words[:2]), words[2:])
        context.close()


def test_every_link_leads_somewhere(readme: str, repository: Path) -> None:
    links = [target for target in re.findall(r"\]\(([^)]+)\)", readme) if "://" not in target]
    assert links
    for target in links:
        assert (repository / target).exists(), target


def test_every_shipped_data_file_is_packaged_and_its_licence_told(readme: str, repository: Path) -> None:
    package = repository / "avtool"
    globs = tomllib.loads((repository / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["*"]
    data = [p for p in package.rglob("data/*") if p.is_file() and "__pycache__" not in p.parts]
    assert len(data) > 8
    for path in data:
        assert any(fnmatch.fnmatch(path.name, glob) for glob in globs), f"{path} is not in the package"
        if path.suffix not in (".safetensors", ".tflite"):
            continue
        name = path.relative_to(package).as_posix()
        told = name in readme or f"{path.parent.relative_to(package).as_posix()}/*{path.suffix}" in readme
        assert told, f"README's licence table does not name {name}"


@pytest.mark.parametrize("room", ["prior", "portrait"])
def test_the_defaults_are_shipped_and_small_enough(room: str, repository: Path) -> None:
    size = (repository / "avtool" / room / "data" / "default.safetensors").stat().st_size
    assert 0 < size <= 20e6


def test_the_head_is_small_enough(repository: Path) -> None:
    assert (repository / "avtool" / "head" / "data" / "anny_head.safetensors").stat().st_size <= 6e6


def test_the_rooms_of_the_readme_exist(readme: str, repository: Path) -> None:
    for room in ("head", "gaussians", "render", "artifacts", "capture", "tracking", "prior", "portrait", "synth", "commands"):
        assert f"`{room}/`" in readme or f"`avtool/{room}/`" in readme
        assert (repository / "avtool" / room / "__init__.py").is_file()


def test_every_schema_is_in_the_manual(repository: Path) -> None:
    manual = (repository / "man" / "avtool-formats.7").read_text(encoding="utf-8")
    source = "\n".join(p.read_text(encoding="utf-8") for p in (repository / "avtool").rglob("*.py"))
    schemas = set(re.findall(r'"((?:track|points|prior|avatar|portrait|checkpoint|metrics)/\d)"', source)) | {"track/1", "track-frames/1"}
    for schema in schemas:
        assert schema.replace("-", "\\-") in manual or schema in manual, schema
