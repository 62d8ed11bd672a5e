"""The man page generator: `python -m avtool.manpages [DIRECTORY]` writes one page a command, from the same definitions
that the parser and --help use. Pages are dated from the changelog, so equal sources give equal pages."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from typer.main import get_command

from .__main__ import build_app
from .artifacts.files import atomic_write
from .errors import AvtoolError

_ROOT = Path(__file__).resolve().parents[1]
_RELEASE = re.compile(r"^## (\d+\.\d+\.\d+) \((\d{4}-\d{2}-\d{2})\)", re.MULTILINE)
# "-o, --output FILE", "--on / --off" and "DRIVER <path>": the names, then how the value is spelled.
_LABEL = re.compile(r"(-\S+(?:(?:, | / )-\S+)*|\S+)\s*(.*)")
_EXIT_STATUS = (
    ("0", "The work is done."),
    ("1", "It failed while working; one line on standard error says why and what to do next."),
    ("2", "The command line was not understood."),
    ("130", "Interrupted with Ctrl-C; files that were already saved are complete."),
)


def latest_release(changelog: str) -> tuple[str, str]:
    """Version and date of the changelog's newest entry."""
    match = _RELEASE.search(changelog)
    if match is None:
        raise AvtoolError("CHANGELOG.md: expected a heading like '## 0.1.0 (2026-01-31)'", "add one for this release")
    return match.group(1), match.group(2)


def _escape(text: str) -> str:
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return re.sub(r"^([.'])", r"\\&\1", text, flags=re.MULTILINE)


def _paragraphs(help_text: str) -> tuple[list[str], list[str]]:
    """Description paragraphs and the command lines of "Example:" paragraphs."""
    description, examples = [], []
    for block in re.split(r"\n\s*\n", help_text.replace("\b", "").strip()):
        text = block.strip()
        match = re.match(r"Examples?:\s*", text)
        if match:
            examples += [line.strip() for line in text[match.end() :].splitlines() if line.strip()]
        else:
            description.append(" ".join(text.split()))
    return description, examples


def _option(parameter: Any, context: Any) -> list[str]:
    """One option or argument as a .TP block; names and values as --help shows them."""
    record = parameter.get_help_record(context) or (parameter.name, "")
    names, value = _LABEL.fullmatch(record[0].strip()).groups()
    label = f"\\fB{_escape(names)}\\fR" + (f" \\fI{_escape(value)}\\fR" if value else "")
    return [".TP", label, _escape(" ".join(record[1].split())) or "\\&"]


def command_page(name: str, command: Any, context: Any, version: str, date: str) -> str:
    """The page of one command, or of the program when ``command`` has subcommands."""
    title = name.replace(" ", "-")
    description, examples = _paragraphs(command.help or "")
    summary = description[0].rstrip(".") if description else name
    lines = [
        f'.TH "{title.upper()}" "1" "{date}" "avtool {version}" "avtool manual"',
        ".SH NAME", f"{_escape(title)} \\- {_escape(summary)}",
        ".SH SYNOPSIS", f".B {_escape(name)}", _escape(" ".join(command.collect_usage_pieces(context))),
    ]  # fmt: skip
    if description:
        lines.append(".SH DESCRIPTION")
        for text in description:
            lines += [".PP", _escape(text)]
    arguments = [p for p in command.get_params(context) if p.param_type_name == "argument"]
    options = [p for p in command.get_params(context) if p.param_type_name == "option" and not p.hidden]
    for heading, parameters in (("ARGUMENTS", arguments), ("OPTIONS", options)):
        if parameters:
            lines.append(f".SH {heading}")
        for parameter in parameters:
            lines += _option(parameter, context)
    children = getattr(command, "commands", {})
    if children:
        lines.append(".SH COMMANDS")
        for child_name, child in children.items():
            child_summary = _paragraphs(child.help or "")[0][:1]
            lines += [".TP", f"\\fB{_escape(child_name)}\\fR", _escape("".join(child_summary)) or "\\&"]
    lines.append(".SH EXIT STATUS")
    for code, meaning in _EXIT_STATUS:
        lines += [".TP", f"\\fB{code}\\fR", _escape(meaning)]
    if examples:
        lines += [".SH EXAMPLES", ".nf", *(_escape(line) for line in examples), ".fi"]
    related = [f"avtool-{child}" for child in children] or ["avtool"]
    lines += [".SH SEE ALSO", ", ".join(f"\\fB{_escape(page)}\\fR(1)" for page in related) + ", \\fBavtool\\-formats\\fR(7)"]
    return "\n".join(lines) + "\n"


def pages(changelog: str) -> dict[str, str]:
    """File name to text of every page."""
    version, date = latest_release(changelog)
    root = get_command(build_app())
    with root.make_context("avtool", [], resilient_parsing=True) as context:
        texts = {"avtool.1": command_page("avtool", root, context, version, date)}
        for name, command in root.commands.items():
            with command.make_context(f"avtool {name}", [], parent=None, resilient_parsing=True) as child:
                texts[f"avtool-{name}.1"] = command_page(f"avtool {name}", command, child, version, date)
    return texts


def main(args: list[str]) -> None:
    """Writes all pages into the directory given, or into man/."""
    directory = Path(args[0]) if args else _ROOT / "man"
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in pages((_ROOT / "CHANGELOG.md").read_text(encoding="utf-8")).items():
        with atomic_write(directory / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
        sys.stderr.write(f"{directory / name}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
