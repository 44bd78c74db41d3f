"""The report of a run says what its folder says, needs nothing else, and works in a browser."""

from __future__ import annotations

import csv
import html
import json
import re
import shutil
import struct
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from safetensors.torch import load_file

import browser
import drawn
from autoprune import page, proxy
from autoprune.errors import UserError
from autoprune.page import figures, histories, rows, sensitivity
from autoprune.page import search as search_page
from autoprune.run import Run, read_json

KINDS = ("search", "sensitivity", "comparison", "sparsity", "proxy-check")
SIDES = ("width", "height")
HOSTILE = "<script>window.hacked = 1</script>\"'&"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proxy, "BOOTSTRAPS", 100)
        return drawn.make(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def texts(folders: dict[str, Path]) -> dict[str, str]:
    return {kind: page.render([Run.open(folder)]) for kind, folder in folders.items()}


@pytest.fixture
def altered(folders: dict[str, Path], tmp_path: Path) -> Callable[..., Path]:
    """A copy of a run with a file of it changed by a function of the record."""

    def go(kind: str, file: str, change: Callable[[Any], Any], name: str = "copy") -> Path:
        folder = tmp_path / name
        shutil.copytree(folders[kind], folder)
        record = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(change(record) or record))
        return folder

    return go


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

    def names(self, tag: str) -> int:
        return sum(seen == tag for seen, _ in self.seen)


def cells(text: str) -> set[str]:
    """What stands in the cells of all tables."""
    return {html.unescape(cell) for cell in re.findall(r"<t[dh][^>]*>([^<]*)</t[dh]>", text)}


def says(svg: str) -> list[str]:
    """What the marks of a picture stand for."""
    return [html.unescape(text) for text in re.findall(r"<title>([^<]*)</title>", svg)[1:]]


class TestEveryPage:
    @pytest.mark.parametrize("kind", KINDS)
    def test_is_sound_html_with_one_heading(self, kind: str, texts: dict[str, str]) -> None:
        tags = Tags(texts[kind])
        assert not tags.open
        assert tags.names("h1") == 1

    @pytest.mark.parametrize("kind", KINDS)
    def test_needs_no_network_and_no_other_file(self, kind: str, texts: dict[str, str]) -> None:
        for tag, attributes in Tags(texts[kind]).seen:
            for name in ("src", "href", "xlink:href", "action"):
                value = attributes.get(name)
                assert value is None or value.startswith(("#", "data:")), (tag, value)
        assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest", texts[kind])

    @pytest.mark.parametrize("kind", KINDS)
    def test_has_a_name_and_a_table_for_every_picture(self, kind: str, texts: dict[str, str]) -> None:
        pictures = re.findall(r"<figure.*?</figure>", texts[kind], flags=re.DOTALL)
        assert pictures
        for picture in pictures:
            assert re.search(r'<svg[^>]*role="img"[^>]*>\s*<title>[^<]+</title>', picture)
            assert re.search(r"<details>.*<table>.*<td.*</details>", picture, flags=re.DOTALL)

    @pytest.mark.parametrize("kind", KINDS)
    def test_is_the_same_when_drawn_again(self, kind: str, folders: dict[str, Path], texts: dict[str, str]) -> None:
        assert page.write(Run.open(folders[kind])).read_text(encoding="utf-8") == texts[kind]


