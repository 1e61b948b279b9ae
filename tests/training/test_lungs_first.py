"""A recipe whose network sees the lungs alone becomes a version of whole images, which the clinic reads with."""

from dataclasses import replace

import numpy as np
import pytest

from lungkit.clinic.predictor import Predictor
from lungkit.data import images, phantom
from lungkit.errors import LungkitError
from lungkit.models import graph, lungs
from lungkit.training import finetune, recipes, release

RECIPE = recipes.with_lungs(
    recipes.Recipe(
        name="lungs-first", modality="CT", side=64, until="stage2", unfrozen="stage2", epochs=1, batch_size=8,
        mirrored=True,
    )
)  # fmt: skip


@pytest.fixture(scope="module")
def version(tmp_path_factory):
    home = tmp_path_factory.mktemp("lungs")
    source = phantom.make_dataset(home / "phantom", n_slices=60, seed=4)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("data", "artifacts", "reports"):
            patch.setenv(f"LUNGKIT_{name.upper()}", str(home / name))
        return finetune.train_recipe(RECIPE, source, home / "work", compact=True)[0], source


def test_its_test_figures_are_those_of_the_graph_on_whole_images(version):
    registered, source = version
    scored = release.score(registered, release.data_for(registered, str(source)))
    assert scored.tensors.shape[1:] == (lungs.WHOLE, lungs.WHOLE, 1)
    figure = registered.card.metrics["test"].figure("auc").value
    assert scored.evaluation.to_dict()["auc"] == pytest.approx(figure)


def test_the_clinic_reads_whole_images_with_it_and_looks_for_lungs(version):
    registered, source = version
    reads = Predictor(registered)
    image = images.read(sorted((source / "slices").glob("*.dcm"))[0])
    reading = reads.read(image)
    passed = {check.name: check.passed for check in reading.checks}
    assert passed["lungs"] and passed["orientation"]
    assert reading.heat.shape == (3, lungs.WHOLE, lungs.WHOLE)
    turned = {check.name: check.words for check in reads.read(_turned(image)).checks if not check.passed}
    # Its header, which the test leaves as it is, says where rows and columns ran before.
    words = "this image is turned by 90° to the left: turn it upright (its file says: upright)"
    assert turned["orientation"] == words
    blank = replace(image, pixels=np.full_like(image.pixels, 40.0))
    failed = {check.name: check.words for check in reads.read(blank).checks if not check.passed}
    assert failed["lungs"] == "no lungs were found in this image"


def _turned(image: images.Image) -> images.Image:
    return replace(image, pixels=np.ascontiguousarray(np.rot90(image.pixels)))


def test_heat_lies_in_the_square_of_the_lungs(version):
    registered, source = version
    runtime = graph.Graph(registered.folder)
    scored = release.score(registered, release.data_for(registered, str(source)))
    outputs = runtime(scored.tensors[:4])
    for lung, heat in zip(outputs["lungs"] > 0.5, outputs["heat"], strict=True):
        rows, columns = (np.flatnonzero(lung.any(axis=axis)) for axis in (1, 0))
        reach = 3 * np.array([rows[0], rows[-1], columns[0], columns[-1]])
        margin = 0.25 * max(reach[1] - reach[0], reach[3] - reach[2])
        hot = np.argwhere(heat.max(axis=0) > 0)
        assert len(hot)
        assert (hot.min(axis=0) >= reach[[0, 2]] - margin).all()
        assert (hot.max(axis=0) <= reach[[1, 3]] + margin + 3).all()


def test_lungs_are_looked_for_on_x_rays_and_ct_alone():
    with pytest.raises(LungkitError, match="reads MRI images; lungs can be found on X-ray and CT"):
        recipes.with_lungs(recipes.find("mri-brain-tumour"))
    assert recipes.LUNG_MODALITIES == lungs.KINDS
    whole = recipes.find("pneumoniamnist-28")
    assert (whole.lungs, recipes.with_lungs(whole).lungs, recipes.with_lungs(whole).until) == (False, True, "stage4")
    assert recipes.command("chest-xray-pneumonia", "/x/chest", lungs=True).endswith("--data FOLDER/chest --lungs")
