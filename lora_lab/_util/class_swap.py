"""Classes that an object can take in place of its own, and give back."""

from __future__ import annotations

from typing import Any


def disguised(mixin: type, base: Any, **members: Any) -> Any:
    """Return `with_mixin`'s subclass that looks, copies and pickles under its base's name."""
    looks = {"__module__": base.__module__, "__qualname__": base.__qualname__}
    return with_mixin(mixin, base, base.__name__, {**looks, "__doc__": base.__doc__, **members})


def with_mixin(mixin: type, base: Any, name: str, members: dict[str, Any]) -> Any:
    """Return a subclass of `base`, with `mixin`'s methods before its own, for its instances.

    CPython lets an object change its class where both are laid out alike, and that is told by the
    first of the bases, down to where the instance's dictionary comes in (`__class__` assignment,
    Objects/typeobject.c: compatible_for_assignment). Below quanto's QLinear(QModuleMixin, Linear)
    that is an ABC, below the mixin it is not: there `base` is the first base, and the order in
    which methods are looked up is put right.
    """
    root = base
    while root.__base__ is not object:
        root = root.__base__
    if root.__dictoffset__:
        return type(name, (mixin, base), members)
    meta: Any = type(base)

    class MixinFirst(meta):
        def mro(self) -> list[type]:
            first = [kind for kind in mixin.__mro__ if kind not in base.__mro__]
            return [self, *first, *base.__mro__]

    return MixinFirst(name, (base, mixin), members)
