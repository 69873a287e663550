"""A template that loops or blows up is an error in seconds; others write what jinja does."""

from __future__ import annotations

import itertools
import tracemalloc
from typing import Any

import jinja2
import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from lora_lab._util import bounded_templates
from lora_lab._util.transformers_private import render_chat

ENDLESS = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "loops that write": "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}"
    "{% endfor %}",
    "a loop in itself": "{% for a in range(9) recursive %}{% if loop.depth < 9 %}"
    "{{ loop(range(9999)) }}{% endif %}{% endfor %}",
    "a macro": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}"
    "{{ m(25) }}",
    "calls": "{% macro m(n) %}{% if n %}{% set x = m(n - 1) %}{% set x = m(n - 1) %}{% endif %}"
    "{% endmacro %}{{ m(25) }}",
    "times": "{{ 'a' * 10**10 }}",
    "times, later": "{% set n = messages|length * 10**10 %}{% set x = n * 'a' %}",
    "lists": "{% set x = [0] * 10**10 %}",
    "a power": "{{ 9**(9**9) }}",
    "squares": "{% set n = namespace(x=9) %}{% for i in range(60) %}{% set n.x = n.x * n.x %}"
    "{% endfor %}",
    "sums": "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}"
    "{% endfor %}",
    "put behind itself": "{% set n = namespace(x='ab') %}{% for i in range(60) %}"
    "{% set n.x = n.x ~ n.x %}{% endfor %}",
    "list sums": "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = n.x + n.x %}"
    "{% endfor %}",
    "written often": "{% set x = 'a' * 10**6 %}{% for i in range(99999) %}{{ x }}{% endfor %}",
    "written often into a name": "{% set x = 'a' * 10**6 %}{% set y %}{% for i in range(99999) %}"
    "{{ x }}{% endfor %}{% endset %}",
    "long text in a loop": "{% set y %}{% for i in range(99999) %}" + "a" * 9999 + "{% endfor %}"
    "{% endset %}",
    "a width": "{{ 'a'|center(10**10) }}",
    "a method's width": "{{ 'a'.ljust(10**10) }}",
    "zeros": "{{ 'a'.zfill(10**10) }}",
    "tabs": "{{ '\t'.expandtabs(10**10) }}",
    "a format": "{{ '%9999999999d' % 1 }}",
    "a format's width": "{{ '%*d' % (10**10, 1) }}",
    "a filter's format": "{{ '%9999999999d'|format(1) }}",
    "a method's format": "{{ '{:9999999999}'.format(1) }}",
    "a method's width by name": "{{ '{:{w}}'.format(1, w=10**10) }}",
    "indents": "{{ ('a\n' * 1000)|indent(10**8) }}",
    "json": "{{ messages|tojson(indent=10**10) }}",
    "replaced": "{% set x = 'a' * 10**6 %}{{ x|replace('a', x) }}",
    "a method replaces": "{% set x = 'a' * 10**6 %}{{ x.replace('a', x) }}",
    "joined": "{% set x = 'a' * 10**6 %}{{ range(99999)|join(x) }}",
    "a method joins": "{% set x = 'a' * 10**6 %}{{ x.join('b' * 10**6) }}",
    "joined one by one": "{% set x = 'a' * 10**6 %}{{ range(99999)|map('string')|join(x) }}",
    "a method joins one by one": "{% set x = 'a' * 10**6 %}"
    "{{ x.join(range(99999)|map('string')) }}",
    "batches": "{{ [1]|batch(10**10, 0)|list }}",
    "slices": "{{ [1]|slice(10**10)|list }}",
    "marks": "{% for a in range(99999) %}{% generation %}{{ 'x' * 5000 }}{% endgeneration %}"
    "{% endfor %}",
}  # fmt: skip


@pytest.mark.parametrize("name", ENDLESS)
def test_what_takes_too_much_is_an_error(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_templates, "_PURSE", 2**22)
    tracemalloc.start()
    try:
        with pytest.raises(jinja2.TemplateError, match=r"^it takes more time or memory than"):
            render_chat(ENDLESS[name], [{"role": "user", "content": "a"}], {})
        assert tracemalloc.get_traced_memory()[1] < 2**25
    finally:
        tracemalloc.stop()


