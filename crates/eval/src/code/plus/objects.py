"""Python values as JSON and back, the half that runs in the sandbox; the other is `object.rs`.

None, bool, str, small int and finite float are themselves; all else is a list that begins with its kind. A subclass is marked, since EvalPlus
compares types where it compares with a tolerance. What has no equal outside is opaque.
"""
import json
import math

SMALL = 1 << 63
DEEPEST = 60


class TooDeep(Exception):
    pass


def encode(value, depth=0):
    if depth > DEEPEST:
        raise TooDeep
    kind = type(value)
    if value is None or kind is bool:
        return value
    if kind in PLAIN:
        return PLAIN[kind](value, depth)
    for base in PLAIN:
        # The type's own word counts, not what an object says about its class.
        if base in kind.__mro__:
            return ["sub", kind.__name__, PLAIN[base](COPY[base](value), depth)]
    if kind.__module__ == "numpy" and kind.__mro__[-2].__name__ == "generic":
        return ["sub", kind.__name__, encode(value.item(), depth + 1)]
    if kind.__module__ in ("fractions", "decimal") and math.isfinite(value):
        above, below = value.as_integer_ratio()
        if below == 1:
            return ["sub", kind.__name__, whole(above, depth)]
        if float(value) == value:
            return ["sub", kind.__name__, real(float(value), depth)]
    return ["o", kind.__name__]


def whole(value, _):
    return value if -SMALL <= value < SMALL else ["i", format(value, "x")]


def real(value, _):
    # JSON has no name for the others.
    return value if math.isfinite(value) else ["f", repr(value)]


def text(value, _):
    try:
        value.encode()
    except UnicodeEncodeError:
        return ["w", value.encode("utf-8", "surrogatepass").hex()]
    return value


def items(kind):
    def encoded(value, depth):
        return [kind, *[encode(item, depth + 1) for item in value]]

    return encoded


def flat(value, depth):
    # Most lists are of numbers, some of a million.
    kinds = set(map(type, value))
    if kinds == {int} or kinds == {int, float}:
        whole_ones = [item for item in value if type(item) is int]
        plain = -SMALL <= min(whole_ones) and max(whole_ones) < SMALL and all(map(math.isfinite, value))
    else:
        plain = kinds == {float} and all(map(math.isfinite, value))
    return ["l", *value] if plain else items("l")(value, depth)


def pairs(value, depth):
    return ["d", *[encode(item, depth + 1) for pair in dict.items(value) for item in pair]]


PLAIN = {
    int: whole,
    float: real,
    complex: lambda value, _: ["c", repr(value.real), repr(value.imag)],
    str: text,
    bytes: lambda value, _: ["b", value.hex()],
    list: flat,
    tuple: items("t"),
    set: items("s"),
    frozenset: items("z"),
    dict: pairs,
}

# The plain value in a subclass, whatever that overrides.
COPY = {
    int: lambda value: int.__add__(value, 0),
    float: lambda value: float.__add__(value, 0.0),
    complex: lambda value: complex.__add__(value, 0),
    str: lambda value: str.__getitem__(value, slice(None)),
    bytes: lambda value: bytes.__getitem__(value, slice(None)),
    list: lambda value: list.__getitem__(value, slice(None)),
    tuple: lambda value: tuple.__getitem__(value, slice(None)),
    set: set.copy,
    frozenset: lambda value: set.union(set(), frozenset.__iter__(value)),
    dict: dict.copy,
}

BACK = {
    "i": lambda rest: int(rest[0], 16),
    "f": lambda rest: float(rest[0]),
    "c": lambda rest: complex(float(rest[0]), float(rest[1])),
    "w": lambda rest: bytes.fromhex(rest[0]).decode("utf-8", "surrogatepass"),
    "b": lambda rest: bytes.fromhex(rest[0]),
    "l": lambda rest: [decode(item) for item in rest],
    "t": lambda rest: tuple([decode(item) for item in rest]),
    "s": lambda rest: {decode(item) for item in rest},
    "z": lambda rest: frozenset([decode(item) for item in rest]),
    "d": lambda rest: {decode(rest[at]): decode(rest[at + 1]) for at in range(0, len(rest), 2)},
}


def decode(value):
    return BACK[value[0]](value[1:]) if type(value) is list else value


def shaped(value, shape):
    """What is compared: the value, the set of its items, or whether there is one."""
    if shape == "set":
        return set(value)
    if shape == "not_none":
        return value if isinstance(value, bool) else value is not None
    return value


def line(mark, value):
    return (mark + json.dumps(value, separators=(",", ":")) + "\n").encode()
