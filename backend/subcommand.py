"""Commands of a group below `kpoll`, whose errors name them in full: `kpoll bench blk: ...`."""

from __future__ import annotations

from typing import Any

import click

from .errors import KpollError, UsageError


class _Failure(click.UsageError):
    """A run-time error that carries its context as usage errors do."""

    exit_code = KpollError.exit_code


class Subcommand(click.Command):
    """A command of a group."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run it; what goes wrong carries the context, as click's own errors do."""
        try:
            return super().invoke(ctx)
        except UsageError as e:
            raise click.UsageError(str(e), ctx=ctx) from e
        except KpollError as e:
            raise _Failure(str(e), ctx=ctx) from e
