from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fleet.adapt.network import folded_network, parameters_of
from fleet.continual.apart import apart
from fleet.continual.growth import ROUNDING, grown, rebased
from fleet.errors import MismatchError
from fleet.federate.releases import Release
from fleet.federate.served import merge_release
from tests.fleet.continual.bases import make_base, state_of


def test_a_base_is_where_its_own_parameters_are() -> None:
    base = make_base()
    assert apart(base, parameters_of(folded_network(base))) == 0


def test_the_distance_is_relative_to_the_largest_entry_of_the_array_that_is_furthest() -> None:
    base = make_base()
    merged = {name: values.copy() for name, values in parameters_of(folded_network(base)).items()}
    merged["head.weight"][:] = 0.5
    merged["head.weight"][0, 0] = 4.0
    own = parameters_of(folded_network(base))["head.weight"].astype(np.float64)
    wanted = np.abs(own - merged["head.weight"]).max() / 4.0
    assert apart(base, merged) == pytest.approx(wanted)


def test_an_array_of_zeros_is_measured_as_it_is() -> None:
    base = make_base()
    merged = dict(parameters_of(folded_network(base)))
    own = merged["head.bias"]
    merged["head.bias"] = np.zeros_like(own)
    assert apart(base, merged) == pytest.approx(np.abs(own).max())


def test_a_rebased_base_is_within_a_rounding_of_its_release_and_the_old_one_is_not() -> None:
    base = make_base()
    release = Release(3, base.digest, base.frame_digest, "", "core+head", state_of(base))
    merged = merge_release(base, release)
    assert 0 < apart(rebased(base, release.state, base.frames), merged) <= ROUNDING
    assert apart(base, merged) > 100 * ROUNDING


def test_a_base_with_an_entry_that_is_no_number_is_never_close() -> None:
    base = make_base()
    merged = parameters_of(folded_network(base))
    broken = {name: np.array(values) for name, values in base.arrays.items()}
    broken["head.bias"][1] = np.nan
    assert np.isnan(apart(replace(base, arrays=broken), merged))


def test_a_base_of_more_classes_is_another_network() -> None:
    base = make_base()
    more = grown(base, (*base.record.labels, "row"), seed=0)
    with pytest.raises(
        MismatchError, match=r"head\.bias is \(5,\), the release's \(4,\)"
    ) as caught:
        apart(more, parameters_of(folded_network(base)))
    assert caught.value.code == "other-network"
    fewer = parameters_of(folded_network(base))
    del fewer["conv1.weight"]
    with pytest.raises(MismatchError, match="the release's not there"):
        apart(base, fewer)
