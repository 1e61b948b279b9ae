"""Widgets of the notebooks: something to move, with a still picture where no kernel runs."""
