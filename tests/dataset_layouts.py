"""Writes small copies of what users have on disk: the layouts of every benchmark, with depth known in closed form."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

SIZE = (12, 18)
"""(height, width) of everything written; not square, so that a swap shows."""


def metres(seed: int, size: tuple[int, int] = SIZE, low: float = 1.0, high: float = 8.0) -> np.ndarray:
    """Depth of sample `seed`: multiples of 1/8 m, which every encoding but the logarithmic one holds exactly."""
    rng = np.random.default_rng(seed)
    return (rng.integers(round(low * 8), round(high * 8), size) / 8).astype(np.float32)


def holes(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """bool: where sample `seed` has no measurement."""
    return np.random.default_rng(seed + 10_000).random(size) < 0.3


def photograph(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """uint8 `(H, W, 3)` of sample `seed`; smooth, so that JPEG keeps it nearly."""
    colour = np.random.default_rng(seed + 20_000).integers(40, 200, 3)
    ramp = np.linspace(0, 40, size[1])[None, :, None] + np.zeros((size[0], 1, 1))
    return (colour + ramp).astype(np.uint8)


def save_image(path: Path, seed: int, size: tuple[int, int] = SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(photograph(seed, size)).save(path, format="JPEG" if path.suffix.lower() == ".jpg" else "PNG")


def save_depth(path: Path, seed: int, scale: float) -> None:
    """16-bit PNG, 0 in the holes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = np.where(holes(seed), 0, np.rint(metres(seed) * scale)).astype(np.uint16)
    Image.fromarray(stored).save(path)


