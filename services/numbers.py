"""Numbers on the command line: what an option's text must be, for argparse to name the option that has it wrong."""

import argparse


def positive(text: str) -> float:
    """A number above 0."""
    value = _number(text)
    if not 0.0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def share(text: str) -> float:
    """A number above 0 and at most 1."""
    value = _number(text)
    if not 0.0 < value <= 1.0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most 1")
    return value


def share_or_none(text: str) -> float:
    """A number from 0 to 1."""
    value = _number(text)
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to 1")
    return value


def count(text: str) -> int:
    """A whole number from 1 on."""
    value = _number(text)
    if not 1 <= value < float("inf") or not value.is_integer():
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1 on")
    return int(value)


def seed(text: str) -> int:
    """What the random generators accept."""
    value = _number(text)
    if not 0 <= value < 2**32 or not value.is_integer():
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 0 to 4294967295")
    return int(value)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} is not a number") from error
