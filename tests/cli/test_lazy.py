"""A group names its commands without importing them, and leaves out what is not installed."""

from __future__ import annotations

import subprocess
import sys

from click.testing import CliRunner

from eucaim_fl.cli.lazy import LazyGroup

GROUP = LazyGroup(
    "example",
    table={
        "first": ("eucaim_fl.cli.runs", "Do the first thing."),
        "second": ("eucaim_fl.cli.site_approve:refuse", "Do the second thing."),
        "third": ("eucaim_fl.cli.there_is_no_such_module", "Do what is not there."),
    },
)


class TestLazyGroup:
    def test_help_lists_what_is_installed(self):
        output = CliRunner().invoke(GROUP, ["--help"]).output
        assert "first   Do the first thing." in output
        assert "third" not in output

    def test_a_command_is_found_in_its_module(self):
        from eucaim_fl.cli import runs, site_approve

        assert GROUP.get_command(None, "first") is runs.command  # type: ignore[arg-type]
        assert GROUP.get_command(None, "second") is site_approve.refuse  # type: ignore[arg-type]

    def test_an_unknown_name_is_the_usual_error(self):
        result = CliRunner().invoke(GROUP, ["third"])
        assert (result.exit_code, "No such command 'third'" in result.output) == (2, True)

    def test_help_of_the_program_imports_no_command(self):
        code = (
            "import sys\nfrom eucaim_fl.cli import cli\ncli(['site', '--help'], standalone_mode=False)\n"
            "print(sorted(name for name in sys.modules if name.startswith('eucaim_fl.cli.')))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "['eucaim_fl.cli.lazy', 'eucaim_fl.cli.site']"
