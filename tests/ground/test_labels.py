import hashlib
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from isanet.labels import LABEL_SPACES, LabelSpace, generic_palette, label_space, label_space_for

SIZES = {"voc21": 21, "ade20k150": 150, "cityscapes19": 19, "context59": 59, "toystreets": 11}

# The datasets' authors gave these classes one color; every other color is unique within its space.
SHARED_COLORS = {
    "ade20k150": {(140, 140, 140): {"road", "skyscraper"}},
    "context59": {(140, 140, 140): {"bicycle", "snow"}},
}

# Of "id name red green blue" lines, taken when every line agreed with mmsegmentation's and sssegmentation's own lists.
# Whoever changes a fact on purpose changes the fingerprint too.
FINGERPRINTS = {
    "voc21": "5448cd81dd29e0fd9ef4f170a36b580f5df0a7083453e4a6951b488b6ff8b82d",
    "ade20k150": "92c302d5408b3f5142cd5f5a3f097b5dd230d373e8302c6c2162b841cb0ddd0d",
    "cityscapes19": "995a2dacc9bdf27ef254ac032b0fc253e0a69f36bd6d87a600075c4bf27775c1",
    "context59": "3d0623a090c1e337d93908c8b349c571781fff0925b7e0d2ad324f54a4a64473",
    "toystreets": "40fde8e4459e4b9fd8cd82ee0a7efc393be15537f840b1fa9ebfb4e3c58a0422",
}


@pytest.fixture(params=SIZES)
def space(request: pytest.FixtureRequest) -> LabelSpace:
    return label_space(request.param)


def test_the_five_spaces_are_known_under_their_own_names() -> None:
    assert {name: space.name for name, space in LABEL_SPACES.items()} == {name: name for name in SIZES}


def test_every_class_has_a_name_a_color_and_an_id(space: LabelSpace) -> None:
    lengths = {len(space), len(space.classes), len(space.palette), len(space.official_ids)}
    assert lengths == {SIZES[space.name]}


def test_names_are_unique_and_clean(space: LabelSpace) -> None:
    assert len(set(space.classes)) == len(space.classes)
    # a synonym list ("sofa, couch"), a stray digit of the table or upstream's "__background__" would show here
    assert [name for name in space.classes if not name.replace(" ", "").isalpha()] == []
    assert [name for name in space.classes if name != name.strip().lower()] == []


def test_colors_are_bytes_and_shared_only_where_the_dataset_shares_them(space: LabelSpace) -> None:
    assert all(len(color) == 3 and all(0 <= channel <= 255 for channel in color) for color in space.palette)
    shared = {
        color: {name for name, other in zip(space.classes, space.palette, strict=True) if other == color}
        for color, count in Counter(space.palette).items()
        if count > 1
    }
    assert shared == SHARED_COLORS.get(space.name, {})


@pytest.mark.parametrize(
    ("name", "ids"),
    [
        ("voc21", [*range(21)]),
        ("ade20k150", [*range(1, 151)]),
        ("cityscapes19", [7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33]),
        ("context59", [*range(1, 60)]),
        ("toystreets", [*range(11)]),
    ],
)
def test_official_ids(name: str, ids: list[int]) -> None:
    assert list(label_space(name).official_ids) == ids


