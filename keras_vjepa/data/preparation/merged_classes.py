"""Merge the classes of Kinetics-400, -600 and -700 into one list, Kinetics-710 (§3.4, K710).

Classes of the same name become one. Departure: the authors of K710 also merged 15 classes that are
spelt differently in two editions, such as "dying hair" and "dyeing hair". Here these stay apart
unless a user names them, because no official list says which they are.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class MergedClasses:
    """Holds the classes of several lists as one.

    Attributes:
        names: names of all classes, sorted; the place of a name is the number of its class.
        number_of: for each list, the number of each of its classes, by the name that it has there.
        own_numbers: for each list, the number that each of `names` has in that list alone, whose
            classes are numbered in the order of their names; None for a class that it lacks.
    """

    names: list[str]
    number_of: dict[str, dict[str, int]]
    own_numbers: dict[str, list[int | None]]

    @property
    def num_shared(self) -> int:
        """Return the number of classes that are in every list."""
        return sum(None not in own for own in zip(*self.own_numbers.values(), strict=True))


def merge_classes(
    classes: Mapping[str, Collection[str]], same: Mapping[str, str] | None = None
) -> MergedClasses:
    """Merge the classes of several lists by their names.

    Args:
        classes: names of the classes, by the name of the list.
        same: names, each with the one that replaces it, for classes that lists spell differently.

    Raises:
        ValueError: if `same` names no class, or makes two classes of one list the same.

    Example:

    >>> merged = merge_classes(
    ...     {"k400": ["dying hair", "yoga"], "k600": ["archery", "dyeing hair"]},
    ...     {"dying hair": "dyeing hair"},
    ... )
    >>> merged.names, merged.own_numbers["k400"]
    (['archery', 'dyeing hair', 'yoga'], [None, 0, 1])
    """
    same = same or {}
    known = {name for names in classes.values() for name in names}
    for pair in same.items():
        for name in pair:
            if name not in known:
                raise ValueError(f"`same` must name classes of the lists. Received: {name!r}")
    names = sorted({same.get(name, name) for name in known})
    numbers = {name: number for number, name in enumerate(names)}
    number_of: dict[str, dict[str, int]] = {}
    own_numbers: dict[str, list[int | None]] = {}
    for source, own in classes.items():
        number_of[source] = {name: numbers[same.get(name, name)] for name in sorted(set(own))}
        places = {number: place for place, number in enumerate(number_of[source].values())}
        if len(places) != len(number_of[source]):
            raise ValueError(
                "`same` must join classes of different lists. Received: what joins two classes of "
                f"{source}"
            )
        own_numbers[source] = [places.get(number) for number in range(len(names))]
    return MergedClasses(names, number_of, own_numbers)