class TestSearch:
    def test_the_numbers_are_those_of_the_run(self, folders: dict[str, Path], texts: dict[str, str]) -> None:
        run, seen = Run.open(folders["search"]), cells(texts["search"])
        for row in run.summary["rows"].values():
            assert {f"{row['accuracy']:.2%}", f"{row['loss']:.4f}", f"{row['test_accuracy']:.2%}"} <= seen
            assert f"{1e3 * row['latency']:.3f}" in seen
            assert any(f"({row['fractions']['macs']:.1%})" in cell for cell in seen)
        assert run.config["time"] in texts["search"]

    def test_every_trial_is_in_the_picture_and_in_the_table(
        self, folders: dict[str, Path], texts: dict[str, str]
    ) -> None:
        run = Run.open(folders["search"])
        (figure,) = [figure for figure in page.article(run).figures if figure.name == "search"]
        told = run.history()
        marks = [text for text in says(figure.svg) if text.startswith("trial ")]
        assert len(marks) == len(told) == len(figure.table.rows)
        for trial in told.itertuples():
            assert any(f"trial {trial.trials:g}: reward {trial.reward:.4f}" in mark for mark in marks)
            assert {f"{trial.reward:.4f}", trial.kept} <= cells(texts["search"])

    def test_every_point_of_the_front_is_a_numbered_mark(self, folders: dict[str, Path]) -> None:
        run = Run.open(folders["search"])
        (figure,) = [figure for figure in page.article(run).figures if figure.name == "front"]
        points = read_json(folders["search"] / "front.json")["points"]
        assert len([text for text in says(figure.svg) if text.startswith("point ")]) == len(points)
        for number, point in enumerate(points):
            macs, accuracy = (point["values"][name] for name in ("macs", "accuracy"))
            assert f"point {number}: MACs {macs:.2%}, accuracy {accuracy:.2%}" in says(figure.svg)

    def test_what_a_layer_keeps_is_as_long_as_it_says(self, folders: dict[str, Path]) -> None:
        run = Run.open(folders["search"])
        figure = page.article(run).figures[0]
        blue = re.findall(r'width="([\d.]+)" height="18" rx="2" fill="#0072b2"', figure.svg)
        wanted = [420 * kept / max(run.summary["widths"]) for kept in run.summary["kept"]]
        assert [float(length) for length in blue] == pytest.approx(wanted, abs=0.06)

    def test_a_fine_tuned_network_is_the_answer(self, folders: dict[str, Path], texts: dict[str, str]) -> None:
        run = Run.open(folders["search"])
        found = rows.rows(run)
        assert list(found) == ["dense", "uniform", "found", "finetuned"]
        assert rows.answer(found) is found["finetuned"]
        best = read_json(folders["search"] / "finetuned" / "finetune.json")
        assert found["finetuned"]["accuracy"] == best["history"][best["best"]]["validation_accuracy"]
        tensors = load_file(folders["search"] / "finetuned" / "pruned.safetensors").values()
        assert found["finetuned"]["bytes"] == sum(tensor.nbytes for tensor in tensors)
        assert found["finetuned"]["costs"] == run.summary["rows"]["found"]["costs"]
        assert "Fine-tuning" in texts["search"]

    def test_a_fine_tuned_network_may_tell_more_of_itself(self, folders: dict[str, Path], tmp_path: Path) -> None:
        shutil.copytree(folders["search"], tmp_path / "run")
        told = {"rows": {"finetuned": {"accuracy": 0.5, "loss": 1.25, "test_accuracy": 0.4375}}}
        (tmp_path / "run/finetuned/summary.json").write_text(json.dumps(told))
        text = page.render([Run.open(tmp_path / "run")])
        assert "test accuracy 43.75%" in text
        assert {"50.00%", "1.2500", "43.75%"} <= cells(text)

    @pytest.mark.parametrize("saved", ["polished", "found"])
    def test_the_last_row_is_the_answer(self, saved: str, altered: Callable[..., Path]) -> None:
        def polish(summary: dict[str, Any]) -> None:
            every = summary["rows"]
            every["found"]["test_accuracy"], every["polished"] = 0.5, {**every["found"], "test_accuracy": 0.625}
            every[saved] = every.pop(saved)

        folder = altered("search", "summary.json", polish)
        shutil.rmtree(folder / "finetuned")
        said = {"polished": "62.50%", "found": "50.00%"}[saved]
        assert f"the network has test accuracy {said}" in page.render([Run.open(folder)])

    def test_the_sizes_of_all_networks_are_told_where_they_are_known(self, altered: Callable[..., Path]) -> None:
        def change(summary: dict[str, Any]) -> None:
            for number, row in enumerate(summary["rows"].values()):
                row["bytes"] = 1024 * (10 - number)

        assert {"10.0 KiB", "9.0 KiB", "8.0 KiB"} <= cells(
            page.render([Run.open(altered("search", "summary.json", change))])
        )

    def test_after_fine_tuning_test_images_still_decide(self, folders: dict[str, Path], texts: dict[str, str]) -> None:
        tuned = read_json(folders["search"] / "finetuned" / "summary.json")["rows"]["finetuned"]
        assert rows.measure(rows.rows(Run.open(folders["search"]))["finetuned"])[0] == "test_accuracy"
        assert f"{tuned['test_accuracy']:.2%}" in cells(texts["search"])

    def test_the_front_is_drawn_among_the_trials_that_it_dominates(self, folders: dict[str, Path]) -> None:
        record = read_json(folders["search"] / "front.json")
        (figure,) = [figure for figure in page.article(Run.open(folders["search"])).figures if figure.name == "front"]
        assert record["others"]
        assert len(says(figure.svg)) == len(record["points"]) + len(record["others"])

    def test_a_trial_that_lost_a_race_was_not_measured_in_full(self) -> None:
        lost = histories.Past(1.0, 1.0, "race=0.01:ab", -0.5, 0.5, None, affordable=True, kept=(2, 8))
        assert lost.stopped and not lost.full and not lost.counts
        whole = histories.Past(0.0, 0.0, "full", -0.4, None, None, affordable=True, kept=(4, 8))
        assert not sensitivity.searched(["a", "b"], [4, 8], [whole, lost])

    def test_a_latency_is_told_as_it_was_measured(self) -> None:
        row, dense = {"latency": 0.3, "fractions": {"latency": 0.4, "macs": 0.45}}, {"latency": 0.6}
        assert search_page._share("latency", row, dense) == "50% of the measured latency"
        assert search_page._share("latency", row | {"latency": None}, dense) == "40% of the predicted latency"
        assert search_page._share("macs", row, dense) == "45% of the MACs"

    def test_a_latency_table_is_drawn_with_its_errors(self, altered: Callable[..., Path]) -> None:
        pairs = [[1.0, 1.25], [2.0, 2.0], [3.0, 2.5]]
        record = {"fitted": pairs[:2], "checked": pairs, "mape": 0.1333, "worst": 0.2, "spearman": 0.987}
        cap = {"limit": 2.5, "predicted": 2.25, "measured": 2.4, "dense": 4.8, "error": 0.01, "met": True, "rounds": 0}
        run = Run.open(altered("search", "summary.json", lambda told: told | {"calibration": record, "latency": cap}))
        (figure,) = [figure for figure in page.article(run).figures if figure.name == "latency"]
        assert len(says(figure.svg)) == len(figure.table.rows) == 6
        assert "not seen by the fit: measured 1.250 ms, predicted 1.000 ms" in says(figure.svg)
        text = page.render([run])
        assert "(MAPE) is 13.3%, the greatest 20.0%" in text and "(Spearman) 0.987" in text
        assert "The cap of 2.500 ms holds: 2.400 ms measured, 2.250 ms predicted, 4.800 ms dense (2.00 times" in text

    def test_an_analysis_and_a_check_that_lie_beside_it_are_shown(
        self, folders: dict[str, Path], tmp_path: Path, texts: dict[str, str]
    ) -> None:
        names = [figure.name for figure in page.article(Run.open(folders["search"])).figures]
        assert {"sensitivity", "proxy-1", "proxy-2"} <= set(names)
        assert "Measured by run sensitivity" in texts["search"]
        shutil.copytree(folders["search"], tmp_path / "alone")
        alone = [figure.name for figure in page.article(Run.open(tmp_path / "alone")).figures]
        assert alone == [name for name in names if name != "sensitivity" and not name.startswith("proxy")]

    @pytest.mark.parametrize("other", ["model", "precision", "reward"])
    def test_an_analysis_of_something_else_is_not_shown(
        self, other: str, folders: dict[str, Path], tmp_path: Path
    ) -> None:
        for kind in ("search", "sensitivity"):
            shutil.copytree(folders[kind], tmp_path / kind)
        config = read_json(tmp_path / "sensitivity/config.json")
        (config if other == "reward" else config["request"])[other] = "another"
        (tmp_path / "sensitivity/config.json").write_text(json.dumps(config))
        assert "sensitivity" not in [figure.name for figure in page.article(Run.open(tmp_path / "search")).figures]

    def test_damage_beside_a_run_is_no_reason_to_refuse_its_page(
        self, folders: dict[str, Path], tmp_path: Path
    ) -> None:
        for kind in ("search", "sensitivity", "proxy-check"):
            shutil.copytree(folders[kind], tmp_path / kind)
        whole = [figure.name for figure in page.article(Run.open(tmp_path / "search")).figures]
        for file, key in (("proxy-check/proxy.json", "agreement"), ("sensitivity/sensitivity.json", "curves")):
            record = read_json(tmp_path / file)
            (tmp_path / file).write_text(json.dumps({**record, key: 7}))
        left = [figure.name for figure in page.article(Run.open(tmp_path / "search")).figures]
        assert left == [name for name in whole if name != "sensitivity" and not name.startswith("proxy")]
        record = read_json(tmp_path / "proxy-check/proxy.json")
        (tmp_path / "proxy-check/proxy.json").write_text(json.dumps({**record, "request": []}))
        assert page.article(Run.open(tmp_path / "search")).figures

    def test_a_run_is_whole_without_its_page(
        self, altered: Callable[..., Path], caplog: pytest.LogCaptureFixture
    ) -> None:
        run = Run.open(altered("search", "summary.json", lambda told: {"rows": {}}))
        page.leave(run)
        assert "no report.html for run" in caplog.text

    def test_a_search_that_cuts_groups_one_at_a_time_is_an_analysis(self) -> None:
        def past(kept: tuple[int, ...], reward: float | None) -> histories.Past:
            return histories.Past(0.0, 0.0, "full", reward, None, None, affordable=True, kept=kept)

        trials = [past((4, 8), -0.5), past((2, 8), -1.0), past((4, 2), None), past((4, 4), -0.75), past((2, 4), -1.5)]
        found = sensitivity.searched(["a", "b"], [4, 8], trials)
        assert [(curve.name, dict(curve.drops), list(curve.failed)) for curve in found] == [
            ("a", {2: 0.5}, []),
            ("b", {4: 0.25}, [2]),
        ]
        assert not sensitivity.searched(["a", "b"], [4, 8], trials[1:])  # without the uncut network


