"""A latency budget for a device elsewhere: networks travel over ssh, milliseconds come back.

    AUTOPRUNE_SSH="ssh user@board" autoprune search --budget latency=60% --latency-function remote_latency:latency

The device needs Python and torch of the same version, nothing else. What travels is a program of ``torch.export``. Run
as it is, this file times a network on this machine, with ``sh -c`` in the place of ssh.
"""

import io
import os
import shlex
import subprocess
import sys
from statistics import median

import torch

EXAMPLE = (torch.zeros(1, 1, 8, 8),)  # one input of your network
TIMED = """
import io, sys, time, torch
torch.set_num_threads(1)
program = torch.export.load(io.BytesIO(sys.stdin.buffer.read())); network = program.module()
inputs = program.example_inputs[0]
with torch.inference_mode():
    for turn in range(25):
        start = time.perf_counter(); network(*inputs); seconds = time.perf_counter() - start
        if turn >= 5: print(1e3 * seconds)
"""


def latency(network: torch.nn.Module) -> list[float]:
    """Milliseconds of twenty forward passes on the device that AUTOPRUNE_SSH reaches."""
    program = io.BytesIO()
    torch.export.save(torch.export.export(network.eval(), EXAMPLE), program)
    python = os.environ.get("AUTOPRUNE_REMOTE_PYTHON", "python3")
    command = [*shlex.split(os.environ["AUTOPRUNE_SSH"]), f"{python} -c {shlex.quote(TIMED)}"]
    answer = subprocess.run(command, input=program.getvalue(), capture_output=True, check=True, timeout=300)
    return [float(line) for line in answer.stdout.split()]


if __name__ == "__main__":
    os.environ |= {"AUTOPRUNE_SSH": "sh -c", "AUTOPRUNE_REMOTE_PYTHON": sys.executable}
    small = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(288, 10))
    print(f"{median(latency(small)):.3f} ms")
