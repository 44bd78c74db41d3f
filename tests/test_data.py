"""Data sets, read by the real code from small files that the tests write."""

from __future__ import annotations

import os
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from autoprune import data
from autoprune.errors import UserError
from autoprune.images import CIFAR_RECORD

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test unpacks into a cache folder of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "autoprune"


def colour(label: int, number: int, part: int) -> tuple[int, int, int]:
    return (10 * label + number, 100 + number, 200 * part)


def write_images(
    root: Path,
    train: int = 5,
    test: int = 2,
    classes: tuple[str, ...] = ("ant", "bee"),
    size: tuple[int, int] = (6, 6),
    test_name: str = "test",
) -> Path:
    """One-coloured images whose colour tells class, number and part."""
    for part, (name, count) in enumerate([("train", train), (test_name, test)]):
        for label, klass in enumerate(classes):
            for number in range(count):
                file = root / name / klass / f"{number:04}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", size, colour(label, number, part)).save(file)
    return root


def colours(batches: list[data.Batch]) -> list[tuple[int, ...]]:
    """The colours of images that were normalised by the default mean and deviation."""
    found = []
    for x, _ in batches:
        assert isinstance(x, torch.Tensor)
        found += [tuple((255 * (image * STD + MEAN)).round().int()[:, 0, 0].tolist()) for image in x]
    return found


def joined(batches: Any) -> tuple[torch.Tensor, torch.Tensor]:
    pairs = list(batches)
    return torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])


# ---------------------------------------------------------------------------- splits


