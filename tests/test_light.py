"""The light student: any size in, a bounded map out, every parameter trained."""

from __future__ import annotations

import pytest
import torch

from distilldepth.models import count_parameters, create_student
from distilldepth.models.registry import ENTRIES


@pytest.fixture(scope="module")
def student():
    return create_student("light-mini", seed=3)


@pytest.mark.parametrize("size", [(64, 96), (33, 50), (97, 35), (96, 128)])
def test_any_size_gives_a_bounded_map_of_that_size(student, size):
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    output = student.eval()(images, features=True)
    assert output.values.shape == (2, *size)
    assert output.values.min() >= 0
    assert output.values.max() <= 1
    assert output.features["encoder"].shape[:2] == (2, 224)


def test_images_of_a_batch_do_not_see_each_other(student):
    images = torch.rand(3, 3, 64, 80, generator=torch.Generator().manual_seed(1))
    student.eval()
    with torch.no_grad():
        together = student(images).values
        alone = torch.cat([student(image[None]).values for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_every_parameter_gets_a_gradient():
    student = create_student("light-mini", seed=4).train()
    # The second half of each residual block starts at zero, and with it the gradient of the first half.
    torch.nn.init.normal_(student.stages[0][1].second[1].weight)
    for module in student.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(2))
    student(images).values.square().sum().backward()
    silent = [name for name, p in student.named_parameters() if p.grad is None or not p.grad.any()]
    # A bias of the keys shifts every logit of a query alike, which softmax does not see; q, k and v share one bias.
    assert silent == []


def test_groups_hold_every_parameter_once(student):
    groups = student.parameter_groups()
    ids = [id(p) for group in groups.values() for p in group]
    assert sorted(ids) == sorted(id(p) for p in student.parameters())


def test_the_registry_knows_its_size(student):
    assert count_parameters(student) == ENTRIES["light-mini"].parameters


def test_a_wide_view_is_seen_at_the_size_it_was_made_for(student):
    images = torch.rand(1, 3, 50, 120, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        assert student.eval().estimate(images, size=64).shape == (1, 50, 120)
