"""Makes the pictures of the docs: a run, its report in a headless Chromium, and what that looks like.

    python docs/screenshots.py            # some two minutes; needs Chromium (Debian: apt-get install chromium)

The run is the one of the first page of the docs, on data that comes with scikit-learn. Pictures go to docs/pictures/.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "tests"))
from browser import Browser, Page  # noqa: E402 - the tests' own browser

PROGRAM = Path(sys.executable).with_name("autoprune")
PICTURES = HERE / "pictures"
RUN = "first"
COMMANDS = (
    ("sensitivity", "--run", "sensitivity"),
    ("search", "--trials", "60", "--budget", "latency=80%", "--run", RUN),
    ("finetune", RUN, "--epochs", "5"),
    ("report", RUN),
)
WIDE, HIGH, TELEPHONE = 920, 1340, 390


def main() -> None:
    """Run the commands in an empty folder, and photograph what they leave."""
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, Browser() as browser:
        for words in COMMANDS:
            print("autoprune", *words)
            subprocess.run([PROGRAM, *words], cwd=folder, check=True, stdout=sys.stderr)
        report = Path(folder, "runs", RUN, "report.html")
        take(browser.open(report, WIDE), PICTURES / "report.png")
        take(browser.open(report, WIDE, dark=True), PICTURES / "report-dark.png")
        take(browser.open(report, TELEPHONE), PICTURES / "report-telephone.png")


def take(page: Page, path: Path) -> None:
    """The top of a page."""
    assert not page.complaints, page.complaints
    page.screenshot(path, height=HIGH)
    print(f"{path.relative_to(HERE.parent)}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
