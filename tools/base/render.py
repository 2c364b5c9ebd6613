"""Compose training pictures from sprites and backgrounds, a whole batch at a time, on any device."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from concepts import SCENES, training_concepts
from PIL import Image
from recipes import GRADIENT, SCENE, Catalogue, Recipes
from scenes import paint_scenes

SIZE = 128  # pixels of a picture
MARGIN = 1.25  # scenes are painted larger by this and cropped


class Renderer:
    """Sprites [S, 4, 144, 144] and scenes [V, 3, 160, 160] on one device, and the way to put them together.

    Args:
        archive: what `fetch.py` packed.
        device: where to render.
        names: the concepts to load, in label order. Default: the concepts the base is trained on; pass held-out names
        to
            render subjects.
        scene_variants: how many pictures of each scene to paint.
    """

    def __init__(
        self,
        archive: Path,
        device: torch.device | str = "cpu",
        names: list[str] | None = None,
        scene_variants: int = 32,
        scene_seed: int = 0,
    ) -> None:
        self.device = torch.device(device)
        if names is None:
            names = [name for name, _, _ in training_concepts()]
        with zipfile.ZipFile(archive) as sprites:
            index = json.loads(sprites.read("index.json"))
            chosen = [entry for name in names for entry in index if entry["name"] == name]
            pictures = [np.asarray(Image.open(io.BytesIO(sprites.read(entry["file"])))) for entry in chosen]
        self.sprites = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous().to(self.device)
        self.small_sprites = halved(self.sprites)  # a second mip level, so that small objects stay free of aliasing
        by_name = {name: tuple(i for i, entry in enumerate(chosen) if entry["name"] == name) for name in names}
        classes = {entry["name"]: entry["class"] for entry in chosen}
        self.catalogue = Catalogue(
            tuple(names), tuple(classes[n] for n in names), tuple(by_name[n] for n in names), scene_variants
        )
        painted = [paint_scenes(scene, scene_variants, int(SIZE * MARGIN), scene_seed) for scene in SCENES]
        self.scenes = torch.from_numpy(np.concatenate(painted)).to(self.device)

    @torch.no_grad()
    def __call__(self, recipes: Recipes) -> torch.Tensor:
        """Render a batch: float32 [B, 3, 128, 128] in -1..1."""
        recipes = recipes.to(self.device)
        picture = self.backgrounds(recipes)
        for slot in range(recipes.sprite.shape[1]):
            colour, alpha = self.objects(recipes, slot)
            shadow = F.avg_pool2d(F.pad(alpha, (4, 4, 1, 7), mode="replicate"), 9, stride=1)
            picture = picture * (1 - 0.28 * shadow * (recipes.background == SCENE)[:, None, None, None])
            picture = picture * (1 - alpha) + colour
        return picture.mul_(2).sub_(1).clamp_(-1, 1)

    def backgrounds(self, recipes: Recipes) -> torch.Tensor:
        """[B, 3, 128, 128] in 0..1: plain colours, gradients and scenes."""
        line = torch.linspace(-1, 1, SIZE, device=self.device)
        along = (
            line[None, None, :] * recipes.angle.cos()[:, None, None]
            + line[None, :, None] * recipes.angle.sin()[:, None, None]
        )
        amount = (along / 2.2 + 0.5).clamp(0, 1) * (recipes.background == GRADIENT)[:, None, None]
        first, second = recipes.colours[:, 0, :, None, None], recipes.colours[:, 1, :, None, None]
        picture = first + (second - first) * amount[:, None]
        rows = (recipes.background == SCENE).nonzero()[:, 0]
        if len(rows):
            crop, room = recipes.crop[rows], 1 - 1 / MARGIN
            theta = torch.zeros(len(rows), 2, 3, device=self.device)
            theta[:, 0, 0], theta[:, 1, 1] = crop[:, 2].sign() / MARGIN, 1 / MARGIN
            theta[:, 0, 2], theta[:, 1, 2] = crop[:, 0] * room, crop[:, 1] * room
            grid = F.affine_grid(theta, [len(rows), 3, SIZE, SIZE], align_corners=False)
            painted = self.scenes[recipes.scene[rows]].float().div_(255)
            picture[rows] = F.grid_sample(painted, grid, padding_mode="border", align_corners=False)
        return picture

    def objects(self, recipes: Recipes, slot: int) -> tuple[torch.Tensor, torch.Tensor]:
        """One object per picture, or nothing: premultiplied colour [B, 3, 128, 128] and alpha [B, 1, 128, 128]."""
        batch, device = len(recipes), self.device
        picture, alpha = (
            torch.zeros(batch, 3, SIZE, SIZE, device=device),
            torch.zeros(batch, 1, SIZE, SIZE, device=device),
        )
        rows = (recipes.sprite[:, slot] >= 0).nonzero()[:, 0]
        if not len(rows):
            return picture, alpha
        large = recipes.scale[rows, slot] * SIZE > 0.45 * self.sprites.shape[-1]
        for sprites, chosen in ((self.sprites, rows[large]), (self.small_sprites, rows[~large])):
            if len(chosen):
                drawn = self.drawn(sprites, recipes, chosen, slot)
                picture[chosen], alpha[chosen] = drawn[:, :3], drawn[:, 3:]
        return picture, alpha

    def drawn(self, sprites: torch.Tensor, recipes: Recipes, rows: torch.Tensor, slot: int) -> torch.Tensor:
        """The objects of some rows in their places: premultiplied RGBA [rows, 4, 128, 128]."""
        sprite = sprites[recipes.sprite[rows, slot]].float().div_(255)
        sprite[:, :3] = (
            self.tinted(sprite[:, :3], recipes.tint[rows, slot]) * recipes.light[rows, slot, None, None, None]
        )
        sprite[:, :3] *= sprite[:, 3:]
        scale, turn, mirror = recipes.scale[rows, slot], recipes.rotation[rows, slot], recipes.mirror[rows, slot]
        theta = torch.zeros(len(rows), 2, 3, device=self.device)
        theta[:, 0, 0], theta[:, 0, 1] = mirror * turn.cos() / scale, mirror * turn.sin() / scale
        theta[:, 1, 0], theta[:, 1, 1] = -turn.sin() / scale, turn.cos() / scale
        theta[:, :, 2:] = -(theta[:, :, :2] @ (recipes.place[rows, slot] * 2 - 1)[:, :, None])
        grid = F.affine_grid(theta, [len(rows), 4, SIZE, SIZE], align_corners=False)
        return F.grid_sample(sprite, grid, align_corners=False)

    @staticmethod
    def tinted(colour: torch.Tensor, tint: torch.Tensor) -> torch.Tensor:
        """Repaint pictures [B, 3, h, w] in the colours [B, 3], keeping light and shade; a negative one does nothing."""
        luma = (colour * colour.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
        target, middle = tint[:, :, None, None], 0.6
        painted = torch.where(
            luma < middle, target * (luma / middle), target + (1 - target) * (luma - middle) / (1 - middle)
        )
        painted = 0.9 * painted + 0.1 * colour
        return torch.where(target[:, :1] >= 0, painted, colour)


def halved(sprites: torch.Tensor) -> torch.Tensor:
    """uint8 RGBA pictures [S, 4, h, w] at half the size; colours are averaged by their opacity."""
    alpha = F.avg_pool2d(sprites[:, 3:].float(), 2)
    colour = F.avg_pool2d(sprites[:, :3].float() * sprites[:, 3:].float(), 2) / alpha.clamp_min(1e-3)
    return torch.cat([colour, alpha], 1).round().clamp(0, 255).to(torch.uint8)
