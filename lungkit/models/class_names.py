"""What people call the classes of a model. Records, cards and coded values keep the names of the data sets."""

from collections.abc import Iterable

_KNOWN = {  # by the letters and digits of a class's name
    **dict.fromkeys(("normal", "normals"), "Normal"),
    **dict.fromkeys(("covid", "covid19"), "COVID-19"),
    **dict.fromkeys(("noncovid", "noncovid19", "notcovid19"), "No COVID-19"),
    **dict.fromkeys(("bacterial", "bacterialpneumonia"), "Bacterial pneumonia"),
    **dict.fromkeys(("viral", "viralpneumonia"), "Viral pneumonia"),
    **dict.fromkeys(("notumor", "notumour"), "No tumour"),
    **dict.fromkeys(("pituitary", "pituitarytumor", "pituitarytumour"), "Pituitary tumour"),
    "nofinding": "No finding",
}


def class_name(name: str) -> str:
    """A class as people read it; a name that says enough stays as it is.

    >>> class_name("notumor"), class_name("NORMAL"), class_name("lung_opacity"), class_name("CT-3/4")
    ('No tumour', 'Normal', 'Lung opacity', 'CT-3/4')
    """
    known = _KNOWN.get("".join(letter for letter in name.casefold() if letter.isalnum()))
    if known:
        return known
    words = name.replace("_", " ").strip()
    letters = words.replace(" ", "")
    if letters.isalpha() and (letters.islower() or (letters.isupper() and len(letters) > 4)):  # not "NCP" or "TB"
        return words.capitalize()
    return words or name


def class_names(names: Iterable[str]) -> tuple[str, ...]:
    """Several, in their order."""
    return tuple(map(class_name, names))


def other_than(name: str) -> str:
    """What the absence of a class is called.

    >>> other_than("Normal"), other_than("NonCOVID"), other_than("notumor")
    ('not Normal', 'COVID-19', 'tumour')
    """
    shown = class_name(name)
    return shown[3:] if shown.startswith("No ") else f"not {shown}"
