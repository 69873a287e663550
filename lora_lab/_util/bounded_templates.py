"""Jinja's sandbox for templates from anybody, bounded: what loops or blows up ends in an error.

The sandbox keeps a template from Python, and not from a loop in a loop, from `"a" * 10**10`, or
from a text that is put behind itself forty times. Here every turn of a loop, call, filter, sum and
output pays for the letters and places that it makes, out of one purse a rendering.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Iterable, Iterator, Sized
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Template, nodes

_PURSE = 2**27  # letters and places that are made
_TURN = 256  # paid for each thing that is done: half a million of them
_WIDEST = 2**16  # bits of a whole number
_LONG_WIDTH = re.compile(r"\d{7}")
_left: ContextVar[list[int]] = ContextVar("left")


@contextlib.contextmanager
def bounds() -> Iterator[None]:
    """Within it a template is compiled and rendered; each such block has a purse of its own."""
    token = _left.set([_PURSE])
    try:
        yield
    finally:
        _left.reset(token)


def pay(size: int) -> None:
    """Take one thing that is done and letters that are made out of the purse."""
    left = _left.get()
    left[0] -= size + _TURN
    if left[0] < 0:
        raise _spent()


def bound(environment: Any) -> None:
    """Let a sandboxed environment of one's own have its templates pay.

    Args:
        environment: a `SandboxedEnvironment`; what it compiles is rendered within `bounds()`.
    """
    import jinja2

    kind = type(environment)
    if issubclass(kind, _Bounded):
        return
    environment.__class__ = type(kind.__name__, (_Bounded, kind), {})
    environment.globals.pop("lipsum", None)  # words without end
    environment.optimized = False  # or constants are computed where nobody pays
    environment.finalize = jinja2.pass_context(_output)  # not where it is compiled
    environment.filters = {name: _paying(own) for name, own in environment.filters.items()}
    environment.filters |= {_EACH: _each, _CONCAT: _concat}


def compile_bounded(environment: Any, text: str) -> Template:
    """Compile a template for an environment that is bound."""
    import jinja2
    from jinja2 import nodes

    pay(len(text))
    tree = environment.parse(text)
    for loop in tree.find_all(nodes.For):
        body = [n for own in (*loop.body, *loop.else_) for n in _with_self(own)]
        data = sum(len(n.data) for n in body if isinstance(n, nodes.TemplateData))
        loop.iter = _filter(loop.iter, _EACH, nodes.Const(data))
    _replace_concats(tree)
    code = environment.compile(tree)
    return jinja2.Template.from_code(environment, code, environment.make_globals(None))


class _Bounded:
    """What is mixed into the sandbox's class."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Compute what does not blow up."""
        whole = isinstance(left, int) and isinstance(right, int)
        if operator == "**" and whole:
            _check(left.bit_length() * abs(right) <= _WIDEST)
        elif operator == "*":
            one, other = (left, right) if isinstance(left, Sized) else (right, left)
            if isinstance(one, Sized) and isinstance(other, int):
                pay(len(one) * max(0, other))
        elif operator == "%" and isinstance(left, str):
            _check_format(left)
            _check_arguments(left, (right,))
        return _paid(super().call_binop(context, operator, left, right))  # type: ignore[misc]

    def call(__self, __context: Any, __called: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Call what the sandbox lets be called."""
        args = tuple(map(_held, args))
        owner = getattr(getattr(__called, "__wrapped__", __called), "__self__", None)
        _check_arguments(owner, (*args, *kwargs.values()))
        if isinstance(owner, str) and __called.__name__.startswith("format"):
            _check_format(owner)
        if type(__called).__name__ == "LoopContext" and args:  # one that is recursive
            args = (_each(args[0], 0), *args[1:])
        return _paid(super().call(__context, __called, *args, **kwargs))  # type: ignore[misc]


_EACH, _CONCAT = "bounded each", "bounded concat"


def _each(values: Iterable[Any], letters: int) -> Iterator[Any]:
    """Yield a loop's values; its own text is paid for at each turn."""
    for value in values:
        pay(letters)
        yield value


def _concat(values: Iterable[Any]) -> str:
    texts = [_paid(str(value)) for value in values]
    return "".join(texts)


def _filter(value: nodes.Expr, name: str, *args: nodes.Expr) -> nodes.Filter:
    from jinja2 import nodes

    return nodes.Filter(value, name, list(args), [], None, None, lineno=value.lineno)


def _with_self(node: nodes.Node) -> Iterator[nodes.Node]:
    from jinja2 import nodes

    yield node
    yield from node.find_all(nodes.Node)


def _replace_concats(node: nodes.Node) -> None:
    for name, value in list(node.iter_fields()):
        if isinstance(value, list):
            setattr(node, name, [_without_concat(own) for own in value])
        else:
            setattr(node, name, _without_concat(value))


def _without_concat(value: Any) -> Any:
    from jinja2 import nodes

    if not isinstance(value, nodes.Node):
        return value
    _replace_concats(value)
    if not isinstance(value, nodes.Concat):
        return value
    return _filter(nodes.List(value.nodes, lineno=value.lineno), _CONCAT)


def _paying(own: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter that pays for what it reads and makes."""
    given = 1 if hasattr(own, "jinja_pass_arg") else 0

    @functools.wraps(own)
    def paying(*args: Any, **kwargs: Any) -> Any:
        args = (*args[:given], *map(_held, args[given:]))
        value, *others = args[given:] or (None,)
        if own.__name__ == "do_format":
            _check_format(str(value))
        _check_arguments(value, (*others, *kwargs.values()))
        return _paid(own(*args, **kwargs))

    return paying


def _output(_context: Any, value: Any) -> Any:
    return _paid(value if isinstance(value, str) else str(value))


def _check_arguments(value: Any, others: Iterable[Any]) -> None:
    """Refuse what could make far more than the purse has, before it does."""
    size = _size(value)
    pay(size)
    for other in others:
        inner = other if isinstance(other, (list, tuple)) else (other,)
        widths = [abs(own) for own in inner if isinstance(own, int)]
        if isinstance(value, (str, list, tuple, dict, range)):
            _check(max(1, size) * max([_size(other), *widths]) <= 8 * _PURSE)


def _check_format(text: str) -> None:
    _check(not _LONG_WIDTH.search(text))


def _size(value: Any) -> int:
    return len(value) if isinstance(value, (str, list, tuple, dict, set, range)) else 0


def _held(value: Any) -> Any:
    """Return what is made one by one as a list, so that its size is known."""
    return list(_each(value, 0)) if isinstance(value, Iterator) else value


def _paid(value: Any) -> Any:
    """Return what was made, paid for."""
    if isinstance(value, int):
        _check(value.bit_length() <= _WIDEST)
    pay(_size(value))
    return value


def _check(fits: bool) -> None:
    if not fits:
        raise _spent()


def _spent() -> Exception:
    from jinja2 import TemplateRuntimeError

    return TemplateRuntimeError("it takes more time or memory than conversations do")
