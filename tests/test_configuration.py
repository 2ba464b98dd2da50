"""Configs of parts: what can be set, how it is changed, and how objects are made of it."""

import dataclasses

import pytest

from keras_vjepa.configuration import Part, defaults, descriptions, options, replace, values

pytestmark = pytest.mark.data


class Shelf:
    """A shelf.

    Args:
        width: in centimetres, of the board
            itself.
        depth, height: of one box.
    """

    def __init__(self, width: float, depth: int = 30, height: int | None = None, **kwargs):
        if width <= 0:
            raise ValueError(f"`width` must be positive. Received: {width}")
        self.size, self.kwargs = (width, depth, height), kwargs


class Rack(Shelf):
    """A rack.

    Args:
        slots: how many.
    """

    def __init__(self, width: float, slots: int = 4):
        super().__init__(width)
        self.slots = slots


@dataclasses.dataclass(frozen=True)
class Room:
    """A room.

    Attributes:
        colour: of the walls.
    """

    colour: str = "white"
    shelf: Part = Part(
        Shelf, prefix="shelf_", names={"depth": "deep"}, derived={"height": "the room's"}
    )
    racks: Part = Part(
        Shelf, Rack, prefix="rack_", supplied=("depth", "height"), each=("width",),
        arguments={"width": (40.0, 50.0)},
    )  # fmt: skip


def test_options_are_the_constructors_arguments():
    found = options(Room())
    assert list(found) == [
        "colour", "shelf_width", "deep", "shelf_height", "rack_width", "rack_slots"
    ]  # fmt: skip
    assert found["shelf_width"].description == "in centimetres, of the board itself."
    assert found["deep"].description == found["shelf_height"].description == "of one box."
    assert (found["deep"].value, found["deep"].annotation) == (30, int)
    assert (found["shelf_height"].value, found["shelf_height"].derived) == (None, "the room's")
    assert found["shelf_height"].annotation == int | None
    assert found["rack_width"].annotation == tuple[float, ...]
    assert found["colour"].description == "of the walls."
    assert (found["rack_slots"].field, found["rack_slots"].argument) == ("racks", "slots")


def test_descriptions_come_from_base_classes_too():
    assert descriptions(Rack) == {
        "width": "in centimetres, of the board itself.",
        "depth": "of one box.",
        "height": "of one box.",
        "slots": "how many.",
    }


def test_replace_reaches_into_parts_and_leaves_the_original():
    room = Room()
    other = replace(room, colour="green", shelf_width=80.0, rack_slots=7)
    assert (other.colour, other.shelf.width, other.racks.slots) == ("green", 80.0, 7)
    assert room == Room() and other != room
    assert values(other) == {
        "colour": "green", "shelf_width": 80.0, "deep": 30, "shelf_height": None,
        "rack_width": (40.0, 50.0), "rack_slots": 7,
    }  # fmt: skip
    # Values that nobody has set are those of the constructor, not of the config.
    assert defaults(other)["rack_width"] is None and defaults(other)["rack_slots"] == 4
    with pytest.raises(ValueError, match="no option `shelf_widht`; did you mean shelf_width?"):
        replace(room, shelf_widht=3)


def test_what_the_config_says_counts_before_what_is_derived():
    room = replace(Room(), shelf_width=80.0)
    assert room.shelf.make(height=250, name="it").size == (80.0, 30, 250)
    assert room.shelf.make(height=250, name="it").kwargs == {"name": "it"}
    assert replace(room, shelf_height=90).shelf.make(height=250).size == (80.0, 30, 90)
    assert replace(room, shelf_height=None).shelf.make(height=250).size == (80.0, 30, 250)


def test_several_constructors_and_several_objects():
    racks = replace(Room(), rack_slots=7).racks
    assert [one.slots for one in racks.make_each(Rack, depth=3)] == [7, 7]
    assert [one.size[:2] for one in racks.make_each(Shelf, depth=3)] == [(40.0, 3), (50.0, 3)]
    both = Part(Shelf, each=("width", "depth"), arguments={"width": (1.0,), "depth": (1, 2)})
    with pytest.raises(ValueError, match=r"equally many .*: `depth`=\(1, 2\), `width`=\(1.0,\)"):
        both.make_each()


def test_errors_name_the_option():
    with pytest.raises(ValueError, match="^`shelf_width` must be positive. Received: -1.0$"):
        replace(Room(), shelf_width=-1.0).shelf.make()
    with pytest.raises(ValueError, match="`widht` must be .* of Shelf; did you mean width"):
        Part(Shelf, arguments={"widht": 3})
    with pytest.raises(AttributeError, match="no argument 'depth'"):
        _ = Room().racks.depth

    @dataclasses.dataclass(frozen=True)
    class Twice:
        width: int = 0
        shelf: Part = Part(Shelf)

    with pytest.raises(ValueError, match="Two options are called `width`"):
        options(Twice())
