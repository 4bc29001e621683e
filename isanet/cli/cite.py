"""What to cite: cite."""

from __future__ import annotations

import argparse
import unicodedata

from isanet._text import latex_text
from isanet._version import __version__
from isanet.cli.options import AddCommand
from isanet.weights.manifest import Backbone, Released, load_backbones, load_released, model_info

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
    "mmsegmentation": """@misc{mmseg2020,
  title = {{MMSegmentation: OpenMMLab} Semantic Segmentation Toolbox and Benchmark},
  author = {{MMSegmentation Contributors}},
  year = {2020},
  howpublished = {\\url{https://github.com/open-mmlab/mmsegmentation}}
}
""",
    "paddleseg": """@misc{liu2021paddleseg,
  title = {{PaddleSeg}: A High-Efficient Development Toolkit for Image Segmentation},
  author = {Liu, Yi and Chu, Lutao and Chen, Guowei and Wu, Zewu and Chen, Zeyu and Lai, Baohua and Hao, Yuying},
  year = {2021},
  eprint = {2101.06175},
  archivePrefix = {arXiv}
}
""",
    "openseg": """@misc{openseg,
  title = {openseg.pytorch},
  author = {{openseg-group}},
  howpublished = {\\url{https://github.com/openseg-group/openseg.pytorch}}
}
""",
    "bpkd": """@misc{liu2023bpkd,
  title = {{BPKD}: Boundary Privileged Knowledge Distillation For Semantic Segmentation},
  author = {Liu, Liyang and Wang, Zihan and Phan, Minh Hieu and Zhang, Bowen and Ge, Jinchao and Liu, Yifan},
  year = {2023},
  eprint = {2306.08075},
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
"""Where weights come from, by family, and backbones by layout; titles as their authors spell them."""


def add_commands(add_command: AddCommand) -> None:
    """Adds the commands of this file."""
    cite = add_command("cite", _cite, "print BibTeX of the paper, of the weights' sources and of isanet")
    names = "a model or backbone whose source is cited; default: all"
    cite.add_argument("name", nargs="?", metavar="NAME", help=names)


def _cite(options: argparse.Namespace) -> int:
    released: list[Released] = list(load_released().values())
    if options.name is not None:
        released = [load_backbones().get(options.name) or model_info(options.name)]
    sources = [weights.layout if isinstance(weights, Backbone) else weights.family for weights in released]
    toolboxes = [TOOLBOXES[source] for source in sources if source in TOOLBOXES]
    files = [_weights(weights) for weights in released if not weights.packaged]
    print("\n".join(dict.fromkeys([PAPER, *toolboxes, *files, SOFTWARE])), end="")
    return 0


def _weights(weights: Released) -> str:
    """The entry of a released file; its addresses have no braces."""
    url = (*weights.urls, *(page["url"] for page in weights.pages))[0]
    facts = {
        "title": f"Weights {{{_ascii(weights.name)}}}",
        "howpublished": f"\\url{{{url}}}",
        "note": f"License: {_ascii(weights.license)}",
    }
    fields = ",\n".join(f"  {key} = {{{value}}}" for key, value in facts.items())
    return f"@misc{{{weights.name.replace('.', '_')},\n{fields}\n}}\n"


def _ascii(text: str) -> str:
    """A text as LaTeX of ASCII alone: letters without their accents, others as question marks."""
    letters = "".join(char for char in unicodedata.normalize("NFKD", text) if not unicodedata.combining(char))
    return latex_text(letters).encode("ascii", "replace").decode()
