"""Pools: the same result with any number of workers, and what becomes of candidates whose worker is lost."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from optuna.storages.journal import JournalFileBackend
from torch import nn

from autoprune import api, architectures, sensitivity
from autoprune.compare import compare
from autoprune.errors import UserError
from autoprune.fidelity import FULL, Fidelity
from autoprune.journal import open_journal
from autoprune.loop import Stop
from autoprune.pool import InProcess, Pool, Workers
from autoprune.problem import Problem
from autoprune.run import LEDGER, Run
from autoprune.scheme import Scheme
from autoprune.searchers import SEARCHERS
from autoprune.trial import Measurement

EXAMPLE = torch.zeros(1, 1, 8, 8)
QUICK = {name: {"warmup": 4} for name in ("ddpg", "td3", "sac")}
Rule = Callable[[str, Path], None]


def make_problem(evaluate: Any = None, **choices: Any) -> Problem:
    """A network that is not trained, on noise: nothing to learn, but every digit of it counts."""
    torch.manual_seed(0)
    network = architectures.digits().eval()
    batches = [(torch.randn(32, 1, 8, 8), torch.randint(0, 10, (32,))) for _ in range(4)]
    given = {"budget": "macs=50%", "evaluate": evaluate, **choices}
    if evaluate is not None:
        given |= {"criterion": "l1", "recovery": "none"}
    return api.problem(network, EXAMPLE, batches[:2], batches[2:], **given)


def widths(model: nn.Module) -> str:
    return "-".join(str(module.out_channels) for module in model.modules() if isinstance(module, nn.Conv2d))


def watched(folder: Path, rule: Rule) -> Callable[[nn.Module], dict[str, float]]:
    """An evaluation that notes in ``folder`` who measures what, and then, in a worker, obeys the rule.

    It is a local function, so that it travels by value: workers cannot import this file.
    """
    driver = os.getpid()
    describe = widths

    def evaluate(model: nn.Module) -> dict[str, float]:
        name = describe(model)
        if os.getpid() != driver:
            with (folder / name).open("a") as file:
                file.write(f"{os.getpid()}\n")
            rule(name, folder)
        return {"loss": sum(p.numel() % 97 for p in model.parameters()) / 100}

    return evaluate


def attempts(folder: Path) -> dict[str, int]:
    return {path.name: len(path.read_text().split()) for path in folder.iterdir() if "-" in path.name}


def history(run: Run) -> pd.DataFrame:
    return run.history().drop(columns="seconds")


@pytest.fixture(scope="module")
def running() -> Iterator[None]:
    """A Ray of this test process, with two CPUs whatever the machine: room for eight quarters."""
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR", address="local")
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def problem() -> Problem:
    return make_problem()


@pytest.fixture(scope="module")
def two(running: None, problem: Problem) -> Iterator[Pool]:
    with problem.pool(Workers(2, cpus=0.25)) as pool:
        yield pool


@pytest.fixture(scope="module")
def four(running: None, problem: Problem) -> Iterator[Pool]:
    with problem.pool(Workers(4, cpus=0.25)) as pool:
        yield pool


def searched(problem: Problem, root: Path, pool: Pool | None = None, **choices: Any) -> Run:
    given = {"searcher": "random", "stop": Stop(trials=10), "batch": 5, "run": "one", "seed": 3, **choices}
    return problem.search(given.pop("searcher"), pool=pool, root=root, **given)


# --- the same with any number of workers ---


@pytest.mark.parametrize("name", ["swap", "random"])
def test_one_two_and_four_workers_find_the_same(
    name: str, problem: Problem, two: Pool, four: Pool, tmp_path: Path
) -> None:
    choices = {"searcher": name, "stop": Stop(trials=12), "batch": 5}
    alone = searched(problem, tmp_path, run="alone", **choices)
    for run, pool in (("two", two), ("four", four)):
        found = searched(problem, tmp_path, pool, run=run, **choices)
        assert found.scheme == alone.scheme
        pd.testing.assert_frame_equal(history(found), history(alone), check_exact=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SEARCHERS if name != "hand"])  # that one needs a file
def test_every_searcher_finds_the_same_with_any_number_of_workers(
    name: str, problem: Problem, two: Pool, four: Pool, tmp_path: Path
) -> None:
    choices = {"searcher": name, "options": QUICK.get(name), "stop": Stop(trials=24), "batch": 6}
    alone = searched(problem, tmp_path, run="alone", **choices)
    for run, pool in (("two", two), ("four", four)):
        found = searched(problem, tmp_path, pool, run=run, **choices)
        pd.testing.assert_frame_equal(history(found), history(alone), check_exact=True)


def test_the_analysis_and_the_comparison_are_the_same_with_workers(problem: Problem, two: Pool, tmp_path: Path) -> None:
    curves, tables = [], []
    for run, pool in (("alone", None), ("two", two)):
        found = sensitivity.sensitivity(problem, points=2, run=f"curves-{run}", root=tmp_path, pool=pool)
        curves.append(found.frame().drop(columns="note"))
        compared = compare(problem, ["random"], seeds=[0], trials=4, run=f"table-{run}", root=tmp_path, pool=pool)
        tables.append(compared.frame().drop(columns="seconds"))
    pd.testing.assert_frame_equal(*curves, check_exact=True)
    pd.testing.assert_frame_equal(*tables, check_exact=True)


def test_a_stop_rule_within_a_batch_leaves_the_rest_of_it_out(problem: Problem, two: Pool, tmp_path: Path) -> None:
    stop = Stop(callback=lambda trial, loop: len(loop.trials) == 2)
    alone = searched(problem, tmp_path, stop=stop, batch=12, run="alone")
    run = searched(problem, tmp_path, two, stop=stop, batch=12, run="two")
    assert alone.summary["trials"] == run.summary["trials"] == 2
    assert run.scheme == alone.scheme
    assert len(alone.trials()) == 3  # the uniform scheme, and two trials
    assert len(run.trials()) < 9  # and what the workers had begun


def test_fidelities_and_kept_indices_travel(problem: Problem, two: Pool) -> None:
    scheme = problem.uniform
    chosen = tuple(tuple(int(i) for i in units) for units in problem.evaluator.kept(scheme))
    exact = Scheme(scheme.kept, indices=chosen)
    for fidelity in (FULL, Fidelity(share=0.5), Fidelity(recovery="none"), Fidelity(after=(scheme,))):
        here = dict(InProcess(problem.evaluator).measure([scheme, exact], fidelity))
        there = dict(two.measure([scheme, exact], fidelity))
        assert {s: m.loss for s, m in here.items()} == {s: m.loss for s, m in there.items()}


def test_a_mistake_of_the_caller_is_raised_here_and_the_pool_goes_on(problem: Problem, two: Pool) -> None:
    wrong = Scheme((10_000, *problem.uniform.kept[1:]))
    with pytest.raises(UserError, match="not a legal count"):
        list(two.measure([wrong], FULL))
    assert not dict(two.measure([problem.uniform], FULL))[problem.uniform].failed


def test_workers_need_neither_plug_in_folders_nor_torch_pruning_and_compute_with_one_thread(
    running: None, tmp_path: Path
) -> None:
    def evaluate(model: nn.Module) -> dict[str, float]:
        import os
        import sys

        unwanted = (
            "torch_pruning",
            "autoprune.search_spaces",
            "autoprune.envs",
            "autoprune.searchers",
            "optuna",
            "pandas",
        )
        return {
            "loss": 1.0,
            "unwanted": float(sum(name in sys.modules for name in unwanted)),
            "threads": float(torch.get_num_threads()),
            "omp": float(os.environ.get("OMP_NUM_THREADS", "0")),
            "pid": float(os.getpid()),
        }

    problem = make_problem(evaluate)
    with problem.pool(Workers(1, cpus=0.25)) as pool:
        (_, seen), *_ = pool.measure([problem.uniform], FULL)
    assert seen.metrics["pid"] != os.getpid()
    assert (seen.metrics["unwanted"], seen.metrics["threads"], seen.metrics["omp"]) == (0, 1, 1)


@pytest.mark.slow
def test_workers_run_in_the_runtime_environment_that_is_asked_for(running: None) -> None:
    def evaluate(model: nn.Module) -> dict[str, float]:
        import os

        return {"loss": 1.0, "found": float(os.environ.get("AUTOPRUNE_TEST_OF_WORKERS", "0"))}

    problem = make_problem(evaluate)
    with problem.pool(Workers(1, cpus=0.25, runtime_env={"env_vars": {"AUTOPRUNE_TEST_OF_WORKERS": "7"}})) as pool:
        (_, seen), *_ = pool.measure([problem.uniform], FULL)
    assert seen.metrics["found"] == 7


def test_one_worker_and_nothing_else_is_this_process_without_ray(problem: Problem) -> None:
    assert isinstance(problem.pool(), InProcess)
    assert isinstance(problem.pool(Workers(1)), InProcess)
    command = "import autoprune.cli, autoprune.api, autoprune.pool, sys; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command], check=False).returncode == 0


# --- faults ---


def test_a_candidate_whose_worker_is_killed_is_measured_by_another_and_recorded_once(
    running: None, tmp_path: Path
) -> None:
    def kill_once(name: str, folder: Path) -> None:
        try:
            (folder / "killed").touch(exist_ok=False)
        except FileExistsError:
            return
        os.kill(os.getpid(), signal.SIGKILL)

    notes = tmp_path / "notes"
    notes.mkdir()
    problem = make_problem(watched(notes, kill_once))
    alone = searched(problem, tmp_path, run="alone")
    with problem.pool(Workers(1, cpus=0.25)) as pool:
        run = searched(problem, tmp_path, pool)
    pd.testing.assert_frame_equal(history(run), history(alone), check_exact=True)
    assert run.summary["failed"] == 0
    assert sorted(attempts(notes).values()) == [1] * 9 + [2]
    assert not run.trials().duplicated([c for c in run.trials() if c.startswith("kept.")]).any()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "reason"),
    [("kill", "its worker died (SYSTEM_ERROR), 2 attempts"), ("hang", "no answer within 2 s, 2 attempts")],
)
def test_a_candidate_that_always_kills_or_hangs_fails_with_its_reason_and_the_search_goes_on(
    fault: str, reason: str, running: None, tmp_path: Path
) -> None:
    def always(name: str, folder: Path) -> None:
        victim = folder / "victim"
        if not victim.exists():
            victim.write_text(name)
        if victim.read_text() == name and fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif victim.read_text() == name:
            time.sleep(600)

    notes = tmp_path / "notes"
    notes.mkdir()
    problem = make_problem(watched(notes, always))
    with problem.pool(Workers(1, cpus=0.25, timeout=2, retries=1)) as pool:
        run = searched(problem, tmp_path, pool)
    frame = run.trials()
    assert list(frame.loc[frame["state"] == "FAIL", "error"]) == [reason]
    assert run.summary["trials"] == 10
    assert sorted(attempts(notes).values()) == [1] * 9 + [2]
    with problem.pool(Workers(1, cpus=0.25, timeout=2, retries=1)) as pool:
        again = searched(problem, tmp_path, pool)
    assert sorted(attempts(notes).values()) == [1] * 9 + [2]  # a restart repeats no failure either
    pd.testing.assert_frame_equal(history(again), history(run), check_exact=True)


@pytest.mark.slow
def test_a_candidate_whose_worker_is_killed_for_its_memory_is_measured_by_another(tmp_path: Path) -> None:
    (tmp_path / "hoard").touch()
    lines = Path("/proc/meminfo").read_text().splitlines()
    memory = {name: int(rest.split()[0]) for name, rest in (line.split(":") for line in lines)}  # in KiB
    limit = 1 + (2**21 - memory["MemAvailable"]) / memory["MemTotal"]  # 2 GiB more than is in use
    process = script(tmp_path, HOARDER, "8", RAY_memory_usage_threshold=str(limit), RAY_memory_monitor_refresh_ms="100")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "killed, as its machine ran out of memory; measured again" in errors


@pytest.mark.slow
def test_a_candidate_that_raises_or_is_not_finite_in_a_worker_is_a_failed_measurement(
    running: None, tmp_path: Path
) -> None:
    driver = os.getpid()

    def evaluate(model: nn.Module) -> dict[str, float]:
        size = sum(p.numel() for p in model.parameters())
        if os.getpid() != driver and size % 2:
            raise ArithmeticError("odd")
        return {"loss": float("nan") if os.getpid() != driver else 1.0}

    problem = make_problem(evaluate)
    with problem.pool(Workers(2, cpus=0.25)) as pool:
        run = searched(problem, tmp_path, pool)
    assert run.summary["failed"] == 10
    assert set(run.trials()["error"].dropna()) <= {"ArithmeticError: odd", "loss is nan"}


def test_a_full_disk_ends_the_search_in_one_line_and_the_same_call_continues(
    problem: Problem, two: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = JournalFileBackend.append_logs
    left = iter(range(4))

    def until_full(self: JournalFileBackend, logs: list[dict[str, Any]]) -> None:
        if next(left, None) is None:
            with Path(self._file_path).open("a") as file:
                file.write('{"op_code": 4, "cut')
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        append(self, logs)

    whole = searched(problem, tmp_path, run="undisturbed")
    monkeypatch.setattr(JournalFileBackend, "append_logs", until_full)
    with pytest.raises(UserError, match="cannot be written.*No space left.*same command continues"):
        searched(problem, tmp_path, two)
    monkeypatch.undo()
    recorded = len(open_journal(tmp_path / "one" / LEDGER).get_all_studies())
    assert recorded == 1  # the cut line was put aside: the file can be read
    pd.testing.assert_frame_equal(history(searched(problem, tmp_path, two)), history(whole), check_exact=True)


PROBLEM = """
import os, sys, time, torch
from pathlib import Path
from autoprune import api, architectures
from autoprune.loop import Stop
from autoprune.pool import Workers

