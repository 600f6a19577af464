from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.terminal import Line, Terminal, section, shape, surroundings, transcript

PAGE = """# A page

## One

```bash
fleet up   # not typed
```

```
$ export PLACE=here
$ fleet device list             # a remark
\u2503 name \u2503 serves \u2503 seen (UTC) \u2503
\u2502 a-00 \u2502 7 \u2502 2026-11-21 21:35:00 \u2502
```

```
$ fleet release promote 2 --yes
error [forbidden]: a viewer may not
```

## Two

```
$ echo other
```
"""


@pytest.fixture
def beside() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=-1, text=True) as process:
        yield process
        process.kill()


@pytest.fixture
def terminal(tmp_path: Path) -> Terminal:
    return Terminal(tmp_path, surroundings(Path(sys.executable).parent, {}), pause_s=0.01)


def test_a_section_is_typed_as_it_stands_without_remarks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    lines = transcript(section(page, "One"))
    assert [line.command for line in lines] == [
        "export PLACE=here",
        "fleet device list",
        "fleet release promote 2 --yes",
    ]
    assert [line.looks for line in lines] == [False, True, False]
    assert [line.refused for line in lines] == [False, False, True]
    assert len(lines[1].output) == 2
    with pytest.raises(AssertionError, match="Three"):
        section(page, "Three")


def test_times_numbers_and_digests_may_differ_and_nothing_else() -> None:
    one = "| device-00001 | 7  | yes | 5e6025b14f8c723c | 2026-11-21 21:35:00 |"
    one = one.replace("|", "\u2502")
    two = one.replace("7 ", "12").replace("5e60", "0e61").replace("2026", "2027")
    assert shape([one]) == shape([two])
    assert shape([one]) != shape([one.replace("yes", "no")])
    assert shape([one]) != shape([one.replace("00001", "00002")])
    assert shape(["touched 5 devices; releases 7, 8"]) == shape(
        ["touched 3 devices; releases 1, 2"]
    )
    assert shape(["touched 5 devices"]) != shape(["would touch 5 devices"])
    assert shape(["\u250f\u2501\u2513", ""]).total() == 0
    assert shape([one, two]) - shape([one]) == shape([two])


def test_what_a_page_does_not_say_fails(terminal: Terminal, beside: subprocess.Popen[str]) -> None:
    terminal.type(Line("export WORD=seven"), 1.0, beside)
    terminal.type(Line("echo $WORD 12 times", ("seven 3 times",)), 1.0, beside)
    for wrong in (Line("echo $WORD", ("eight",)), Line("false"), Line("echo x", ("error [x]",))):
        with pytest.raises(AssertionError):
            terminal.type(wrong, 1.0, beside)
    terminal.type(Line("echo 'error [no]: 5'; false", ("error [no]: 4",)), 1.0, beside)
    beside.kill()
    beside.wait()
    with pytest.raises(AssertionError, match="has ended"):
        terminal.type(Line("true"), 1.0, beside)


def test_what_only_looks_is_repeated_until_it_is_as_the_page_says(
    terminal: Terminal, beside: subprocess.Popen[str]
) -> None:
    program = terminal.folder / "fleet"
    program.write_text("#!/bin/bash\necho x >> $PWD/count; wc -l < $PWD/count | sed s/3/yes/\n")
    program.chmod(0o700)
    terminal.environment["PATH"] = f"{terminal.folder}:{terminal.environment['PATH']}"
    terminal.type(Line("fleet device list", ("yes",)), 60.0, beside)
    assert (terminal.folder / "count").read_text() == "x\n" * 3
    with pytest.raises(AssertionError, match="not there"):
        terminal.type(Line("fleet device tag", ("no",)), 60.0, beside)
    assert (terminal.folder / "count").read_text() == "x\n" * 4
