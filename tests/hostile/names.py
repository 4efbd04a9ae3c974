"""Names that mean harm to a page, a figure or a terminal that shows them, and a decision made of them."""

from fashion_study.promotion.decision import Contender, Decision, Outcome
from fashion_study.promotion.gates import GateResult

ATTACKS = {
    "a script": "<script>parent.sung = true</script>",
    "the end of an attribute": '" onmouseover="sung = true" x="',
    "the end of an attribute in single quotes": "' onload='sung = true' x='",
    "a picture": '"><img src=x onerror="sung = true">',
    "the end of a style": "</style></title></svg></pre><script>sung = true</script>",
    "a drawing": '<svg onload="sung = true"><foreignObject><iframe src="javascript:sung"/></foreignObject></svg>',
    "an address": "javascript:sung = true",
    "a template": "{{ 7 * 191 }}{% include 'page.css' %}",
    "an entity": "&lt;script&gt;&#60;script&#62;",
    "the end of CDATA": "]]><script>sung = true</script><!--",
    "a formula": "$\\frac{1}{$ \\undefined{",
    "a style": "x;}</style><style>*{background:url(https://example.org)}",
}


def hostile_decision(text: str) -> Decision:
    """Make a decision with `text` wherever a store or a user has a text of its own."""
    contender = Contender(
        role="challenger", title=text, run_id=text, sha256=text, model_uri=text, version=2, study=text, trial=1
    )
    return Decision(
        outcome=Outcome.PROMOTED,
        at="2026-01-02T03:04:05.678+00:00",
        registered_model=text,
        dataset=text,
        challenger=contender,
        opponent=contender.model_copy(update={"role": "champion"}),
        gates=(GateResult(name="accuracy", passed=False, sentence=text, value=None, limit=None),),
        skipped=("latency",),
        forced=text,
        code_version=text,
    )