root, trials, driver = Path(sys.argv[1]), int(sys.argv[2]), os.getpid()

def evaluate(model):
    name = "-".join(str(m.out_channels) for m in model.modules() if isinstance(m, torch.nn.Conv2d))
    if os.getpid() != driver:
        with (root / "notes" / name).open("a") as file:
            file.write("x\\n")
        if (root / "kill").exists():
            (root / "kill").unlink()
            os.kill(os.getpid(), 9)
        hoard = []
        if (root / "hoard").exists():
            (root / "hoard").unlink()
            while True:
                hoard.append(b"x" * 2**26)
                time.sleep(0.02)
        time.sleep(0.2)
    return {"loss": sum(p.numel() % 97 for p in model.parameters()) / 100}

torch.manual_seed(0)
batches = [(torch.randn(8, 1, 8, 8), None)]
problem = api.problem(architectures.digits(), torch.zeros(1, 1, 8, 8), batches, batches, budget="macs=50%",
                      evaluate=evaluate, criterion="l1", recovery="none")

def search(run, pool=None, callback=None):
    return problem.search("random", stop=Stop(trials=trials, callback=callback), batch=6, root=root, run=run, pool=pool)

def same(run):
    alone = search("alone")
    one, other = (found.history().drop(columns="seconds") for found in (run, alone))
    assert one.equals(other), (one, other)
    assert run.summary["failed"] == 0
