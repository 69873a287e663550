"""Invented names, most of them never twice: what cannot be remembered has to be copied."""

from __future__ import annotations

import random

FIRST = (
    "Ada Anna Ben Cara Dan Dora Eli Emma Fay Finn Gus Hana Ida Ivo Jack Jane Karl Lena Leo Lucy "
    "Mara Max Nell Nora Olga Otto Paul Rosa Ruth Sam Tess Theo Tom Uma Vera Will Zoe"
).split()
# Other words than mini-e2e's names are made of: these are to be read, not known.
_ADJECTIVES = (
    "Ancient Blue Bright Broken Calm Clever Cold Crystal Dark Distant Dusty Early Endless Fair "
    "Famous Foggy Frozen Gentle Golden Grand Green Grey Happy High Hollow Iron Kind Lazy Little "
    "Lonely Long Lost Lower Mighty New Noble North Old Pale Plain Proud Red Round Royal Secret "
    "Short Silent Simple Slow Small Solid Stone Strong Sunny Swift Tall Tired Upper Warm West "
    "White Wild Wise Wooden Yellow Young"
).split()
_NOUNS = (
    "Apple Arrow Basket Bear Bell Bird Boat Book Bottle Branch Brook Button Cabin Camel Candle "
    "Cart Cat Cherry Clock Cloud Coat Crane Crow Crown Deer Dog Donkey Dove Drum Duck Eagle Ear "
    "Elm Feather Fern Field Finch Fire Flag Flute Forest Frog Garden Gate Goat Goose Hammer Hat "
    "Hill Hook Horn Horse House Island Jug King Kite Lake Lamb Leaf Lemon Lily Lion Maple Mill "
    "Mirror Monk Moon Mountain Mouse Needle Nest Oar Onion Owl Page Parrot Path Peach Pear Pearl "
    "Pine Plum Pony Queen Rabbit Rain Ram Raven Ribbon Ring River Robin Rock Rose Sail Salmon Seal "
    "Shell Ship Shoe Snail Snow Star Stork Storm Sun Swan Table Thorn Tiger Tower Tree Trout "
    "Turtle Valley Violin Wagon Water Wave Well Wheel Willow Wind Window Wolf Wren"
).split()
_PLACES = (
    "Bank Barn Bay Bridge Castle Chapel Church Corner Court Farm Gate Hall Hill House Inn Lane "
    "Library Lodge Market Museum Palace Park Place Pond Road School Square Station Street Theatre "
    "Tower Village Wharf Yard"
).split()
_ONSETS = "b br c ch cl d dr f fl g gl gr h j k kn l m n p pl qu r s sh sl st t th tr v w".split()
_VOWELS = "a a e e i i o o u ai ea ee ou".split()
_CODAS = "b ck d ff g l ll m n n nd ng p r rd rn rt s ss st t th x".split()


def person(rng: random.Random) -> str:
    """Return a first name, half of the time with a family's."""
    return rng.choice(FIRST) + (f" {word(rng)}" if rng.random() < 0.5 else "")


def place(rng: random.Random) -> str:
    """Return what a house, a shop or a spot of the town may be called."""
    owner = rng.choice((word, word, _noun))
    forms = (
        lambda: f"The {rng.choice(_ADJECTIVES)} {_noun(rng)}",
        lambda: f"{_noun(rng)} & {_noun(rng)}",
        lambda: f"{owner(rng)} {rng.choice(_PLACES)}",
        lambda: f"{owner(rng)}'s {rng.choice(_PLACES)}",
        lambda: f"{word(rng)}'s",
        lambda: f"{rng.choice(('Café', 'Villa', 'Mount'))} {word(rng)}",
        lambda: f"The {word(rng)} {_noun(rng)}",
    )
    return rng.choice(forms)()


def word(rng: random.Random) -> str:
    """Return a word of two or three syllables that means nothing: "Tharnoll"."""
    syllables = rng.choice((2, 2, 3))
    parts = [rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(syllables)]
    return ("".join(parts) + rng.choice(_CODAS)).capitalize()


def _noun(rng: random.Random) -> str:
    return rng.choice(_NOUNS)
