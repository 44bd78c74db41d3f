"""Options of functions: which there are, reading them as text, refusing what does not fit."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import pytest

from autoprune.errors import UserError
from autoprune.settings import Kind, check, options, read

if TYPE_CHECKING:
    from decimal import Decimal

KIND = Kind("rule", positions=1, names=("seed",))


def own(  # type: ignore[no-untyped-def]
    subject: Decimal,  # imported for type checkers alone, as careful authors do
    spread: float = 0.1,
    *,
    seed: int,
    rounds: int = 3,
    elitist: bool = True,
    rule: str = "best",
    order: Literal["ascending", "descending"] = "ascending",
    size: Literal["auto", 4] | None = "auto",
    depth: Literal["auto"] | int = "auto",
    limit: int | None = None,
    label: str | None = None,
    noted: Annotated[int, "per layer"] = 1,
    widths: tuple[int, ...] = (),
    anything: Any = 1.5,
    bare=2.5,
    **rest: Any,
) -> float:
    return spread


def plain(subject: object) -> float:
    return 0.0


def test_options_are_all_arguments_that_the_caller_does_not_supply() -> None:
    names = "spread rounds elitist rule order size depth limit label noted widths anything bare"
    assert list(options(own, KIND)) == names.split()
    assert options(plain, KIND) == {}


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("spread", "0.2", 0.2),
        ("spread", "1", 1.0),
        ("rounds", "7", 7),
        ("elitist", "false", False),
        ("elitist", "Yes", True),
        ("rule", "worst", "worst"),
        ("rule", "none", "none"),
        ("order", "descending", "descending"),
        ("size", "auto", "auto"),
        ("size", "4", 4),
        ("size", "None", None),
        ("depth", "auto", "auto"),
        ("depth", "17", 17),
        ("limit", "none", None),
        ("limit", "12", 12),
        ("label", "none", None),
        ("label", "12", "12"),
        ("noted", "2", 2),
        ("anything", "2", 2.0),
        ("bare", "3", 3.0),
    ],
)
def test_text_is_read_as_the_annotation_says(name: str, text: str, value: object) -> None:
    found = read(own, KIND, {name: text})
    assert found == {name: value}
    assert type(found[name]) is type(value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("spred", "1", "rule own has no option 'spred': its options are spread, rounds"),
        ("spred", "1", "close: spread"),
        ("seed", "1", "rule own has no option 'seed'"),
        ("subject", "1", "rule own has no option 'subject'"),
        ("rest", "1", "rule own has no option 'rest'"),
        ("rounds", "1.5", "rule own: option rounds='1.5': expected a whole number"),
        ("spread", "much", "option spread='much': expected a number"),
        ("elitist", "maybe", "option elitist='maybe': expected true or false"),
        ("limit", "few", "option limit='few': expected a whole number or none"),
        ("order", "descend", "option order='descend': expected ascending or descending; close: descending"),
        ("size", "huge", "option size='huge': expected auto or 4 or none"),
        ("depth", "deep", "option depth='deep': expected auto or a whole number"),
        ("widths", "1,2", "option widths='1,2': expected tuple"),
    ],
)
def test_text_that_does_not_fit_is_refused(name: str, text: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        read(own, KIND, {name: text})


@pytest.mark.parametrize(
    "values",
    [
        {"spread": 1, "rounds": np.int64(4), "elitist": False, "label": None},
        {"spread": np.float32(0.5), "order": "descending", "depth": 9},
        {"size": None, "widths": [1, 2], "bare": "of any type", "anything": object()},
        {"of_the_rest": 3},  # **rest takes it
        {},
    ],
)
def test_values_of_the_annotated_types_pass(values: dict[str, object]) -> None:
    check(own, KIND, values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"spread": "0.2"}, "rule own: option spread='0.2': expected a number"),
        ({"spread": None}, "option spread=None: expected a number"),
        ({"rounds": 1.5}, "option rounds=1.5: expected a whole number"),
        ({"rounds": True}, "option rounds=True: expected a whole number"),
        ({"elitist": 1}, "option elitist=1: expected true or false"),
        ({"label": 3}, "option label=3: expected text or none"),
        ({"order": "descend"}, "close: descending"),
        ({"size": 9}, "option size=9: expected auto or 4 or none"),
        ({"depth": True}, "expected auto or a whole number"),
    ],
)
def test_values_of_other_types_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        check(own, KIND, values)


def test_a_value_for_an_option_that_is_not_there_is_refused_as_its_text_is() -> None:
    messages = []
    for refuse in (lambda: check(plain, KIND, {"spread": 1}), lambda: read(plain, KIND, {"spread": "1"})):
        with pytest.raises(UserError) as refused:
            refuse()
        messages.append(str(refused.value))
    assert messages == ["rule plain has no option 'spread': it has no options"] * 2


def test_what_partial_has_bound_is_the_new_default_and_is_checked_too() -> None:
    bound = partial(partial(own, rounds=5), label="a")
    assert options(bound, KIND)["rounds"].default == 5
    assert options(bound, KIND)["label"].default == "a"
    assert set(options(bound, KIND)) == set(options(own, KIND))
    assert read(bound, KIND, {"rounds": "6"}) == {"rounds": 6}
    check(bound, KIND, {"spread": 0.2})
    with pytest.raises(UserError, match="option rounds='5': expected a whole number"):
        check(partial(own, rounds="5"), KIND, {})
    with pytest.raises(UserError, match="rule plain has no option 'rounds'"):
        check(partial(plain, rounds=5), KIND, {})


def test_positions_that_partial_has_filled_are_no_options() -> None:
    def scaled(factor: float, subject: object, power: float = 1.0) -> float:
        return factor**power

    assert set(options(partial(scaled, 2.0), KIND)) == {"power"}
    assert read(partial(scaled, 2.0), KIND, {"power": "3"}) == {"power": 3.0}


def test_objects_that_can_be_called_have_options_too() -> None:
    class Rule:
        def __call__(self, subject: object, power: float = 1.0) -> float:
            return power

    assert read(Rule(), KIND, {"power": "2"}) == {"power": 2.0}
    with pytest.raises(UserError, match="rule Rule has no option 'strength'"):
        read(Rule(), KIND, {"strength": "2"})


def test_a_function_whose_signature_cannot_be_read_is_refused_only_when_it_is_given_options() -> None:
    def hopeless(subject: object, level: no_such.module = 1) -> float:  # type: ignore[name-defined]  # noqa: F821
        return 0.0

    check(hopeless, KIND, {})
    assert read(hopeless, KIND, {}) == {}
    with pytest.raises(UserError, match="the signature of rule hopeless cannot be read"):
        read(hopeless, KIND, {"level": "2"})
