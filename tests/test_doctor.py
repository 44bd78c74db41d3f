"""``autoprune doctor``: a sound installation passes, and every fault that is put in has its cause and cure."""

import importlib
import json
import os
import types
from importlib import metadata
from pathlib import Path

import pytest

from autoprune import doctor
from autoprune.doctor import Check


@pytest.fixture
def versions(monkeypatch):
    """Installs versions of torch and torchvision, as their modules and their records say."""

    def install(torch, torchvision, asks="torch"):
        monkeypatch.setitem(doctor.sys.modules, "torch", types.SimpleNamespace(__version__=torch))
        monkeypatch.setitem(doctor.sys.modules, "torchvision", types.SimpleNamespace(__version__=torchvision))
        monkeypatch.setattr(metadata, "requires", lambda name: [asks, "numpy"])

    return install


@pytest.fixture
def importing(monkeypatch):
    """Makes the import of a module raise, or give something else."""
    real = importlib.import_module

    def replace(name, what):
        def load(asked):
            if asked != name:
                return real(asked)
            if isinstance(what, Exception):
                raise what
            return what

        monkeypatch.setattr(importlib, "import_module", load)

    return replace


def test_this_installation_has_no_problem(tmp_path, monkeypatch, command_line):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    status, out, err = command_line("doctor", "--json", "--root", str(tmp_path / "runs"))
    found = json.loads(out)
    problems = [check for check in found["checks"] if check["status"] == "problem"]
    assert (status, found["problems"], problems) == (0, 0, []), err
    names = {check["name"] for check in found["checks"]}
    assert {"python", "torch", "torchvision", "torch and torchvision", "threads", "extras", "runs folder"} <= names
    assert not (tmp_path / "runs").exists()  # it looks, and makes nothing


def test_the_missing_operator_of_torchvision_has_its_cause_and_its_cure(importing, command_line, tmp_path):
    importing("torchvision", RuntimeError("operator torchvision::nms does not exist\nmore lines"))
    check = doctor.torchvision()
    assert check.status == "problem"
    assert "operator torchvision::nms does not exist" in check.found
    assert "built for another PyTorch than the" in check.found
    assert "pip install --force-reinstall torch torchvision" in check.cure
    status, out, _ = command_line("doctor", "--root", str(tmp_path))
    assert status == 1
    assert "problem" in out
    assert "torchvision::nms" in out


def test_torchvision_and_torch_that_do_not_import(importing):
    importing("torchvision", ImportError("libcudart.so.12: cannot open shared object file"))
    assert "libcudart" in doctor.torchvision().found
    importing("torch", OSError("libtorch_cpu.so is damaged"))
    assert doctor.torch() == Check(
        "torch", "problem", "cannot be imported: libtorch_cpu.so is damaged", "pip install --force-reinstall torch"
    )
    assert list(doctor.devices()) == []
    assert doctor.threads().status == "ok"


@pytest.mark.parametrize(
    ("torch", "torchvision", "asks", "status", "told"),
    [
        ("2.15.0+cu132", "0.29.2+cu132", "torch>=2.14", "ok", "go together"),
        ("2.15.0", "0.29.2", "torch==2.15.0", "ok", "go together"),
        ("2.15.0+cpu", "0.29.2+cpu", "torch==2.15.0", "ok", "go together"),
        ("2.15.1", "0.29.2", "torch==2.15.0", "problem", "torchvision 0.29.2 asks for torch ==2.15.0"),
        (
            "2.15.0+cpu",
            "0.29.2+cu132",
            "torch",
            "problem",
            "is a build for the CPU, torchvision 0.29.2+cu132 one for CUDA",
        ),
        ("2.15.0+cu132", "0.29.2+cpu", "torch", "note", "its operators fail on a GPU"),
    ],
)
def test_whether_torch_and_torchvision_fit(torch, torchvision, asks, status, told, versions):
    versions(torch, torchvision, asks)
    check = doctor.fit()
    assert check.status == status
    assert told in check.found
    assert bool(check.cure) is (status != "ok")


def test_packages_that_are_missing_or_too_old(monkeypatch):
    wanted = ["torch>=999", "nothing-of-that-name>=1.2", 'numpy>=999; extra == "later"', "numpy>=1"]
    monkeypatch.setattr(metadata, "requires", lambda name: wanted)
    found = {check.name: check for check in doctor.requirements()}
    assert set(found) == {"torch", "nothing-of-that-name"}
    assert "too old" in found["torch"].found
    assert found["torch"].cure == "pip install 'torch>=999'"
    assert found["nothing-of-that-name"].found == "not installed"
    assert all(check.status == "problem" for check in found.values())


def test_packages_that_are_all_there_are_one_line(monkeypatch):
    monkeypatch.setattr(metadata, "requires", lambda name: ["numpy>=1", 'absent; extra == "later"', "packaging"])
    assert list(doctor.requirements()) == [Check("required packages", "ok", "all 2 are there, and new enough")]


def test_ray_is_told_without_being_started(monkeypatch):
    monkeypatch.setattr(doctor, "_version", {"ray": "2.60.0"}.get)
    assert "2.60.0, not started" in doctor.ray_there().found
    monkeypatch.setattr(doctor, "_version", lambda package: None)
    assert doctor.ray_there().status == "problem"


def test_extras_that_are_missing_come_with_the_line_that_installs_them(monkeypatch):
    told = metadata.metadata("autoprune")
    wanted = ["numpy", 'nothing-of-that-name; extra == "onnx"', 'numpy; extra == "timm"', 'absent; extra == "dev"']
    monkeypatch.setattr(metadata, "requires", lambda name: wanted)
    monkeypatch.setattr(told.__class__, "get_all", lambda self, name: ["onnx", "timm", "dev"])
    check = doctor.extras()
    assert check.status == "note"
    assert check.found == "not installed: onnx; there: timm"
    assert check.cure.endswith("pip install 'autoprune[onnx]'")


