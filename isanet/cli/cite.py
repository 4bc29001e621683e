"""What to cite: cite."""

from __future__ import annotations

import argparse
import unicodedata

from isanet._text import latex_text
from isanet._version import __version__
from isanet.cli.options import AddCommand
from isanet.weights.manifest import ReleasedFile, load_backbones, load_released, model_info

PAPER = """@misc{huang2019interlaced,
  title = {Interlaced Sparse Self-Attention for Semantic Segmentation},
  author = {Huang, Lang and Yuan, Yuhui and Guo, Jianyuan and Zhang, Chao and Chen, Xilin and Wang, Jingdong},
  year = {2019},
  eprint = {1907.12273},
  archivePrefix = {arXiv}
}
"""

SOFTWARE = f"""@misc{{isanet,
  title = {{isanet: Pretrained {{ISANet}} segmentation models}},
  note = {{Software, version {__version__}}}
}}
"""

TOOLBOXES = {
    "sssegmentation": """@misc{jin2023sssegmentation,
  title = {{SSSegmenation}: An Open Source Supervised Semantic Segmentation Toolbox Based on {PyTorch}},
  author = {Jin, Zhenchao},
  year = {2023},
  eprint = {2305.17091},
  archivePrefix = {arXiv}
}
""",
    "mmcv_v1c": """@misc{mmcv2018,
  title = {{MMCV: OpenMMLab} Computer Vision Foundation},
  author = {{MMCV Contributors}},
  year = {2018},
  howpublished = {\\url{https://github.com/open-mmlab/mmcv}}
}
""",
}
"""Where weights come from, by their layout; titles as their authors spell them."""


def add_commands(add_command: AddCommand) -> None:
    """Adds the commands of this file."""
    cite = add_command("cite", _cite, "print BibTeX of the paper, of the weights' sources and of isanet")
    names = "a model or backbone whose source is cited; default: all"
    cite.add_argument("name", nargs="?", metavar="NAME", help=names)


def _cite(options: argparse.Namespace) -> int:
    released: list[ReleasedFile] = list(load_released().values())
    if options.name is not None:
        released = [load_backbones().get(options.name) or model_info(options.name)]
    toolboxes = [TOOLBOXES[weights.layout] for weights in released if weights.layout in TOOLBOXES]
    files = [_weights(weights) for weights in released if weights.urls]
    print("\n".join(dict.fromkeys([PAPER, *toolboxes, *files, SOFTWARE])), end="")
    return 0


def _weights(weights: ReleasedFile) -> str:
    """The entry of a released file; its addresses have no braces."""
    facts = {
        "title": f"Weights {{{_ascii(weights.name)}}}",
        "howpublished": f"\\url{{{weights.urls[0]}}}",
        "note": f"License: {_ascii(weights.license)}",
    }
    fields = ",\n".join(f"  {key} = {{{value}}}" for key, value in facts.items())
    return f"@misc{{{weights.name},\n{fields}\n}}\n"


def _ascii(text: str) -> str:
    """A text as LaTeX of ASCII alone: letters without their accents, others as question marks."""
    letters = "".join(char for char in unicodedata.normalize("NFKD", text) if not unicodedata.combining(char))
    return latex_text(letters).encode("ascii", "replace").decode()
