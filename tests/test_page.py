"""The report of a run says what its folder says, needs nothing else, and draws in a browser."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typer.testing import CliRunner

from autoprune import page
from autoprune.cli import app
from autoprune.errors import UserError
from autoprune.run import Run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    root = tmp_path_factory.mktemp("runs")
    command = ["search", "--trials", "5", "--searcher", "random", "--run", "one", "--root", str(root), "--quiet"]
    result = CliRunner().invoke(app, [*command, "--objectives", "accuracy,macs"])
    assert result.exit_code == 0, result.output
    return Run.open(root / "one")


@pytest.fixture(scope="module")
def text(run: Run) -> str:
    return (run.folder / page.REPORT).read_text(encoding="utf-8")


class Tags(HTMLParser):
    """Every tag with its attributes, and which are open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attributes)))
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_every_search_leaves_a_page(text: str) -> None:
    tags = Tags(text)
    assert not tags.open
    assert [tag for tag, _ in tags.seen].count("h1") == 1


def test_it_needs_no_network_and_no_other_file(text: str) -> None:
    for tag, attributes in Tags(text).seen:
        for name in ("src", "href", "xlink:href", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:")), (tag, value)
    assert "@import" not in text and "url(" not in text and "fetch(" not in text


def test_its_numbers_are_those_of_the_run(run: Run, text: str) -> None:
    for row in run.summary["rows"].values():
        assert f"{row['accuracy']:.2%}" in text
        assert f"{row['test_accuracy']:.2%}" in text
        assert f"({row['fractions']['macs']:.1%})" in text
    for trial in run.history().itertuples():
        assert f"{trial.reward:.4f}" in text
        assert trial.kept in text
    assert html.escape(run.config["time"]) in text


def test_every_trial_is_a_dot_that_says_what_it_is(run: Run, text: str) -> None:
    said = [
        attributes["aria-label"] for tag, attributes in Tags(text).seen if tag == "circle" and "tabindex" in attributes
    ]
    assert len(said) == len(run.history())
    assert all(re.match(r"trial \d+: reward -\d", label or "") for label in said)


def test_pictures_have_names(text: str) -> None:
    pictures = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    assert len(pictures) == 3  # kept channels, the search, the front
    assert all('role="img"' in picture and re.search("<title>.+</title>", picture) for picture in pictures)


def test_names_from_a_run_are_no_markup(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.folder, tmp_path / "run")
    config = json.loads((tmp_path / "run/config.json").read_text())
    config["name"] = "<script>alert(1)</script>"
    (tmp_path / "run/config.json").write_text(json.dumps(config))
    drawn = page.render([Run.open(tmp_path / "run")])
    assert "<script>alert" not in drawn and "&lt;script&gt;alert" in drawn


def test_several_runs_stand_side_by_side(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.folder, tmp_path / "other")
    out = tmp_path / "both.html"
    result = CliRunner().invoke(app, ["report", str(run.folder), str(tmp_path / "other"), "--out", str(out)])
    assert result.exit_code == 0, result.output
    drawn = out.read_text(encoding="utf-8")
    assert "Side by side" in drawn
    assert [attributes["id"] for tag, attributes in Tags(drawn).seen if tag == "article"] == ["one", "other"]


def test_a_run_without_a_result_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((run.folder / "config.json").read_text())
    with pytest.raises(UserError, match="has no result yet"):
        page.render([Run.open(tmp_path)])


def test_a_browser_draws_it_without_complaint(run: Run) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium here (Debian: apt-get install chromium)")
    done = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom",
         (run.folder / page.REPORT).as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not complaints
    assert re.search(r'<div id="tip" role="status" hidden', done.stdout)  # the script ran