"""
DRIVER = """
try:
    with problem.pool(Workers(2, cpus=0.1, address="local")) as pool:
        search("one", pool)
except api.UserError as error:
    sys.exit(f"error: {error}")
import ray
assert not ray.is_initialized()  # what the pool started has ended
"""
NODE_LOST = """
from ray.cluster_utils import Cluster

store = 80 * 2**20
head = {"num_cpus": 0, "object_store_memory": store, "include_dashboard": False}
cluster = Cluster(initialize_head=True, head_node_args=head)
nodes = [cluster.add_node(num_cpus=1, object_store_memory=store) for _ in range(3)]

def lose(trial, loop):
    if len(loop.trials) == 4:
        busy = next(worker.node for worker in pool._busy.values() if worker.scheme is not None)
        cluster.remove_node(next(node for node in nodes if node.node_id == busy), allow_graceful=False)
    return False

with problem.pool(Workers(2, address=cluster.address, retries=0)) as pool:
    same(search("one", pool, lose))
"""
HOARDER = """
with problem.pool(Workers(2, cpus=0.25)) as pool:
    same(search("one", pool))
assert not (root / "hoard").exists()
"""
CLIENT = """
import ray

(root / "kill").touch()
with problem.pool(Workers(2, cpus=0.25, address=sys.argv[3])) as pool:
    same(search("one", pool))