def test_more_threads_than_cores_and_cores_that_are_left_over(monkeypatch, importing, tmp_path):
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    monkeypatch.setattr(doctor, "CPU_MAX", tmp_path / "cpu.max")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    importing("torch", types.SimpleNamespace(get_num_threads=lambda: 16))
    assert doctor.threads() == Check("threads", "ok", "16 threads on 16 cores")
    (tmp_path / "cpu.max").write_text("250000 100000\n")
    limited = doctor.threads()
    assert limited.status == "note"
    assert "16 threads on 2.5 cores (of 16, by the container's limit)" in limited.found
    assert limited.cure == "export OMP_NUM_THREADS=2"
    (tmp_path / "cpu.max").write_text("max 100000\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(4)), raising=False)
    assert "4 cores (of 16, by affinity)" in doctor.threads().found
    importing("torch", types.SimpleNamespace(get_num_threads=lambda: 1))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    spare = doctor.threads()
    assert (spare.status, spare.cure) == ("note", "--workers 4 uses them")
    importing("torch", types.SimpleNamespace(get_num_threads=lambda: 3))
    assert doctor.threads().status == "ok"  # one core cannot hold another worker of three threads


def test_a_folder_that_may_not_be_looked_into_is_a_finding(monkeypatch):
    def forbidden(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.Path, "exists", forbidden)
    check = doctor.writable("runs folder", doctor.Path("runs"))
    assert (check.status, "Permission denied" in check.found) == ("problem", True)


@pytest.mark.parametrize(
    ("cuda", "built", "found"),
    [
        (2, "13.2", Check("device cuda", "ok", "GPU 0, GPU 1")),
        (0, None, Check("device cuda", "ok", "not in this build of torch")),
    ],
)
def test_devices(cuda, built, found, importing):
    fake = types.SimpleNamespace(
        cuda=types.SimpleNamespace(
            is_available=lambda: cuda > 0, device_count=lambda: cuda, get_device_name=lambda n: f"GPU {n}"
        ),
        version=types.SimpleNamespace(cuda=built),
        backends=types.SimpleNamespace(mps=types.SimpleNamespace(is_available=lambda: cuda == 0)),
    )
    importing("torch", fake)
    assert list(doctor.devices()) == [found, *([Check("device mps", "ok", "Apple GPU")] if not cuda else [])]


def test_a_gpu_that_does_not_answer_is_a_note(importing):
    fake = types.SimpleNamespace(
        cuda=types.SimpleNamespace(is_available=lambda: False),
        version=types.SimpleNamespace(cuda="13.2"),
        backends=types.SimpleNamespace(mps=types.SimpleNamespace(is_available=lambda: False)),
    )
    importing("torch", fake)
    (check,) = doctor.devices()
    assert check.status == "note"
    assert "nvidia-smi" in check.cure


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    check = doctor.writable("runs folder", tmp_path / "file")
    assert check.status == "problem"
    assert "cannot be written" in check.found
    assert "--root" in check.cure
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert doctor.caches().status == "problem"


@pytest.mark.parametrize(("free", "status"), [(2**40, "ok"), (2**30, "note"), (2**20, "problem")])
def test_room_on_the_disk(free, status, tmp_path, monkeypatch):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: types.SimpleNamespace(free=free))
    check = doctor.writable("runs folder", tmp_path / "not" / "yet")
    assert check.status == status
    assert bool(check.cure) is (status != "ok")
    assert list(tmp_path.iterdir()) == []


def test_plug_ins_that_do_not_load_are_named_with_their_package(tmp_path, monkeypatch):
    record = tmp_path / "lab_pruning-1.0.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: lab-pruning\nVersion: 1.0\n")
    (record / "entry_points.txt").write_text(
        "[autoprune.searcher]\nclimb = lab_search:climb\ngood = lab_search:good\n"
        "[autoprune.reward]\nodd = lab_gone:odd\n"
        "[console_scripts]\nlab = nowhere:main\n"
    )
    (tmp_path / "lab_search.py").write_text("def good(): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = {check.name: check for check in doctor.plugins()}
    assert found["searcher good"] == Check("searcher good", "ok", "of lab-pruning")
    assert found["searcher climb"].status == found["reward odd"].status == "problem"
    assert "lab_search:climb of lab-pruning does not load: AttributeError" in found["searcher climb"].found
    assert "ModuleNotFoundError: No module named 'lab_gone'" in found["reward odd"].found
    assert "pip uninstall lab-pruning" in found["reward odd"].cure
    assert not any("lab" in name.split() for name in found)


def test_without_an_installation_it_says_so(monkeypatch):
    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", absent)
    monkeypatch.setattr(metadata, "metadata", absent)
    monkeypatch.setattr(metadata, "requires", absent)
    assert doctor.python().cure == "pip install --editable ."
    assert list(doctor.requirements()) == []
    assert doctor.extras().status == "note"


def test_ray_that_does_not_start_is_a_problem(importing):
    def init(**_):
        raise ConnectionError("the head did not come up\nlog")

    importing("ray", types.SimpleNamespace(init=init))
    check = doctor.ray_works()
    assert check.status == "problem"
    assert check.found == "does not start: ConnectionError: the head did not come up"
    assert check.cure
    importing("ray", ImportError("No module named 'ray'"))
    assert "ImportError" in doctor.ray_works().found


@pytest.mark.slow
def test_ray_starts_and_works(tmp_path: Path):
    names = {check.name: check for check in doctor.examine(tmp_path, ray=True)}
    assert names["ray"].status == "ok"
    assert "a local worker answered" in names["ray"].found
