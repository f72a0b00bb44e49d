"""Flags, files, presets and --set are one thing; every mistake is one line that names the key."""

from __future__ import annotations

import pytest

from distilldepth.distill.config import DistillConfig, load_config, parse_size, preset_names
from distilldepth.distill.objective import distill_any_depth_objective
from distilldepth.distill.terms.table import TERMS
from distilldepth.errors import DistillDepthError, UsageError
from distilldepth.settings import get_key, keys, to_toml
from distilldepth.teachers.spec import parse_teachers


def test_toml_round_trip_keeps_every_key(tmp_path):
    config = load_config(
        preset="demo",
        settings=["loss.gradient=1.5", "crop.flip=false", "optimiser.lr=3e-4"],
        flags={"teachers": "dav2:small=7,genpercept=3", "images": ["a b/ü.txt", 'q"uote', "dele\x7fted"], "steps": 7},
    )
    for comments in (False, True):
        path = tmp_path / "config.toml"
        path.write_text(to_toml(config, comments=comments), encoding="utf-8")
        assert load_config(file=path) == config


def test_precedence_is_preset_file_set_flag(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text("steps = 11\nbatch_size = 3\nseed = 4\n[loss]\ngradient = 0.25\n")
    config = load_config(preset="demo", file=path, settings=["batch-size=5", "seed=6"], flags={"seed": 9})
    assert (config.steps, config.batch_size, config.seed, config.loss.gradient) == (11, 5, 9, 0.25)
    assert config.student == load_config(preset="demo").student


def test_every_key_is_documented():
    for key, (_, doc) in keys(DistillConfig).items():
        assert len(doc) > 5, key


def test_presets_are_valid_and_the_paper_weights_hold():
    for name in preset_names():
        load_config(preset=name, flags={"images": ["photos"]})
    paper = load_config(preset="distill-any-depth")
    assert (paper.loss.shared_context, paper.loss.local_global, paper.loss.feature, paper.loss.gradient) == (
        1,
        0.5,
        1,
        2,
    )
    assert (paper.crop.min_crop, paper.height_width, paper.batch_size, paper.steps) == (644, (560, 560), 4, 20_000)
    zipped = load_config(preset="zipdepth")
    assert (zipped.height_width, zipped.batch_size, zipped.teachers) == ((384, 384), 96, "dav2:large")
    assert (zipped.loss.shared_context, zipped.loss.normalisation_shared, zipped.loss.local_global) == (1, "global", 0)
    assert (zipped.optimiser.lr, zipped.optimiser.schedule, zipped.precision) == (1e-3, "one-cycle", "auto")


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("loss.gradiant=1", "did you mean 'loss.gradient'"),
        ("gradient=1", "did you mean 'loss.gradient'"),
        ("steps=0", "steps must be at least 1"),
        (f"steps={'9' * 400}", "steps must be at most 1e"),
        (f"steps={'9' * 5000}", "steps in --set must be a whole number"),
        (f"seed={'9' * 400}", "seed must be below"),
        (f"optimiser.lr={'9' * 400}", "must be a finite number"),
        (f"size={'9' * 5000}", "size must be at most"),
        (f"teachers=dav2={'9' * 400}", "positive and finite"),
        ("teachers==3", "must have a name"),
        ("teachers=dav2=1e300,genpercept", "at most 1e"),
        ("loss.gradient=1e308", "loss.gradient must be at most"),
        ("optimiser.lr=1e308", "optimiser.lr must be at most"),
        ("optimiser.clip_norm=1e300", "optimiser.clip_norm must be at most"),
        ("optimiser.lr=true", "must be a number"),
        ("batch_size=1000000", "batch_size must be at most 65536"),
        ("workers=100000", "workers must be at most 1024"),
        ("threads=1000000", "threads must be at most 4096"),
        ("crop.patches=100000", "crop.patches must be at most 1024"),
        ("heldout=99999999999", "heldout must be at most"),
        ("grad_accumulation=99999999", "at most 65536"),
        ("student=", "student must name"),
        ("device= ", "device must name"),
        ("images=", "no empty one"),
        ("out=a\0b", "text in UTF-8"),
        ("nope=1", "unknown key 'nope'"),
        ("gradient_checkpointing=yes", "gradient_checkpointing in --set must be true or false"),
        ("teacher_offload=1", "teacher_offload in --set must be true or false"),
        ("compile_teachers=2", "compile_teachers in --set must be true or false"),
        ("micro_batch=half", "micro_batch in --set must be a whole number"),
        ("drop_share=0.1", "did you mean 'loss.drop_share'"),
        ("steps=1.5", "steps in --set must be a whole number"),
        ("batch_size=none", "whole number"),
        ("loss.anchor=-1", "loss.anchor must be at least 0"),
        ("loss.contexts=rang", "must be one of range"),
        ("size=12x", "size must be SIDE or HxW"),
        ("size=8", "at least 32"),
        ("optimiser.lr=nan", "optimiser.lr must be a finite number"),
        ("loss.aligned_log_knee=inf", "loss.aligned_log_knee must be a finite number"),
        ("optimiser.beta1=1.5", r"optimiser.beta1 must be in \[0, 1\)"),
        ("seed=-1", "seed must be at least 0"),
        ("seed=99999999999999999999999", "seed must be below"),
        ("size=99999999999x5000", "size must be at most"),
        ("size=²", "size must be SIDE or HxW"),
        ("teachers=dav2,dav2", "given twice"),
        ("out=", "out must name a folder"),
        ("images=bad\udcff", "text in UTF-8"),
        ("preset=demo", "--preset demo"),
        ("crop.flip=maybe", "true or false"),
        ("steps", "key=value"),
        ("max_skipped_share=2", "between 0 and 1"),
    ],
)
def test_bad_settings_name_the_key(setting, words):
    with pytest.raises(ValueError, match=words) as caught:
        load_config(settings=[setting])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("heldout=1000001", "heldout must be at most 1e+06, got 1000001"),
        ("crop.min_crop_share=-0.5", "crop.min_crop_share must be between 0 and 1, got -0.5"),
        ("augment.blur=1.5", "augment.blur must be between 0 and 1, got 1.5"),
        ("optimiser.warmup=2", "optimiser.warmup must be between 0 and 1, got 2.0"),
        ("optimiser.encoder_lr_share=-2", "optimiser.encoder_lr_share must be between 0 and 1, or -1, got -2.0"),
        ("optimiser.encoder_lr_share=1.5", "optimiser.encoder_lr_share must be between 0 and 1, or -1, got 1.5"),
        ("optimiser.ema=1", "optimiser.ema must be in [0, 1), got 1.0"),
        ("optimiser.beta2=-1", "optimiser.beta2 must be in [0, 1), got -1.0"),
        ("seed=9223372036854775808", "seed must be below 2^63, got 9223372036854775808"),
        ("loss.drop_share=1", "loss.drop_share must be in [0, 1), got 1.0"),
        ("loss.drop_share=-0.1", "loss.drop_share must be in [0, 1), got -0.1"),
        ("micro_batch=-1", "micro_batch must be at least 0, got -1"),
        ("micro_batch=65537", "micro_batch must be at most 65536, got 65537"),
        ("loss.feature=2e6", "loss.feature must be at most 1e+06, got 2000000.0"),
        (
            "loss.normalisation_shared=x",
            "loss.normalisation_shared must be one of hybrid, global, local, none, got 'x'",
        ),
        (
            "initial_weights=x",
            "initial_weights must be one of random, pretrained, encoder, or a file of encoder weights, got 'x'",
        ),
        ("precision=int8", "precision must be one of auto, float32, bfloat16, float16, got 'int8'"),
        ("optimiser.algorithm=sgd", "optimiser.algorithm must be one of adamw, muon, got 'sgd'"),
        ("optimiser.schedule=x", "optimiser.schedule must be one of poly, cosine, constant, one-cycle, got 'x'"),
    ],
)
def test_bounds_and_choices_are_named(setting, words):
    with pytest.raises(UsageError) as caught:
        load_config(settings=[setting])
    assert str(caught.value) == f"distill: {words}"


