import math
from importlib.metadata import EntryPoint

import pytest

from autoprune import references
from autoprune.errors import UserError
from autoprune.references import close, function, resolve

KNOWN = {"root": math.sqrt, "far": "math:floor"}


def test_a_function_goes_by_name_by_place_or_as_itself():
    assert function("root", "rule", KNOWN) is math.sqrt
    assert function("far", "rule", KNOWN) is math.floor
    assert function("math:ceil", "rule", KNOWN) is math.ceil
    assert function(len, "rule", KNOWN) is len


def test_an_installed_package_announces_names_and_a_built_in_one_wins(monkeypatch):
    def announced(*, group):
        assert group == "autoprune.rule"
        return [
            EntryPoint("up", "math:ceil", group),
            EntryPoint("root", "math:exp", group),
            EntryPoint("pi", "math:pi", group),
        ]

    monkeypatch.setattr(references, "entry_points", announced)
    assert function("up", "rule", KNOWN) is math.ceil
    assert function("root", "rule", KNOWN) is math.sqrt
    with pytest.raises(UserError, match="'pi' is a float, not a function"):
        function("pi", "rule", KNOWN)
    with pytest.raises(
        UserError, match="rule 'upp' is unknown: use root, far, up, root, pi or a package.module:function; close: up"
    ):
        function("upp", "rule", KNOWN)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("rot", "rule 'rot' is unknown: use root, far or a package.module:function; close: root"),
        ("math:pi", "rule 'math:pi' is a float, not a function"),
        (3, "rule 3 is neither a name nor a function"),
        ("nowhere.at.all:f", "no module 'nowhere'"),
        ("math:nothing", "no 'nothing' there"),
        ("a b:c", "write it like package.module:name"),
    ],
)
def test_what_names_no_function_is_refused(given, message):
    with pytest.raises(UserError) as caught:
        function(given, "rule", KNOWN)
    assert message in str(caught.value)


def test_a_module_that_lacks_a_dependency_is_told_apart_from_one_that_is_missing(tmp_path, monkeypatch):
    (tmp_path / "needs_more.py").write_text("import something_not_installed\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="imports 'something_not_installed', which is not installed"):
        resolve("needs_more:f", "rule")


def test_only_close_names_are_suggested():
    assert close("rot", ["root", "other"]) == "; close: root"
    assert close("zzz", ["root"]) == ""
