"""The command line: `homoalign VERB`. A verb's module is imported when the verb is called, not before."""

from __future__ import annotations

import importlib
import signal
import sys
from typing import Any

import click

from jobs.interrupt import EXIT_CODE, handled_by, leave_at_once, sigterm_as_sigint

VERBS = {
    "demo": ("jobs.demo", "Make a small manifest of real photographs, run the job on it, evaluate and report."),
    "align": ("jobs.commands.align", "Align one pair of images, without Ray."),
    "run": ("jobs.commands.run", "Align every pair of a manifest; continues an interrupted run by itself."),
    "plan": ("jobs.commands.plan", "Check a manifest and say what a run would do; writes nothing."),
    "status": ("jobs.commands.status", "Say how far a run is, from its files alone."),
    "evaluate": ("jobs.commands.evaluate", "Measure a run's accuracy against the truth columns."),
    "bench": ("jobs.bench", "Run one of the project's benchmarks, peers side by side."),
    "report": ("jobs.reports.report", "Write one HTML page a person reads."),
}
"""Each verb's module, which holds `VERB_command`, and what it does."""


class VerbGroup(click.Group):
    """Imports a verb when it is called or helped, and ends with one line and the exit code of what went wrong."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002, click's signature
        """Return the verbs."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002, click's signature
        """Import a verb."""
        if cmd_name not in VERBS:
            return None
        with handled_by(leave_at_once):
            module = importlib.import_module(VERBS[cmd_name][0])
        command: click.Command = getattr(module, f"{cmd_name}_command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """List the verbs without importing them."""
        with formatter.section("Verbs"):
            formatter.write_dl([(name, text) for name, (_, text) in VERBS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb."""
        try:
            with sigterm_as_sigint(), handled_by(signal.default_int_handler):
                return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("homoalign: interrupted", err=True)
            sys.exit(EXIT_CODE)
        except Exception as error:
            from homoalign.errors import HomoalignError  # brings torch, which `--help` does not need

            if not isinstance(error, HomoalignError):
                raise
            from jobs.storage.errors import redact

            click.echo(f"homoalign: {redact(' '.join(str(error).split()))}", err=True)
            sys.exit(getattr(error, "exit_code", 1))


@click.group(cls=VerbGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="homoalign")
def main() -> None:
    """Align image pairs by homography optimisation, one pair or a manifest of millions.

    \b
    Example:
      homoalign run pairs.parquet out && homoalign evaluate out

    \b
    Exit codes: 0 every row has its result, whatever its status; 2 usage; 3 manifest or OUT; 4 error rate;
    5 OUT holds another plan; 6 another run holds the lock; 7 some shards unfinished; 130 interrupted.
    """


if __name__ == "__main__":
    main(prog_name="homoalign")