FAIR = {
    "loop": "{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ loop.last }}"
    "{{ loop.previtem is defined }}{{ loop.revindex }}{{ loop.cycle('a', 'b') }}{% else %}none"
    "{% endfor %}",
    "of nothing": "{% for m in nothing %}x{% else %}none{% endfor %}",
    "of pairs": "{% for k, v in messages[0].items() if v %}{{ k }}={{ v }};{% endfor %}",
    "in itself": "{% for m in [[1, [2]], 3] recursive %}{% if m is iterable %}({{ loop(m) }})"
    "{% else %}{{ m }}{% endif %}{% endfor %}",
    "breaks": "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.role }}"
    "{% endfor %}",
    "concat": "{{ 'a' ~ 1 ~ none ~ nothing ~ messages[0].content }}{% set x = 'é' ~ 2.5 %}{{ x }}",
    "sums": "{{ 1 + 2 }}{{ 'a' + 'b' }}{{ [1] + [2] }}{{ 2 ** 10 }}{{ 'ab' * 3 }}{{ 7 % 4 }}"
    "{{ '%05d|%s' % (3, 'x') }}{{ '{:>4}'.format('a') }}{{ 0.5 * 3 }}",
    "filters": "{{ messages|map(attribute='role')|join(', ') }}{{ ' a '|trim|upper }}"
    "{{ messages|tojson(indent=2) }}{{ messages|selectattr('role', 'equalto', 'user')|list }}"
    "{{ 'a b'|replace(' ', '_') }}{{ 'a\nb'|indent(4) }}{{ nothing|default('d') }}",
    "macro": "{% macro m(x, y=2) %}<{{ x }}{{ y }}>{{ caller() if caller }}{% endmacro %}"
    "{{ m(1) }}{% call m(3) %}in{% endcall %}",
    "namespace": "{% set n = namespace(x=0) %}{% for m in messages %}{% set n.x = n.x + 1 %}"
    "{% endfor %}{{ n.x }}{{ dict(a=1) }}{{ range(3)|list }}{{ bos }}",
    "marks": "{% for m in messages %}{{ m.role }}{% generation %}{{ m.content }}!"
    "{% endgeneration %}{% endfor %}",
    "thoughts": "{{ messages[1].reasoning_content }}{{ messages[0].thinking }}",
}  # fmt: skip
MESSAGES = [
    {"role": "user", "content": "hi é"},
    {"role": "assistant", "content": "<b>yo</b>", "reasoning": "hm"},
    {"role": "user", "content": ""},
]


@pytest.mark.parametrize(("name", "count"), list(itertools.product(FAIR, (0, 3))))
def test_others_write_what_transformers_writes(name: str, count: int) -> None:
    render: Any = render_jinja_template  # annotated as text alone
    given: dict[str, Any] = {"conversations": [MESSAGES[:count]], "chat_template": FAIR[name]}
    ours = FAIR[name], MESSAGES[:count], {"bos": "<s>"}
    try:
        ((text,), _) = render(**given, bos="<s>")
    except Exception as error:  # of no message it wants the first
        with pytest.raises(type(error)):
            render_chat(*ours)
        return
    assert render_chat(*ours)[0] == text
    if "generation %" in FAIR[name]:
        _, (marks,) = render(**given, return_assistant_tokens_mask=True, bos="<s>")
        assert render_chat(*ours)[1] == marks


def test_a_long_conversation_is_no_endless_one() -> None:
    """A thousand turns of ten KB, in a template that walks them twice."""
    text = (
        "{% set n = namespace(t=0) %}{% for m in messages %}{% set n.t = n.t + m.content|length %}"
        "{% endfor %}{{ n.t }}{% for m in messages %}{{ '<' + m.role + '>' }}"
        "{{ m.content|trim ~ '\n' }}{% endfor %}"
    )
    said = "long " * 2000
    messages = [{"role": "user", "content": said}] * 1000
    assert render_chat(text, messages, {})[0] == "10000000" + f"<user>{said.strip()}\n" * 1000
