"""The verb that trains a challenger: learn train."""

from pathlib import Path
from typing import Annotated

import typer

from lungkit import terminal
from lungkit.cli.options import source_path


def learn_train(
    model: Annotated[str, typer.Argument(help="NAME or NAME@vN: the version that the new one follows")],
    reviews: Annotated[Path, typer.Option(help="a data set that `lungkit learn collect` made: FOLDER/reviews-vN")],
    data: Annotated[
        list[str], typer.Option("--data", help="where the images are that it learned from; default: where they were")
    ] = [],  # noqa: B006
    name: Annotated[str, typer.Option(help="of the model it becomes a version of; default: the same model")] = "",
) -> None:
    """Train a model again, on its own images and on reviewed ones; the new version is registered, and not active.

    The newest reviewed patients are held out for a trial. The same command continues after an interruption.
    """
    from lungkit.models import registry

    champion = registry.find(model)  # refused before TensorFlow takes seconds to load
    from lungkit.training import retrain

    command = f"lungkit learn train {champion} --reviews FOLDER/{reviews.name}"
    made = retrain.retrain(champion, reviews, data=[source_path(one) for one in data], name=name, command=command)
    terminal.say(made.history.to_string(index=False))
    parts = {"learned from": "train", "chosen on": "validation", "held out for a trial": "held_out"}
    for what, part in parts.items():
        of = made.reviews[part]
        terminal.say(f"{what}: {of['images']} reviewed images of {of['patients']} patients")
    if made.reviews["seen_before"]:
        terminal.say(f"left out, because the model's own data has them already: {made.reviews['seen_before']} images")
    terminal.say(f"{made.version} is registered as a challenger. It reads nothing until a trial has promoted it.")
    terminal.say(str(made.version.folder))
