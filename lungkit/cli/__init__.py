"""Train, measure and serve classifiers of lung infections. Research use only; not a medical device."""

import os
import sys
from typing import Any

from lungkit.interrupts import EXIT_CODE, ignored, message

import typer
from typer.core import TyperGroup

from lungkit import extras, terminal
from lungkit.cli import capsule, clinic, data, destinations, gateway, learn, models, plan, retrain, study, training
from lungkit.errors import LungkitError


class _Command(TyperGroup):
    """The whole command: Ctrl-C in any verb ends it with one line, where Typer would say nothing."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            with ignored():
                typer.echo(message(sys.argv[1:]), err=True)
            raise SystemExit(EXIT_CODE) from None


# Without rich's panels, which cut names of options where the screen is narrow.
app = typer.Typer(
    cls=_Command, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None, help=__doc__
)
for _verb in (
    training.run,
    training.train,
    training.lungs,
    training.orientation,
    training.distil,
    training.search,
    training.evaluate,
    training.compare,
    training.runs,
    study.report,
    clinic.predict,
    clinic.serve,
    gateway.gateway,
    data.series,
):
    app.command()(_verb)
learn.learn_app.command("train")(retrain.learn_train)
for _name, _part in {
    "data": data.data_app,
    "models": models.models_app,
    "plan": plan.plan_app,
    "capsule": capsule.capsule_app,
    "db": clinic.db_app,
    "user": clinic.user_app,
    "audit": clinic.audit_app,
    "key": gateway.key_app,
    "caller": gateway.caller_app,
    "route": gateway.route_app,
    "destination": destinations.destination_app,
    "dispatch": destinations.dispatch_app,
    "learn": learn.learn_app,
}.items():
    app.add_typer(_part, name=_name)


def main() -> None:
    """Run the command; what goes wrong is shown as one message, without a traceback."""
    try:
        app()
    except LungkitError as error:
        _fail(str(error))
    except ModuleNotFoundError as error:
        _fail(str(extras.missing(error)))
    except MemoryError:
        _fail("the memory is not enough; close other programs, or give fewer or smaller images")
    except OSError as error:
        _fail(terminal.refusal(error))
    finally:
        _flush()


def _fail(reason: str) -> None:
    terminal.error(reason)
    raise SystemExit(1) from None


def _flush() -> None:
    """Write the output that is still buffered; at exit, Python itself would complain where it cannot."""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            terminal.error(f"standard output: {terminal.refusal(error)}")
        raise SystemExit(1) from None
