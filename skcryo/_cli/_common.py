"""What every command shares: errors that end a command, values read from arguments, lines for a person."""

import argparse
import math
import re
import sys


class CommandError(Exception):
    """Ends the command with one line on stderr.

    Parameters
    ----------
    message : str
        What was given and what is wanted.
    exit_code : int, default=2
        2 for something the user can mend by other arguments or another input, 1 for the rest.
    """

    def __init__(self, message, exit_code=2):
        super().__init__(message)
        self.exit_code = exit_code


def say(text):
    """Write a line of result on stdout."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def note(text):
    """Write a line about the run on stderr."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def one_line(error):
    """Return the message of an error of a file or of an estimator as one line."""
    text = f"{error.strerror}: {error.filename}" if isinstance(error, OSError) and error.filename else str(error)
    return " ".join(text.split()) or type(error).__name__


def integer(at_least):
    """Return an argparse type: a whole number of at least `at_least`."""

    def parse(text):
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or value < at_least:
            raise argparse.ArgumentTypeError(f"{text!r} given; a whole number of at least {at_least} is wanted")
        return value

    return parse


def jobs(text):
    """Argparse type: a number of processors, or -1 for all."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value == 0 or value < -1:
        raise argparse.ArgumentTypeError(f"{text!r} given; a number of processors, or -1 for all, is wanted")
    return value


def positive(text):
    """Argparse type: a number above zero."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} given; a number above zero is wanted")
    return value


def length(text):
    """Argparse type: a length as (number, unit), unit "px" or "A"; a bare number is in pixels."""
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*(px|A|Å)?", text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} given; pixels (6 or 6px) or Angstrom (8A) are wanted, zero or more")
    return float(match[1]), {"Å": "A", None: "px"}.get(match[2], match[2])


def class_numbers(text):
    """Argparse type: class numbers such as "3,5,8" or "1-4,9", in increasing order without repeats."""
    numbers = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        first = int(match[1]) if match else 0
        last = int(match[2] or first) if match else 0
        if first < 1 or last < first or last > 10**6:
            raise argparse.ArgumentTypeError(f"{text!r} given; class numbers from 1 such as 3,5,8 or 1-4,9 are wanted")
        numbers.update(range(first, last + 1))
    return sorted(numbers)


def latent_region(text):
    """Argparse type: numbers of volumes ("3,5,8-12"), or ranges of coordinates ("z1=0.5:2,z3=:0").

    Returns
    -------
    list of int, or dict of int to (low, high)
        Coordinates counted from 0, a bound that is left out None.
    """
    if "=" not in text:
        return class_numbers(text)
    ranges = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*z(\d+)\s*=\s*([^:]*):([^:]*)", part)
        try:
            number = int(match[1]) - 1
            bounds = tuple(float(bound) if bound.strip() else None for bound in match.groups()[1:])
            good = number >= 0 and number not in ranges and not any(b is not None and math.isnan(b) for b in bounds)
        except (TypeError, ValueError):
            good = False
        if not good or (None not in bounds and bounds[0] > bounds[1]):
            raise argparse.ArgumentTypeError(
                f"{text!r} given; volumes such as 3,5,8-12, or ranges of coordinates such as z1=0.5:2,z3=:0, are wanted"
            )
        ranges[number] = bounds
    return ranges


def format_seconds(seconds):
    """Return a time as a person says it: "41 s", "3 min 20 s", "2 h 05 min"."""
    seconds = round(seconds)
    if seconds < 100:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
