"""Public sets of chest CT slices of three classes, each in the layout that its publishers ship.

COVIDx CT, CC-CCII and COVID-CT-MD are recognised by their own lists and names, which state classes, patients and the
slices that show disease. CT-COV19 is a folder per class: its class folders get the names of the three classes.
"""

from pathlib import Path

from lungkit.data.ct_sets import cc_ccii, covid_ct_md, covidx
from lungkit.data.ct_sets.class_names import common_names
from lungkit.data.ct_sets.tables import CLASSES, Layout
from lungkit.data.folders import Survey
from lungkit.data.notes import DatasetError

__all__ = ["CLASSES", "Layout", "common_names", "read"]


def read(root: Path, contents: Survey) -> Layout | None:
    """What the set in a folder that was surveyed states of its slices; None if it is in none of these layouts.

    Raises DatasetError if the layout is recognised, but its lists are missing, do not fit the images, or leave no
    image of a sick patient.
    """
    readings = (set_of.read(root, contents) for set_of in (covidx, covid_ct_md, cc_ccii))
    layout = next((layout for layout in readings if layout), None)
    if layout and {row["label"] for row in layout.rows} <= {"Normal"}:
        why = "".join(f"; {each}" for each in layout.notes if each.severity == "warning")
        raise DatasetError(f"{root}: its lists leave no image that shows disease{why}")
    return layout