def save_list(path: Path, lines: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def nyu_marigold(root: Path, count: int) -> list[str]:
    lines = []
    for seed in range(count):
        scene = f"test/kitchen_{seed % 3:04d}"
        names = [f"{scene}/{kind}_{seed + 1:04d}.png" for kind in ("rgb", "depth", "filled")]
        save_image(root / names[0], seed)
        save_depth(root / names[1], seed, 1000)
        filled = np.rint(metres(seed) * 1000).astype(np.uint16)
        Image.fromarray(filled).save(root / names[2])
        lines.append(" ".join(names))
    return lines


def nyu_bts(root: Path, count: int, *, dense: bool = False) -> list[str]:
    """Below `official_splits/test`; lines relative to it, with Zoe's leading slash on every second."""
    lines = []
    for seed in range(count):
        scene = ("bathroom", "kitchen")[seed % 2]
        image, depth = f"{scene}/rgb_{seed:05d}.jpg", f"{scene}/sync_depth_{seed:05d}.png"
        save_image(root / "official_splits/test" / image, seed)
        save_depth(root / "official_splits/test" / depth, seed, 1000)
        if dense:
            path = root / f"official_splits/test/{scene}/dense/sync_depth_dense_{seed:05d}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(np.rint(metres(seed) * 1000).astype(np.uint16)).save(path)
        slash = "/" if seed % 2 else ""
        lines.append(f"{slash}{image} {slash}{depth} 518.8579")
    return lines


def nyu_densedepth(root: Path, count: int) -> list[str]:
    lines = []
    for seed in range(count):
        image, depth = f"data/nyu2_test/{seed:05d}_colors.png", f"data/nyu2_test/{seed:05d}_depth.png"
        save_image(root / image, seed)
        save_depth(root / depth, seed, 1000)
        lines.append(f"{image},{depth}")
    return lines


KITTI_DEPTH = {
    "marigold": "{drive}/proj_depth/groundtruth/image_02/{frame}.png",
    "newcrfs": "gts/{date}/{drive}/proj_depth/groundtruth/image_02/{frame}.png",
    "official": "data_depth_annotated/{part}/{drive}/proj_depth/groundtruth/image_02/{frame}.png",
}
"""The three places of KITTI's ground truth."""


def kitti_eigen(root: Path, count: int, place: str, *, images: str = "", suffix: str = "png") -> list[dict[str, str]]:
    """Writes frames; gives what names them."""
    frames = []
    for seed in range(count):
        date = ("2011_09_26", "2011_10_03")[seed % 2]
        drive = f"{date}_drive_{2 + seed % 3:04d}_sync"
        frame = {"date": date, "drive": drive, "frame": f"{5 * seed:010d}", "part": ("train", "val")[seed % 2]}
        name = f"{date}/{drive}/image_02/data/{frame['frame']}"
        save_image(root / images / f"{name}.{suffix}", seed)
        save_depth(root / KITTI_DEPTH[place].format(**frame), seed, 256)
        frames.append({**frame, "name": f"{name}.png"})
    return frames


def kitti_line(frame: dict[str, str], style: str = "bts") -> str:
    truth = "{drive}/proj_depth/groundtruth/image_02/{frame}.png".format(**frame)
    if style == "monodepth2":
        return f"{frame['date']}/{frame['drive']} {int(frame['frame'])} l"
    if style == "absolute":
        return f"/mnt/bn/x/Kitti/raw_data/{frame['name']} /mnt/bn/x/Kitti/data_depth_annotated/{frame['part']}/{truth}"
    return f"{frame['name']} {truth} 721.5377"


def kitti_official(root: Path, count: int) -> list[str]:
    lines = []
    for seed in range(count):
        folder = "depth_selection/val_selection_cropped"
        drive = f"2011_09_26_drive_{seed:04d}_sync"
        image = f"{folder}/image/{drive}_image_{7 * seed:010d}_image_0{2 + seed % 2}.png"
        save_image(root / image, seed)
        truth = f"{drive}_groundtruth_depth_{7 * seed:010d}_image_0{2 + seed % 2}.png"
        save_depth(root / folder / "groundtruth_depth" / truth, seed, 256)
        lines.append(image)
    return lines


def kitti_test(root: Path, count: int) -> list[str]:
    lines = [f"depth_selection/test_depth_prediction_anonymous/image/{seed:010d}.png" for seed in range(count)]
    for seed, line in enumerate(lines):
        save_image(root / line, seed)
    return lines


def save_raw(path: Path, seed: int, size: tuple[int, int] = SIZE) -> None:
    """float32 without a header, inf in the holes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.where(holes(seed, size), np.inf, metres(seed, size)).astype("<f4").tofile(path)


def eth3d(root: Path, count: int) -> list[str]:
    lines = []
    for seed in range(count):
        scene, name = ("office", "pipes")[seed % 2], f"DSC_{219 + seed:04d}.JPG"
        image = f"rgb/{scene}/images/dslr_images/{name}"
        depth = f"depth/{scene}_dslr_depth/{scene}/ground_truth_depth/dslr_images/{name}"
        save_image(root / image, seed)
        save_raw(root / depth, seed)
        lines.append(f"{image} {depth}")
    return lines


def scannet(root: Path, count: int) -> list[str]:
    lines, kinds = [], (("color", "jpg"), ("depth", "png"))
    for seed in range(count):
        image, depth = (f"scene{seed % 4:04d}_00/{kind}/{100 * seed:06d}.{end}" for kind, end in kinds)
        save_image(root / image, seed)
        save_depth(root / depth, seed, 1000)
        lines.append(f"{image} {depth}")
    return lines


def diode(root: Path, indoor: int, outdoor: int) -> list[str]:
    """Depth is everywhere, far beyond any range and 0 to 1 m too; the mask alone has the holes."""
    lines = []
    for seed in range(indoor + outdoor):
        folder, word = ("indoors", "indoors") if seed < indoor else ("outdoor", "outdoor")
        stem = f"{folder}/scene_{seed % 2:05d}/scan_{seed % 5:05d}/{seed:05d}_{word}_{10 * seed:03d}_010"
        save_image(root / f"{stem}.png", seed)
        np.save(root / f"{stem}_depth.npy", diode_metres(seed)[..., None])
        np.save(root / f"{stem}_depth_mask.npy", (~holes(seed)).astype(np.float64))
        lines.append(f"{stem}.png {stem}_depth.npy {stem}_depth_mask.npy")
    return lines


def diode_metres(seed: int) -> np.ndarray:
    depth = metres(seed, low=0.125, high=20)
    depth[:2] *= 50
    return depth


def driving_stereo(folder: Path, count: int, *, double: bool = False, suffix: str = ".jpg") -> None:
    """`left-image-half-size` and `depth-map-half-size` in a folder; doubled as some archives unpack."""
    for seed in range(count):
        stem = f"2018-07-{seed % 28 + 1:02d}-14-48-52_2018-07-11-14-50-{seed:05d}"
        for kind in ("left-image-half-size", "depth-map-half-size"):
            inner = folder / kind / kind if double else folder / kind
            if kind.startswith("left"):
                save_image(inner / f"{stem}{suffix}", seed)
            else:
                save_depth(inner / f"{stem}.png", seed, 256)


def moge_bundle(root: Path, count: int) -> list[str]:
    lines = []
    for seed in range(count):
        name = f"scene_{seed % 2}/{seed:04d}"
        save_image(root / name / "image.jpg", seed)
        stored, near, far = moge_codes(seed)
        text = PngImagePlugin.PngInfo()
        text.add_text("near", repr(near))
        text.add_text("far", repr(far))
        Image.fromarray(stored).save(root / name / "depth.png", pnginfo=text)
        lines.append(name)
    return lines


def moge_codes(seed: int) -> tuple[np.ndarray, float, float]:
    """uint16 codes with both special values, and the ends of their scale."""
    stored = np.random.default_rng(seed).integers(1, 65535, SIZE).astype(np.uint16)
    stored[0, :3], stored[1, :2] = 0, 65535
    stored[2, 0], stored[2, 1] = 1, 65534
    return stored, 0.5 + seed, 40.0 + seed


def pack(folder: Path, tar: Path, *, prefix: str = "./") -> Path:
    """Everything in a folder as a tar, members called `./...` as the field's archives have them."""
    with tarfile.open(tar, "w") as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.add(path, arcname=f"{prefix}{path.relative_to(folder).as_posix()}")
    return tar


def encoded(image: np.ndarray, kind: str) -> np.ndarray:
    """The bytes of an image file as uint8 values."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format=kind)
    return np.frombuffer(buffer.getvalue(), dtype=np.uint8)
