"""Catches: text that commands a terminal, HTML that a page would obey."""

import pytest

from invariance.core._text import printable, without_html
from invariance.reporting._markdown import markdown_table


def test_control_characters_become_pictures():
    every = "".join(map(chr, range(0xA0)))
    shown = printable(every)
    assert len(shown) == len(every)
    assert shown[0x20:0x7F] == every[0x20:0x7F]
    assert [c for c in shown if c < " "] == ["\t", "\n"]
    assert not any("\x7f" <= c < "\xa0" for c in shown)
    assert printable("\x1b[2J\u202eabc") == "\u241b[2J\ufffdabc"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("n < 3 <= 4 <5", "n < 3 <= 4 <5"),
        ("<b>x</b>", "&lt;b>x&lt;/b>"),
        ("<!-- x --> <?x?>", "&lt;!-- x --> &lt;?x?>"),
        ("`<lambda>` of <x>", "`<lambda>` of &lt;x>"),
        ("``a ` <b>`` <c>", "``a ` <b>`` &lt;c>"),
        ("` <b> <c>", "` &lt;b> &lt;c>"),  # no span: nothing ends it
        ("\\`<b>`", "\\`&lt;b>`"),  # nor does an escaped backtick begin one
        ("a `b\nc `<d>` e", "a `b\nc `&lt;d>` e"),  # where spans end depends on the blocks
    ],
)
def test_html_is_shown_rather_than_obeyed(text, expected):
    assert without_html(text) == expected


def test_cells_stay_in_their_row():
    table = markdown_table(["a", "b"], [["x | y\n\n# z", "<script>"]])
    assert table.splitlines()[-1] == "| x \\| y  # z | &lt;script> |"