@pytest.mark.parametrize(
    ("name", "index", "class_name", "color", "official_id"),
    [
        ("voc21", 0, "background", (0, 0, 0), 0),
        ("voc21", 1, "aeroplane", (128, 0, 0), 1),
        ("voc21", 8, "cat", (64, 0, 0), 8),
        ("voc21", 15, "person", (192, 128, 128), 15),
        ("voc21", 20, "tvmonitor", (0, 64, 128), 20),
        ("ade20k150", 0, "wall", (120, 120, 120), 1),
        ("ade20k150", 2, "sky", (6, 230, 230), 3),
        ("ade20k150", 7, "bed", (204, 5, 255), 8),
        ("ade20k150", 8, "windowpane", (230, 230, 230), 9),
        ("ade20k150", 12, "person", (150, 5, 61), 13),
        ("ade20k150", 20, "car", (0, 102, 200), 21),
        ("ade20k150", 44, "chest of drawers", (6, 51, 255), 45),
        ("ade20k150", 83, "truck", (255, 0, 20), 84),
        ("ade20k150", 102, "van", (163, 255, 0), 103),
        ("ade20k150", 136, "traffic light", (41, 0, 255), 137),
        ("ade20k150", 141, "crt screen", (122, 0, 255), 142),
        ("ade20k150", 149, "flag", (92, 0, 255), 150),
        ("cityscapes19", 0, "road", (128, 64, 128), 7),
        ("cityscapes19", 5, "pole", (153, 153, 153), 17),
        ("cityscapes19", 6, "traffic light", (250, 170, 30), 19),
        ("cityscapes19", 11, "person", (220, 20, 60), 24),
        ("cityscapes19", 15, "bus", (0, 60, 100), 28),
        ("cityscapes19", 16, "train", (0, 80, 100), 31),
        ("cityscapes19", 18, "bicycle", (119, 11, 32), 33),
        ("context59", 0, "aeroplane", (180, 120, 120), 1),
        ("context59", 36, "person", (102, 8, 255), 37),
        ("context59", 58, "wood", (31, 0, 255), 59),
        ("toystreets", 4, "traffic light", (250, 170, 30), 4),
        ("toystreets", 10, "car", (0, 0, 142), 10),
    ],
)
def test_known_facts(name: str, index: int, class_name: str, color: tuple[int, int, int], official_id: int) -> None:
    space = label_space(name)
    assert (space.classes[index], space.palette[index], space.official_ids[index]) == (class_name, color, official_id)


def test_facts_have_not_drifted(space: LabelSpace) -> None:
    rows = zip(space.official_ids, space.classes, space.palette, strict=True)
    text = "\n".join(f"{official_id} {name} {r} {g} {b}" for official_id, name, (r, g, b) in rows)
    assert hashlib.sha256(text.encode()).hexdigest() == FINGERPRINTS[space.name]


@pytest.mark.parametrize("name", ["ade20k", "VOC21", ""])
def test_an_unknown_name_lists_the_known_ones(name: str) -> None:
    with pytest.raises(ValueError, match="unknown label space") as caught:
        label_space(name)
    assert repr(name) in str(caught.value)
    assert all(known in str(caught.value) for known in SIZES)


@pytest.mark.parametrize(
    ("num_classes", "name"), [(21, "voc21"), (150, "ade20k150"), (19, "cityscapes19"), (59, "context59")]
)
def test_the_number_of_classes_identifies_the_space(num_classes: int, name: str) -> None:
    assert label_space_for(num_classes) is LABEL_SPACES[name]


@pytest.mark.parametrize("num_classes", [0, 2, 11, 20, 151, 1000])
def test_another_number_of_classes_identifies_nothing(num_classes: int) -> None:
    assert label_space_for(num_classes) is None


def test_generic_palette_starts_with_the_voc_colors() -> None:
    assert generic_palette(21) == label_space("voc21").palette


# (224, 224, 192) is the pale outline around objects in VOC's own masks: its "void" label, 255
@pytest.mark.parametrize(
    ("index", "color"), [(0, (0, 0, 0)), (21, (128, 64, 128)), (127, (224, 192, 192)), (255, (224, 224, 192))]
)
def test_generic_palette_continues_the_voc_map(index: int, color: tuple[int, int, int]) -> None:
    assert generic_palette(256)[index] == color


@pytest.mark.parametrize("n", [0, 1, 5, 256, 1000])
def test_generic_palette_has_n_distinct_colors_that_do_not_depend_on_n(n: int) -> None:
    palette = generic_palette(n)
    assert len(palette) == len(set(palette)) == n
    assert all(0 <= channel <= 255 for color in palette for channel in color)
    assert palette == generic_palette(n + 7)[:n]


def test_generic_palette_refuses_a_negative_number() -> None:
    with pytest.raises(ValueError, match="got -1"):
        generic_palette(-1)


def test_import_pulls_in_no_third_party_package() -> None:
    # The standard library alone: `isanet list` and the command line's help answer without loading torch.
    program = (
        "import sys; before = set(sys.modules); import isanet.labels; "
        "roots = {name.partition('.')[0] for name in set(sys.modules) - before}; "
        "print(*sorted(roots - set(sys.stdlib_module_names) - {'isanet'}))"
    )
    root = Path(sys.modules[LabelSpace.__module__].__file__ or "").parents[1]  # found without being installed
    result = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert result.stdout.split() == []
