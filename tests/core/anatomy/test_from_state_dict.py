"""Layers, roles and stacks told from names are those of the model itself."""

import pytest

from lora_lab.anatomy import anatomy
from lora_lab.anatomy.from_state_dict import sites_from_names
from tests.helpers.tiny_models import ARCHITECTURES, tiny


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_unfused_site_is_told_as_the_model_has_it(name):
    whole = [site for site in anatomy(tiny(name)).sites if site.rows is None]
    names = {site.module: (site.out_features, site.in_features) for site in whole}
    found = sites_from_names(names)
    assert found.keys() == names.keys()
    for site in whole:
        told = found[site.module]
        # A model's class tells more of Conv1D and of what a fused neighbour leaves as one's role.
        assert (told.name, told.layer, told.stack) == (site.name, site.layer, site.stack)
        assert (told.out_features, told.in_features) == (site.out_features, site.in_features)
        assert told.role == site.role


def test_names_that_no_model_has_are_sites_of_their_own():
    odd = ["forward", "a", "a.b", "x.weight.0.type", "layers.01.q_proj", "lm_head", "a..c", ""]
    found = sites_from_names(dict.fromkeys(odd, (4, 3)))
    assert found.keys() == set(odd)
    assert {(site.out_features, site.in_features) for site in found.values()} == {(4, 3)}
    assert (found["lm_head"].layer, found["lm_head"].role) == (None, "lm_head")
