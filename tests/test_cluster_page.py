"""The page from laptop to cluster: its YAML is what Ray takes, and its commands are ones of the command line."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from autoprune.cli import app

PAGE = Path(__file__).parents[1] / "docs" / "cluster.md"
TEXT = PAGE.read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    """Every command of ours on the page, as words: in shell blocks, in the text and in the entrypoint of the job."""
    shell = "\n".join(blocks("bash")).replace("\\\n", " ")
    found = re.findall(r"(?:^|-- +)(autoprune .*)$", shell, re.MULTILINE)
    found += re.findall(r"bin/(autoprune [^']*)'", TEXT)
    found += [job()["spec"]["entrypoint"]]
    return [shlex.split(line, comments=True) for line in found]


def job() -> dict[str, Any]:
    (found,) = [one for one in map(yaml.safe_load, blocks("yaml")) if one.get("kind") == "RayJob"]
    return found


def options(words: list[str]) -> dict[str, Any]:
    """The options as the command line reads them; wrong ones raise."""
    group: Any = typer.main.get_command(app)
    with group.commands[words[1]].make_context(words[1], words[2:]) as context:
        return dict(context.params)


def test_all_commands_are_found() -> None:
    assert len(commands()) == len(re.findall(r"autoprune (?:search|compare) --", TEXT)) == 7


@pytest.mark.parametrize("words", commands(), ids=lambda words: " ".join(words[:4]))
def test_a_command_is_one_of_the_command_line(words: list[str]) -> None:
    assert options(words)["run"]


def test_a_wrong_option_would_be_seen() -> None:
    with pytest.raises(Exception, match="No such option"):
        options(["autoprune", "search", "--wrokers", "2"])


def test_the_cluster_is_one_that_ray_takes() -> None:
    util = pytest.importorskip("ray.autoscaler._private.util")
    (cluster,) = [one for one in map(yaml.safe_load, blocks("yaml")) if "cluster_name" in one]
    util.validate_config(util.prepare_config(cluster))
    assert cluster["min_workers"] == cluster["max_workers"] == len(cluster["provider"]["worker_ips"])
    with pytest.raises(Exception, match="Additional properties"):
        util.validate_config(util.prepare_config({**cluster, "worker_start_commands": []}))


def test_the_pods_have_room_for_the_workers() -> None:
    spec = job()["spec"]["rayClusterSpec"]
    (group,) = spec["workerGroupSpecs"]
    head = spec["headGroupSpec"]["template"]["spec"]
    (worker,) = group["template"]["spec"]["containers"]
    asked = options(shlex.split(job()["spec"]["entrypoint"]))
    assert group["replicas"] * int(worker["resources"]["limits"]["cpu"]) == asked["workers"] * asked["cpus_per_worker"]
    assert group["minReplicas"] == group["replicas"] == group["maxReplicas"]
    assert {mount["name"] for mount in head["containers"][0]["volumeMounts"]} == {v["name"] for v in head["volumes"]}
    for image in (worker["image"], head["containers"][0]["image"]):
        assert image.endswith(f":{spec['rayVersion']}")


def test_the_batch_script_is_sound_and_has_room_for_the_workers() -> None:
    (script,) = [block for block in blocks("bash") if "#SBATCH" in block]
    checked = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True, check=False)
    assert checked.returncode == 0, checked.stderr
    wanted = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)$", script, re.MULTILINE))
    (line,) = re.findall(r"-- +(autoprune .*)", script.replace("\\\n", " "))
    cores = int(wanted["nodes"]) * int(wanted["cpus-per-task"])
    assert options(shlex.split(line))["workers"] == cores
    assert wanted["ntasks-per-node"] == "1"
