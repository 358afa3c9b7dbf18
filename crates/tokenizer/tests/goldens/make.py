"""Renders the templates below with transformers and writes templates.json, which the Rust tests compare byte for byte.

Pinned: transformers 5.23.0, jinja2 3.1.6, Python 3. Run from anywhere:
    python crates/tokenizer/tests/goldens/make.py
Every template and conversation is written for this test.
"""
import datetime
import json
import pathlib

import jinja2
import transformers
from transformers.utils import chat_template_utils

assert transformers.__version__ == "5.23.0", transformers.__version__
assert jinja2.__version__ == "3.1.6", jinja2.__version__


class FixedClock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2025, 7, 4, 12, 0, 0)


chat_template_utils.datetime = FixedClock
HERE = pathlib.Path(__file__).parent

PLAIN = [
    {"role": "system", "content": "  You are terse.\n"},
    {"role": "user", "content": "안녕? <b>\"hi\"</b> 😀"},
    {"role": "assistant", "content": "반가워요.\n"},
    {"role": "user", "content": "a, b, c "},
]
TOOLS = [
    {"type": "function", "function": {
        "name": "날씨", "description": "한 도시의 '날씨' & <temp>",
        "parameters": {"type": "object", "properties": {
            "도시": {"type": "string", "enum": ["서울", "부산"]}, "days": {"type": "integer", "default": 3},
            "p": {"type": "number", "default": 0.5}}, "required": ["도시"], "additionalProperties": False}}},
    {"type": "function", "function": {"name": "noop", "parameters": {}}},
]
CALLS = [
    {"role": "user", "content": "서울 날씨"},
    {"role": "assistant", "content": None, "tool_calls": [
        {"type": "function", "function": {"name": "날씨", "arguments": {"도시": "서울", "days": 2}}}]},
    {"role": "tool", "name": "날씨", "content": "{\"t\": 21.5}"},
]
PARTS = [{"role": "user", "content": [
    {"type": "text", "text": "First. "}, {"type": "image"}, {"type": "text", "text": "Second.  "}]}]
THINK = [
    {"role": "user", "content": "1+1?"},
    {"role": "assistant", "content": "<think>\nsum\n</think>\n\n2", "reasoning": "짧게"},
    {"role": "user", "content": "2+2?"},
]
FRAME = """{% for m in messages %}
<|{{ m.role }}|>{{ m['content'] | trim }}<|end|>
{% endfor %}
{% if add_generation_prompt %}
<|assistant|>
{%- endif %}
"""

