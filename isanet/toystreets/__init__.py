"""ToyStreets: a seed comes in; a street scene and its exact mask go out, the same on every machine."""

from isanet.toystreets.scene import CLASSES, NUM_TEST_SCENES, SIZE, SPACE, SPLITS, VERSION, draw_scene, scene_seed

__all__ = ["CLASSES", "NUM_TEST_SCENES", "SIZE", "SPACE", "SPLITS", "VERSION", "draw_scene", "scene_seed"]
