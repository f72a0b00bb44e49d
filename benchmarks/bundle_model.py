"""Make a student a bundled model: float16 weights, the size that it sees, and a card with every command that made it.

    python benchmarks/bundle_model.py distilldepth-mini runs/first/student runs/second/student --size 96

The students are the rounds of training in order, each begun from the one before it; the last one is bundled. Entries of
the registry (`distilldepth/models/registry.py`) and scores (`benchmarks/bundled_models.py`) follow by hand.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from distilldepth.documents import read_json
from distilldepth.errors import DistillDepthError
from distilldepth.models import load_model, save_model

WEIGHTS = Path(__file__).resolve().parents[1] / "distilldepth" / "models" / "weights"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help="of the bundled model")
    parser.add_argument("students", nargs="+", type=Path, help="student folders of the rounds, in order")
    parser.add_argument("--size", type=int, help="pixels that the shorter side is resized to (as trained)")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="where NAME goes (%(default)s)")
    arguments = parser.parse_args()
    last = arguments.students[-1]
    try:
        rounds = [read_json(student / "config.json")["training"] for student in arguments.students]
        model = load_model(last)
    except KeyError:
        raise SystemExit(
            "error: a student's config.json says nothing of its training; name what distill wrote"
        ) from None
    except (DistillDepthError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    if arguments.size:
        model.preprocessing = replace(model.preprocessing, size=arguments.size)
    model.info = replace(model.info, name=arguments.name)
    card = make_card((last / "README.md").read_text(encoding="utf-8"), arguments.name, rounds, model.preprocessing.size)
    folder = save_model(model, arguments.out / arguments.name, card=card, dtype=torch.float16)
    print(f"{folder}: {(folder / 'model.safetensors').stat().st_size / 1e6:.1f} MB")


def make_card(card: str, name: str, rounds: list[dict[str, Any]], size: Any) -> str:
    """Return the card of the last student under its new name, with what all rounds were told."""
    first = rounds[0]
    lines = [f"- Initial weights: {first['initial_weights']} ({first['initial_licence']})"]
    if "ImageNet" in first["initial_weights"]:
        lines.append("- That encoder is written by `benchmarks/imagenet_encoder.py`")
    lines.append("- Trained by")
    for number, one in enumerate(rounds, 1):
        lines.append(
            f"  {number}. `{one['command']}`: {one['steps']} steps of {one['batch_size']} images at {one['size']}, "
            f"{one['seconds'] / 60:.1f} minutes on one core; {one['images']}"
        )
    lines.append(f"- It sees images with {size} pixels on their shorter side")
    card, count = re.subn(
        r"- Images: .*?(?=\n## Agreement)", lambda _: "\n".join(lines) + "\n", card, count=1, flags=re.DOTALL
    )
    if count != 1:
        raise SystemExit("the student's card does not say what it was trained on")
    card = re.sub(r"\A# .*", f"# {name}", card)
    return card.replace("PATH_OF_THIS_FOLDER", name)


if __name__ == "__main__":
    main()
