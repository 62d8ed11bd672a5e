"""The command line as a whole: help, exit codes, the set of options, the man pages."""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.main import get_command

from avtool import __version__
from avtool.__main__ import COMMANDS, _explain, build_app
from avtool.errors import AvtoolError, FormatError
from avtool.manpages import latest_release, pages

OPTIONS_FILE = Path(__file__).parent / "cli_options.json"
SHARED_BY_ALL = {"--output", "--force", "--seed", "--device", "--quiet", "--verbose", "--json"}


def option_set() -> dict[str, list[str]]:
    """Command to its arguments and options, sorted: the interface that scripts of users rely on."""
    root = get_command(build_app())
    return {
        name: sorted("|".join([*p.opts, *p.secondary_opts]) for p in command.params)
        for name, command in sorted(root.commands.items())
    }


def test_every_command_is_registered() -> None:
    assert set(get_command(build_app()).commands) == set(COMMANDS)


def test_the_options_are_the_frozen_ones() -> None:
    """A change here changes users' scripts: rewrite the file with `python tests/test_cli.py` and say so in CHANGELOG."""
    assert option_set() == json.loads(OPTIONS_FILE.read_text())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_the_common_options_and_an_example(name: str) -> None:
    command = get_command(build_app()).commands[name]
    opts = {opt for parameter in command.params for opt in parameter.opts}
    assert opts >= SHARED_BY_ALL, f"{name} lacks {sorted(SHARED_BY_ALL - opts)}"
    assert re.search(rf"Examples?:\s+avtool {name} ", command.help), f"the help of {name} does not end with an example"
    for parameter in command.params:
        assert parameter.help, f"{name}: {parameter.name} has no help text"


def test_help_is_quick_and_does_not_import_torch() -> None:
    code = "import sys\nfrom avtool.__main__ import main\ntry:\n main(['--help'])\nexcept SystemExit:\n pass\n" + (
        "bad = {'torch', 'numpy', 'numba', 'scipy', 'PIL'} & set(sys.modules)\nassert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    ratios = []
    for _ in range(5):
        seconds = []
        for command in (["-m", "avtool", "--help"], ["-c", "import typer, typer.main, rich.console"]):
            start = time.perf_counter()
            subprocess.run([sys.executable, *command], check=True, capture_output=True)
            seconds.append(time.perf_counter() - start)
        ratios.append(seconds[0] / seconds[1])
    # Against the bare import of typer, about 0.12 s on a quiet machine: seconds alone measure who else uses it.
    assert min(ratios) < 2.5, f"avtool --help took {statistics.median(ratios):.1f} times the import of typer"


def test_version_goes_to_stdout(avtool) -> None:
    done = avtool("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"avtool {__version__}\n", "")


@pytest.mark.parametrize("args", [("--nonsense",), ("nonsense",), ("track", "--device", "tpu", "x.png"), ()])
def test_wrong_usage_is_exit_code_2(avtool, args: tuple[str, ...]) -> None:
    done = avtool(*args)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (AvtoolError("a.png: no face", "use another"), "a.png: no face (use another)"),
        (FormatError("t.json", "fps", "a number", "text"), "t.json: fps: expected a number, found text"),
        (PermissionError(13, "Permission denied", "/x/y"), "/x/y: Permission denied"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (MemoryError(), "out of memory"),
        (ValueError("size must be positive"), "size must be positive"),
        (KeyError("boom"), "rerun with --verbose"),
    ],
)
def test_every_error_becomes_one_line(error: Exception, text: str) -> None:
    line = _explain(error)
    assert text in line
    assert "\n" not in line


def test_an_unexpected_error_shows_its_traceback_only_when_verbose(tmp_path: Path) -> None:
    code = (
        "import sys, avtool.__main__ as m\n"
        "def broken(): raise KeyError('boom')\n"
        "m.build_app = lambda: (lambda args, prog_name: broken())\n"
        "m.main(sys.argv[1:])\n"
    )
    plain = subprocess.run([sys.executable, "-c", code, "track"], capture_output=True, text=True)
    loud = subprocess.run([sys.executable, "-c", code, "track", "-v"], capture_output=True, text=True)
    assert plain.returncode == loud.returncode == 1
    assert "Traceback" not in plain.stderr and len(plain.stderr.splitlines()) == 1
    assert "Traceback" in loud.stderr


def test_the_man_pages_are_the_generated_ones(repository: Path) -> None:
    """Regenerate with `python -m avtool.manpages`."""
    for name, text in pages((repository / "CHANGELOG.md").read_text(encoding="utf-8")).items():
        assert (repository / "man" / name).read_text(encoding="utf-8") == text, f"man/{name} is stale"


def test_the_changelog_leads_with_this_version(repository: Path) -> None:
    version, date = latest_release((repository / "CHANGELOG.md").read_text(encoding="utf-8"))
    assert version == __version__
    assert f'"{date}" "avtool {version}"' in (repository / "man" / "avtool-formats.7").read_text(encoding="utf-8")


def test_a_changelog_without_a_release_is_refused() -> None:
    with pytest.raises(AvtoolError, match="expected a heading"):
        latest_release("# Changelog\n")


if __name__ == "__main__":
    OPTIONS_FILE.write_text(json.dumps(option_set(), indent=1) + "\n")
