from __future__ import annotations

import os
import pwd

import pytest

from server.control.user import user


def test_a_user_without_a_name_acts_under_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(uid: int) -> pwd.struct_passwd:
        raise KeyError(uid)

    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    assert user() == f"uid-{os.getuid()}"