class TestOtherKinds:
    def test_a_comparison_has_its_table_and_its_curves(self, folders: dict[str, Path], texts: dict[str, str]) -> None:
        with (folders["comparison"] / "comparison.csv").open() as file:
            table = list(csv.DictReader(file))
        assert {row["searcher"] for row in table} == {"random", "uniform"}
        for row in table:
            assert {row["searcher"], f"{float(row['reward']):.4f}", row["ended"]} <= cells(texts["comparison"])
        drawings = page.article(Run.open(folders["comparison"])).figures
        assert [figure.name for figure in drawings] == ["trials", "seconds"]
        assert all(figure.svg.count("<polyline") == 2 for figure in drawings)
        ends = {row["searcher"]: f"{row['searcher']}: {float(row['reward']):.4f} after 3 trials" for row in table}
        assert set(says(drawings[0].svg)) == set(ends.values())

    def test_an_analysis_has_a_mark_for_every_measurement(self, folders: dict[str, Path]) -> None:
        record = read_json(folders["sensitivity"] / "sensitivity.json")
        (figure,) = page.article(Run.open(folders["sensitivity"])).figures
        wanted = [
            f"{curve['group']} keeps {cut['kept']} of {curve['width']}: {cut['drop']:.4g} lost"
            for curve in record["curves"]
            for cut in curve["cuts"]
            if cut["status"] == "measured"
        ]
        assert says(figure.svg) == wanted
        assert len(wanted) > 3

    def test_a_sparse_network_has_the_share_of_every_tensor(
        self, folders: dict[str, Path], texts: dict[str, str]
    ) -> None:
        summary = read_json(folders["sparsity"] / "summary.json")
        for kept, width in zip(summary["kept"], summary["widths"], strict=True):
            assert {f"{kept:,}", f"{width:,}", f"{kept / width:.2%}"} <= cells(texts["sparsity"])
        row = summary["rows"]["sparse"]
        assert {f"{row['accuracy']:.2%}", f"{row['test_accuracy']:.2%}"} <= cells(texts["sparsity"])

    def test_a_check_has_every_scheme_and_the_correlations(
        self, folders: dict[str, Path], texts: dict[str, str]
    ) -> None:
        record = read_json(folders["proxy-check"] / "proxy.json")
        drawings = page.article(Run.open(folders["proxy-check"])).figures
        assert len(drawings) == len(record["agreement"]) == 2
        for figure, name in zip(drawings, record["agreement"], strict=True):
            wanted = [f"score {row['scores'][name]:.4f}" for row in record["schemes"]]
            assert [text.split(",")[0] for text in says(figure.svg)] == wanted


