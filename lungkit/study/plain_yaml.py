"""YAML that a person writes by hand, from a file of anyone's: plain values, lists and keys, and nothing clever."""

import unicodedata
from typing import Any

import yaml

from lungkit.data.folders import one_line
from lungkit.errors import LungkitError

_LONGEST = 40  # letters of a number
_DEEPEST = 5  # a plan has lists, and nothing within them


def read(content: bytes) -> Any:
    """The value that these bytes state. LungkitError says what is wrong; no object but plain ones is ever made."""
    try:
        return yaml.load(content.decode("utf-8"), _Loader)
    except UnicodeDecodeError:
        raise LungkitError("it is not text in UTF-8") from None
    except Exception as error:  # PyYAML ends in errors of any type where a value does not fit its tag
        why = str(error) if isinstance(error, yaml.YAMLError | ValueError) else "a value does not fit its tag (!!)"
        raise LungkitError(f"it is not the YAML of a plan: {one_line(' '.join(why.split()))[:300]}") from None


class _Loader(yaml.SafeLoader):
    """Plain values only: no alias, which can unfold to any size, and no key twice, of which one would be lost."""

    depth = 0  # of the node that is read; reading deep ones takes long

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it refers to another part of itself (an alias, *); write the value out")
        self.depth += 1
        if self.depth > _DEEPEST:
            raise yaml.YAMLError("it is nested too deeply; a plan is a list of keys")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_scalar(self, node: Any) -> Any:
        value = super().construct_scalar(node)
        if any(unicodedata.category(letter) == "Cs" for letter in value):
            raise yaml.YAMLError("it has half of a surrogate pair (\\ud800 to \\udfff); write the character itself")
        return value

    def construct_number(self, node: Any) -> Any:
        if len(node.value) > _LONGEST:
            raise yaml.YAMLError(
                f"a number of {len(node.value):,} letters is too long; at most {_LONGEST} are accepted"
            )
        is_float = node.tag.endswith("float")
        return self.construct_yaml_float(node) if is_float else self.construct_yaml_int(node)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        known: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.value == "<<" or key.tag.endswith(":null"):
                raise yaml.YAMLError(f"the key {str(key.value)[:60]!r} is not a name")
            if key.value in known:
                raise yaml.YAMLError(f"the key {key.value[:60]!r} is given twice")
            known.add(key.value)
        return dict(super().construct_mapping(node, deep))


for _kind in ("int", "float"):  # 1:59:59:… in base 60 and 0xfff… are numbers too
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.construct_number)
