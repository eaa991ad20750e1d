"""Photographs in, an endless pool of distorted 448-pixel samples with their ratings out.

One worker process cuts tiles once and then keeps overwriting a pool in shared memory. Training draws from the pool and
never waits.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import subprocess
import time
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import numpy as np
from PIL import Image

from qalign_export.distortions import DISTORTIONS
from qalign_fast.pixels.paths import PLAIN
from qalign_fast.pixels.rule import SquareRule

# Debian packages (GPL-2+ or Creative Commons): used for training and named in the model card, never shipped.
PACKAGES = ("mate-backgrounds", "plasma-workspace-wallpapers", "lomiri-wallpapers-16.04", "lomiri-wallpapers-20.04")
_NATURE = "usr/share/backgrounds/mate/nature"
_PLASMA = "usr/share/wallpapers"
_LOMIRI = "usr/share/backgrounds"
PHOTOGRAPHS = (
    *(
        f"{_NATURE}/{name}.jpg"
        for name in (
            "Aqua Blinds Dune FreshFlower Garden GreenMeadow LadyBird RainDrops TwoWings Wood YellowFlower"
        ).split()
    ),
    *(
        f"{_PLASMA}/{name}/contents/images/2560x1600.jpg"
        for name in "Autumn BytheWater ColorfulCups EveningGlow FallenLeaf Grey OneStandsOut Path summer_1am".split()
    ),
    *(
        f"{_LOMIRI}/{name}.jpg"
        for name in (
            "Bridge_by_Sander_Klootwijk Dragonfly_by_Bolly Kleiber_by_Lukas_Baubkus Picture_0B_by_freespace "
            "Picture_1A_by_freespace Wine_by_Jakkub_Mede aitzgorri_by_Aitzol_Berasategi "
            "friends_by_Aitzol_Berasategi greentock_by_Peter_Nerlich life_by_Aitzol_Berasategi "
            "picosdeeuropa_by_Aitzol_Berasategi seeding_by_Clements_Engelhardt sunset_by_Aitzol_Berasategi"
        ).split()
    ),
)
_SHARES = (0.14, 0.12, 0.46, 0.16, 0.06, 0.06)  # of the families, in DISTORTIONS' order; JPEG is by far the hardest
VALIDATION = (
    "Dune",
    "ColorfulCups",
    "Picture_1A_by_freespace",
    "picosdeeuropa_by_Aitzol_Berasategi",
)  # never trained on


def fetch_photographs(folder: Path) -> list[Path]:
    """The training photographs, downloaded as Debian packages and unpacked (not installed) below a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    if not all((folder / name).is_file() for name in PHOTOGRAPHS):
        subprocess.run(["apt-get", "download", *PACKAGES], cwd=folder, check=True)
        for package in folder.glob("*.deb"):
            subprocess.run(["dpkg", "-x", package.name, "."], cwd=folder, check=True)
    return [folder / name for name in PHOTOGRAPHS]


def is_validation(photograph: Path) -> bool:
    """Whether the photograph is one of those that are never trained on."""
    return any(name in str(photograph) for name in VALIDATION)


def cut_tiles(photograph: Path, count: int, rng: np.random.Generator) -> list[Image.Image]:
    """Up to `count` sharp tiles, 384 to 640 pixels on the long side, cut at many scales where there is detail."""
    picture = Image.open(photograph).convert("RGB")
    tiles: list[Image.Image] = []
    for _ in range(20 * count):
        long, aspect = int(rng.integers(384, 641)), rng.uniform(0.66, 1)
        size = (long, round(long * aspect)) if rng.random() < 0.6 else (round(long * aspect), long)
        largest = min(picture.width / size[0], picture.height / size[1])
        shrink = np.exp(rng.uniform(np.log(min(1.5, largest)), np.log(largest)))  # photographs are soft at full size
        window = (size[0] * shrink, size[1] * shrink)
        x, y = rng.uniform(0, picture.width - window[0]), rng.uniform(0, picture.height - window[1])
        box = (x, y, x + window[0], y + window[1])
        tile = picture.resize(size, Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)
        if detail(tile) > 5:
            tiles.append(tile)
        if len(tiles) == count:
            break
    return tiles