assert not (root / "kill").exists()
assert not ray.is_initialized()  # the pool has hung up
"""


def driver(tmp_path: Path, trials: int) -> subprocess.Popen[str]:
    return script(tmp_path, DRIVER, str(trials))


def script(tmp_path: Path, text: str, *words: str, **environment: str) -> subprocess.Popen[str]:
    path = tmp_path / "driver.py"
    path.write_text(PROBLEM + text)
    (tmp_path / "notes").mkdir(exist_ok=True)
    command = [sys.executable, str(path), str(tmp_path), *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, **pipes, text=True, env={**os.environ, **environment})


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)


def measured(tmp_path: Path) -> list[str]:
    """The kept counts on record, in the order of arrival."""
    frame = Run.open(tmp_path / "one").trials()
    return ["-".join(map(str, row)) for row in frame[[c for c in frame if c.startswith("kept.")]].to_numpy().tolist()]


def children(process: subprocess.Popen[str], program: str) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            command = (path / "cmdline").read_bytes().split(b"\0")[0].decode()
        except OSError:
            continue
        if parent == process.pid and command.endswith(program):
            found.append(int(path.name))
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_neither_a_killed_driver_nor_a_killed_head_of_ray_loses_or_repeats_what_is_recorded(tmp_path: Path) -> None:
    def some_more(than: int) -> Callable[[], bool]:
        return lambda: (tmp_path / "one" / LEDGER).is_file() and len(measured(tmp_path)) > than

    first = driver(tmp_path, 500)
    wait_for(some_more(6), first)
    second = driver(tmp_path, 500)  # two drivers on one run
    _, refused = second.communicate(timeout=120)
    assert second.returncode == 1
    assert f"process {first.pid} on host {socket.gethostname()}" in refused
    first.kill()
    first.communicate()
    killed = measured(tmp_path)

    third = driver(tmp_path, 500)
    wait_for(some_more(len(killed) + 4), third)
    (head,) = children(third, "gcs_server")
    os.kill(head, signal.SIGKILL)
    _, gone = third.communicate(timeout=200)
    assert third.returncode == 1
    assert "Ray (local) is gone" in gone
    assert "the same command continues" in gone
    headless = measured(tmp_path)
    assert headless[: len(killed)] == killed

    last = driver(tmp_path, len(headless) + 5)
    printed, complaints = last.communicate(timeout=200)
    assert (last.returncode, printed) == (0, ""), complaints
    whole = measured(tmp_path)
    assert whole[: len(headless)] == headless
    assert len(set(whole)) == len(whole)
    lost = sum(attempts(tmp_path / "notes").values()) - len(attempts(tmp_path / "notes"))
    # What two workers had in hand, each time; and the driver was killed, perhaps, before it recorded what one had
    # given back, because a worker gets its next candidate first.
    assert lost <= (2 + 1) + 2


@pytest.mark.slow
def test_the_candidate_of_a_lost_machine_is_measured_on_another_and_the_loss_is_not_held_against_it(
    tmp_path: Path,
) -> None:
    lost = script(tmp_path, NODE_LOST, "12")
    _, complaints = lost.communicate(timeout=200)
    assert lost.returncode == 0, complaints
    assert sum(attempts(tmp_path / "notes").values()) >= 12
    assert "its machine was lost; measured again" in complaints


@pytest.mark.slow
def test_a_cluster_is_used_from_outside_through_its_proxy(tmp_path: Path) -> None:
    with socket.socket() as one, socket.socket() as other:
        for taken in (one, other):
            taken.bind(("127.0.0.1", 0))
        ports = [taken.getsockname()[1] for taken in (one, other)]
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 2}  # the proxy refuses who has none
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", f"--port={ports[0]}"]
    command += [f"--ray-client-server-port={ports[1]}", "--num-cpus=2", "--include-dashboard=false"]
    with (tmp_path / "head.log").open("w") as log:
        head = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **token})
    try:
        wait_for(lambda: answers(ports[1]), head)
        outside = script(tmp_path, CLIENT, "12", f"ray://127.0.0.1:{ports[1]}", **token)
        _, complaints = outside.communicate(timeout=200)
        assert outside.returncode == 0, complaints
        assert "its worker died (SYSTEM_ERROR); measured again" in complaints
    finally:
        head.terminate()  # ends all that it started
        head.wait(timeout=60)


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


@pytest.mark.slow
def test_the_command_line_measures_with_workers_and_prints_its_json_alone(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from autoprune.cli import main; main()", "search", "--json"]
    command += ["--workers", "2", "--cpus-per-worker", "0.1"]
    done = subprocess.run(
        [*command, "--trials", "6", "--root", str(tmp_path)], capture_output=True, text=True, check=True, timeout=200
    )
    assert done.stdout.startswith("{")
    assert done.stdout.count("\n") == 1


# --- bad input ---


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"count": 0}, "workers = 0"),
        ({"count": 2, "cpus": -1}, "CPUs per worker = -1"),
        ({"count": 2, "gpus": float("nan")}, "GPUs per worker = nan"),
        ({"count": 2, "gpus": 1.5}, "GPUs per worker = 1.5"),
        ({"timeout": 0}, "candidate timeout = 0"),
        ({"retries": -1}, "retries = -1"),
    ],
)
def test_workers_that_cannot_be_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Workers(**wrong)


def test_more_workers_than_there_is_room_for_are_refused_with_what_there_is(running: None, problem: Problem) -> None:
    import ray

    with pytest.raises(UserError, match=r"3 workers of 1 CPUs asked for, there is room for 2 \(machines: 2 CPUs"):
        problem.pool(3)
    with pytest.raises(UserError, match="there is room for 1"):
        problem.pool(Workers(2, cpus=1.5))
    with problem.pool(Workers(4, cpus=0.5)):
        pass
    assert ray.is_initialized()  # it was there before the pool


def test_gpus_go_with_the_device(problem: Problem) -> None:
    with pytest.raises(UserError, match="0.5 GPUs per worker, but candidates are measured on cpu"):
        problem.pool(Workers(2, gpus=0.5))


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("{free}", "nobody answered within 5 s"),
        ("ray://{free}", "nobody answered within 5 s"),
        ("auto", "auto, which is {free}, the last cluster known here: nobody answered within 5 s"),
        ("nonsense", "cannot be read"),
    ],
)
def test_an_address_where_nobody_answers_is_one_clear_line(
    address: str, message: str, problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray
    from ray._private import services

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but nobody listens
        free = f"127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setattr(services, "canonicalize_bootstrap_address", lambda _: free)
        message = message.format(free=free)
        with pytest.raises(UserError, match=message):
            problem.pool(Workers(2, address=address.format(free=free)))


def test_no_cluster_at_all_is_one_clear_line(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray
    from ray._private import services

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(services, "find_gcs_addresses", set)
    monkeypatch.setattr(services, "find_bootstrap_address", lambda _: None)
    with pytest.raises(UserError, match="no cluster runs on this machine.*ray start --head"):
        problem.pool(Workers(2, address="auto"))


def test_a_proxy_that_lets_nobody_in_is_one_clear_line_that_speaks_of_the_token(
    problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    def refuse(**_: Any) -> None:
        raise ConnectionError("ray client connection timeout")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(UserError, match="timeout.*RAY_AUTH_TOKEN"):
        problem.pool(Workers(2, address=f"ray://127.0.0.1:{silent.getsockname()[1]}"))


def test_an_evaluator_that_cannot_be_pickled_names_what_of_it(running: None) -> None:
    lock = threading.Lock()

    def evaluate(model: nn.Module) -> dict[str, float]:
        with lock:
            return {"loss": 1.0}

    problem = make_problem(evaluate)
    with (
        problem.pool(Workers(2, cpus=0.25)) as pool,
        pytest.raises(UserError, match=r"evaluator\.evaluate\.lock \(of type lock\)"),
    ):
        list(pool.measure([problem.uniform], FULL))


def test_the_pool_is_the_only_thing_a_search_needs_to_know_of_those_who_measure(
    problem: Problem, tmp_path: Path
) -> None:
    class Backwards(InProcess):
        """Gives the measurements of a batch in the reverse order."""

        def measure(self, schemes: Iterable[Scheme], fidelity: Fidelity) -> Iterator[tuple[Scheme, Measurement]]:
            yield from reversed(list(super().measure(schemes, fidelity)))

    alone = searched(problem, tmp_path, run="alone", searcher="swap")
    other = searched(problem, tmp_path, Backwards(problem.evaluator), run="other", searcher="swap")
    pd.testing.assert_frame_equal(history(other), history(alone), check_exact=True)