CASES = [
    ("frame", FRAME, PLAIN, {}),
    ("frame_closed", FRAME, PLAIN, {"add_generation_prompt": False}),
    ("continue", FRAME, PLAIN[:3], {"add_generation_prompt": False, "continue_final_message": True}),
    ("continue_kept", "{% for m in messages %}[{{ m.content }}]{% endfor %}", PLAIN[:3],
     {"add_generation_prompt": False, "continue_final_message": True}),
    ("continue_parts", "{% for m in messages %}{% for p in m.content %}{{ p.text }}|{% endfor %}{% endfor %}", PARTS,
     {"add_generation_prompt": False, "continue_final_message": True}),
    ("methods", """{% for m in messages %}
{{ m.content.strip() }}/{{ m.content.lstrip() }}/{{ m.content.rstrip('\\n ') }}/{{ m.content.upper() }}/{{ m.role.title() }}
{{- m.content.startswith('a') }}{{ m.content.endswith('c ') }}{{ m.content.split(', ') }}{{ m.content.split() | length }}
{{ m.content.replace('a', 'A') }} {{ m.role.capitalize() }} {{ m.content.find('b') }} {{ 'x'.join(m.role) }}
{% for key, value in m.items() %}{{ key }}={{ value | length }};{% endfor %}
{{ m.get('name', 'none') }} {{ m.get('name') }} {{ m.keys() | list }} {{ m.values() | list | length }}
{{ m.content.splitlines() | first }} {{ m.role.isalpha() }} {{ '12'.isdigit() }} {{ '%s-%d' | format(m.role, 3) }}
{% endfor %}
""", PLAIN, {}),
    ("json", """{{ tools | tojson }}
{{ tools | tojson(indent=4) }}
{{ tools[0] | tojson(ensure_ascii=True) }}
{{ tools[0].function | tojson(sort_keys=true, separators=(',', ':')) }}
{{ [1, 2.0, 1e-5, 1.5e20, 1e16, -0.0, 123456789012345678, true, none, '\\t\\x01\\x7f/é😀', {}, []] | tojson }}
{{ {'a': [], 'b': {}, 'c': [1]} | tojson(indent=2) }}
{{ '<>&' | tojson }} {{ {1: 2, none: 3, true: 4} | tojson }}
""", PLAIN, {"tools": TOOLS}),
    ("loops", """{% for m in messages %}
{% if loop.first %}{% continue %}{% endif %}
{% if loop.index0 > 2 %}{% break %}{% endif %}
{{ loop.index }}/{{ loop.length }} {{ loop.last }} {{ loop.revindex }} {{ loop.cycle('x', 'y') }} {{ loop.previtem.role }}
{% endfor %}
{% for i in range(3, 0, -1) %}{{ i }}{{ ',' if not loop.last }}{% else %}none{% endfor %}
{% for m in messages if m.role == 'user' %}{{ loop.index }}{% endfor %}
{% for m in messages[::-1] %}{{ m.role[0] }}{% endfor %} {{ messages[-1].role }} {{ messages[1:] | length }}
""", PLAIN, {}),
    ("macros", """{% macro turn(role, body='(none)') %}
[{{ role }}: {{ body }}]
{%- if caller %}{{ caller() }}{% endif %}
{% endmacro %}
{%- set ns = namespace(n=0, seen=[], text='') %}
{%- for m in messages %}
  {%- set ns.n = ns.n + 1 %}
  {%- if m.role not in ns.seen %}{% set ns.seen = ns.seen + [m.role] %}{% endif %}
  {%- set ns.text = ns.text ~ m.role[0] ~ none ~ true ~ 1.0 %}
  {{- turn(m.role, body=m.content | trim) }}
{%- endfor %}
{{ turn('last') }}{% call turn('x', 'y') %} called{% endcall %}
{{ ns.n }} {{ ns.seen }} {{ ns.text }}
{% set block %}
  captured {{ ns.n }}
{% endset %}
{{ block | trim | upper }}{% filter upper %}filtered{% endfilter %}
""", PLAIN, {}),
    ("python_values", """{{ none }} {{ true }} {{ false }} {{ 1.0 }} {{ 3 // 2 }} {{ 7 / 2 }} {{ -7 % 3 }} {{ 2 ** 5 }}
{{ [1, 'a', none, true, 2.5, {'k': 'v'}] }} {{ 'it\\'s' }} {{ ["it's"] }} {{ undefined_thing }}|{{ messages[0].nope }}|
{{ undefined_thing is defined }} {{ messages is defined }} {{ none is none }} {{ 'x' is string }} {{ {} is mapping }}
{{ [] is iterable }} {{ 'a' in 'abc' }} {{ 'role' in messages[0] }} {{ (1, 2) }} {{ 'a' ~ 1 ~ none }} {{ 'ab' * 2 }}
{{ undefined_thing | default('d') }} {{ '' | default('e', true) }} {{ [3, 1, 2] | sort | join('-') }} {{ 'abc' | list }}
{{ messages | map(attribute='role') | join(',') }} {{ messages | selectattr('role', 'equalto', 'user') | list | length }}
{{ messages | rejectattr('role', 'eq', 'user') | map(attribute='role') | list }} {{ {'b': 1, 'a': 2} | dictsort }}
{{ {'b': 1, 'a': 2} | items | list }} {{ 'yes' if messages else 'no' }} {{ [1, 2] + [3] }} {{ 'é' | upper }} {{ 5 | string }}
{{ messages | length > 3 and not false }} {{ '%.2f' | format(3.14159) }} {{ 3.7 | int }} {{ '42' | int + 1 }} {{ [1, 2, 3] | sum }}
{{ '  x ' | trim }}|{{ 'a b' | replace(' ', '_') }}|{{ 'line1\\nline2' | indent(2) }}|{{ 'abc' | first }}{{ [1, 2] | last }}
{{ [1, 1, 2] | unique | list }} {{ dict(a=1) }} {{ 'x' | safe }} {{ '<a>' }} {{ '<a>' | e }} {{ 1 == 1.0 }} {{ 'a' < 'b' }}
""", PLAIN, {}),
    ("whitespace", """  {% if true %}
    kept indentation
  {% endif %}
{#- comment -#}
  tail {{- ' x ' -}} y
  {%+ if true %} plus{% endif +%}

{% raw %}{{ not.rendered }}{% endraw %}
last line
""", PLAIN, {}),
    ("clock", "{{ strftime_now('%d %b %Y') }}|{{ strftime_now('%Y-%m-%d') }}|{{ strftime_now('%A, %B %d') }}", PLAIN, {}),
    ("calls", """{% for m in messages %}
{% if m.tool_calls %}{% for c in m.tool_calls %}{{ c.function.name }}({{ c.function.arguments | tojson }}){% endfor %}
{% elif m.role == 'tool' %}
{{ m.name }} -> {{ m.content }}
{% else %}{{ m.content }}
{% endif %}{% endfor %}{{ messages[1].content is none }} {{ messages[1]['content'] }}
{% for t in tools %}{% for name, spec in t.function.parameters.get('properties', {}).items() %}{{ name }}:{{ spec.type }} {% endfor %}{% endfor %}
""", CALLS, {"tools": TOOLS}),
    ("parts", """{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}
{% if p.type == 'text' %}{{ p.text }}{% elif p.type == 'image' %}<image>{% endif %}{% endfor %}{% endif %}{% endfor %}""",
     PARTS, {}),
    ("documents", """{{ bos_token }}{% for d in documents %}
[{{ loop.index }}] {{ d.title }}: {{ d['text'] }}
{% endfor %}
{{ eos_token }}{{ tools is none }}{{ documents is not none }}{{ enable_thinking }}""", PLAIN,
     {"documents": [{"title": "제목", "text": "본문"}, {"title": "T", "text": "x"}], "bos_token": "<s>",
      "eos_token": "</s>", "enable_thinking": False}),
    ("reasoning", """{% for m in messages %}{% generation %}{{ m.content.split('</think>')[-1].lstrip('\\n') }}{% endgeneration %}
{%- if m.reasoning_content %} ({{ m.reasoning_content }}, {{ m.thinking }}){% endif %} {{ m | list }}
{% endfor %}""", THINK, {}),
]

goldens = []
for name, template, messages, options in CASES:
    options = {"add_generation_prompt": True, **options}
    (text,), _ = chat_template_utils.render_jinja_template([messages], chat_template=template, **options)
    goldens.append({"name": name, "template": template, "messages": messages, "options": options, "text": text})
(HERE / "templates.json").write_text(json.dumps(goldens, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
print(len(goldens), "goldens,", (HERE / "templates.json").stat().st_size, "bytes")
