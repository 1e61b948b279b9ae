"""Batches for training: the very tensors of evaluation and prediction, varied only as a chest may vary."""

import dataclasses
import inspect
import time

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from lungkit.clinic import decode
from lungkit.data import dataset, images, preprocess
from lungkit.training import finetune, pipeline, recipes

SPEC = preprocess.Preprocessing(size=(32, 32), mean=0.4, std=0.25)
BLACK, WHITE = (0 - SPEC.mean) / SPEC.std, (1 - SPEC.mean) / SPEC.std
STILL = {"rotation": 0, "translation": 0, "scaling": 0, "brightness": 0, "contrast": 0, "flip": False}


@pytest.fixture
def chest(squares) -> dataset.Dataset:
    return dataset.load_split(squares)


@pytest.fixture
def pictures() -> np.ndarray:
    """Sixteen preprocessed images of noise, from black to white."""
    grey = np.random.default_rng(0).random((16, 32, 32, 1))
    return ((grey - SPEC.mean) / SPEC.std).astype(np.float32)


def _augmentation(**changes) -> pipeline.Augmentation:
    return pipeline.augmentation(mean=SPEC.mean, std=SPEC.std, **changes)


def _augmented(pictures, **changes) -> np.ndarray:
    return np.asarray(_augmentation(**changes)(pictures, training=True))


def _collected(stream) -> tuple[np.ndarray, np.ndarray]:
    tensors, labels = zip(*stream.as_numpy_iterator(), strict=True)
    return np.concatenate(tensors), np.concatenate(labels)


# --- the tensors


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_training_evaluation_and_prediction_see_identical_tensors(chest, split):
    files = chest.files(split)
    one_by_one = np.stack([preprocess.prepare(images.read(file), SPEC).tensor for file in files])
    uploaded = np.stack([preprocess.prepare(images.read(file.read_bytes()), SPEC).tensor for file in files])
    trained_on, labels = _collected(pipeline.batches(chest, split, SPEC, 7))
    np.testing.assert_array_equal(trained_on, one_by_one)
    np.testing.assert_array_equal(preprocess.read_batch(files, SPEC), one_by_one)
    np.testing.assert_array_equal(uploaded, one_by_one)
    np.testing.assert_array_equal(labels, chest.labels(split))
    assert (trained_on.dtype, labels.dtype) == (np.float32, np.int64)


