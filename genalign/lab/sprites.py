"""The sprite sheet of EmojiWorld: emoji cut from the Noto Color Emoji font, and its lookup table."""

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from genalign.files.shipped import shipped

CELL = 48  # pixels of one sprite in the sheet
COLUMNS = 8

# name, plural, character. A colour word is part of the name where the same shape exists in two colours.
CATALOGUE = (
    ("red heart", "red hearts", "\u2764"),
    ("blue heart", "blue hearts", "\U0001f499"),
    ("green heart", "green hearts", "\U0001f49a"),
    ("yellow heart", "yellow hearts", "\U0001f49b"),
    ("red apple", "red apples", "\U0001f34e"),
    ("green apple", "green apples", "\U0001f34f"),
    ("red car", "red cars", "\U0001f697"),
    ("blue car", "blue cars", "\U0001f699"),
    ("star", "stars", "\u2b50"),
    ("sun", "suns", "\U0001f31e"),
    ("crescent moon", "crescent moons", "\U0001f319"),
    ("rocket", "rockets", "\U0001f680"),
    ("cat", "cats", "\U0001f431"),
    ("dog", "dogs", "\U0001f436"),
    ("panda", "pandas", "\U0001f43c"),
    ("fox", "foxes", "\U0001f98a"),
    ("frog", "frogs", "\U0001f438"),
    ("pig", "pigs", "\U0001f437"),
    ("soccer ball", "soccer balls", "\u26bd"),
    ("basketball", "basketballs", "\U0001f3c0"),
    ("banana", "bananas", "\U0001f34c"),
    ("cherry", "cherries", "\U0001f352"),
    ("watermelon", "watermelons", "\U0001f349"),
    ("strawberry", "strawberries", "\U0001f353"),
    ("carrot", "carrots", "\U0001f955"),
    ("mushroom", "mushrooms", "\U0001f344"),
    ("rose", "roses", "\U0001f339"),
    ("sunflower", "sunflowers", "\U0001f33b"),
    ("cactus", "cacti", "\U0001f335"),
    ("tree", "trees", "\U0001f333"),
    ("house", "houses", "\U0001f3e0"),
    ("bus", "buses", "\U0001f68c"),
    ("sailboat", "sailboats", "\u26f5"),
    ("umbrella", "umbrellas", "\u2614"),
    ("key", "keys", "\U0001f511"),
    ("bell", "bells", "\U0001f514"),
    ("book", "books", "\U0001f4d5"),
    ("gift", "gifts", "\U0001f381"),
    ("balloon", "balloons", "\U0001f388"),
    ("clock", "clocks", "\u23f0"),
    ("crown", "crowns", "\U0001f451"),
    ("robot", "robots", "\U0001f916"),
)


@dataclass(frozen=True)
class Sprite:
    """One emoji: `image` is a (48, 48, 4) float32 array in [0, 1], straight alpha."""

    name: str
    plural: str
    image: np.ndarray


def build_sheet(font: Path, folder: Path) -> None:
    """Draw the catalogue with a colour emoji font (bitmap strikes of 109 px) into `folder`/sprites.png, .json."""
    from PIL import ImageDraw, ImageFont

    strike = ImageFont.truetype(str(font), 109)
    rows = -(-len(CATALOGUE) // COLUMNS)
    sheet = Image.new("RGBA", (COLUMNS * CELL, rows * CELL))
    table = []
    for index, (name, plural, character) in enumerate(CATALOGUE):
        glyph = Image.new("RGBA", (160, 160))
        ImageDraw.Draw(glyph).text((8, 8), character, font=strike, embedded_color=True)
        box = glyph.getbbox()
        if box is None:
            raise ValueError(f"{font} has no colour glyph for {name!r} (U+{ord(character):X})")
        glyph = glyph.crop(box)
        side = max(glyph.size)
        square = Image.new("RGBA", (side, side))
        square.paste(glyph, ((side - glyph.width) // 2, (side - glyph.height) // 2))
        x, y = index % COLUMNS * CELL, index // COLUMNS * CELL
        sheet.paste(square.convert("RGBa").resize((CELL, CELL), Image.Resampling.LANCZOS).convert("RGBA"), (x, y))
        table.append({"name": name, "plural": plural, "codepoint": f"U+{ord(character):X}", "x": x, "y": y})
    folder.mkdir(parents=True, exist_ok=True)
    sheet.save(folder / "sprites.png", optimize=True)
    (folder / "sprites.json").write_text(json.dumps({"cell": CELL, "sprites": table}, indent=1) + "\n")


@lru_cache(maxsize=1)
def sprites() -> dict[str, Sprite]:
    """The shipped sheet, by name."""
    folder = shipped("assets", "emojiworld")
    table = json.loads((folder / "sprites.json").read_text())
    sheet = np.asarray(Image.open(folder / "sprites.png").convert("RGBA"), dtype=np.float32) / 255
    cell = table["cell"]
    return {
        row["name"]: Sprite(row["name"], row["plural"], sheet[row["y"] : row["y"] + cell, row["x"] : row["x"] + cell])
        for row in table["sprites"]
    }


@lru_cache(maxsize=4096)
def resized(name: str, size: int) -> np.ndarray:
    """Sprite at `size` pixels: (size, size, 4) float32 in [0, 1], PREMULTIPLIED alpha (so that edges do not darken)."""
    image = Image.fromarray((sprites()[name].image * 255).round().astype(np.uint8), "RGBA").convert("RGBa")
    return np.asarray(image.resize((size, size), Image.Resampling.LANCZOS), dtype=np.float32) / 255
