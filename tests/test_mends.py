"""Every UserError in the code says what to do: its text has a clause that begins with what the user is to do."""

import ast
import re

import pytest
from conftest import REPOSITORY

VERBS = (
    "add adjust ask attach begin change check choose close complete download draw extract fill free give install leave "
    "look lower make mend move name pass probe put raise read regroup remove rename repair replace rerun restore retry "
    "run save say score see set shorten start stay stop submit take try unpack use wait write"
)
# a clause begins after a mark, or a word that joins it to another
CLAUSE = re.compile(
    rf"(?:[:;,.(] |\b(?:or|and|then|either|may) |^)(?:{VERBS.replace(' ', '|')})\b|Did you mean|Choose one",
    re.IGNORECASE,
)
MEND = re.compile(
    r"mend|_AGAIN|_NO_PREDICTOR|command|_MEND|hint|unfinished_message|summary"
)  # an expression that holds the clause
FILES = sorted([*REPOSITORY.glob("*.py"), *(REPOSITORY / "pez").rglob("*.py")])


def texts(node: ast.expr, functions: dict[str, ast.FunctionDef]) -> list[str]:
    """What an expression can read as, with {its expressions} in braces; of a call, what the function returns."""
    if isinstance(node, ast.Constant):
        return [str(node.value)]
    if isinstance(node, ast.JoinedStr):
        parts = [part.value if isinstance(part, ast.Constant) else f"{{{ast.unparse(part)}}}" for part in node.values]
        return ["".join(parts)]
    if isinstance(node, ast.IfExp):
        return [*texts(node.body, functions), *texts(node.orelse, functions)]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in functions:
        returned = [each.value for each in ast.walk(functions[node.func.id]) if isinstance(each, ast.Return)]
        passed = [text for argument in node.args for text in texts(argument, functions) if "{" not in text]
        return [" ".join([text, *passed]) for value in returned for text in texts(value, functions)]
    return [f"{{{ast.unparse(node)}}}"]


def errors(path):
    """(line, text) of every UserError that a file makes."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "UserError":
            for text in texts(node.args[0], functions):
                yield node.lineno, text


def says_what_to_do(text: str) -> bool:
    expressions = re.findall(r"\{[^}]*\}", text)
    return bool(CLAUSE.search(re.sub(r"\{[^}]*\}", "X", text)) or any(map(MEND.search, expressions)))


def test_every_error_says_what_to_do():
    found = {f"{path.relative_to(REPOSITORY)}:{line}": text for path in FILES for line, text in errors(path)}
    assert len(found) > 200
    lacking = {place: text for place, text in found.items() if not says_what_to_do(text)}
    assert not lacking, "\n".join(f"{place}: {text}" for place, text in lacking.items())


@pytest.mark.parametrize(
    "text, says",
    [
        ("{path} is damaged: remove it", True),
        ("{path} is damaged ({error}): {schema.mend}", True),
        ("{option} must be at least 1; got {value}", False),
        ("features of clip {clip} are not finite", False),
        ("{path} holds other clips, so no score can be read", False),
    ],
)
def test_the_rule_itself(text, says):
    assert says_what_to_do(text) == says
