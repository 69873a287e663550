"""A small invented world of restaurants, from which the embedded tasks are made."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

# The E2E data set's attributes and values (Novikova et al., 2017), in its order. The names below
# are invented: none of them is in that data.
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "eatType": ("pub", "coffee shop", "restaurant"),
    "food": ("Chinese", "English", "Fast food", "French", "Indian", "Italian", "Japanese"),
    "priceRange": ("cheap", "moderate", "high", "less than £20", "£20-25", "more than £30"),
    "customer rating": ("low", "average", "high", "1 out of 5", "3 out of 5", "5 out of 5"),
    "area": ("riverside", "city centre"),
    "familyFriendly": ("yes", "no"),
}

_QUALITIES = (
    "Amber Brass Copper Crooked Drowsy Emerald Gilded Hidden Humble Ivory Jolly Lucky Marble Merry "
    "Midnight Painted Quiet Restless Rusty Scarlet Silver Sleepy Velvet Wandering Windy"
)
_THINGS = (
    "Acorn Anchor Badger Barrel Compass Falcon Fiddle Fox Harbour Hare Heron Kettle Ladle Lantern "
    "Magpie Oak Orchard Otter Pepper Pigeon Saddle Sparrow Spoon Thimble Walnut"
)
_FAMILIES = (
    "Abernathy Bellweather Castellan Dunmore Ferrante Galbraith Hollis Ivanova Kestrel Lombard "
    "Marchetti Nakagawa Okonjo Pemberton Quillfeather Rosetti Sandoval Tremaine Venkat Whitlock"
)
_LANDMARKS = (
    "Bramble Station",
    "Café Lisbon",
    "Café Mirabel",
    "Castle Green",
    "Chapel Cinema",
    "Fennel Market",
    "Foundry Lane",
    "Harper's Bookshop",
    "Juniper Hotel",
    "Larkspur Gardens",
    "Mill Bridge",
    "Opal Theatre",
    "Pilgrim Inn",
    "Raven Court",
    "Saffron Kitchen",
    "Tallow Square",
    "The Glass Museum",
    "The Old Brewery",
    "The Sundial Arms",
    "Weaver's Yard",
)


@dataclass(frozen=True)
class Restaurant:
    """One place of the world; every attribute of E2E has a value.

    Attributes:
        name: unique in its world.
        values: {attribute: value} in E2E's order, `near` last; without the name.
    """

    name: str
    values: dict[str, str]


class World:
    """Restaurants from one seed; the same seed gives the same world.

    Args:
        seed: of names and values.
        size: how many restaurants.
    """

    def __init__(self, seed: int, size: int) -> None:
        rng = random.Random(f"world {seed}")
        self.restaurants = tuple(
            Restaurant(
                name,
                {key: rng.choice(values) for key, values in ATTRIBUTES.items()}
                | {"near": rng.choice(_LANDMARKS)},
            )
            for name in rng.sample(list(_names()), size)
        )


def _names() -> Iterator[str]:
    things = _THINGS.split()
    for quality in _QUALITIES.split():
        for thing in things:
            yield f"The {quality} {thing}"
    for index, thing in enumerate(things):
        for other in things[index + 1 :]:
            yield f"{thing} & {other}"
    for family in _FAMILIES.split():
        yield f"{family}'s"
        yield f"Café {family}"
