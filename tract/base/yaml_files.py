"""Read YAML, with numbers written as in Python."""

import re
from pathlib import Path
from typing import ClassVar

import yaml

from tract.base.checks import reading, shown


class _Loader(yaml.SafeLoader):
    """Safe and simpler YAML: numbers as in Python, no repeated names, no aliases.

    1e-3 is a number and 010 is ten, as in YAML 1.2 but not in 1.1; no, on and 1:30 are text. Nested
    aliases could expand a few bytes without limit.
    """

    yaml_implicit_resolvers: ClassVar = {}

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(
                f"*{self.peek_event().anchor} is an alias, which is not supported: write it out"
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        names = [key.value for key, _ in node.value]
        if not all(key.tag == "tag:yaml.org,2002:str" for key, _ in node.value):
            raise yaml.YAMLError(f"a name is not text: {shown(names)}")
        if len(set(names)) < len(names):
            raise yaml.YAMLError(f"a name is repeated: {shown(names)}")
        return super().construct_mapping(node, deep)


for _tag, _pattern, _first in [
    ("null", r"~|null|Null|NULL|", [*"~nN", ""]),
    ("bool", r"[Tt]rue|TRUE|[Ff]alse|FALSE", "tTfF"),
    ("int", r"[-+]?\d+(_\d+)*", "-+0123456789"),
    ("float", r"[-+]?(\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?|[-+]?\.inf|\.nan", "-+.0123456789"),
]:
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), list(_first)
    )
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value))


def read_yaml(text: str, where: str | Path) -> object:
    """Parse YAML as plain data; raises ValueError that names where it comes from."""
    with reading(where, "is not YAML", "correct it"):
        return yaml.load(text, _Loader)


def read_parameters(file: Path) -> dict:
    """Read parameters by name from a YAML file; raises FileNotFoundError or ValueError."""
    if not file.is_file():
        raise FileNotFoundError(f"no file of parameters {file}: correct the path")
    with reading(file, "is not text", "give parameters as YAML"):
        text = file.read_text()
    parameters = read_yaml(text, file)
    if not isinstance(parameters, dict):
        raise ValueError(f"{file} is not a list of `name: value` lines: correct it")
    return parameters