class TestSeveral:
    def test_searches_stand_side_by_side(self, folders: dict[str, Path], tmp_path: Path) -> None:
        shutil.copytree(folders["search"], tmp_path / "other")
        runs = [Run.open(folders["search"]), Run.open(tmp_path / "other")]
        tags, text = Tags(page.render(runs)), page.render(runs)
        assert [attributes["id"] for tag, attributes in tags.seen if tag == "article"] == ["run-1", "run-2"]
        assert {"#run-1", "#run-2"} <= {attributes.get("href") for tag, attributes in tags.seen if tag == "a"}
        assert "answer of" in cells(text) and "Best reward so far, by trials" in text

    def test_searches_of_different_protocols_share_no_curves(
        self, folders: dict[str, Path], altered: Callable[..., Path]
    ) -> None:
        other = altered("search", "config.json", lambda config: config | {"fingerprint": "another"})
        text = page.render([Run.open(folders["search"]), Run.open(other)])
        assert "measured in different ways" in text and "Best reward so far, by" not in text

    def test_runs_of_one_name_are_told_apart(self, folders: dict[str, Path], tmp_path: Path) -> None:
        shutil.copytree(folders["search"], tmp_path / "search")
        runs = [Run.open(folders["search"]), Run.open(tmp_path / "search")]
        assert {str(run.folder) for run in runs} <= cells(page.render(runs))

    def test_kinds_may_be_mixed(self, folders: dict[str, Path]) -> None:
        text = page.render([Run.open(folder) for folder in folders.values()])
        assert Tags(text).names("article") == len(KINDS)
        assert "answer of" not in cells(text)  # one search alone is not compared