def test_large_jpegs_are_decoded_at_one_scale_in_training_evaluation_and_the_clinic(tmp_path):
    random = np.random.default_rng(5)
    for number in range(6):
        coarse = Image.fromarray(random.integers(0, 256, (9, 9), np.uint8))
        folder = tmp_path / "train" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        coarse.resize((201, 150), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg")
    jpegs = dataset.load(tmp_path)
    files = jpegs.files("train")
    trained_on = _collected(pipeline.batches(jpegs, "train", SPEC, 4))[0]
    np.testing.assert_array_equal(preprocess.read_batch(files, SPEC), trained_on)
    np.testing.assert_array_equal(decode.decode(files, SPEC)[1], trained_on)
    on_screen_too = np.stack([preprocess.prepare(images.read(file.read_bytes()), SPEC).tensor for file in files])
    np.testing.assert_array_equal(on_screen_too, trained_on)
    assert not np.array_equal(preprocess.read_batch(files, dataclasses.replace(SPEC, jpeg="full")), trained_on)


@pytest.mark.parametrize("batch_size", [7, 12, 1000])
def test_the_number_of_batches_is_known_and_true(chest, batch_size):
    stream = pipeline.batches(chest, "train", SPEC, batch_size)
    sizes = [len(labels) for _, labels in stream.as_numpy_iterator()]
    assert len(stream) == len(sizes)
    assert sum(sizes) == len(chest.files("train"))
    assert set(sizes[:-1]) <= {batch_size}


def test_the_shape_is_known_before_a_file_is_read(chest):
    tensors, labels = pipeline.batches(chest, "train", SPEC, 7).element_spec
    assert tensors.shape.as_list() == [None, 32, 32, 1]
    assert labels.shape.as_list() == [None]


def test_a_broken_files_error_names_the_file(chest):
    file = chest.files("train")[3]
    moved = dataclasses.replace(chest, root=file.parent.parent / "without")
    with pytest.raises(Exception, match=moved.files("train")[0].name):
        _collected(pipeline.batches(moved, "train", SPEC))


def test_a_truncated_files_error_says_so(chest, tmp_path):
    for file in chest.files("train"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    broken = tmp_path / chest.files("train")[3].name
    broken.write_bytes(broken.read_bytes()[:-60])
    with pytest.raises(Exception, match=rf"{broken.name}.*(?i:truncated|cut)"):
        _collected(pipeline.batches(dataclasses.replace(chest, root=tmp_path), "train", SPEC))


# --- the order


def test_without_shuffle_every_epoch_is_in_the_manifests_order(chest):
    stream = pipeline.batches(chest, "train", SPEC, 7)
    for _ in range(2):
        np.testing.assert_array_equal(_collected(stream)[1], chest.labels("train"))


def _order(stream, chest) -> list[int]:
    """Which of the training files each tensor of one epoch came from; labels must have come along."""
    known = {tensor.tobytes(): i for i, tensor in enumerate(preprocess.read_batch(chest.files("train"), SPEC))}
    assert len(known) == len(chest.files("train")), "the pictures must differ for this test"
    tensors, labels = _collected(stream)
    order = [known[tensor.tobytes()] for tensor in tensors]
    np.testing.assert_array_equal(labels, chest.labels("train")[order])
    return order


def test_shuffling_differs_between_epochs_and_keeps_every_image_with_its_label(chest):
    stream = pipeline.batches(chest, "train", SPEC, 7, shuffle=True)
    first, second = _order(stream, chest), _order(stream, chest)
    assert first != second
    assert sorted(first) == sorted(second) == list(range(len(first)))
    assert first != sorted(first)


def test_the_same_seed_shuffles_alike_and_another_differently(chest):
    def epochs(seed):
        stream = pipeline.batches(chest, "train", SPEC, 7, shuffle=True, seed=seed)
        return [_order(stream, chest) for _ in range(2)]

    assert epochs(3) == epochs(3)
    assert epochs(3) != epochs(4)


# --- the cache


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """Every file that preprocess.prepare was called with, while it still works."""
    called, prepare = [], preprocess.prepare

    def counting(source, spec, name=None):
        called.append(name or str(source))
        return prepare(source, spec, name)

    monkeypatch.setattr(preprocess, "prepare", counting)
    return called


def test_a_set_is_decoded_once(chest, reads):
    stream = pipeline.batches(chest, "val", SPEC)
    first, second = _collected(stream)[0], _collected(stream)[0]
    assert sorted(reads) == sorted(map(str, chest.files("val")))
    np.testing.assert_array_equal(first, second)


def test_a_set_too_large_for_memory_is_decoded_once_and_read_from_the_disk(chest, reads, monkeypatch):
    n = len(chest.files("val"))
    in_memory = _collected(pipeline.batches(chest, "val", SPEC))[0]
    monkeypatch.setattr(pipeline, "MEMORY_BYTES", n * 32 * 32 * 4 - 1)
    stream = pipeline.batches(chest, "val", SPEC, 7)
    for _ in range(2):
        np.testing.assert_array_equal(_collected(stream)[0], in_memory)
    assert len(reads) == n


def test_training_and_registering_decode_each_file_once(squares, reads, tmp_path):
    recipe = recipes.Recipe(
        name="squares", modality="X-ray", question="Left or right?", population="squares", data="squares",
        images={"left": 60, "right": 60}, licence="none", backbone="cnn", side=32, batch_size=8, epochs=1,
        augmentation={"flip": False}, mirrored=False,
    )  # fmt: skip
    version, _ = finetune.train_recipe(recipe, squares, tmp_path / "work")
    assert version.card.checks.fitted_on
    assert sorted(reads) == sorted(map(str, dataset.load(squares).files()))


# --- the augmentation


def test_an_augmentation_of_nothing_changes_nothing(pictures):
    np.testing.assert_allclose(_augmented(pictures, **STILL), pictures, atol=1e-5)


def test_augmented_images_keep_shape_and_type_and_stay_between_black_and_white(pictures):
    strong = {"rotation": 40, "translation": 0.3, "scaling": 0.3, "brightness": 0.6, "contrast": 0.8}
    for changed in (_augmented(pictures), _augmented(pictures, **strong)):
        assert (changed.shape, changed.dtype) == (pictures.shape, pictures.dtype)
        assert changed.min() >= BLACK - 1e-4
        assert changed.max() <= WHITE + 1e-4


@pytest.mark.parametrize("amount", ["rotation", "translation", "scaling", "brightness", "contrast"])
def test_each_amount_varies_the_images(pictures, amount):
    size = 20 if amount == "rotation" else 0.3
    changed = _augmented(pictures, **STILL | {amount: size})
    assert np.abs(changed - pictures).max() > 0.1
    assert np.ptp(np.abs(changed - pictures).mean(axis=(1, 2, 3))) > 0.01, "images vary one by one, not as a batch"


def test_images_are_flipped_from_left_to_right_only_and_not_all_of_them(pictures):
    changed = _augmented(pictures, **STILL | {"flip": True})
    flipped = [np.allclose(after, before[:, ::-1], atol=1e-4) for after, before in zip(changed, pictures, strict=True)]
    kept = [np.allclose(after, before, atol=1e-4) for after, before in zip(changed, pictures, strict=True)]
    assert any(flipped)
    assert any(kept)
    assert all(np.logical_xor(flipped, kept))


@pytest.mark.parametrize("amount", [{"rotation": 45}, {"translation": 0.5}, {"scaling": 0.9}])
def test_the_new_border_is_black_in_the_normalised_range(amount):
    white = np.full((16, 32, 32, 1), WHITE, np.float32)
    corners = _augmented(white, **STILL | amount)[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert corners.min() == pytest.approx(BLACK, abs=1e-3)
    black = np.full((16, 32, 32, 1), BLACK, np.float32)
    np.testing.assert_allclose(_augmented(black, **STILL | amount), black, atol=1e-4)


@pytest.mark.parametrize("amount", [{"rotation": 60}, {"scaling": 0.5}])
def test_images_are_turned_and_scaled_about_their_centre(amount):
    row, column = np.mgrid[:32, :32] - 15.5
    disc = np.where(row**2 + column**2 < 64, WHITE, BLACK)[None, ..., None].astype(np.float32)
    weight = _augmented(np.repeat(disc, 16, axis=0), **STILL | amount)[..., 0] - BLACK
    total = weight.sum(axis=(1, 2))
    np.testing.assert_allclose((weight * row).sum(axis=(1, 2)) / total, 0, atol=0.05)
    np.testing.assert_allclose((weight * column).sum(axis=(1, 2)) / total, 0, atol=0.05)


def test_some_images_are_left_where_they_are(pictures):
    """A resampled picture is softer; some stay as sharp as those that are predicted later."""
    changed = _augmented(np.repeat(pictures, 4, axis=0), **STILL | {"rotation": 20})
    same = np.abs(changed - np.repeat(pictures, 4, axis=0)).max(axis=(1, 2, 3)) < 1e-4
    assert 0.05 < same.mean() < 0.6


def test_what_varies_a_batch_follows_from_its_key_and_the_seed_not_from_what_came_before(pictures):
    strong = {"sharpness": 0.5, "noise": 0.1, "gamma": 0.3, "seed": 3}
    first, second = _augmentation(**strong), _augmentation(**strong)
    second(pictures, key=4)
    np.testing.assert_array_equal(first(pictures, key=5), second(pictures, key=5))
    assert np.abs(np.asarray(first(pictures, key=6)) - first(pictures, key=5)).max() > 0.1
    assert np.abs(_augmentation(**strong | {"seed": 4})(pictures, key=5) - first(pictures, key=5)).max() > 0.1


def test_stretching_changes_the_proportions_of_what_is_seen_and_not_its_middle():
    disc = np.hypot(*np.mgrid[-15.5:16, -15.5:16]) < 8
    discs = np.repeat(np.where(disc, WHITE, BLACK).astype(np.float32)[None, ..., None], 64, axis=0)
    seen = _augmented(discs, **STILL, stretch=0.3)[..., 0] > (BLACK + WHITE) / 2
    wide, high = seen.any(axis=1).sum(axis=1), seen.any(axis=2).sum(axis=1)
    assert wide.max() >= 21 and high[wide.argmax()] <= 14  # 16 pixels / 0.7, and / 1.3
    assert high.max() >= 21 and wide[high.argmax()] <= 14
    np.testing.assert_allclose(
        np.abs(np.tensordot(seen / seen.sum((1, 2))[:, None, None], np.mgrid[:32, :32][0])), 15.5, atol=1
    )


def test_detail_is_weakened_and_strengthened_where_it_is_and_flat_areas_stay():
    stripes = np.tile(np.where(np.arange(32) % 2, WHITE, BLACK).astype(np.float32), (64, 32, 1))[..., None]
    contrast = _augmented(stripes, **STILL, sharpness=1.0)[:, 8:24, 8:24, 0].std(axis=(1, 2)) / stripes[0].std()
    assert contrast.min() < 0.5
    softened = np.tile(np.where(np.arange(32) % 2, 0.2, -0.2).astype(np.float32), (64, 32, 1))[..., None]
    assert (
        _augmented(softened, **STILL, sharpness=1.0)[:, 8:24, 8:24, 0].std(axis=(1, 2)) / softened[0].std()
    ).max() > 1.5
    flat = np.full((8, 32, 32, 1), 0.5, np.float32)
    np.testing.assert_allclose(_augmented(flat, **STILL, sharpness=1.0)[:, 8:24, 8:24], 0.5, atol=1e-5)


def test_noise_is_of_the_strength_asked_for_in_greys():
    flat = np.zeros((64, 32, 32, 1), np.float32)
    grain = _augmented(flat, **STILL, noise=0.1).std(axis=(1, 2, 3)) * SPEC.std
    assert grain.min() < 0.02
    assert 0.085 < grain.max() <= 0.105


def test_copies_as_of_other_devices_are_the_same_each_time_and_differ_among_each_other(pictures):
    first, second = list(pipeline.changed(pictures, SPEC.mean, SPEC.std, copies=2))
    again = next(pipeline.changed(pictures, SPEC.mean, SPEC.std))
    np.testing.assert_array_equal(first, again)
    for one, other in ((first, pictures), (second, pictures), (first, second)):
        assert np.abs(one - other).mean() > 0.1
    left = np.zeros((8, 32, 32, 1), np.float32) + BLACK
    left[:, :, :12] = WHITE
    (copy,) = pipeline.changed(left, SPEC.mean, SPEC.std, copies=1)
    assert (copy[:, :, :16].mean(axis=(1, 2, 3)) > copy[:, :, 16:].mean(axis=(1, 2, 3))).all(), "none is mirrored"


def test_images_are_not_varied_outside_training(pictures):
    np.testing.assert_allclose(np.asarray(_augmentation()(pictures, training=False)), pictures, atol=1e-5)


def test_the_same_seed_varies_alike_and_another_differently(pictures):
    np.testing.assert_array_equal(_augmented(pictures, seed=3), _augmented(pictures, seed=3))
    assert np.abs(_augmented(pictures, seed=3) - _augmented(pictures, seed=4)).max() > 0.1


def test_a_whole_training_stream_is_the_same_for_the_same_seed_and_new_in_each_epoch(chest):
    def epochs():
        augment = _augmentation(seed=3)
        stream = pipeline.batches(chest, "train", SPEC, 2, augment=augment, shuffle=True, seed=3)
        return [_collected(stream) for _ in range(2)]

    once, again = epochs(), epochs()
    for (tensors, labels), (same_tensors, same_labels) in zip(once, again, strict=True):
        np.testing.assert_array_equal(labels, same_labels)
        np.testing.assert_array_equal(tensors, same_tensors)
    assert sorted(map(bytes, once[0][0])) != sorted(map(bytes, once[1][0]))


def test_epochs_of_a_few_batches_are_the_same_however_fast_they_are_asked_for(chest):
    def epochs(pause):
        kept = pipeline.decoded(chest, "train", SPEC)
        stream = pipeline.served(kept, 2, augment=_augmentation(), shuffle=True, most=2, seed=3)
        assert len(stream) == 2
        seen = []
        for _ in range(3):
            for tensors, _ in stream:
                seen.append(tensors.numpy())
                time.sleep(pause)  # what is prepared ahead meanwhile must not be drawn twice
        return np.concatenate(seen)

    first = epochs(0.0)
    np.testing.assert_array_equal(first, epochs(0.1))
    assert not np.array_equal(first[:4], first[4:8])


def test_batches_made_in_parallel_are_those_made_one_after_the_other(chest):
    def epochs(threads):
        stream = pipeline.batches(chest, "train", SPEC, 2, augment=_augmentation(noise=0.1), shuffle=True, seed=3)
        options = tf.data.Options()
        options.threading.private_threadpool_size = threads
        options.autotune.enabled = threads > 1
        return [_collected(stream.with_options(options)) for _ in range(2)]

    for (tensors, labels), (others, same) in zip(epochs(1), epochs(8), strict=True):
        np.testing.assert_array_equal(tensors, others)
        np.testing.assert_array_equal(labels, same)


def test_augmentation_comes_after_the_cache(chest):
    stream = pipeline.batches(chest, "val", SPEC, augment=_augmentation())
    assert np.abs(_collected(stream)[0] - _collected(stream)[0]).max() > 0.1


def test_what_the_pipeline_pads_and_what_augmentation_pads_is_the_same_black(tmp_path):
    """A wide picture gets bars above and below; a shifted one gets a border: both are the grey value 0."""
    Image.fromarray(np.full((30, 60), 255, np.uint8)).save(tmp_path / "wide.png")
    tensor = preprocess.prepare(images.read(tmp_path / "wide.png"), SPEC).tensor
    assert tensor[0, 0, 0] == pytest.approx(BLACK, abs=1e-5)
    moved = _augmented(np.repeat(tensor[None], 16, axis=0), **STILL | {"translation": 0.4})
    assert moved.min() == pytest.approx(BLACK, abs=1e-4)


# --- images in memory


def _seen(batches) -> list[np.ndarray]:
    """Images, targets and weights of one epoch, each joined."""
    return [np.concatenate(part) for part in zip(*(batches[i] for i in range(len(batches))), strict=True)]


def test_without_augmentation_images_in_memory_come_as_they_are_in_their_order(pictures):
    labels = np.arange(16) % 3
    x, y, weights = _seen(pipeline.InMemory(pictures, labels, 3, batch_size=5))
    np.testing.assert_array_equal(x, pictures)
    np.testing.assert_array_equal(y, np.eye(3)[labels])
    np.testing.assert_array_equal(weights, 1)


def test_augmented_images_in_memory_come_in_another_order_each_epoch_each_once(pictures):
    labels = np.arange(16)
    batches = pipeline.InMemory(pictures, labels, 16, 5, augment=_augmentation(**STILL))
    first = _seen(batches)[1].argmax(axis=1)
    batches.on_epoch_end()
    second = _seen(batches)[1].argmax(axis=1)
    assert sorted(first) == sorted(second) == list(labels)
    assert list(first) != list(second)


def test_mixup_blends_images_targets_and_weights_by_one_share(pictures):
    labels = np.arange(16) % 2
    weights = {0: 1.0, 1: 3.0}
    batches = pipeline.InMemory(pictures, labels, 2, 16, mixup=0.4, weights=weights, seed=3)
    x, y, told = batches[0]
    share = np.linalg.lstsq((pictures - pictures[::-1]).ravel()[:, None], (x - pictures[::-1]).ravel(), rcond=None)[0][
        0
    ]
    assert 0 < share < 1
    np.testing.assert_allclose(x, share * pictures + (1 - share) * pictures[::-1], atol=1e-5)
    np.testing.assert_allclose(y, share * np.eye(2)[labels] + (1 - share) * np.eye(2)[labels[::-1]], atol=1e-5)
    np.testing.assert_allclose(told, y @ [1, 3], atol=1e-5)


def test_cutmix_puts_one_rectangle_of_another_image_in_and_blends_targets_and_weights_by_its_area(pictures):
    labels = np.arange(16) % 2
    batches = pipeline.InMemory(pictures, labels, 2, 16, cutmix=1.0, weights={0: 1.0, 1: 3.0}, seed=3)
    shares = []
    for _ in range(20):
        batches.on_epoch_end()
        x, y, told = batches[0]
        foreign = (x != pictures).all(axis=(0, 3))
        rows, columns = np.flatnonzero(foreign.any(axis=1)), np.flatnonzero(foreign.any(axis=0))
        assert foreign.sum() == len(rows) * len(columns), "a rectangle"
        np.testing.assert_array_equal(x[:, foreign], pictures[::-1][:, foreign])
        np.testing.assert_array_equal(x[:, ~foreign], pictures[:, ~foreign])
        shares.append(1 - foreign.mean())
        np.testing.assert_allclose(
            y, shares[-1] * np.eye(2)[labels] + (1 - shares[-1]) * np.eye(2)[labels[::-1]], atol=1e-6
        )
        np.testing.assert_allclose(told, y @ [1, 3], atol=1e-5)
    assert min(shares) < 0.5 < max(shares)


def test_with_mixup_and_cutmix_each_batch_gets_one_of_the_two(pictures):
    batches = pipeline.InMemory(pictures, np.arange(16) % 2, 2, 16, mixup=1.0, cutmix=1.0, seed=3)
    own_or_others = []
    for _ in range(20):
        own_or_others.append(np.isin(batches[0][0], pictures).all())
        batches.on_epoch_end()
    assert 3 < sum(own_or_others) < 17  # pixels as they were: cut; others: blended


def test_gamma_bends_the_greys_between_black_and_white_and_keeps_both(pictures):
    ends = np.stack([np.full((32, 32, 1), level, np.float32) for level in (BLACK, WHITE, (BLACK + WHITE) / 2)] * 8)
    bent = _augmented(ends, **STILL, gamma=0.5)
    np.testing.assert_allclose(bent[0::3], BLACK, atol=1e-2)
    np.testing.assert_allclose(bent[1::3], WHITE, atol=1e-2)
    middle = bent[2::3, 0, 0, 0] * SPEC.std + SPEC.mean
    assert middle.min() >= 0.5 ** np.exp(0.5) - 1e-3
    assert middle.max() <= 0.5 ** np.exp(-0.5) + 1e-3
    assert middle.std() > 0.03
    still = np.asarray(_augmentation(**STILL, gamma=0.5)(pictures, training=False))
    np.testing.assert_allclose(still, pictures, atol=1e-5)


def test_batches_in_memory_are_the_same_in_whatever_order_they_are_asked_for(pictures):
    def epoch(numbers):
        augment = _augmentation(noise=0.1)
        batches = pipeline.InMemory(pictures, np.arange(16) % 2, 2, 4, augment=augment, mixup=0.4, cutmix=1.0)
        batches.on_epoch_end()
        return {number: batches[number] for number in numbers}

    forwards, backwards = epoch(range(4)), epoch(reversed(range(4)))
    for number, parts in forwards.items():
        for part, same in zip(parts, backwards[number], strict=True):
            np.testing.assert_array_equal(part, same)


def test_weights_can_be_of_each_image_and_follow_it_into_blends(pictures):
    labels, weights = np.arange(16) % 2, np.linspace(0.5, 2, 16)
    _, _, seen = _seen(pipeline.InMemory(pictures[:16], labels, 2, 5, weights=weights))
    np.testing.assert_allclose(seen, weights, rtol=1e-6)
    _, y, blended = _seen(pipeline.InMemory(pictures[:16], labels, 2, 16, mixup=0.4, weights=weights, seed=3))
    share = y[0, 0]  # image 0 is of class 0, and the last one of class 1
    np.testing.assert_allclose(blended, share * weights + (1 - share) * weights[::-1], rtol=1e-5)


def test_the_stated_augmentation_is_what_varies_a_batch_by_default():
    defaults = {name: one.default for name, one in inspect.signature(pipeline.augmentation).parameters.items()}
    assert {name: defaults[name] for name in pipeline.MILD} == pipeline.MILD
    others = set(defaults) - set(pipeline.MILD) - {"mean", "std", "seed"}
    assert all(defaults[name] == 0 for name in others)
