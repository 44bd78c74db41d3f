from __future__ import annotations

import json
import math

import jsonschema
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autoprune.errors import UserError
from autoprune.exporters import scheme_file
from autoprune.exporters.scheme_file import (
    FORMAT,
    SECTIONS,
    VERSION,
    export,
    other_weights,
    parse,
    read,
    schema,
    shapes,
    units_of,
)
from autoprune.scheme import Scheme
from autoprune.space import SearchSpace
from autoprune.trial import Measurement
from toy import chain, mixed

SPACES = {"chain": chain([8, 12, 16]), "mixed": mixed()}


@st.composite
def schemes(draw: st.DrawFn, space: SearchSpace, indices: bool) -> Scheme:
    kept = tuple(draw(st.sampled_from(group.counts)) for group in space.groups)
    if not indices:
        return Scheme(kept)
    chosen = (
        draw(st.permutations(range(g.units)).map(lambda p, n=k // g.unit: tuple(sorted(p[:n]))))
        for g, k in zip(space.groups, kept, strict=True)
    )
    return Scheme(kept, indices=tuple(chosen))


def edited(space: SearchSpace, scheme: Scheme, **changes: object) -> str:
    """The scheme file with changed fields of the first group (or, with a leading underscore, of the file)."""
    record = json.loads(export(scheme, space))
    for name, value in changes.items():
        target, key = (record, name[1:]) if name.startswith("_") else (record["groups"][0], name)
        if value is ...:
            del target[key]
        else:
            target[key] = value
    return json.dumps(record)


@pytest.mark.parametrize("name", SPACES)
@given(data=st.data(), indices=st.booleans())
def test_reading_gives_back_what_was_written(name, data, indices):
    space = SPACES[name]
    scheme = data.draw(schemes(space, indices))
    assert read(export(scheme, space), space) == scheme


def test_a_file_is_read_by_its_path(tmp_path):
    space = mixed()
    path = tmp_path / "scheme.json"
    path.write_text(export(space.smallest, space), encoding="utf-8")
    assert read(path, space) == read(str(path), space) == space.smallest


def test_kept_indices_are_channel_numbers_of_the_producing_layer():
    space = mixed()
    stem = space.groups[0]  # 8 channels in units of two: channel u and channel u + 4 leave together
    assert stem.unit == 2
    scheme = Scheme((4, *(group.width for group in space.groups[1:])), indices=((1, 3), *every_unit(space)[1:]))
    entry = json.loads(export(scheme, space))["groups"][0]
    assert entry["kept_indices"] == [1, 3, 5, 7]
    assert entry["kept_channels"] == len(entry["kept_indices"])


def every_unit(space: SearchSpace) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(range(group.units)) for group in space.groups)


@pytest.mark.parametrize("group", [*SPACES["mixed"].groups, *SPACES["chain"].groups], ids=lambda g: g.name)
def test_units_of_is_the_inverse_of_channels(group):
    for mask in range(1 << min(group.units, 6)):
        units = tuple(u for u in range(group.units) if mask >> u & 1)
        assert units_of(group, reversed(group.channels(units))) == units


def test_the_text_is_stable_readable_and_says_what_the_numbers_are():
    space = mixed()
    scheme = Scheme(space.dense.kept, indices=every_unit(space))
    text = export(scheme, space)
    assert text == export(scheme, space)
    record = json.loads(text)
    assert list(record) == ["format", "version", "granularity", "groups"]
    assert (record["format"], record["version"]) == (FORMAT, VERSION)
    for group, entry in zip(space.groups, record["groups"], strict=True):
        assert list(entry) == [
            "name", "members", "original_channels", "kept_channels", "unit", "rate_kept", "kept_indices",
        ]  # fmt: skip
        assert {member["module"] for member in entry["members"]} == set(group.members)
    assert any('"kept_indices": [0, 1, 2, 3, 4, 5, 6, 7]' in line for line in text.splitlines())


def test_members_name_the_role_of_every_module():
    entry = json.loads(export(SPACES["chain"].dense, SPACES["chain"]))["groups"][0]
    assert entry["members"] == [
        {"module": "conv0", "role": "out"},
        {"module": "bn0", "role": "through"},
        {"module": "conv1", "role": "in"},
    ]


def test_the_rate_is_for_the_reader_only():
    space = SPACES["chain"]
    kept = Scheme((2, 3, 4))
    assert [g["rate_kept"] for g in json.loads(export(kept, space))["groups"]] == [2 / 8, 3 / 12, 4 / 16]
    assert read(edited(space, kept, rate_kept=0.9), space) == kept


def test_sections_are_kept_in_a_fixed_order_and_do_not_disturb_reading():
    space = SPACES["chain"]
    facts = {
        "provenance": {"seed": 1},
        "costs": {"macs": 5.0},
        "model": {"name": "autoprune:digits"},
        "measurement": {"kl": math.nan},
    }
    text = export(space.dense, space, facts=facts)
    assert text == export(space.dense, space, facts=dict(reversed(facts.items())))
    record = parse(text)
    assert list(record)[4:] == ["model", "costs", "measurement", "provenance"]
    assert record["measurement"] == {"kl": None}
    assert read(text, space) == space.dense


def test_sections_that_no_file_can_hold_are_refused():
    space = SPACES["chain"]
    with pytest.raises(UserError, match="section 'cost' is unknown"):
        export(space.dense, space, facts={"cost": 1})
    with pytest.raises(UserError, match="plain JSON"):
        export(space.dense, space, facts={"costs": np.zeros(1)})


def test_a_scheme_of_another_space_is_not_written():
    with pytest.raises(UserError, match="groups"):
        export(SPACES["chain"].dense, SPACES["mixed"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_version": VERSION + 1}, f"version {VERSION + 1}, this autoprune reads up to {VERSION}: update it"),
        ({"_version": "1"}, "version '1'"),
        ({"_version": True}, "version True"),
        ({"_format": "onnx"}, "not a scheme file"),
        ({"_format": ...}, "not a scheme file"),
        ({"_groups": {}}, '"groups" must be a list'),
        ({"_groups": [{"kept_channels": 3}]}, '"groups" must be a list'),
        ({"_groups": []}, "says nothing about group conv0, conv1, conv2"),
        ({"_granularity": "weight"}, "granularity is 'weight'"),
        ({"name": "conv9"}, "no group is called 'conv9' here; close: conv"),
        ({"name": "conv1"}, "says nothing about group conv0"),
        ({"original_channels": 32}, "made for another model: group conv0 has 8 channels here, 32 in the file"),
        ({"kept_channels": 9}, "group conv0: 9 kept channels is not a legal count"),
        ({"kept_channels": 0}, "group conv0: kept_channels = 0"),
        ({"kept_channels": 2.0}, "group conv0: kept_channels = 2.0"),
        ({"kept_channels": True}, "group conv0: kept_channels = True"),
        ({"kept_channels": "4"}, "group conv0: kept_channels = '4'"),
        ({"kept_channels": ...}, "group conv0: kept_channels = None"),
        ({"kept_indices": [0, 1, 2, 3, 4, 5, 6]}, "7 kept_indices contradict kept_channels = 8"),
        ({"kept_indices": [0, 1, 2, 3, 4, 5, 6, 8]}, "channel 8 is not one of its 8 channels"),
        ({"kept_indices": [0, 1, 2, 3, 4, 5, 6, 6]}, "channel 6 is listed twice"),
        ({"kept_indices": [0, 1, 2, 3, 4, 5, 6, -1]}, "channel -1 is not one"),
        ({"kept_indices": "all"}, "list of channel numbers"),
        ({"kept_indices": [0.0] * 8}, "list of channel numbers"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_name(changes, message):
    space = SPACES["chain"]
    with pytest.raises(UserError) as caught:
        read(edited(space, space.dense, **changes), space)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_group_listed_twice_is_refused():
    space = SPACES["chain"]
    record = json.loads(export(space.dense, space))
    record["groups"].append(record["groups"][1])
    with pytest.raises(UserError, match="lists group 'conv1' twice"):
        read(json.dumps(record), space)


def test_channels_that_leave_together_must_be_listed_together():
    space = mixed()
    scheme = Scheme((4, *space.dense.kept[1:]), indices=((1, 3), *every_unit(space)[1:]))
    assert read(edited(space, scheme, kept_indices=[1, 3, 5, 7]), space) == scheme
    with pytest.raises(UserError, match="channels 1, 5 stay or leave together, 5 is not listed"):
        read(edited(space, scheme, kept_indices=[1, 2, 3, 7]), space)


def test_only_a_whole_group_may_omit_its_indices_beside_others_that_have_them():
    space = SPACES["chain"]
    record = json.loads(export(Scheme((2, 12, 16), indices=((0, 5), *every_unit(space)[1:])), space))
    del record["groups"][1]["kept_indices"]
    assert read(json.dumps(record), space).indices == ((0, 5), *every_unit(space)[1:])
    record["groups"][1]["kept_channels"] = 11
    with pytest.raises(UserError, match="group conv1: kept_indices are missing"):
        read(json.dumps(record), space)


@pytest.mark.parametrize("content", [b"{", b"[1, 2]", b"group,kept\n", b"\xff\xfe\x00", b""])
def test_a_file_that_is_something_else_is_refused(tmp_path, content):
    path = tmp_path / "scheme.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match="scheme.json"):
        scheme_file.parse(path)


def test_a_missing_file_is_reported(tmp_path):
    with pytest.raises(UserError, match="no file or folder"):
        read(tmp_path / "none.json", SPACES["chain"])


# --- what a file says about the model ---------------------------------------------------------------------------------


def test_everything_that_differs_from_the_model_at_hand_is_listed():
    small, large = chain([8, 12, 16, 20, 24]), chain([4, 6, 8, 10, 24])
    with pytest.raises(UserError) as caught:
        read(export(small.dense, small), large)
    assert str(caught.value) == (
        "the file was made for another model: group conv0 has 4 channels here, 8 in the file; "
        "group conv1 has 6 channels here, 12 in the file; group conv2 has 8 channels here, 16 in the file and 1 more"
    )
    with pytest.raises(UserError, match="no group is called 'conv3' here; .*; no group is called 'conv4' here"):
        read(export(small.dense, small), chain([8, 12, 16]))


def test_a_file_for_other_weights_is_told():
    space = SPACES["chain"]
    text = export(space.dense, space, facts={"model": {"name": "mine", "digest": "abc"}})
    assert other_weights(text, "abc") is None
    assert other_weights(export(space.dense, space), "abc") is None
    assert other_weights(text, "def") == (
        "the scheme was made for other weights of mine (digest abc, here def): its counts hold for any, "
        "its kept indices were chosen for those"
    )


def test_shapes_follow_the_structure_of_the_example():
    example = {"image": torch.zeros(2, 3, 8, 8), "more": (torch.zeros(2, 5), 7)}
    assert shapes(example) == {"image": [2, 3, 8, 8], "more": [[2, 5], None]}
    assert shapes(torch.zeros(1, 4)) == [1, 4]


# --- the published schema ---------------------------------------------------------------------------------------------

VALIDATOR = jsonschema.Draft202012Validator(schema())
FACTS = {
    "model": {"name": "mine", "source": {"model": "a:b"}, "digest": "0f", "example_shape": [1, 3, 8, 8]},
    "costs": {"dense": {"macs": 10.0}, "kept": {"macs": 5.0}},
    "measurement": {"loss": 0.5, "accuracy": math.nan, "kl": None, "error": None, "fractions": {"macs": 0.5}},
    "latency": {"milliseconds": {"dense": 2.0, "kept": 1.0}, "conditions": "cpu, batch 1, 1 thread"},
    "reward": {"name": "neg_loss", "value": -0.5},
    "provenance": {"searcher": "auto", "options": {}, "seed": 0, "versions": {"torch": "2.15"}},
}


def test_the_schema_is_a_schema_of_the_newest_version():
    jsonschema.Draft202012Validator.check_schema(schema())
    assert schema()["properties"]["version"] == {"const": VERSION}
    assert schema()["properties"]["format"] == {"const": FORMAT}
    assert set(FACTS) == set(SECTIONS)
    assert set(schema()["properties"]) == {"format", "version", "granularity", "groups", *SECTIONS}


@pytest.mark.parametrize("raced", [{}, {"losses": (0.4, 0.6), "seen": 0.5}])
def test_a_measurement_is_valid_under_the_schema_whatever_it_holds(raced):
    measured = Measurement(0.5, math.nan, 0.2, {"macs": 5.0}, {"macs": 0.5}, {"total": 1.0}, {"f1": 0.4}, **raced)
    facts = {"measurement": measured.to_dict()}
    VALIDATOR.validate(json.loads(export(SPACES["chain"].dense, SPACES["chain"], facts=facts)))


@pytest.mark.parametrize("name", SPACES)
@settings(max_examples=25, deadline=None)
@given(data=st.data(), indices=st.booleans(), sections=st.sets(st.sampled_from(SECTIONS)))
def test_what_is_written_is_valid_under_the_schema(name, data, indices, sections):
    space = SPACES[name]
    facts = {section: FACTS[section] for section in sections}
    VALIDATOR.validate(json.loads(export(data.draw(schemes(space, indices)), space, facts=facts)))


@pytest.mark.parametrize(
    "changes",
    [
        {"_version": 2},
        {"_version": "1"},
        {"_format": "onnx"},
        {"_format": ...},
        {"_groups": {}},
        {"_groups": [{"kept_channels": 3}]},
        {"_granularity": "filter"},
        {"name": ""},
        {"kept_channels": 0},
        {"kept_channels": 2.5},
        {"kept_channels": "4"},
        {"kept_channels": ...},
        {"kept_chanels": 4},
        {"kept_indices": "all"},
        {"kept_indices": [0, 0]},
        {"kept_indices": [-1]},
        {"_model": "mine"},
        {"_note": "mine"},
    ],
)
def test_the_schema_refuses_what_is_not_a_scheme_file(changes):
    space = SPACES["chain"]
    with pytest.raises(jsonschema.ValidationError):
        VALIDATOR.validate(json.loads(edited(space, space.dense, **changes)))


def test_a_file_written_by_hand_needs_names_and_counts_only():
    space = SPACES["chain"]
    record = {
        "format": FORMAT,
        "version": VERSION,
        "granularity": "channel",
        "groups": [{"name": group.name, "kept_channels": 3} for group in space.groups],
    }
    VALIDATOR.validate(record)
    assert read(json.dumps(record), space) == Scheme((3, 3, 3))


@pytest.mark.slow
def test_the_file_of_a_search_is_valid_and_says_everything(tmp_path):
    import autoprune
    from autoprune.architectures import ARCHITECTURES

    torch.manual_seed(0)
    model = ARCHITECTURES["digits"]()
    images, labels = torch.randn(48, 1, 8, 8), torch.randint(0, 10, (48,))
    batches = [[(images[i : i + 16], labels[i : i + 16])] for i in (0, 16)]
    run = autoprune.search(model, images[:2], *batches, budget="macs=50%", searcher="uniform", trials=1, root=tmp_path)
    record = json.loads((run.folder / "scheme.json").read_text())
    VALIDATOR.validate(record)
    assert set(record) == {"format", "version", "granularity", "groups", *SECTIONS}
    assert record["model"]["example_shape"] == [2, 1, 8, 8] and record["model"]["digest"]
    assert record["costs"]["kept"]["macs"] < record["costs"]["dense"]["macs"]
    assert record["latency"]["milliseconds"]["kept"] > 0 and "cpu" in record["latency"]["conditions"]
    assert record["reward"] == {"name": record["reward"]["name"], "value": run.summary["reward"]}
    provenance = record["provenance"]
    assert (provenance["searcher"], provenance["seed"], provenance["options"]) == ("uniform", 0, {})
    assert {"autoprune", "torch"} <= set(provenance["versions"])
    assert read(run.folder / "scheme.json", run.space) == run.scheme


def test_the_file_of_an_applied_scheme_is_valid(tmp_path):
    import autoprune
    from autoprune import api
    from autoprune.architectures import ARCHITECTURES

    model = ARCHITECTURES["digits"]()
    space = autoprune.trace(model, torch.randn(2, 1, 8, 8))
    done = api.apply(model, space, space.smallest, tmp_path / "small", criterion="l2", recovery="none")
    record = json.loads((done.folder / "scheme.json").read_text())
    VALIDATOR.validate(record)
    assert record["costs"]["kept"]["macs"] < record["costs"]["dense"]["macs"]
