"""How the models that ship with lungkit are trained: each a name, a data set, and every setting.

Settings were chosen on validation patients (bench/README.md says which were tried); no test split took part.
"""

from dataclasses import asdict, dataclass, field

from lungkit.errors import LungkitError


@dataclass(frozen=True)
class Recipe:
    """All that `lungkit train` needs besides the images."""

    name: str = ""  # of the model in the registry
    modality: str = ""  # "X-ray", "CT" or "MRI"
    question: str = ""  # what the model answers, for clinicians
    population: str = ""  # whose images it learned from, for clinicians
    data: str = ""  # the folder's name among the public sets
    licence: str = ""  # of those images, as their publishers state it
    label_column: str | None = None
    fold: str | None = None  # of splits.assign; None: the published split
    by: str = "patient"
    leak: bool = False  # also measure what a split by image would have shown
    scored_before: int = 0  # times that an earlier version, not shipped, was scored on the same test images
    backbone: str = "efficientnet_lite0"  # or "cnn", which has learned nothing before
    until: str = "stage5"  # as in backbones.build
    side: int = 224  # pixels, of the square that images are fitted into
    epochs: int = 6  # with `unfrozen` and what follows it trained
    unfrozen: str = "stage3"
    batch_size: int = 32
    learning_rate: float = 3e-4
    layer_factor: float = 0.6  # on the rate, from each stage to the one before it
    tuned_share: float = 1.0  # of the fine-tuned weights, the rest of those before it
    weight_decay: float = 1e-2
    dropout: float = 0.3
    label_smoothing: float = 0.1
    mixup: float = 0.2
    cutmix: float = 0.0
    ema: float = 0.0  # momentum of the weights' moving average
    equalised: bool = False  # sees images with their histogram equalised
    augmentation: dict = field(default_factory=lambda: {"brightness": 0.15, "contrast": 0.3, "gamma": 0.4})
    seeds: tuple[int, ...] = (1,)
    mirrored: bool = True  # also reads the mirrored image

    def settings(self) -> dict:
        """What decides how a member's training goes, JSON-ready; `tuned_share` comes after it."""
        return {name: value for name, value in asdict(self).items() if name not in _WORDS}

    def about(self) -> dict:
        """What people should know of the model before they use it, and the command that makes and measures it."""
        if self.data == "phantom":
            options = "phantom"
        else:
            outside = " --outside FOLDER/covid_chestxray" if self.side >= 224 and self.modality == "X-ray" else ""
            options = f"FOLDER/{self.data}{outside} --compact"
        return {
            "question": self.question,
            "population": self.population,
            "licence": self.licence,
            "command": f"lungkit train {self.name} --data {options}",
        }


_WORDS = (
    "name",
    "modality",
    "question",
    "population",
    "licence",
    "data",
    "label_column",
    "fold",
    "by",
    "leak",
    "scored_before",
    "tuned_share",
    "seeds",
)

# The children's X-rays were squashed into squares, the sick from other proportions than the healthy; and what differs
# in their detectors' detail is no disease either. A network that sees all proportions and details cannot use them.
_SHAPELESS = {
    "rotation": 12.0,
    "translation": 0.08,
    "scaling": 0.2,
    "stretch": 0.2,
    "sharpness": 1.0,
    "noise": 0.05,
    "brightness": 0.15,
    "contrast": 0.3,
    "gamma": 0.4,
}

_CHEST = {
    "augmentation": _SHAPELESS,
    "epochs": 8,
    "data": "chest_xray_paediatric_224",
    "population": "children of 1 to 5 years, one hospital in Guangzhou, frontal chest X-rays",
    "licence": "CC BY 4.0",
}

RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="chest-xray-pneumonia",
            modality="X-ray",
            question="Chest X-ray: normal or pneumonia?",
            scored_before=1,
            learning_rate=1e-3,
            **_CHEST,
        ),
        Recipe(
            name="chest-xray-infection",
            modality="X-ray",
            question="Chest X-ray: normal, bacterial or viral pneumonia?",
            label_column="subtype",
            scored_before=1,
            label_smoothing=0.0,
            mixup=0.0,
            **_CHEST | {"epochs": 6},
        ),
        Recipe(
            name="pneumoniamnist-28",
            modality="X-ray",
            question="Chest X-ray in 28 x 28 pixels (PneumoniaMNIST): normal or pneumonia?",
            population=_CHEST["population"] + ", reduced to 28 x 28 pixels",
            data="pneumoniamnist",
            licence="CC BY 4.0",
            side=112,
            augmentation=_SHAPELESS | {"sharpness": 0.0},
            epochs=5,
            learning_rate=1e-3,
        ),
        Recipe(
            name="ct-covid",
            modality="CT",
            question="Chest CT slice: COVID-19 or not?",
            population="slices cut from the figures of papers and from teaching collections, of many hospitals",
            data="covid_ct",
            licence="of the papers that the images come from; research use",
            fold="1/4",
            until="stage3",
            scored_before=2,
            unfrozen="stage2",
            tuned_share=0.5,
        ),
        Recipe(
            name="ct-lung-cancer",
            modality="CT",
            question="Chest CT slice: normal, benign or malignant?",
            population="adults of two oncology centres in Iraq",
            data="iqoth_nccd",
            licence="not stated in the copy used; believed CC BY 4.0",
            fold="1/4",
            leak=True,
            until="stage3",
            scored_before=1,
            side=160,
            epochs=0,
        ),
        Recipe(
            name="mri-brain-tumour",
            modality="MRI",
            question="Brain MRI slice: no tumour, glioma, meningioma or pituitary tumour?",
            population="adults; merged from three collections, patients not published",
            data="brain_tumour_mri",
            licence="CC0, as stated on its page",
            fold="1/4",
            side=160,
            epochs=10,
            learning_rate=1e-3,
        ),
        Recipe(
            name="ct-infection",
            modality="CT",
            question="Chest CT slice: normal, pneumonia or COVID-19?",
            population="no patient: slices drawn by a computer",
            data="phantom",
            licence="made by lungkit, as the rest of it",
            backbone="cnn",
            side=96,
            epochs=24,
            learning_rate=3e-3,
            label_smoothing=0.0,
            mixup=0.0,
            augmentation={},
            mirrored=False,
        ),
    )
}


def find(name: str) -> Recipe:
    """The recipe of this name; an unknown one is refused with the list."""
    if name not in RECIPES:
        raise LungkitError(f"no recipe '{name}'; there are: {', '.join(RECIPES)}")
    return RECIPES[name]
