"""What a run says of its own student, and the learning rates it takes when none is given."""

import math

import pytest

from distilldepth.distill.config import OptimiserSection, load_config
from distilldepth.distill.judge import judge
from distilldepth.distill.recipe import is_random, rate_warning, settle_optimiser, usual_rate
from distilldepth.models import create_student, load_model

SETTINGS = OptimiserSection(lr=2e-3, encoder_lr_share=1.0)


def agreement(correlation, error, *, constant=0):
    teachers = {"dav2-mini": {"correlation": correlation, "ssi_error": error}}
    return {"images": 16, "constant": constant, "teachers": teachers}


def problems(before, after, rows=(), *, steps=500, settings=SETTINGS, usual_lr=2e-3):
    return judge(before, after, rows, steps=steps, settings=settings, usual_lr=usual_lr)


def test_a_student_that_learned_is_not_complained_of():
    assert problems(agreement(0.1, 1.4), agreement(0.8, 0.5)) == []
    assert problems(agreement(0.9, 0.3), agreement(0.89, 0.32)) == []  # A trained one that stays where it was.
    assert problems({"images": 0, "teachers": {}}, {"images": 0, "teachers": {}}) == []


@pytest.mark.parametrize(
    ("before", "after", "word"),
    [
        (agreement(0.07, 1.36), agreement(-0.4, 1.7), "calls near what dav2-mini calls far"),
        (agreement(0.9, 0.3), agreement(0.6, 0.7), "agrees less with dav2-mini than before"),
        (agreement(0.5, 0.9), agreement(0.5, 1.0), "agrees less with dav2-mini than before"),
        (agreement(0.1, 1.4), agreement(0.2, 1.3), "hardly agrees with dav2-mini"),
        (agreement(0.1, 1.4), agreement(math.nan, 1.4), "is not a number"),
        (agreement(0.1, 1.4), agreement(0.5, 0.8, constant=3), "constant map for 3 of 16"),
        (agreement(0.1, 1.4), agreement(0.5, 0.8, constant=16), "constant map for every held-out image"),
    ],
)
def test_what_is_wrong_is_named(before, after, word):
    (finding,) = problems(before, after)
    assert word in finding.problem
    assert finding.advice


def test_a_student_of_metres_must_not_go_away_from_the_truth():
    def found(before, after):
        first, last = agreement(0.9, 0.3), agreement(0.9, 0.3)
        first["depth"], last["depth"] = {"abs_rel": before}, {"abs_rel": after}
        rules = {"steps": 500, "settings": SETTINGS, "usual_lr": 2e-3}
        assert judge(first, last, (), **rules) == []  # What others predict is fitted to the truth.
        return [finding.problem for finding in judge(first, last, (), **rules, in_metres=True)]

    assert found(0.2, 0.1) == found(0.2, 0.205) == []
    assert "further from the truth" in found(0.2, 0.25)[0]
    assert "further from the truth" in found(0.2, math.nan)[0]


def test_the_advice_fits_the_settings():
    before, after = agreement(0.1, 1.4), agreement(-0.2, 1.5)
    for settings, expected in (
        (OptimiserSection(lr=5e-5, encoder_lr_share=0.1), "optimiser.lr=0.002"),
        (OptimiserSection(lr=2e-3, encoder_lr_share=0.1), "optimiser.encoder_lr_share=1"),
        (OptimiserSection(lr=0.03, encoder_lr_share=1.0), "optimiser.lr=0.002"),
        (SETTINGS, "train longer"),
    ):
        (finding,) = problems(before, after, settings=settings)
        assert expected in finding.advice
    assert "--steps" in problems(before, after, steps=3)[0].advice


def test_a_drifting_magnitude_is_named():
    rows = [{"step": step, "output_spread": 0.1 * 1.5**step} for step in range(20)]
    (finding,) = problems(agreement(0.1, 1.4), agreement(0.8, 0.5), rows)
    assert "spread of the student's output changed" in finding.problem
    steady = [{"step": step, "output_spread": 0.1 + 0.01 * step} for step in range(20)]
    assert problems(agreement(0.1, 1.4), agreement(0.8, 0.5), steady) == []


def test_rates_depend_on_whether_the_student_was_trained():
    random, trained = create_student("light-mini", seed=1), load_model("distilldepth-mini")
    assert (is_random(random), is_random(trained)) == (True, False)
    left_open = load_config().optimiser
    assert usual_rate(random) == (2e-3, 1.0)
    assert usual_rate(create_student("topformer-tiny", seed=1)) == (2e-3, 1.0)
    settled = settle_optimiser(left_open, random)
    assert (settled.lr, settled.encoder_lr_share) == (2e-3, 1.0)
    settled = settle_optimiser(left_open, trained)
    assert (settled.lr, settled.encoder_lr_share) == (5e-5, 0.1)
    given = settle_optimiser(OptimiserSection(lr=1e-4, encoder_lr_share=0.0), random)
    assert (given.lr, given.encoder_lr_share) == (1e-4, 0.0)


def test_a_rate_for_trained_weights_on_random_ones_is_warned_of():
    random, trained = create_student("light-mini", seed=1), load_model("distilldepth-mini")
    small = OptimiserSection(lr=5e-5, encoder_lr_share=0.1)
    assert "optimiser.lr=0.002" in rate_warning(small, random)
    assert rate_warning(small, trained) is None
    assert rate_warning(settle_optimiser(OptimiserSection(), random), random) is None


@pytest.mark.parametrize("share", [-0.5, 1.5])
def test_a_share_is_a_share_or_left_open(share):
    with pytest.raises(ValueError, match="encoder_lr_share"):
        load_config(settings=[f"optimiser.encoder_lr_share={share}"])
