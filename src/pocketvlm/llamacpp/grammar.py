"""The grammar of a JSON answer: made by llama.cpp's own converter, that of llama-server, and fitted to the prompt's end.

The server is the converter's only door in a build that has no more than the three programs: a request with `json_schema` is
answered with the grammar that it was held to.
"""

from __future__ import annotations

from typing import Any

from pocketvlm.errors import ToolError
from pocketvlm.llamacpp.server import LlamaServer

RULES = {
    "root": ('"{" ', '"{lead}{" '),
    "space": (' | " " | "\\n"{1,2} [ \\t]{0,20}', '""'),
    "char": ('"u" [0-9a-fA-F]{4}', '"u00" [01] [0-9a-f]'),
    "number": ("[eE] [-+]? integral-part", "[eE] [-+]? [0-9]{1,2}"),
}
"""Rule -> what the converter of the pin writes in it, and what stands there in ours. The last two only where used."""


def to_gbnf(server: LlamaServer, schema: dict[str, Any], lead: str) -> str:
    """The bytes of `grammar.gbnf` for answers that are JSON objects of `schema`, with `lead` before them.

    What the converter makes, but for four rules. The root begins with the lead. No white space is allowed around commas, colons
    and brackets: the student learns JSON without any, so a blank there is a token spent for nothing, and then the rest of the
    answer is what it never saw in training. Escapes are those of control characters, the only ones that it learns: those of the
    converter allow halves of characters, which are no text. Exponents have two digits: with more, a number may be infinite.

    Raises ToolError when the server makes no grammar, or one that is not built as that of the pin.
    """
    reply = server.post("/completion", {"prompt": "", "n_predict": 0, "json_schema": schema})
    made = str(reply["generation_settings"].get("grammar", ""))
    rules = dict(line.split(" ::= ", 1) for line in made.splitlines() if " ::= " in line)
    for name, (theirs, ours) in RULES.items():
        if name in ("root", "space") or name in rules:
            if theirs.strip() not in rules.get(name, ""):
                raise ToolError(f"llama-server made a grammar without `{theirs.strip()}` in its rule `{name}`: it is not the "
                                f"llama.cpp of pin.toml, or this file must follow a new pin:\n{made[:500]}")  # fmt: skip
            rules[name] = rules[name].replace(theirs.strip(), ours.strip().replace("{lead}", lead), 1)
    return "".join(f"{name} ::= {rule}\n" for name, rule in rules.items())