class TestCommand:
    def test_a_page_and_its_pictures_of_any_kind(
        self, folders: dict[str, Path], texts: dict[str, str], tmp_path: Path, command_line: Callable[..., Any]
    ) -> None:
        for kind in KINDS:
            named = ("--out", str(tmp_path / f"{kind}.html"), "--figures", str(tmp_path / kind), "--json")
            status, out, errors = command_line("report", str(folders[kind]), *named)
            assert status == 0, errors
            assert (tmp_path / f"{kind}.html").read_text(encoding="utf-8") == texts[kind]
            written = [Path(path).name for path in json.loads(out)["figures"]]
            assert written == [f"{figure.name}.svg" for figure in page.article(Run.open(folders[kind])).figures]

    def test_a_place_that_cannot_be_written_is_named(
        self, folders: dict[str, Path], tmp_path: Path, command_line: Callable[..., Any]
    ) -> None:
        status, _, errors = command_line("report", str(folders["search"]), "--out", str(tmp_path / "no" / "page.html"))
        assert status == 2
        assert f"{tmp_path / 'no' / 'page.html'} cannot be written" in errors


class TestFigures:
    def test_every_picture_becomes_a_file_that_stands_alone(self, folders: dict[str, Path], tmp_path: Path) -> None:
        run = Run.open(folders["search"])
        paths = figures.write([run], tmp_path / "new" / "figures")
        assert [path.name for path in paths] == [f"{figure.name}.svg" for figure in page.article(run).figures]
        for path in paths:
            root = ElementTree.fromstring(path.read_text(encoding="utf-8"))
            assert root.get("viewBox") and root.get("width") and root.get("height")
            ground = [node for node in root if node.get("class") == "ground"]
            assert [node.get("fill") for node in ground] == ["#ffffff"]
            assert "style" not in {key for node in root.iter() for key in node.attrib}
            assert {node.get("font-family") for node in root.iter()} - {None} == {"Helvetica, Arial, sans-serif"}

    def test_the_ground_can_be_left_out(self, folders: dict[str, Path], tmp_path: Path) -> None:
        for path in figures.write([Run.open(folders["sparsity"])], tmp_path, ground=False):
            assert "ground" not in path.read_text(encoding="utf-8")

    def test_those_of_several_runs_are_called_by_them(self, folders: dict[str, Path], tmp_path: Path) -> None:
        runs = [Run.open(folders[kind]) for kind in ("sparsity", "comparison")]
        names = [path.name for path in figures.write(runs, tmp_path)]
        assert names == ["sparsity-tensors.svg", "comparison-trials.svg", "comparison-seconds.svg"]
        shutil.copytree(folders["search"], tmp_path / "other")
        names = [
            path.name for path in figures.write([Run.open(folders["search"]), Run.open(tmp_path / "other")], tmp_path)
        ]
        assert names[:2] == ["together-trials.svg", "together-layers.svg"]
        assert "search-layers.svg" in names and "other-layers.svg" in names

    def test_png_has_so_many_pixels_and_words(self, folders: dict[str, Path], tmp_path: Path) -> None:
        pytest.importorskip("resvg_py", reason="PNG needs `pip install autoprune[figures]`")
        try:
            figures.renderer()
        except UserError as error:
            pytest.skip(str(error))
        run = Run.open(folders["sparsity"])
        (path,) = figures.write([run], tmp_path, "png", scale=2)
        found = path.read_bytes()
        width, height = (float(re.findall(rf'{side}="(\d+)"', page.article(run).figures[0].svg)[0]) for side in SIDES)
        assert found.startswith(b"\x89PNG")
        assert struct.unpack(">II", found[16:24]) == (2 * width, 2 * height)

    def test_png_without_its_library_says_what_to_do(
        self, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "resvg_py", None)
        with pytest.raises(UserError, match=r"pip install autoprune\[figures\]"):
            figures.write([Run.open(folders["sparsity"])], tmp_path / "out", "png")
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(("choices", "reason"), [({"form": "pdf"}, "format 'pdf'"), ({"scale": 0}, "scale = 0")])
    def test_what_cannot_be_is_refused(
        self, choices: dict[str, Any], reason: str, folders: dict[str, Path], tmp_path: Path
    ) -> None:
        with pytest.raises(UserError, match=reason):
            figures.write([Run.open(folders["sparsity"])], tmp_path, **choices)


