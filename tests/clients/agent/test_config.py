from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients.agent import config as module
from clients.agent.config import (
    CONFIG_FILE,
    Caps,
    DeviceConfig,
    Intake,
    Interpreters,
    load_config,
    parse_config,
    render_config,
    save_config,
)
from clients.agent.policy import Policy, Refusal
from fleet.errors import InputError, StorageError
from fleet.tables import Table, lines_of

PAGE = Path(__file__).parents[3] / "docs" / "device-config.md"
TIMES = st.tuples(st.integers(0, 23), st.integers(0, 59)).map(lambda t: f"{t[0]:02d}:{t[1]:02d}")
SPANS = st.tuples(TIMES, TIMES).filter(lambda two: two[0] != two[1]).map("-".join)
COLUMN = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=9).filter(
    lambda name: name[0] not in "+-"
)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def keys_of(table: Table) -> dict[str, str]:
    """Every key of a table and the tables in it, with its value as the file spells it."""
    found, path = {}, ""
    for line in lines_of(table):
        if line.startswith("["):
            path = line.strip("[]") + "."
        elif line and not line.startswith("#"):
            key, _, value = line.partition(" = ")
            found[path + key] = value
    return found


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    config = DeviceConfig(
        name="kitchen-1",
        server="[2001:db8::1]:443",
        intake=Intake(channels=("x", "y"), units=("g", "mg"), axes={"acc_x": "-y"}, rate_hz=12.5),
        policy=Policy(allowed_hours=("22:00-06:00",), unknown="refuse"),
        interpreters=Interpreters(agent="/usr/bin/python3"),
    )
    assert save_config(config, tmp_path) == tmp_path / CONFIG_FILE
    assert load_config(tmp_path) == config


@given(
    hours=st.lists(SPANS, max_size=3),
    celsius=st.floats(0, 120),
    base=TEXT,
    channels=st.lists(COLUMN, min_size=1, max_size=4, unique=True),
    seconds=st.floats(0, 86_400),
)
def test_any_value_survives_the_file(
    hours: list[str], celsius: float, base: str, channels: list[str], seconds: float
) -> None:
    config = DeviceConfig(
        name="a",
        base=base,
        intake=Intake(
            channels=tuple(channels),
            units=("g",) * len(channels),
            axes={f"{name}'": f"-{name}" for name in channels},
        ),
        policy=Policy(
            max_temperature_c=celsius,
            allowed_hours=tuple(hours),
            max_training_s_per_day=seconds,
        ),
    )
    assert parse_config(render_config(config)) == config


def test_every_key_is_written_under_its_description() -> None:
    lines = render_config(DeviceConfig(name="a")).splitlines()
    for number, line in enumerate(lines):
        if " = " in line and not line.startswith("#"):
            assert lines[number - 1].startswith("# "), line


def test_the_page_lists_every_key_with_its_default_and_no_other() -> None:
    page = PAGE.read_text(encoding="utf-8")
    keys = keys_of(DeviceConfig(name="a"))
    del keys["name"]
    for key, default in keys.items():
        assert f"| `{key}` | `{default}` |" in page, key
    listed = {
        line.split("`")[1] for line in page.splitlines() if line.count("|") == 4 and "`" in line
    }
    assert listed == {*keys, "name"}


def test_the_page_lists_every_reason_of_a_refusal() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for reason in Refusal:
        assert f"| `{reason.value}` |" in page


def test_a_file_that_breaks_rules_is_refused_with_all_of_them() -> None:
    text = """
    name = "a b"
    server = "nowhere"
    colour = "red"
    [intake]
    channels = ["x", "x"]
    units = ["g", "furlong", "g"]
    axes = { acc_x = "-z" }
    rate-hz = 0
    [caps]
    windows-bytes = 1000
    replay-bytes = 2000
    unlabelled-bytes = 500
    [policy]
    allowed-hours = ["25:00-26:00", "08:00-08:00"]
    metered-network = "maybe"
    [interpreters]
    agent = "python3"
    """
    with pytest.raises(InputError) as raised:
        parse_config(text)
    error = raised.value
    assert (error.code, error.exit_code) == ("device-config", 4)
    for told in (
        *("name:", "'a b'", "server:", "'nowhere'", "colour:"),
        *("intake.rate-hz", "caps: replay-bytes", "25:00-26:00", "08:00-08:00"),
        *("metered-network", "'maybe'", "interpreters.agent", "device-config.md"),
    ):
        assert told in error.message + error.hint, told


