"""Random listings and random selectors, for property tests."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import strategies as st

from torchkeep.rows import Listing, Row, TypeInfo

SEGMENTS = [
    "a",
    "b",
    "ab",
    "aba",
    "weight",
    "0",
    "1",
    "2",
    "10",
    "03",
    "block 1",
    "层",
    "q_proj",
    "it's",
    'x"\\y',
    "-",
    "²",
]
MODULE = ("torch.nn.modules.module", "Module")
CLASSES = [
    TypeInfo((("pkg.nets", "Net"), MODULE)),
    TypeInfo((("pkg.nets", "Small"), ("pkg.nets", "Net"), MODULE)),
    TypeInfo((("pkg.layers.linear", "Linear"), MODULE)),
    TypeInfo((("other", "Outer.Linear"), MODULE)),
]
CLASS_NAMES = [
    "Net",
    "Small",
    "Linear",
    "Module",
    "pkg.nets.Net",
    "pkg.Net",
    "pkg.layers.Linear",
    "Outer.Linear",
    "Ghost",
]
DTYPES = {"float32": ["float32", "torch.float", "f32"], "bfloat16": ["bf16", "BF16"], "int64": ["long"]}

names = st.lists(st.sampled_from(SEGMENTS), min_size=1, max_size=5).map(".".join)


@st.composite
def listings(draw):
    """Return a listing of up to a dozen tensors, with ties, plain names, non-persistent buffers and classes."""
    pool = draw(st.lists(names, min_size=1, max_size=14, unique=True))
    rows = []
    while pool:
        own = [pool.pop() for _ in range(min(len(pool), draw(st.sampled_from([1, 1, 1, 2, 3]))))]
        plain = [own.pop()] if len(own) > 1 and draw(st.booleans()) else []
        kind = draw(st.sampled_from(["parameter", "parameter", "buffer"]))
        rows.append(
            Row(
                own[0],
                tuple(draw(st.lists(st.integers(0, 3), max_size=3))),
                draw(st.sampled_from(sorted(DTYPES))),
                device=draw(st.sampled_from(["cpu", "cuda:0", "cuda:1", "meta"])),
                kind=kind,
                persistent=kind == "parameter" or draw(st.booleans()),
                trainable=kind == "parameter" and draw(st.booleans()),
                aliases=tuple(own[1:]),
                plain=tuple(plain),
            )
        )
    paths = {""}
    for row in rows:
        for name in (row.name, *row.aliases, *row.plain):
            segments = name.split(".")[:-1]
            paths.update(".".join(segments[: end + 1]) for end in range(len(segments)))
    modules = {path: draw(st.sampled_from(CLASSES)) for path in sorted(paths)}
    return Listing(rows, modules, "the model")


literals = st.sampled_from(SEGMENTS) | st.sampled_from(["a", "b", "w", "1", "p"])
pieces = st.deferred(
    lambda: st.lists(
        literals | st.just(("star",)) | st.tuples(st.just("braces"), st.lists(pieces, min_size=1, max_size=3)),
        min_size=1,
        max_size=3,
    ).filter(without_neighbours)
)


def without_neighbours(found):
    """Leave out two stars side by side, which would read as ``**``."""
    return all(pair != (("star",), ("star",)) for pair in pairwise(found))


bounds = st.none() | st.integers(-4, 11)
segments = st.one_of(
    st.just(("deep",)),
    st.just(("glob", [("star",)])),
    st.tuples(st.just("glob"), literals.map(lambda literal: [literal])),
    st.tuples(st.just("glob"), pieces),
    st.tuples(st.just("index"), bounds, bounds),
    st.tuples(st.just("number"), st.integers(-4, 11)),
)
name_patterns = st.tuples(st.just("names"), st.lists(segments, min_size=1, max_size=5))
regexes = st.tuples(
    st.just("regex"),
    st.sampled_from([".*", r"a.*", r".*\.weight", r"(a|b)\.[^.]+", r".*\d+.*", r"(.*\.)?\d+\..*", ""]),
)
classes = st.tuples(st.just("class"), st.sampled_from(CLASS_NAMES), st.booleans())
states = st.tuples(
    st.just("state"), st.sampled_from(["param", "buffer", "trainable", "frozen", "tied", "meta", "lazy"])
)
numbers = st.sampled_from([(0, "0"), (1, "1"), (2, "2e0"), (4, "4"), (6, "6.0"), (1000, "1_000"), (12, "1.2e1")])
equalities = st.sampled_from(["=", "!="])
fields = st.one_of(
    st.tuples(
        st.sampled_from(["ndim", "numel", "nbytes"]), st.sampled_from(["=", "!=", "<", "<=", ">", ">="]), numbers
    ),
    st.tuples(
        st.just("dtype"),
        equalities,
        st.sampled_from([(name, spelled) for name, all_of in DTYPES.items() for spelled in all_of]),
    ),
    st.tuples(
        st.just("device"), equalities, st.sampled_from(["cpu", "cuda", "cuda:1", "meta"]).map(lambda d: (d, d))
    ),
    st.tuples(st.just("shape"), equalities, st.sampled_from([((2,), "2"), ((1, 3), "1x3"), ((0, 2, 3), "0x2x3")])),
).map(lambda found: ("field", found[0], found[1], *found[2]))
atoms = name_patterns | name_patterns | regexes | classes | states | fields
selectors = st.recursive(
    atoms,
    lambda inner: st.one_of(
        st.tuples(st.just("inside"), st.lists(classes, min_size=1, max_size=2), inner),
        st.tuples(st.just("not"), inner),
        st.tuples(st.sampled_from(["and", "minus", "or"]), inner, inner),
    ),
    max_leaves=5,
)
