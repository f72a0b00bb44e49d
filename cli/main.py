"""`distilldepth`: the command group, and how every failure becomes one line and an exit code."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TextIO

import click

import distilldepth
from distilldepth.cli.options import printable
from distilldepth.errors import DistillDepthError, UsageError, did_you_mean
from distilldepth.signals import Interrupted, raise_on_signals

COMMANDS = {
    "distill": ("distilldepth.cli.distill:distill", "Train a student from teachers on unlabelled images."),
    "label": ("distilldepth.cli.label:label", "Store what teachers say of many images."),
    "evaluate": ("distilldepth.cli.evaluate:evaluate", "Score a model on a benchmark or on your own RGB-D pairs."),
    "predict": ("distilldepth.cli.predict:predict", "Predict depth for images and folders."),
    "complete": ("distilldepth.cli.complete:complete", "Complete depth that is known at some pixels."),
    "bench": ("distilldepth.cli.bench:bench", "Time the fused kernels against plain PyTorch."),
    "list": (
        "distilldepth.cli.list:list_",
        "Show teachers, students, models, datasets, protocols, presets or kernels.",
    ),
    "doctor": ("distilldepth.cli.doctor:doctor", "Show what this machine can run, and why."),
}
"""Command name: (module:attribute, short help). Modules are imported when their command is asked for."""

_LONGEST = 800
"""Characters of a message that repeats what was typed."""

EXPECTED_ERRORS = (DistillDepthError, OSError, ValueError, TypeError)
"""Errors whose message is written for the user; anything else is a fault of the program."""


class LazyGroup(click.Group):
    """A group that imports a command's module only when that command runs or shows its help."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        if cmd_name not in self.commands:
            module, _, attribute = COMMANDS[cmd_name][0].partition(":")
            command = getattr(importlib.import_module(module), attribute)
            if not any("--debug" in parameter.opts for parameter in command.params):
                command.params.append(_debug_option())
            self.commands[cmd_name] = command
        return self.commands[cmd_name]

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in COMMANDS and not ctx.resilient_parsing:
            raise click.UsageError(f"no such command '{args[0]}'{did_you_mean(args[0], COMMANDS)}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, short_help) for name, (_, short_help) in COMMANDS.items()])

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, *_: Any, **extra: Any) -> NoReturn:
        """Run and exit: 0 done, 1 failed, 2 wrong usage, 130 interrupted; a failure is one line on stderr."""
        extra.pop("standalone_mode", None)
        raise_on_signals()
        with _quiet():
            code = self._run(args, prog_name or "distilldepth", extra)
        sys.exit(code)

    def _run(self, args: Sequence[str] | None, prog_name: str, extra: dict[str, Any]) -> int:
        try:
            code = super().main(args, prog_name, standalone_mode=False, **extra)
            sys.stdout.flush()
            return code if isinstance(code, int) else 0
        except BrokenPipeError:
            # The reader is gone (`| head`): nobody is left to tell, and the flush at exit must not complain either.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except (click.Abort, KeyboardInterrupt) as error:
            # click puts its own error around Ctrl-C and its kin.
            cause = error if isinstance(error, Interrupted) else error.__cause__
            if not isinstance(cause, Interrupted):
                cause = Interrupted(signal.SIGINT)
            _error_line("interrupted" if cause.signum == signal.SIGINT else f"ended by {cause}", label="")
            return cause.exit_code
        except click.UsageError as error:
            _error_line(_usage_message(error))
            return 2
        except click.ClickException as error:
            _error_line(error.format_message())
            return error.exit_code
        except UsageError as error:
            _show_trace_if_debugging()
            _error_line(str(error))
            return 2
        except EXPECTED_ERRORS as error:
            _show_trace_if_debugging()
            _error_line(error_message(error))
            return 1
        except MemoryError:
            _show_trace_if_debugging()
            _error_line("not enough memory; use a smaller --size or --batch-size")
            return 1
        except Exception as error:
            _show_trace_if_debugging()
            hint = "" if debugging() else " (this is a fault of the program: run again with --debug to see where)"
            _error_line(f"{type(error).__name__}: {error}{hint}")
            return 1


def debugging() -> bool:
    """Whether `--debug` was given, or `DISTILLDEPTH_DEBUG` is set to something other than 0."""
    return os.environ.get("DISTILLDEPTH_DEBUG", "0") not in ("", "0")


def error_message(error: BaseException) -> str:
    """Return the one line that tells a user what went wrong."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{printable(error.filename)}: {error.strerror}"
    return str(error) or type(error).__name__


def _usage_message(error: click.UsageError) -> str:
    message = error.format_message().rstrip(".")
    if isinstance(error, click.NoSuchOption) and error.ctx is not None:
        # click lists near options only for long ones typed in full; a missing dash or a swapped letter counts here too.
        known = [name for parameter in error.ctx.command.get_params(error.ctx) for name in parameter.opts]
        # Above 0.5, at which -h would be near to -V.
        message = (
            f"no such option {error.option_name}{did_you_mean(error.option_name, known, otherwise='', cutoff=0.6)}"
        )
    if len(message) > _LONGEST:
        message = f"{message[: _LONGEST // 2]} ... {message[-_LONGEST // 4 :]}"
    path = error.ctx.command_path if error.ctx is not None else "distilldepth"
    return f"{message} (see {path} --help)"


def _error_line(message: str, *, label: str = "error: ") -> None:
    click.echo(f"distilldepth: {label}{printable(message)}", err=True)


def _show_trace_if_debugging() -> None:
    if debugging():
        traceback.print_exc()


def _set_debug(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        os.environ["DISTILLDEPTH_DEBUG"] = "1"
        _silence_libraries()


def _debug_option() -> click.Option:
    return click.Option(
        ["--debug"], is_flag=True, is_eager=True, expose_value=False, callback=_set_debug, help="Show the full trace."
    )


def _silence_libraries() -> None:
    """Tell the model libraries, before they are imported, to print no advice unless `--debug` is given."""
    wanted = dict.fromkeys(("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY", "HF_HUB_VERBOSITY"), "error")
    wanted |= {"TRANSFORMERS_NO_ADVISORY_WARNINGS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    for name, value in wanted.items():
        if not debugging():
            os.environ.setdefault(name, value)
        elif name.endswith("VERBOSITY"):
            os.environ[name] = "info"
    if not sys.stderr.isatty():
        # On a terminal the bar of a long download is news; in a log it is noise.
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


@contextmanager
def _quiet() -> Iterator[None]:
    """Show this package's warnings as one line each and drop those of the libraries below it."""
    _silence_libraries()
    package = str(Path(distilldepth.__file__).parent)

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        prominent = any(base.__name__ == "BundledModelWarning" for base in category.__mro__)
        text = printable(message)
        if prominent:
            click.secho(f"WARNING: {text}", fg="yellow", bold=True, err=True)
        elif debugging():
            click.echo(warnings.formatwarning(message, category, filename, lineno, line).rstrip(), err=True)
        elif issubclass(category, UserWarning) and str(filename).startswith(package):
            click.echo(f"distilldepth: warning: {text}", err=True)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    invoke_without_command=True,
)
@click.version_option(distilldepth.__version__, prog_name="distilldepth", message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Distil big monocular depth estimators into a small, fast student.

    \b
    distilldepth distill --teachers dav2,genpercept
    distilldepth predict img.jpg -o depth.png
    distilldepth evaluate --model distilldepth-mini --data scenes
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


cli.params.append(_debug_option())


def main() -> NoReturn:
    """Entry point of the `distilldepth` command."""
    cli.main()


if __name__ == "__main__":
    main()