def test_an_intake_that_does_not_agree_names_each_disagreement() -> None:
    text = """
    name = "a"
    [intake]
    channels = ["x", "x"]
    units = ["g", "furlong", "g"]
    axes = { acc_x = "-z" }
    """
    with pytest.raises(InputError) as raised:
        parse_config(text)
    for told in ("channel 'x' twice", "3 units for 2 channels", "'furlong'", "axes.acc_x", "'-z'"):
        assert told in raised.value.message


@pytest.mark.parametrize(
    "address", ["host", "host:0", "host:65536", "a b:1", "https://host:1", ":1", "host:1\\n"]
)
def test_an_address_is_a_host_and_a_port(address: str) -> None:
    with pytest.raises(InputError, match="server"):
        parse_config(f'name = "a"\nserver = "{address}"')


@pytest.mark.parametrize("name", ["", "a b", "a\\n", "-a", "../a", "a" * 65, "a'"])
def test_a_name_is_safe_in_a_shell_and_in_a_unit(name: str) -> None:
    with pytest.raises(InputError, match="name"):
        parse_config(f'name = "{name}"')


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("fleet.example:443", ("fleet.example", 443)),
        ("[::1]:8443", ("::1", 8443)),
        ("", None),
    ],
)
def test_an_address_is_split(address: str, parts: tuple[str, int] | None) -> None:
    assert DeviceConfig(name="a", server=address).host_and_port() == parts


def test_a_file_that_is_absent_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no") as raised:
        load_config(tmp_path)
    assert raised.value.code == "no-device"
    assert "fleet-device init" in raised.value.hint


@pytest.mark.parametrize("content", [b"name = ", b"\xff\xfe", b"#" * (module.MAX_CONFIG_BYTES + 1)])
def test_a_file_that_is_no_toml_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / CONFIG_FILE).write_bytes(content)
    with pytest.raises(InputError) as raised:
        load_config(tmp_path)
    assert raised.value.code == "device-config-toml"


def test_a_file_that_cannot_be_read_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / CONFIG_FILE).mkdir()
    with pytest.raises(StorageError, match="could not be read"):
        load_config(tmp_path)


def test_relative_paths_lie_in_the_state_directory(tmp_path: Path) -> None:
    relative = DeviceConfig(name="a")
    absolute = DeviceConfig(name="a", root_certificate="/etc/ssl/ca.crt")
    assert relative.certificate_path(tmp_path) == tmp_path / "ca.crt"
    assert absolute.certificate_path(tmp_path) == Path("/etc/ssl/ca.crt")


def test_an_interpreter_that_is_not_named_is_this_one() -> None:
    config = DeviceConfig(name="a", interpreters=Interpreters(bridge="/opt/flower/bin/python"))
    assert config.python_of("agent") == sys.executable
    assert config.python_of("bridge") == "/opt/flower/bin/python"


def test_the_base_is_where_serving_keeps_it(tmp_path: Path) -> None:
    folder = pytest.importorskip("clients.agent.serving.folder")
    assert DeviceConfig(name="a").base_path(tmp_path) == folder.ModelFolder(tmp_path).base


def test_the_caps_are_those_of_the_store() -> None:
    store = pytest.importorskip("clients.agent.store.records")
    assert store.Caps(**Caps().model_dump()) == store.Caps()


def test_the_units_are_those_of_the_intake() -> None:
    spec = pytest.importorskip("clients.agent.intake.spec")
    assert set(module.UNITS) == set(spec.UNITS)