class TestWhatIsWrong:
    def test_names_from_a_folder_are_no_markup(self, altered: Callable[..., Path]) -> None:
        def change(scheme: dict[str, Any]) -> None:
            for group in scheme["groups"]:
                group["name"] = HOSTILE

        folder = altered("search", "scheme.json", change, name="x'<b>&")
        config = read_json(folder / "config.json")
        config |= {"name": HOSTILE, "command": HOSTILE, "time": HOSTILE, "reward": HOSTILE}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "front.svg").write_text(f"<svg>{HOSTILE}</svg>")
        text = page.render([Run.open(folder)])
        assert "<script>window" not in text and "<b>&" not in text
        assert Tags(text).names("script") == 1
        assert text.count("&lt;script&gt;window") >= 4

    def test_a_run_without_a_result_is_refused(self, folders: dict[str, Path], tmp_path: Path) -> None:
        shutil.copy(folders["search"] / "config.json", tmp_path)
        with pytest.raises(UserError, match="has no result yet"):
            page.render([Run.open(tmp_path)])

    def test_a_kind_that_nobody_knows_is_refused(self, altered: Callable[..., Path]) -> None:
        folder = altered("search", "config.json", lambda config: config | {"request": {"kind": "dance"}})
        with pytest.raises(UserError, match="kind 'dance'.*search, comparison"):
            page.render([Run.open(folder)])

    def test_a_damaged_file_is_told_of(self, altered: Callable[..., Path]) -> None:
        folder = altered("search", "summary.json", lambda summary: summary | {"rows": {"dense": {}}})
        with pytest.raises(UserError, match="cannot be drawn"):
            page.render([Run.open(folder)])

    def test_a_missing_file_is_told_of(self, folders: dict[str, Path], tmp_path: Path) -> None:
        shutil.copytree(folders["search"], tmp_path / "run")
        (tmp_path / "run/history.csv").unlink()
        with pytest.raises(UserError, match="has no history.csv"):
            page.render([Run.open(tmp_path / "run")])

    def test_damage_beside_a_run_does_not_matter(self, folders: dict[str, Path], tmp_path: Path) -> None:
        shutil.copytree(folders["search"], tmp_path / "run")
        (tmp_path / "other").mkdir()
        (tmp_path / "other/sensitivity.json").write_text("{")
        (tmp_path / "other/proxy.json").write_text("[]")
        assert "Before and after" in page.render([Run.open(tmp_path / "run")])


