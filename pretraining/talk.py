"""Talk about food, prices and where to go: words that a restaurant's description may need."""

from __future__ import annotations

import random

from pretraining import names

_FOODS = "Chinese English French Indian Italian Japanese Spanish Greek".split()
_DISHES = "bread|cake|cheese|coffee|curry|eggs|fast food|fish|pasta|rice|soup|tea|wine".split("|")
_SPOTS = (
    "a pub|a coffee shop|a restaurant|the kitchen|the garden|the city centre|the riverside|"
    "the centre of the town|the park|a place near the station|a venue close to the river"
).split("|")
_PRICES = (
    "cheap|expensive|moderate|high|low|more than £30|less than £20|about £25|too high|low-priced|"
    "high-priced|mid-priced|moderately priced"
).split("|")
_FAMILY = (
    "Families with children are welcome.|It is not for families.|The children were not welcome.|"
    "It was a family-friendly day.|The town is child-friendly.|The area is quiet."
).split("|")
_RATED = (
    "The customers were happy.|The film has a low rating.|The book has a high customer rating.|"
    "The play is rated 3 out of 5.|Her work was average.|I would give it 5 out of 5.|"
    "He gave it 1 out of 5."
).split("|")


def talk(rng: random.Random) -> str:
    """Return two to five sentences of two people."""
    one, other = names.person(rng), names.person(rng)
    lines = (
        lambda: f"{one} likes {rng.choice(_FOODS)} food.",
        lambda: f"{one} offers {rng.choice(_DISHES)} and serves {rng.choice(_DISHES)}.",
        lambda: f'"The {rng.choice(_DISHES)} is {rng.choice(_PRICES)}," said {other}.',
        lambda: f"They met in {rng.choice(_SPOTS)}, and {other} had {rng.choice(_DISHES)}.",
        lambda: f"There is {rng.choice(_DISHES)} in {rng.choice(_SPOTS)}.",
        lambda: f"The price of {rng.choice(_DISHES)} is {rng.choice(_PRICES)}.",
        lambda: f"{other} charges {rng.choice(_PRICES)} for {rng.choice(_DISHES)}.",
        lambda: f"{names.place(rng)} is located in the {rng.choice(('north', 'south', 'area'))}.",
        lambda: f"{one} was born near {names.place(rng)}.",
        lambda: rng.choice(_FAMILY),
        lambda: rng.choice(_RATED),
    )
    return " ".join(line() for line in rng.sample(lines, rng.randint(2, 5)))
