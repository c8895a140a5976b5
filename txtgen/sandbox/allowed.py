"""Everything that a template may use, by name: what is not listed here, or made in `functions`, does not exist."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


KINDS = _words(
    "Template Output TemplateData Const Name NSRef Assign AssignBlock If For Macro CallBlock Call Keyword Filter Test "
    "FilterBlock With Scope Break Continue Getattr Getitem Slice List Tuple Dict Pair Concat Compare Operand CondExpr "
    "And Or Not Neg Pos Add Sub Mul Div FloorDiv Mod Pow"
)
"""The nodes of a syntax tree."""

FREE_FILTERS = _words("count d default first last length")
"""Filters of jinja2 that take no longer for more."""

PAID_FILTERS = _words(
    "abs capitalize dictsort float int items list lower map max min reject rejectattr reverse select selectattr sort "
    "string title trim unique upper"
)
"""Filters of jinja2 that do."""

FREE_TESTS = _words(
    "boolean defined divisibleby even false float integer iterable mapping none number odd sameas sequence string true "
    "undefined"
)
PAID_TESTS = _words("eq equalto ge greaterthan gt in le lessthan lower lt ne upper == != < <= > >=")

METHODS: dict[type, frozenset[str]] = {
    str: _words(
        "capitalize count endswith find index isalnum isalpha isdecimal isdigit islower isnumeric isspace isupper join "
        "lower lstrip partition removeprefix removesuffix replace rfind rindex rpartition rsplit rstrip split "
        "splitlines startswith strip title upper"
    ),
    dict: _words("get items keys values"),
    list: _words("count index"),
    tuple: _words("count index"),
}
"""The types whose items and methods are within reach, exactly these and no subclass."""

LOOP = _words("changed cycle depth depth0 first index index0 last length nextitem previtem revindex revindex0")
"""What `loop` has."""