BOXES = """[...document.querySelectorAll(".drawing > svg")].map((svg) => {
  const box = svg.getBoundingClientRect(), drawn = [...svg.querySelectorAll("circle, polyline, rect")];
  return [box.width, box.height, drawn.filter((node) => node.getBoundingClientRect().width > 0).length];
})"""
CONTRASTS = """[...document.querySelectorAll("p, h1, h2, th, td, summary, dt, dd, svg text")].map((node) => {
  const light = (colour) => {
    const [r, g, b] = colour.match(/[\\d.]+/g).map(Number).map((n) => n / 255).map(
      (n) => n <= 0.04045 ? n / 12.92 : ((n + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const style = getComputedStyle(node), ground = getComputedStyle(document.body).backgroundColor;
  const [a, b] = [light(node.closest("svg") ? style.fill : style.color), light(ground)].sort((x, y) => y - x);
  return (a + 0.05) / (b + 0.05);
})"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[browser.Browser]:
    if browser.found() is None:
        pytest.skip("no Chromium here (Debian: apt-get install chromium)")
    with browser.Browser() as started:
        yield started


Opened = Callable[..., browser.Page]


@pytest.fixture
def opened(chromium: browser.Browser, folders: dict[str, Path], tmp_path: Path) -> Iterator[Opened]:
    """The page of a kind of run, or of any folders, in the browser."""
    pages = []

    def go(*runs: str | Path, width: int = 1280, **choices: bool) -> browser.Page:
        path = tmp_path / page.REPORT
        path.write_text(page.render([Run.open(folders.get(str(run), Path(run))) for run in runs]), encoding="utf-8")
        pages.append(chromium.open(path, width, **choices))
        return pages[-1]

    yield go
    for one in pages:
        one.close()


class TestInABrowser:
    @pytest.mark.parametrize("kind", KINDS)
    def test_all_is_drawn_without_a_complaint_or_a_request(
        self, kind: str, folders: dict[str, Path], opened: Opened
    ) -> None:
        shown = opened(kind)
        boxes = shown.run(BOXES)
        assert len(boxes) == len(page.article(Run.open(folders[kind])).figures)
        assert all(width > 300 and height > 100 and drawn > 1 for width, height, drawn in boxes)
        assert shown.run("document.documentElement.classList.contains('live')")  # its own script may run
        shown.resize(390, 844)
        assert shown.run("document.documentElement.scrollWidth") == 390
        assert all(width > 0 and height > 50 for width, height, _ in shown.run(BOXES))
        assert [url.split(":")[0] for url in shown.requests] == ["file"]
        assert not shown.complaints

    def test_several_runs_fit_a_telephone(self, opened: Opened) -> None:
        shown = opened(*KINDS, "search", width=390)
        assert shown.run("document.documentElement.scrollWidth") == 390
        assert not shown.complaints

    def test_without_scripts_all_is_there(self, opened: Opened) -> None:
        shown = opened("search", script=False)
        assert all(drawn > 1 for _, _, drawn in shown.run(BOXES))
        assert shown.run("document.querySelectorAll('.drawing circle > title').length") > 5
        assert shown.run("[...document.querySelectorAll('.script')].every((n) => !n.getClientRects().length)")

    @pytest.mark.parametrize("dark", [False, True])
    def test_words_stand_out_from_the_ground(self, opened: Opened, dark: bool) -> None:
        shown = opened("search", dark=dark)
        assert shown.run("getComputedStyle(document.body).backgroundColor") == (
            "rgb(20, 23, 26)" if dark else "rgb(255, 255, 255)"
        )
        contrasts = shown.run(CONTRASTS)
        assert len(contrasts) > 100
        assert min(contrasts) >= 4.5

    def test_on_paper_there_is_all_but_what_paper_cannot_do(self, opened: Opened, tmp_path: Path) -> None:
        shown = opened("search")
        figures = len(shown.run(BOXES))
        shown.ask("Emulation.setEmulatedMedia", media="print")
        gone = shown.run(
            "[...document.querySelectorAll('details, .script, .reset, #tip')]"
            ".every((node) => !node.getClientRects().length)"
        )
        assert gone
        assert sum(width > 300 and height > 100 for width, height, _ in shown.run(BOXES)) == figures
        assert min(shown.run(CONTRASTS)) >= 4.5
        shown.pdf(tmp_path / "page.pdf")
        printed = (tmp_path / "page.pdf").read_bytes()
        assert printed.startswith(b"%PDF")
        assert 2 <= len(re.findall(rb"/Type */Page\b", printed)) <= 12

    def test_names_from_a_folder_run_no_code(self, opened: Opened, altered: Callable[..., Path]) -> None:
        def change(scheme: dict[str, Any]) -> None:
            for group in scheme["groups"]:
                group["name"] = f"{HOSTILE}<img src=x onerror=window.hacked=1>"

        shown = opened(altered("search", "scheme.json", change, name="x<img src=y onerror='hacked=1'>"))
        shown.run("document.querySelectorAll('.mark').forEach((mark) => mark.dispatchEvent(new Event('pointermove')))")
        assert shown.run("window.hacked === undefined && !document.querySelector('img')")
        assert not shown.complaints

    def test_even_what_became_markup_could_run_nothing(
        self, folders: dict[str, Path], chromium: browser.Browser, tmp_path: Path
    ) -> None:
        text = page.render([Run.open(folders["search"])])
        markup = "<script>window.hacked = 1</script><img src='data:,' onerror='window.hacked = 1'>"
        (tmp_path / "page.html").write_text(text.replace("</h1>", f"</h1>{markup}"), encoding="utf-8")
        shown = chromium.open(tmp_path / "page.html")
        assert shown.run("window.hacked === undefined && document.documentElement.classList.contains('live')")
        shown.close()


class TestPictures:
    """What the pictures do when they are pointed at."""

    @pytest.fixture
    def search(self, opened: Opened) -> browser.Page:
        shown = opened("search")
        every = "[...document.querySelectorAll('.drawing > svg')]"
        shown.run(f"window.svg = {every}.find((svg) => svg.querySelector('.key'))")
        title = "svg.querySelector('title').textContent"
        shown.run(f"window.plot = {every}.find((svg) => {title} === 'Validation accuracy while fine-tuning')")
        return shown

    def middle(self, shown: browser.Page, node: str) -> tuple[float, float]:
        shown.run(f"({node}).scrollIntoView({{block: 'center'}})")
        box = shown.run(f"(({{x, y, width, height}}) => [x, y, width, height])(({node}).getBoundingClientRect())")
        return box[0] + box[2] / 2, box[1] + box[3] / 2

    def said(self, shown: browser.Page) -> str | None:
        return shown.run("document.getElementById('tip').hidden ? null : document.getElementById('tip').textContent")

    def test_a_point_says_its_numbers(self, search: browser.Page, folders: dict[str, Path]) -> None:
        tuned = read_json(folders["search"] / "finetuned" / "finetune.json")["history"][0]
        x, y = self.middle(search, "plot.querySelector('.mark')")
        search.hover(x + 6, y + 6)  # near it is enough
        assert self.said(search) == f"epoch 1: validation accuracy {tuned['validation_accuracy']:.2%}"
        search.hover(2, 2)
        assert self.said(search) is None

    def test_the_keyboard_goes_from_point_to_point(self, search: browser.Page) -> None:
        search.run("plot.focus()")
        heard = []
        for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "End", "Home"):
            search.key(key)
            heard.append((self.said(search) or "").split(":")[0])
        assert heard == ["epoch 1", "epoch 2", "epoch 1", "epoch 2", "epoch 1"]
        search.key("Escape")
        assert self.said(search) is None

    def test_a_part_can_be_looked_at_and_left(self, search: browser.Page) -> None:
        before = search.run("plot.querySelector('.ticks').textContent + plot.querySelector('.plot').innerHTML")
        x, y = self.middle(search, "plot.querySelector('.plot')")
        search.mouse("Pressed", x - 100, y - 60)
        search.mouse("Moved", x + 60, y + 40)
        search.mouse("Released", x + 60, y + 40)
        assert search.run("plot.querySelector('.ticks').textContent + plot.querySelector('.plot').innerHTML") != before
        assert search.run("plot.parentElement.querySelector('.reset').hidden") is False
        search.run("plot.parentElement.querySelector('.reset').click()")
        assert search.run("plot.querySelector('.ticks').textContent") in before
        assert search.run("plot.parentElement.querySelector('.reset').hidden") is True
        search.run("plot.focus()")
        search.key("+")
        assert search.run("plot.parentElement.querySelector('.reset').hidden") is False
        search.key("0")
        assert search.run("plot.parentElement.querySelector('.reset').hidden") is True
        assert not search.complaints

    def test_numbers_along_a_closer_look_are_right(self, search: browser.Page) -> None:
        """A dot still stands where the axis says it is."""
        read = """(() => {
          const [low, high] = plot.querySelector('.plot').dataset.x.split(' ').map(Number);
          const dot = plot.querySelector('.mark').getBoundingClientRect();
          const ticks = [...plot.querySelectorAll('.ticks text[text-anchor=middle]')].map(
            (t) => [Number(t.textContent), t.getBoundingClientRect().x + t.getBoundingClientRect().width / 2]);
          const [[a, x], [b, z]] = [ticks[0], ticks[ticks.length - 1]];
          return a + (b - a) * (dot.x + dot.width / 2 - x) / (z - x);
        })()"""
        assert search.run(read) == pytest.approx(1.0, abs=0.02)
        search.run("plot.focus()")
        search.key("+")
        assert search.run(read) == pytest.approx(1.0, abs=0.02)

    def test_an_entry_of_the_legend_hides_what_it_names(self, search: browser.Page) -> None:
        visible = "[...svg.querySelectorAll('[data-series=\"1\"]')].filter((n) => n.getClientRects().length).length"
        key = "svg.querySelector('.key[data-key=\"1\"]')"
        assert search.run(visible) > 0
        x, y = self.middle(search, key)
        search.mouse("Pressed", x, y)
        search.mouse("Released", x, y)
        assert (search.run(visible), search.run(f"{key}.getAttribute('aria-pressed')")) == (0, "false")
        search.run(f"{key}.focus()")
        search.key("Enter")
        assert search.run(visible) > 0
