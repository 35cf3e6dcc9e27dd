"""The picture of docs/relevance.md: one photo, two questions, and the regions as each tension is held at its poles."""

from pathlib import Path

from demo import photos  # pyright: ignore[reportAttributeAccessIssue]  # a folder of that name may hide it
from PIL import Image, ImageDraw, ImageFont

import regard
from regard.allocate import load
from regard.record import Look, Record
from regard.report.pictures import heat_map

TARGET = Path("docs") / "relevance.jpg"
QUESTIONS = ("where is the cat?", "the rocket")
HELD = (
    {},
    *({name: pole} for name in ("scope", "tempering", "prioritization") for pole in (0.0, 1.0)),
)
WIDTH, GAP, TEXT = 300, 8, 20


def cell(record: Record, look: Look) -> Image.Image:
    """The heat map with the borders of the regions."""
    picture = heat_map(record, look)
    picture = picture.resize((WIDTH, round(WIDTH * picture.height / picture.width)), Image.Resampling.LANCZOS)
    draw, group = ImageDraw.Draw(picture), look.allocation.to_dict()["group"][0]
    for place, (x0, y0, x1, y1) in enumerate(record.boxes):
        for other, edge in ((place + 1, (x1, y0, x1, y1)), (place + record.grid[2], (x0, y1, x1, y1))):  # pyright: ignore
            if other < len(group) and group[other] != group[place] and edge[0] < 1 and edge[1] < 1:
                draw.line([part * size for part, size in zip(edge, picture.size * 2, strict=True)], "#ffffff66")
    return picture


def main() -> None:
    """Write docs/relevance.jpg."""
    allocators = [load("relevance", **held) for held in HELD]
    record = regard.look(photos(1024, 768), QUESTIONS, keep=0.1, allocators=allocators)
    height = round(WIDTH * 0.75) + TEXT + GAP
    page = Image.new("RGB", (4 * (WIDTH + GAP) + GAP, 4 * height + 2 * TEXT + GAP), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(14)
    y = GAP
    for number, question in enumerate(QUESTIONS):
        draw.text((GAP, y), f"“{question}”", "black", font)
        y += TEXT
        looks = [look for look in record.looks if look.question == number]
        for place, (held, look) in enumerate(zip(HELD, looks, strict=True)):
            x, top = GAP + place % 4 * (WIDTH + GAP), y + place // 4 * height
            title = ", ".join(f"{name} {pole:.0f}" for name, pole in held.items()) or "all driven"
            draw.text((x, top), title, "#444444", font)
            page.paste(cell(record, look), (x, top + TEXT))
        y += 2 * height
    page.save(TARGET, quality=82, optimize=True)
    print(TARGET)


if __name__ == "__main__":
    main()