def detail(tile: Image.Image) -> float:
    """How much fine structure a picture has: the 70th percentile, over blocks of 32 pixels, of the mean gradient."""
    grey = np.asarray(tile.convert("L"), np.float32)
    gradient = np.abs(np.diff(grey, axis=0))[:, 1:] + np.abs(np.diff(grey, axis=1))[1:]
    h, w = (n // 32 * 32 for n in gradient.shape)
    blocks = gradient[:h, :w].reshape(h // 32, 32, w // 32, 32).mean(axis=(1, 3))
    return float(np.percentile(blocks, 70))


def make_sample(tile: Image.Image, rule: SquareRule, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A tile, distorted at random, as pixels uint8 [S, S, 3], and each family's severity in DISTORTIONS' order."""
    severities = np.zeros(len(DISTORTIONS), np.float32)
    for family in rng.choice(len(DISTORTIONS), rng.choice(3, p=(0.1, 0.75, 0.15)), replace=False, p=_SHARES):
        severities[family] = rng.random()
        tile = list(DISTORTIONS.values())[family](tile, severities[family], rng)
    if rng.random() < 0.5:
        tile = tile.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return rule.apply(tile, PLAIN), severities


def rating(severities: np.ndarray) -> np.ndarray:
    """Severities [..., families] -> the rating on 1..5: each distortion leaves a share 1 - s of the quality."""
    return np.asarray(1 + 4 * np.prod(1 - severities, axis=-1))


class Pool:
    """Samples in shared memory, kept fresh by one worker process of low priority."""

    def __init__(self, photographs: list[Path], rule: SquareRule, slots: int, tiles: int, seed: int) -> None:
        self.rule, self.slots = rule, slots
        shapes = {
            np.uint8: (slots, rule.side, rule.side, 3),
            np.float32: (slots, len(DISTORTIONS)),
            np.int64: (slots + 1,),
        }
        sizes = [int(np.prod(shape)) * np.dtype(kind).itemsize for kind, shape in shapes.items()]
        self._memory = SharedMemory(create=True, size=sum(sizes) + 8)
        arrays, offset = [], 0
        for (kind, shape), size in zip(reversed(shapes.items()), reversed(sizes), strict=True):  # widest first: aligned
            arrays.append(np.ndarray(shape, kind, self._memory.buf, offset))
            offset += size
        counts, self.severities, self.pixels = arrays
        counts[:] = 0
        self._written = counts[:-1]  # how often a slot was written; 0: nothing there, or being overwritten
        self._drawn = counts[-1:]
        self._worker = multiprocessing.get_context("fork").Process(
            target=self._fill, args=(photographs, tiles, seed, os.getpid()), daemon=True
        )
        self._worker.start()

    def _fill(self, photographs: list[Path], tiles: int, seed: int, trainer: int) -> None:
        os.nice(5)
        rng = np.random.default_rng(seed)
        cut = [tile for photograph in photographs for tile in cut_tiles(photograph, tiles, rng)]
        for count in itertools.count():
            while count > self.slots + self._drawn[0] and os.getppid() == trainer:
                time.sleep(0.01)  # one fresh sample for each drawn one is enough; the trainer needs the cores
            if os.getppid() != trainer:  # it was killed
                return
            slot, turn = count % self.slots, count // self.slots
            pixels, severities = make_sample(cut[rng.integers(len(cut))], self.rule, rng)
            self._written[slot] = 0
            self.pixels[slot], self.severities[slot] = pixels, severities
            self._written[slot] = turn + 1

    def filled(self) -> int:
        """The number of samples that can be drawn."""
        return int((self._written > 0).sum())

    def draw(self, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """uint8 [<= count, S, S, 3] and severities [<= count, families]. Those overwritten meanwhile are left out."""
        assert self._worker.is_alive()
        chosen = rng.choice(np.flatnonzero(self._written > 0), count, replace=False)
        self._drawn += count
        before = self._written[chosen]
        pixels, severities = self.pixels[chosen], self.severities[chosen]
        whole = self._written[chosen] == before
        return pixels[whole], severities[whole]

    def close(self) -> None:
        """Ends the worker and frees the memory."""
        self._worker.terminate()
        self._worker.join()
        del self.pixels, self.severities, self._written, self._drawn
        self._memory.close()
        self._memory.unlink()