def test_calibration_comes_first_in_the_permutation_and_validation_next(tmp_path: Path) -> None:
    splits = data.load(f"imagefolder:{write_images(tmp_path / 'set')}", 3, 4, seed=5)
    in_order = [colour(label, number, 0) for label in range(2) for number in range(5)]
    order = torch.randperm(10, generator=torch.Generator().manual_seed(5)).tolist()
    assert colours(splits.calibration) == [in_order[i] for i in order[:3]]
    assert colours(splits.validation) == [in_order[i] for i in order[3:7]]
    assert joined(splits.validation)[1].tolist() == [order_i // 5 for order_i in order[3:7]]


def test_the_training_part_has_everything_but_the_validation_images(tmp_path: Path) -> None:
    splits = data.load(f"imagefolder:{write_images(tmp_path / 'set')}", 3, 4)
    assert splits.train is not None
    train = colours(list(splits.train()))
    assert len(train) == 10 - 4
    assert set(train) & set(colours(splits.validation)) == set()
    assert set(colours(splits.calibration)) < set(train)
    assert len(list(splits.train())) == len(list(splits.train()))  # every call reads afresh


def test_a_set_that_is_too_small_is_divided_in_proportion_with_a_warning(tmp_path: Path) -> None:
    spec = f"imagefolder:{write_images(tmp_path / 'set')}"
    with pytest.warns(UserWarning, match="10 training images: 2 are taken for calibration and 8 for validation"):
        splits = data.load(spec, 100, 400)
    assert len(joined(splits.calibration)[1]) == 2
    assert len(joined(splits.validation)[1]) == 8
    with pytest.raises(UserError, match="too few for 1 calibration and 400 validation images"):
        data.load(spec, 1, 400)


@pytest.mark.parametrize("size", ["calibration", "validation", "batch", "input_size"])
def test_a_size_below_one_is_refused(size: str) -> None:
    with pytest.raises(UserError, match=f"{size} = 0"):
        data.load("digits", **{"calibration": 9, "validation": 9, size: 0})  # type: ignore[arg-type]


def test_batches_have_the_wanted_size_and_the_last_takes_the_rest(tmp_path: Path) -> None:
    splits = data.load(f"imagefolder:{write_images(tmp_path / 'set')}", 5, 4, batch=2)
    assert [len(y) for _, y in splits.calibration] == [2, 2, 1]


def test_the_seed_and_the_pixels_decide_the_fingerprint(tmp_path: Path) -> None:
    root = write_images(tmp_path / "set")
    spec = f"imagefolder:{root}"
    first = data.load(spec, 3, 4).fingerprint
    assert data.load(spec, 3, 4).fingerprint == first
    others = {data.load(spec, 3, 4, seed=1).fingerprint, data.load(spec, 4, 3).fingerprint}
    others.add(data.load(spec, 3, 4, mean=(0.0, 0.0, 0.0)).fingerprint)
    Image.new("RGB", (6, 6), (255, 255, 255)).save(root / "train" / "ant" / "0000.png")
    others.add(data.load(spec, 5, 5).fingerprint)
    assert len(others | {first}) == 5


# ---------------------------------------------------------------------------- digits


def test_digits_are_scaled_divided_and_always_tested_on_the_same_images() -> None:
    splits = data.load("digits", 300, 200)
    assert splits.train is not None
    assert splits.test is not None
    parts = [joined(part) for part in (splits.calibration, splits.validation, splits.train(), splits.test())]
    assert [x.shape for x, _ in parts] == [(n, 1, 8, 8) for n in (300, 200, 1797 - 360 - 200, 360)]
    assert all(x.min() == 0 and x.max() == 1 for x, _ in parts)
    assert splits.classes == tuple("0123456789")
    other = data.load("digits", 300, 200, seed=1)
    assert other.test is not None
    assert torch.equal(joined(other.test())[0], parts[3][0])
    assert not torch.equal(joined(other.calibration)[0], parts[0][0])


def test_digits_images_and_labels_stay_together() -> None:
    from sklearn.datasets import load_digits

    found = load_digits()
    known = {image.tobytes(): int(label) for image, label in zip(found.images, found.target, strict=True)}
    splits = data.load("digits", 100, 100)
    assert splits.test is not None
    for x, y in (joined(splits.calibration), joined(splits.test())):
        assert [known[(image[0] * 16).double().numpy().tobytes()] for image in x] == y.tolist()


def test_digits_can_be_normalised_and_resized() -> None:
    plain = joined(data.load("digits", 20, 20).calibration)[0]
    dark = joined(data.load("digits", 20, 20, mean=(0.5,), std=(0.25,)).calibration)[0]
    assert torch.allclose(dark, (plain - 0.5) / 0.25)
    assert joined(data.load("digits", 20, 20, input_size=16).calibration)[0].shape == (20, 1, 16, 16)


# ---------------------------------------------------------------------------- image folders


def test_a_grey_image_counts_as_colour_unless_one_mean_is_given(tmp_path: Path) -> None:
    root = write_images(tmp_path / "set")
    Image.new("L", (6, 6), 77).save(root / "train" / "ant" / "0009.png")
    spec = f"imagefolder:{root}"
    assert (77, 77, 77) in colours(data.load(spec, 10, 1).calibration) + colours(data.load(spec, 10, 1).validation)
    grey = data.load(spec, 10, 1, mean=(0.0,), std=(1.0,))
    assert joined(grey.calibration)[0].shape == (10, 1, 6, 6)


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ((0.5, 0.5), (0.5, 0.5), "takes 1 or 3 numbers"),
        ((0.5,), None, "takes 1 or 3 numbers"),
        ((0.5, 0.5, 0.5), (0.5, 0.0, 0.5), "above 0"),
        ((0.5, 0.5, 0.5), (0.5, float("nan"), 0.5), "above 0"),
    ],
)
def test_a_wrong_mean_or_deviation_is_refused(
    tmp_path: Path, mean: tuple[float, ...], std: tuple[float, ...] | None, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        data.load(f"imagefolder:{tmp_path}", 1, 1, mean=mean, std=std)


def test_images_of_different_sizes_need_an_input_size(tmp_path: Path) -> None:
    root = write_images(tmp_path / "set")
    wide = Image.new("RGB", (30, 10), (0, 0, 0))
    wide.paste((255, 255, 255), (10, 0, 20, 10))  # the middle third is white
    wide.save(root / "train" / "ant" / "0009.png")
    with pytest.raises(UserError, match=r"differ in size \(6x6, 30x10\): give an input size"):
        data.load(f"imagefolder:{root}", 10, 1)
    splits = data.load(f"imagefolder:{root}", 10, 1, input_size=10)
    images = joined([*splits.calibration, *splits.validation])[0]
    assert images.shape == (11, 3, 10, 10)
    assert any(torch.allclose(image * STD + MEAN, torch.ones(3, 10, 10), atol=0.01) for image in images)


def test_the_test_images_are_not_opened_before_they_are_asked_for(tmp_path: Path) -> None:
    root = write_images(tmp_path / "set")
    (root / "test" / "bee" / "0001.png").write_bytes(b"not an image")
    splits = data.load(f"imagefolder:{root}", 3, 4)
    assert splits.test is not None
    with pytest.raises(UserError, match=r"bee/0001.png cannot be decoded"):
        list(splits.test())


def test_an_image_cut_short_is_named(tmp_path: Path) -> None:
    root = write_images(tmp_path / "set")
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.jpg")
    (root / "train" / "ant" / "0000.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:-400])
    with pytest.raises(UserError, match="ant/0000.jpg cannot be decoded"):
        data.load(f"imagefolder:{root}", 10, 1, input_size=6)


@pytest.mark.parametrize(("name", "has_test"), [("test", True), ("val", True), ("other", False)])
def test_the_test_part_is_called_test_or_val_and_may_be_absent(tmp_path: Path, name: str, has_test: bool) -> None:
    splits = data.load(f"imagefolder:{write_images(tmp_path / 'set', test_name=name)}", 3, 4)
    assert (splits.test is not None) == has_test
    if splits.test is not None:
        expected = [colour(label, number, 1) for label in range(2) for number in range(2)]
        assert colours(list(splits.test())) == expected


def test_different_classes_in_train_and_test_are_refused(tmp_path: Path) -> None:
    root = write_images(tmp_path / "set")
    (root / "test" / "bee").rename(root / "test" / "cow")
    with pytest.raises(UserError, match="classes of train and test differ, 'bee' is in one"):
        data.load(f"imagefolder:{root}", 3, 4)


def test_a_folder_without_a_training_part_or_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no folder train"):
        data.load(f"imagefolder:{tmp_path}", 3, 4)
    (tmp_path / "train" / "ant").mkdir(parents=True)
    with pytest.raises(UserError, match="train: Found no valid file for the classes ant"):
        data.load(f"imagefolder:{tmp_path}", 3, 4)


# ---------------------------------------------------------------------------- archives


def pack(root: Path, file: Path, top: str) -> Path:
    if file.suffix == ".zip":
        with zipfile.ZipFile(file, "w") as archive:
            for entry in sorted(root.rglob("*.png")):
                archive.write(entry, Path(top) / entry.relative_to(root))
    else:
        with tarfile.open(file, f"w:{file.suffix[1:]}") as archive:
            archive.add(root, top or ".")
    return file


@pytest.mark.parametrize("name", ["set.tar.xz", "set.tar.gz", "set.zip"])
@pytest.mark.parametrize("top", ["pictures", ""])
def test_an_archive_reads_like_its_folder_and_is_unpacked_once(
    tmp_path: Path, cache: Path, name: str, top: str
) -> None:
    root = write_images(tmp_path / "set")
    archive = pack(root, tmp_path / name, top)
    splits = data.load(f"imagefolder:{archive}", 3, 4)
    assert splits.fingerprint == data.load(f"imagefolder:{root}", 3, 4).fingerprint
    (unpacked,) = cache.iterdir()
    assert unpacked.name.startswith("set-")
    (unpacked / "mark").touch()
    data.load(f"imagefolder:{archive}", 3, 4)
    assert (unpacked / "mark").exists()
    assert list(cache.iterdir()) == [unpacked]


def test_an_archive_that_changed_is_unpacked_anew(tmp_path: Path) -> None:
    archive = pack(write_images(tmp_path / "one"), tmp_path / "set.zip", "set")
    first = data.load(f"imagefolder:{archive}", 3, 4)
    pack(write_images(tmp_path / "two", classes=("cow", "dog")), archive, "set")
    os.utime(archive, ns=(1, 1))
    assert first.classes == ("ant", "bee")
    assert data.load(f"imagefolder:{archive}", 3, 4).classes == ("cow", "dog")


def test_a_damaged_archive_leaves_nothing_in_the_cache(tmp_path: Path, cache: Path) -> None:
    archive = pack(write_images(tmp_path / "set", train=40), tmp_path / "set.tar.gz", "set")
    archive.write_bytes(archive.read_bytes()[:-300])
    with pytest.raises(UserError, match="set.tar.gz cannot be unpacked"):
        data.load(f"imagefolder:{archive}", 3, 4)
    assert list(cache.iterdir()) == []


def test_an_archive_cannot_write_outside_its_folder(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "payload").write_text("harm")
    with tarfile.open(tmp_path / "set.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "payload", "../../escaped")
    with pytest.raises(UserError, match="cannot be unpacked"):
        data.load(f"imagefolder:{tmp_path / 'set.tar.gz'}", 3, 4)
    assert not list(tmp_path.rglob("escaped"))


def test_two_processes_may_unpack_at_once(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = pack(write_images(tmp_path / "set"), tmp_path / "set.zip", "set")
    extract = zipfile.ZipFile.extractall

    def slower(self: zipfile.ZipFile, path: Path) -> None:
        extract(self, path)
        monkeypatch.setattr(zipfile.ZipFile, "extractall", extract)
        data.load(f"imagefolder:{archive}", 3, 4)  # the other process finishes first

    monkeypatch.setattr(zipfile.ZipFile, "extractall", slower)
    assert len(joined(data.load(f"imagefolder:{archive}", 3, 4).calibration)[1]) == 3
    assert len(list(cache.iterdir())) == 1


def test_what_is_not_there_or_no_archive_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"no file or folder .*nowhere.*\$AUTOPRUNE_DATA"):
        data.load(f"imagefolder:{tmp_path / 'nowhere'}")
    monkeypatch.delenv("AUTOPRUNE_DATA", raising=False)
    with pytest.raises(UserError, match="variable AUTOPRUNE_DATA is not set"):
        data.load("imagefolder:$AUTOPRUNE_DATA/set.tar.xz")
    (tmp_path / "set.rar").touch()
    with pytest.raises(UserError, match="neither a folder nor an archive"):
        data.load(f"imagefolder:{tmp_path / 'set.rar'}")


def test_paths_may_hold_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path / "set")
    monkeypatch.setenv("MY_IMAGES", str(tmp_path))
    assert data.load("imagefolder:$MY_IMAGES/set", 3, 4).classes == ("ant", "bee")


@pytest.mark.parametrize("spec", ["", "digit", "mnist", "imagefolder:", "cifar10", "pets.cats"])
def test_an_unknown_data_set_is_refused(spec: str) -> None:
    with pytest.raises(UserError, match="is unknown: use digits, imagefolder:PATH"):
        data.load(spec)


# ---------------------------------------------------------------------------- CIFAR-10


def write_cifar(folder: Path, images: int = 4) -> Path:
    """The binary version: two training batches and a test batch, plane after plane."""
    folder.mkdir(parents=True)
    for number, name in enumerate(["data_batch_1", "data_batch_2", "test_batch"]):
        records = np.zeros((images, CIFAR_RECORD), dtype=np.uint8)
        for i, record in enumerate(records):
            record[0] = (number + i) % 10
            planes = record[1:].reshape(3, 32, 32)
            planes[0], planes[1], planes[2] = number, i, np.arange(32)  # blue rises from left to right
        records.tofile(folder / f"{name}.bin")
    return folder


@pytest.mark.parametrize("inside", ["", "cifar-10-batches-bin"])
def test_the_binary_version_of_cifar10(tmp_path: Path, inside: str) -> None:
    write_cifar(tmp_path / "set" / inside)
    splits = data.load(f"cifar10:{tmp_path / 'set'}", 5, 3, mean=(0, 0, 0), std=(1, 1, 1))
    assert splits.test is not None
    x, y = joined([*splits.calibration, *splits.validation])
    pixels = (x * 255).round().int()
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    assert pixels[:, 0, 0, 0].tolist() == (order // 4).tolist()
    assert pixels[:, 1, 5, 5].tolist() == (order % 4).tolist()
    assert pixels[0, 2, 7].tolist() == list(range(32))
    assert y.tolist() == (order // 4 + order % 4).tolist()
    assert joined(splits.test())[1].tolist() == [2, 3, 4, 5]
    assert splits.classes == tuple(sorted(splits.classes))
    assert len(splits.classes) == 10


def test_an_archive_of_the_binary_version(tmp_path: Path) -> None:
    root = write_cifar(tmp_path / "set")
    with tarfile.open(tmp_path / "cifar-10-binary.tar.gz", "w:gz") as archive:
        archive.add(root, "cifar-10-batches-bin")
    packed = data.load(f"cifar10:{tmp_path / 'cifar-10-binary.tar.gz'}", 5, 3)
    assert packed.fingerprint == data.load(f"cifar10:{root}", 5, 3).fingerprint


def test_damaged_binary_files_are_refused(tmp_path: Path) -> None:
    root = write_cifar(tmp_path / "set")
    good = (root / "data_batch_2.bin").read_bytes()
    (root / "data_batch_2.bin").write_bytes(good[:-1])
    with pytest.raises(UserError, match=f"data_batch_2.bin has {len(good) - 1} bytes, not a multiple"):
        data.load(f"cifar10:{root}", 3, 3)
    (root / "data_batch_2.bin").write_bytes(bytes([99]) + good[1:])
    with pytest.raises(UserError, match="label 99 is above 9"):
        data.load(f"cifar10:{root}", 3, 3)


def test_a_pickled_cifar10_with_wrong_checksums_is_not_unpickled(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "data_batch_1").write_bytes(b"cbuiltins\nprint\n(S'harm'\ntR.")
    for root in (tmp_path, folder):
        with pytest.raises(UserError, match="cifar-10-batches-py: Dataset not found or corrupted"):
            data.load(f"cifar10:{root}", 3, 3)


def test_the_python_version_of_cifar10_is_read_through_torchvision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = np.random.default_rng(0).integers(0, 255, (9, 32, 32, 3), dtype=np.uint8)

    class Stored:
        def __init__(self, root: str, train: bool, download: bool) -> None:
            assert root == str(tmp_path)
            assert not download
            self.data, self.targets = (images, list(range(9))) if train else (images[:2], [3, 4])

    monkeypatch.setattr("torchvision.datasets.CIFAR10", Stored)
    (tmp_path / "cifar-10-batches-py").mkdir()
    splits = data.load(f"cifar10:{tmp_path}", 5, 4, mean=(0, 0, 0), std=(1, 1, 1))
    assert splits.test is not None
    x, y = joined([*splits.calibration, *splits.validation])
    assert torch.equal((x * 255).round().byte(), torch.from_numpy(images).permute(0, 3, 1, 2)[y])
    assert joined(splits.test())[1].tolist() == [3, 4]


def test_a_folder_that_is_not_cifar10_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not CIFAR-10"):
        data.load(f"cifar10:{tmp_path}")


# ---------------------------------------------------------------------------- data from Python code

FUNCTIONS = """
import torch
from autoprune.data import load

x, y = torch.arange(12.0).reshape(6, 2), torch.tensor([0, 1, 2, 0, 1, 2])
opened = []

def test_batches():
    opened.append(1)
    yield x, y

def pair():
    return (x, y), [(x[:2], y[:2])]

def triple():
    return (x, y), (x[:3], y[:3]), test_batches

def parts():
    return {"calibration": (x, y), "validation": (x, y), "train": (x, y), "classes": ["a", "b", "c"]}

def few_classes():
    return {"calibration": (x, y), "validation": (x, y), "classes": ["a", "b"]}

def no_classes():
    return {"calibration": [x], "validation": [(x, torch.rand(6))], "classes": []}

def typo():
    return {"calibration": (x, y), "validation": (x, y), "tets": (x, y)}

def nothing():
    pass

def ready():
    return load("digits", 10, 10)
"""


@pytest.fixture
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "mylab_data.py").write_text(FUNCTIONS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "mylab_data", raising=False)
    return "mylab_data"


def test_a_function_may_return_calibration_and_validation(functions: str) -> None:
    splits = data.load(f"{functions}:pair", batch=4)
    assert [len(y) for _, y in splits.calibration] == [4, 2]
    assert len(joined(splits.validation)[1]) == 2
    assert splits.classes == ("0", "1", "2")
    assert splits.test is splits.train is None


def test_a_test_part_from_a_function_is_read_when_asked_for(functions: str) -> None:
    splits = data.load(f"{functions}:triple")
    assert sys.modules[functions].opened == []
    assert splits.test is not None
    assert len(joined(splits.test())[1]) == 6
    assert sys.modules[functions].opened == [1]


def test_a_function_may_return_named_parts_and_classes(functions: str) -> None:
    splits = data.load(f"{functions}:parts")
    assert splits.classes == ("a", "b", "c")
    assert splits.train is not None
    assert len(joined(splits.train())[1]) == 6
    with pytest.raises(UserError, match="has the label 2"):
        data.load(f"{functions}:few_classes")


def test_a_function_may_return_data_without_class_labels(functions: str) -> None:
    splits = data.load(f"{functions}:no_classes")
    assert splits.classes == ()
    assert splits.calibration[0][1] is None
    assert splits.validation[0][1].is_floating_point()


def test_a_function_may_return_ready_splits(functions: str) -> None:
    assert data.load(f"{functions}:ready").name == "digits"


@pytest.mark.parametrize(
    ("name", "message"),
    [("typo", "unknown part 'tets'"), ("nothing", "gave a NoneType"), ("pairs", "no 'pairs' there; close: pair, ")],
)
def test_a_function_that_gives_something_else_is_refused(functions: str, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        data.load(f"{functions}:{name}")


X, Y = torch.arange(20.0).reshape(10, 2), torch.arange(10) % 3


class Stream(IterableDataset[tuple[torch.Tensor, torch.Tensor]]):
    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return iter(zip(X, Y, strict=True))


@pytest.mark.parametrize(
    ("source", "sizes"),
    [
        (DataLoader(TensorDataset(X, Y), batch_size=6), [6, 4]),
        (TensorDataset(X, Y), [4, 4, 2]),
        (Stream(), [4, 4, 2]),
        ((X, Y), [4, 4, 2]),
        ([(X[:7], Y[:7]), (X[7:], Y[7:])], [7, 3]),
        (((X[:7], Y[:7]), (X[7:], Y[7:])), [7, 3]),
        ([[X, Y.tolist()]], [10]),
        ([(X.numpy(), Y.numpy())], [10]),
        ([({"a": X}, Y.int())], [10]),
        ([{"a": X, "labels": Y}], [10]),
        (lambda: iter([(X, Y)]), [10]),
    ],
    ids=["loader", "dataset", "stream", "tensors", "list", "tuple", "lists", "numpy", "dict in", "dict", "function"],
)
def test_every_way_to_give_data_ends_as_the_same_batches(source: Any, sizes: list[int]) -> None:
    found = data.batches(source, "calibration", classes=3, batch=4)
    assert [len(y) for _, y in found] == sizes
    inputs = [x["a"] if isinstance(x, dict) else x for x, _ in found]
    assert torch.equal(torch.cat(inputs), X)
    assert torch.equal(torch.cat([y for _, y in found]), Y)
    assert found[0][1].dtype == torch.int64


def test_a_shuffling_loader_gives_the_same_batches_every_time_and_leaves_the_stream_alone() -> None:
    loader = DataLoader(TensorDataset(X, Y), batch_size=4, shuffle=True)
    before = torch.random.get_rng_state()
    first, second = data.batches(loader, "validation"), data.batches(loader, "validation")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert data.fingerprint(first) == data.fingerprint(second) != data.fingerprint(data.batches((X, Y), "v", batch=4))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "the tuning data yields no batch"),
        (iter(()), "the tuning data yields no batch"),
        ((X[:0], Y[:0]), "the tuning data yields no batch"),
        ([(X[:0], Y[:0])], "batch 0 of the tuning data is empty"),
        ([(X, Y), X], "batch 1 of the tuning data is a Tensor instead of a pair"),
        ([(X, Y, Y)], "batch 0 of the tuning data is 3 values instead of a pair"),
        ([{"x": X}], "is a dict instead of a pair"),
        (X, "the tuning data is a Tensor: give a DataLoader"),
        (7, "the tuning data is a int: give a DataLoader"),
        ((X, Y[:9]), "10 inputs but labels: 9"),
        ((X, None), "10 inputs but labels: NoneType"),
        ([(X, Y[:9])], r"labels of type torch.int64 and shape \(9,\) for 10 inputs"),
        ([(X, X)], "labels of type torch.float32"),
        ([(X, Y == 1)], "labels of type torch.bool"),
        ([(X, "labels")], "labels of type str"),
        ([(X, Y + 1)], r"has the label 3: class numbers have to be in 0..2, as the model has 3 classes"),
        ([(X, Y - 1)], "has the label -1"),
        ([("text", Y)], "no tensor with a batch axis"),
        ([(X / 0, Y)], "has NaN among its inputs"),
    ],
)
def test_data_that_cannot_be_used_is_refused_with_the_batch_and_the_value(source: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        data.batches(source, "tuning", classes=3)


def test_the_number_of_classes_may_be_unknown() -> None:
    assert data.batches([(X, Y + 100)], "calibration")[0][1].max() == 102
    with pytest.raises(UserError, match="label -1: class numbers have to be not negative"):
        data.batches([(X, Y - 1)], "calibration")


@pytest.mark.parametrize(
    ("item", "labels"),
    [(X, None), ((X, X), X), ((X, None), None), ((X, ["any", "thing"]), ["any", "thing"]), ([X, X, X], None)],
)
def test_labels_may_be_anything_for_an_evaluation_of_ones_own(item: Any, labels: Any) -> None:
    ((_, found),) = data.batches([item], "validation", labels=False)
    assert found is labels or found == labels


def test_the_fingerprint_sees_values_labels_shapes_types_and_the_cut_into_batches() -> None:
    makers: list[Callable[[], list[data.Batch]]] = [
        lambda: [(X, Y)],
        lambda: [(X + torch.eye(10, 2), Y)],
        lambda: [(X, Y.flip(0))],
        lambda: [(X.reshape(10, 1, 2), Y)],
        lambda: [(X.view(torch.int32), Y)],
        lambda: [(X[:5], Y[:5]), (X[5:], Y[5:])],
        lambda: [(X, None)],
        lambda: [({"a": X, "b": X}, Y)],
    ]
    prints = [data.fingerprint(make()) for make in makers]
    assert len(set(prints)) == len(makers)
    assert prints == [data.fingerprint(make()) for make in makers]