@pytest.mark.parametrize(
    "setting",
    ["optimiser.encoder_lr_share=-1", "optimiser.encoder_lr_share=1", "optimiser.ema=0.999", "crop.patch_share=1",
     "micro_batch=65536", "loss.drop_share=0.99",
     "seed=9223372036854775807", "loss.feature=1e6", "max_skipped_share=0", "workers=1024"],
)  # fmt: skip
def test_bounds_belong_to_what_is_allowed(setting):
    key, _, value = setting.partition("=")
    assert float(get_key(load_config(settings=[setting]), key)) == float(value)


def test_every_term_of_the_table_can_be_made():
    for name in TERMS:
        options = {"student_channels": 4, "teacher_channels": {"a": 4}} if TERMS[name].features else {}
        weights = {**dict.fromkeys(TERMS, 0.0), name: 0.25}
        (term,) = distill_any_depth_objective(weights=weights, **options).terms
        assert (term.name, term.weight) == (name, 0.25)
    with pytest.raises(TypeError, match="unexpected argument 'context'; did you mean 'contexts'"):
        distill_any_depth_objective(context="range")


def test_bad_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_config(file=tmp_path / "nowhere.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("steps = = 3")
    with pytest.raises(DistillDepthError, match="not a TOML file"):
        load_config(file=broken)
    broken.write_text("preset = 3")
    with pytest.raises(DistillDepthError, match="preset must be text"):
        load_config(file=broken)
    broken.write_bytes(b"\xef\xbb\xbfsteps = 3")  # as some Windows editors save
    assert load_config(file=broken).steps == 3
    with pytest.raises(ValueError, match="unknown preset 'dem'; did you mean 'demo'"):
        load_config(preset="dem")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = " + "[" * 5000 + "]" * 5000, "nested deeper"),
        ("x = " + "[" * 200 + "]" * 200, "nested deeper"),
        ("steps = " + "9" * 400, "64 bits"),
        ("steps = " + "9" * 5000, "too many digits"),
        ("steps = true", "steps in .* must be a whole number"),
        ("steps = [3]", "steps in .* must be a whole number"),
        ("steps = {}", "steps in .* must be a whole number"),
        ("student = ['light-mini']", "student in .* must be text"),
        ("images = [['a']]", "must be a list of texts"),
        ("seed = 1979-05-27", "seed in .* must be a whole number"),
        ("[foo]", "unknown key 'foo'"),
        ("[foo]\nbar = 1", "unknown key 'foo.bar'"),
        ("crop = 5", "unknown key 'crop'"),
        ("[crop.flip]", "crop.flip in .* must be true or false"),
        ("[optimiser]\nlr = inf", r"optimiser.lr must be a finite number, got inf \(in "),
        ("[optimiser]\nlr = nan", r"must be a finite number"),
        ("[loss]\ngradient = 1e308", r"loss.gradient must be at most 1e\+06"),
        ("device = ''", "device must name a device"),
        ("teachers = 'dav2=-1'", "must be positive"),
    ],
)
def test_what_a_file_says_wrongly_is_the_file_s_fault(tmp_path, text, words):
    path = tmp_path / "c.toml"
    path.write_text(text)
    with pytest.raises(DistillDepthError, match=words) as caught:
        load_config(file=path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_what_is_typed_over_a_good_file_is_wrong_usage(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text("steps = 3")
    with pytest.raises(UsageError, match="steps must be at least 1"):
        load_config(file=path, flags={"steps": 0})
    path.write_text("steps = 0")
    assert load_config(file=path, flags={"steps": 2}).steps == 2
    with pytest.raises(UsageError, match="batch_size"):
        load_config(file=path, flags={"steps": 2, "batch_size": 0})


def test_negative_zero_is_zero():
    assert str(load_config(settings=["augment.noise=-0.0"]).augment.noise) == "0.0"


def test_names_are_looked_up():
    load_config(settings=["student=light-mini", "teachers=dav2,dad:small,oracle,some/folder,org/name"]).check_names()
    for setting, words in (
        ("student=light-mni", "unknown student 'light-mni'; did you mean"),
        ("teachers=dav3", "dav2"),
    ):
        with pytest.raises(UsageError, match=words):
            load_config(settings=[setting]).check_names()


def test_nothing_to_learn_from():
    teaching = [f"loss.{name}" for name, row in TERMS.items() if row.teaches]
    assert {"loss.shared_context", "loss.local_global", "loss.gradient", "loss.map_channel_kl"} <= set(teaching)
    words = rf"{', '.join(teaching[:-1])} and {teaching[-1]} are all 0; nothing"
    with pytest.raises(ValueError, match=words):
        load_config(settings=[f"{name}=0" for name in teaching])
    load_config(settings=[f"{name}=0" for name in teaching[:-1]] + [f"{teaching[-1]}=1"])


def test_parse_size():
    assert parse_size("192x256", "size") == (192, 256)
    assert DistillConfig(size="96x128").height_width == (96, 128)


def test_parse_teachers():
    specs = parse_teachers("dav2:large=7, genpercept@a/b.safetensors=3,oracle")
    assert [(s.model, s.weight) for s in specs] == [
        ("dav2:large", 7.0), ("genpercept@a/b.safetensors", 3.0), ("oracle", 1.0),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("dav2,dav2", "given twice"),
        ("dav2=-1", "must be positive"),
        ("dav2=0", "must be positive"),
        ("dav2=x", "must be a number"),
        ("dav2=nan", "must be positive"),
        ("dav2=inf", "positive and finite"),
        ("dav2,,genpercept", "comma-separated"),
        ("", "comma-separated"),
    ],
)
def test_bad_teachers(text, words):
    with pytest.raises(ValueError, match=words):
        parse_teachers(text)
