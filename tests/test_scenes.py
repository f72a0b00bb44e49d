"""Procedural scenes: the geometry against closed forms, the rules for views, determinism, the source and its cache."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from distilldepth.scenes import geometry, render, shading, source
from distilldepth.scenes.builder import Builder, Draw
from distilldepth.scenes.geometry import BOX, CONE, CYLINDER, ELLIPSOID, FOLIAGE, TERRAIN, Camera, Objects, cast, look
from distilldepth.scenes.layouts import LAYOUTS
from distilldepth.scenes.render import KINDS, render_scene
from distilldepth.scenes.source import SceneSource

SMALL = (48, 64)


def digest(scene: render.Scene) -> str:
    depth = np.rint(np.minimum(scene.depth, 1e4) * 1000).astype(np.int64)
    return hashlib.sha256(scene.image.tobytes() + depth.tobytes()).hexdigest()


def camera_at(position: tuple[float, float, float], forward: tuple[float, float, float] = (0, 1, 0)) -> Camera:
    return Camera(np.array(position, np.float64), look(forward), 40.0, 40.0, 32.0, 24.0, 48, 64)


def single(
    kind: int, half: tuple[float, float, float], centre: tuple[float, float, float] = (0, 0, 0), **more
) -> Objects:
    return Objects(
        np.array([kind]), np.array([centre], np.float64), np.eye(3)[None], np.array([half], np.float64),
        np.array([more.get("taper", 0.0)]), np.array([0]), more.get("terrain"),
    )  # fmt: skip


# Geometry


def test_sphere_has_the_depth_of_the_closed_form() -> None:
    camera = camera_at((0, -4, 0))
    depth, index = cast(single(ELLIPSOID, (1, 1, 1)), camera)
    x, y = np.meshgrid(camera.xs.astype(np.float64), camera.ys.astype(np.float64))
    a = x * x + y * y + 1
    inside = 16 - a * 15 > 1e-3  # ray (x, y, 1) t meets |p - (0, 0, 4)| = 1
    with np.errstate(invalid="ignore"):
        expected = (4 - np.sqrt(16 - a * 15)) / a
    np.testing.assert_allclose(depth[inside], expected[inside], rtol=1e-4)
    assert np.isinf(depth[16 - a * 15 < -1e-3]).all()
    np.testing.assert_array_equal(index >= 0, np.isfinite(depth))


def test_floor_depth_is_height_over_slope() -> None:
    camera = camera_at((0, 0, 1.5))
    depth, _ = cast(single(BOX, (500, 500, 0.5), (0, 0, -0.5)), camera)
    below = np.flatnonzero(camera.ys > 0.02)
    expected = np.broadcast_to((1.5 / camera.ys[below])[:, None], (len(below), 64))
    np.testing.assert_allclose(depth[below], expected, rtol=1e-4)
    assert np.isinf(depth[camera.ys <= 0]).all()


def test_wall_has_constant_depth_whatever_the_angle_of_the_ray() -> None:
    depth, _ = cast(single(BOX, (50, 0.5, 50), (0, 3.5, 0)), camera_at((0, 0, 0)))
    np.testing.assert_allclose(depth, 3.0, rtol=1e-5)


def test_cylinder_from_the_side_and_from_above() -> None:
    pole = single(CYLINDER, (0.5, 0.5, 1))
    depth, _ = cast(pole, camera_at((0, -3, 0)))
    assert depth[24, 32] == pytest.approx(2.5, rel=1e-4)
    depth, _ = cast(pole, camera_at((0, 0.001, 4), (0, 0, -1)))
    assert depth[24, 32] == pytest.approx(3.0, rel=1e-4)
    assert np.isinf(depth[24, 0])


def test_cone_tapers_to_its_top() -> None:
    cone = single(CONE, (1, 1, 1), taper=-0.5)  # radius 1 at z = -1, 0.5 at z = 1
    for z, radius in ((-0.9, 0.975), (0.0, 0.75), (0.9, 0.525)):
        depth, _ = cast(cone, camera_at((0, -4, z)))
        assert depth[24, 32] == pytest.approx(4 - radius, rel=1e-4)


def test_foliage_lies_between_its_crown_and_its_core() -> None:
    camera = camera_at((0, -4, 0))
    ragged, _ = cast(single(FOLIAGE, (1, 1, 1)), camera)
    smooth, _ = cast(single(ELLIPSOID, (1, 1, 1)), camera)
    seen = np.isfinite(ragged)
    assert seen.sum() > 0.5 * np.isfinite(smooth).sum()
    assert (ragged[seen] >= smooth[seen] * (1 - 1e-5)).all()
    assert (ragged[seen] > smooth[seen] * 1.001).any()


def test_terrain_hits_lie_on_the_ground() -> None:
    waves = np.array([[0.5, 0.2], [0.05, 0.11], [-0.03, 0.09], [0.3, 0.7]])
    camera = camera_at((0, 0, 2.5), (0.1, 1, -0.2))
    depth, _ = cast(single(TERRAIN, (500, 500, 100), terrain=waves), camera)
    hit = np.isfinite(depth) & (depth < 60)
    assert hit.mean() > 0.4
    x, y = np.meshgrid(camera.xs, camera.ys)
    point = camera.position + depth[hit][:, None] * (np.stack([x, y, np.ones_like(x)], -1)[hit] @ camera.axes)
    ground = geometry.terrain_height(waves, point[:, 0].astype(np.float32), point[:, 1].astype(np.float32))
    # Along a grazing ray a small error in height is a large one in depth.
    assert np.quantile(np.abs(point[:, 2] - ground), 0.95) < 0.02


def test_a_tilted_box_is_the_same_in_its_own_frame() -> None:
    """Turning object and camera together changes nothing."""
    plain = single(BOX, (0.6, 0.4, 0.8))
    turn = look((0.3, 0.8, -0.2), 0.7).T
    turned = Objects(plain.kind, plain.centre, turn[None], plain.half, plain.taper, plain.material)
    camera = camera_at((0.4, -3, 0.7))
    moved = Camera(turn @ camera.position, camera.axes @ turn.T, 40.0, 40.0, 32.0, 24.0, 48, 64)
    a, b = cast(plain, camera)[0], cast(turned, moved)[0]
    both = np.isfinite(a) & np.isfinite(b)
    assert (np.isfinite(a) != np.isfinite(b)).sum() <= 3
    np.testing.assert_allclose(a[both], b[both], rtol=2e-3)


def test_nearer_object_wins_and_nothing_in_front_of_the_near_limit_is_seen() -> None:
    a, b = single(BOX, (5, 0.1, 5), (0, 4, 0)), single(ELLIPSOID, (0.5, 0.5, 0.5), (0, 2, 0))
    close = single(BOX, (0.01, 0.01, 0.01), (0, 0.1, 0))
    both = Objects(*(np.concatenate([getattr(o, n) for o in (a, b, close)]) for n in
                     ("kind", "centre", "rotation", "half", "taper", "material")))  # fmt: skip
    depth, index = cast(both, camera_at((0, 0, 0)))
    assert index[24, 32] == 1
    assert depth[24, 32] == pytest.approx(1.5, rel=1e-4)
    assert index[0, 0] == 0
    assert not (index == 2).any()


# Scenes


def view_of(kind: str, seed: int) -> tuple[Objects, Camera, np.ndarray, np.ndarray]:
    """The primitives of a scene and a view of it."""
    for attempt in range(8):
        rng = np.random.default_rng([seed, attempt])
        builder = Builder(rng)
        plan = LAYOUTS[kind][1](builder)
        objects = builder.objects()
        found = render._find_view(plan, objects, Draw(rng), *SMALL)
        if found is not None:
            return objects, *found
    raise AssertionError(f"no view of {kind}")


def test_shapes_types_and_odd_sizes() -> None:
    for size in ((48, 64), (37, 91), (80, 33), (16, 16)):
        scene = render_scene(3, size)
        assert scene.image.shape == (*size, 3)
        assert scene.image.dtype == np.uint8
        assert scene.depth.shape == size
        assert scene.depth.dtype == np.float32
        assert scene.intrinsics.shape == (3, 3)
        assert scene.intrinsics.dtype == np.float32
        assert scene.kind in KINDS
        assert scene.right is None
        assert scene.image.flags.c_contiguous


def test_same_seed_same_scene_and_other_seed_another() -> None:
    assert digest(render_scene(11, SMALL)) == digest(render_scene(11, SMALL))
    assert len({digest(render_scene(seed, SMALL)) for seed in range(6)}) == 6


def test_same_scene_in_another_process() -> None:
    code = (
        "import sys; sys.path[:0] = sys.argv[1:]; from test_scenes import digest, SMALL, render_scene;"
        "print(*[digest(render_scene(s, SMALL)) for s in (0, 5, 9)])"
    )
    here = Path(__file__).parent
    command = [sys.executable, "-c", code, str(here), str(here.parent)]
    environment = {**os.environ, "PYTHONHASHSEED": "123"}
    out = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert out.stdout.split() == [digest(render_scene(s, SMALL)) for s in (0, 5, 9)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_renders(kind: str) -> None:
    for seed in (1, 2):
        scene = render._render(seed, SMALL, kind=kind)
        assert scene.image.std() > 4
        assert np.isfinite(scene.depth).mean() >= 0.4


def test_kinds_occur_in_their_shares() -> None:
    shares = {name: share for name, (share, _) in LAYOUTS.items()}
    assert sum(shares.values()) == pytest.approx(1)
    # Rooms and streets of the kinds that were there first make half of all.
    assert sum(shares[name] for name in ("room", "desk", "corridor", "street", "terrain", "pile")) == pytest.approx(0.5)
    drawn = [render._kind_of(seed) for seed in range(1500)]
    for name, share in shares.items():
        assert drawn.count(name) / len(drawn) == pytest.approx(share, abs=0.03)
    for seed in range(4):
        assert render_scene(seed, (32, 40)).kind == drawn[seed]


@pytest.mark.parametrize("kind", KINDS)
def test_views_follow_the_rules(kind: str) -> None:
    ratios = []
    for seed in range(100, 106):
        scene = render._render(seed, SMALL, kind=kind)
        depth = scene.depth
        assert scene.kind == kind
        assert not np.isnan(depth).any()
        assert depth.min() >= geometry.NEAR
        assert np.isinf(depth).mean() <= 0.6
        solid = depth[np.isfinite(depth)]
        ratios.append(np.quantile(solid, 0.95) / np.quantile(solid, 0.05))
        assert (depth < 0.25).mean() <= 0.35
        assert 8 < scene.image.mean() < 247
    assert min(ratios) > {"tabletop": 1.1, "still_life": 1.18}.get(kind, 1.24)
    assert np.median(ratios) > 1.3


def test_a_table_from_above_has_no_horizon_and_a_road_is_long() -> None:
    for seed in range(4):
        table, road = (render._render(seed, SMALL, kind=kind).depth for kind in ("tabletop", "road"))
        assert np.isfinite(table).all()
        assert np.median(table) < 2.5
        assert road[np.isfinite(road)].max() > 20
        assert np.quantile(road, 0.05) > 1


@pytest.mark.parametrize("kind", ["tabletop", "still_life", "corner", "road", "nature"])
def test_depth_is_that_of_the_primitive_that_is_seen(kind: str) -> None:
    """Every point of the depth map lies on the surface of a primitive, by the formulas in float64."""
    objects, camera, depth, index = view_of(kind, 5)
    y, x = np.nonzero(index >= 0)
    ray = np.stack([(x - camera.cx) / camera.fx, (y - camera.cy) / camera.fy, np.ones(len(x))], -1)
    point = camera.position + depth[y, x][:, None].astype(np.float64) * (ray @ camera.axes)
    owner = index[y, x]
    local = np.einsum("nji,nj->ni", objects.rotation[owner], point - objects.centre[owner])
    q = local / objects.half[owner]
    radius = np.hypot(q[:, 0], q[:, 1])
    cone = np.abs(radius - (1 + objects.taper[owner] * (q[:, 2] + 1) / 2))
    level = np.where(
        objects.kind[owner] == BOX,
        np.abs(np.abs(q).max(1) - 1),
        np.where(objects.kind[owner] == ELLIPSOID, np.abs(np.linalg.norm(q, axis=1) - 1), 0),
    )
    tube = (objects.kind[owner] == CYLINDER) | (objects.kind[owner] == CONE)
    cap = np.abs(np.abs(q[:, 2]) - 1)
    level = np.where(tube, np.minimum(np.where(objects.kind[owner] == CONE, cone, np.abs(radius - 1)), cap), level)
    # Off the surface in metres: float32 in the ray caster, at most a few thousandths of the distance.
    off = level * objects.half[owner].min(1) / depth[y, x]
    assert len(np.unique(owner)) >= 5
    assert np.quantile(off, 0.99) < 2e-3


def test_height_in_the_image_does_not_give_the_depth_away() -> None:
    """Inverse depth falls with height in the image in many views, in many it does not."""
    correlations = []
    for seed in range(200, 240):
        scene = render_scene(seed, SMALL)
        y = np.broadcast_to(np.arange(SMALL[0])[:, None], SMALL)
        seen = np.isfinite(scene.depth)
        correlations.append(np.corrcoef(y[seen], 1 / scene.depth[seen])[0, 1])
    assert 0.1 < np.mean(correlations) < 0.7
    assert np.mean(np.array(correlations) < 0.2) > 0.15


def test_left_view_does_not_depend_on_stereo() -> None:
    mono, pair = render_scene(21, SMALL), render_scene(21, SMALL, stereo=True)
    np.testing.assert_array_equal(mono.image, pair.image)
    np.testing.assert_array_equal(mono.depth, pair.depth)
    assert pair.right is not None
    assert pair.right.shape == pair.image.shape
    assert pair.baseline_m > 0


def test_right_view_is_the_left_one_moved_by_the_disparity() -> None:
    better = 0
    seeds = range(30, 42)
    for seed in seeds:
        scene = render_scene(seed, (96, 128), stereo=True)
        assert scene.right is not None
        disparity = scene.intrinsics[0, 0] * scene.baseline_m / scene.depth
        errors = []
        for factor in (1.0, 0.0, 2.0):
            y, x = np.mgrid[:96, :128]
            target = np.rint(x - factor * disparity).astype(int)
            inside = (target >= 0) & (target < 128)
            difference = scene.right[y[inside], target[inside]].astype(float) - scene.image[inside]
            errors.append(np.median(np.abs(difference).mean(-1)))
        better += errors[0] <= min(errors[1:])
        assert errors[0] < 16  # sensor noise differs in the two views
    assert better >= len(seeds) - 1


# The camera


def test_compression_keeps_what_is_smooth_and_rounds_what_is_fine() -> None:
    y, x = np.mgrid[:37, :51].astype(np.float32)
    smooth = np.stack([60 + y, 80 + x, 200 - x - y])
    np.testing.assert_allclose(shading._compressed(smooth, 1e-3), smooth, atol=0.1)
    np.testing.assert_allclose(shading._compressed(smooth, 1.0), smooth, atol=16)
    grain = smooth + np.random.default_rng(0).normal(0, 6, smooth.shape).astype(np.float32)
    error = [float(np.abs(shading._compressed(grain, coarse) - grain).mean()) for coarse in (0.02, 0.3, 2.0)]
    assert error == sorted(error)
    assert error[0] < 1 < error[2]


def test_a_wide_aperture_blurs_what_is_out_of_focus_only() -> None:
    rng = np.random.default_rng(3)
    radiance = rng.uniform(0.1, 1, (3, 48, 64)).astype(np.float32)
    depth = np.full((48, 64), 8.0, np.float32)
    depth[:, 20:44] = 1.0
    response = shading.Response(Draw(rng), shallow=1.0)
    response.aperture, response.focus = 0.05, 1.0
    out = response._defocused(radiance, depth)
    np.testing.assert_allclose(out[:, :, 20:44], radiance[:, :, 20:44], rtol=1e-6)
    assert out[:, :, :16].std() < 0.5 * radiance[:, :, :16].std()
    assert abs(out.mean() / radiance.mean() - 1) < 0.05


@pytest.mark.parametrize(("seed", "size"), [(-1, SMALL), (0, (8, 64))])
def test_bad_arguments_are_named(seed: int, size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"render_scene: (seed|size) must be"):
        render_scene(seed, size)


# The source


def test_source_gives_samples() -> None:
    source = SceneSource(SMALL, count=4, seed=50)
    assert len(source) == 4
    assert source.has_depth
    assert "4 procedural scenes" in source.description
    sample = source[2]
    assert sample["name"] == "scene-000052"
    np.testing.assert_array_equal(sample["image"], render_scene(52, SMALL).image)
    assert set(sample) == {"image", "name", "depth", "intrinsics"}
    with pytest.raises(IndexError):
        source[4]
    assert len(SceneSource(SMALL)) == 1_000_000
    with pytest.raises(ValueError, match="count must be >= 1"):
        SceneSource(SMALL, count=0)


def test_cache_keeps_the_scenes_and_survives_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, kept = SceneSource(SMALL, count=3), SceneSource(SMALL, count=3, cache=tmp_path)
    for i in range(3):
        for sample in (kept[i], kept[i]):
            assert sample["name"] == plain[i]["name"]
            for key in ("image", "depth", "intrinsics"):
                np.testing.assert_array_equal(sample[key], plain[i][key])
                assert sample[key].dtype == plain[i][key].dtype
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert len(files) == 3  # and no temporary ones
    files[0].write_bytes(files[0].read_bytes()[:2000])
    files[1].write_bytes(b"")
    files[2].write_bytes(b"not a scene at all")
    for i in range(3):
        np.testing.assert_array_equal(kept[i]["depth"], plain[i]["depth"])
    monkeypatch.setattr(source, "render_scene", lambda *_: pytest.fail("rendered again"))
    for i in range(3):
        assert kept[i]["image"].shape == (*SMALL, 3)


def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    source = SceneSource(SMALL, count=2, cache=tmp_path / "file")
    with pytest.warns(UserWarning, match="rendered anew"):
        first = source[0]
    assert np.array_equal(first["image"], SceneSource(SMALL, count=2)[0]["image"])
    assert source[1]["name"] == "scene-000001"


def test_cache_is_apart_for_other_sizes_and_renderers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = {SceneSource(size, cache=tmp_path).folder for size in (SMALL, (64, 48))}
    monkeypatch.setattr(source, "RENDERER_VERSION", source.RENDERER_VERSION + 1)
    folders.add(SceneSource(SMALL, cache=tmp_path).folder)
    assert len(folders) == 3
