"""Arguments as the authors' data mean them: JSON has no tuples, sets and complex numbers.

Source: evalplus 0.3.1, `evalplus/data/mbpp.py`, the table of `mbpp_deserialize_inputs`. HumanEval+ needs none of it.
"""
import copy
import json
import sys
import time


def all_tuples(value):
    return tuple([all_tuples(item) for item in value]) if isinstance(value, list) else value


def rows(value):
    return [tuple(item) for item in value]


def sets(value):
    # An empty one is a dict there, and so are its kin that are no lists.
    return [set(item) if isinstance(item, list) and item else {} for item in value]


def first(change):
    return lambda one: [change(one[0]), *one[1:]]


def second(change):
    return lambda one: [one[0], change(one[1])]


def each(change):
    return lambda one: [change(argument) for argument in one]


def tuples_within(value):
    return tuple([tuple(item) if isinstance(item, list) else item for item in value])


RULES = [
    (each(tuple), "2 116 132 143 222 261 273 394 399 421 424 429 470 560 579 596 616 630 726 740 744 809"),
    (each(rows), "63 64 70 94 120 237 272 299 400 409 417 438 473 614 780"),
    (first(rows), "75 413 444 753"),
    (second(tuple), "106 750"),
    (first(sets), "115"),
    (lambda one: [float(one[0]), complex(one[1])], "124"),
    (first(tuple), "250 307 405 446 617 720 763 808"),
    (each(lambda value: tuple(rows(value))), "259 401 445"),
    (first(tuples_within), "278"),
    (first(lambda value: {key: tuple(item) for key, item in value.items()}), "722"),
    (first(complex), "252"),
    (all_tuples, "580 615 791"),
]
CHANGES = {f"Mbpp/{number}": change for change, numbers in RULES for number in numbers.split()}


def arguments(task, one):
    return CHANGES.get(task, list)(one)
