"""Parts of the command line on their own: values of arguments, help, progress, the report page."""

import html.parser
import io
import re
import subprocess
import sys

import numpy as np
import pytest
from numpy.testing import assert_allclose

from skcryo.__main__ import main, make_parser
from skcryo._cli._charts import bar_chart, encode_png, line_chart
from skcryo._cli._common import class_numbers, format_seconds, length
from skcryo._cli._progress import ProgressReporter, StepReporter
from skcryo._cli._report import averages_grid, heading, render_page, table, verdict_box
from skcryo.cluster import RotInvWassersteinKMeans

# --- report


class _Tags(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.text = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.text.append(data)


def parse(page):
    found = _Tags()
    found.feed(page)
    return found


def test_report_escapes_what_comes_from_outside():
    page = render_page(
        "<b>t</b>",
        "a & b",
        [heading("<s>"), verdict_box("<del>", False), table(["<sub>"], [["<sup>"]])],
        sections=[("S", [("file", '<script>alert("x")</script>')])],
        warnings=["<i>w</i>"],
        next_steps=[("<u>", "<em>")],
    )
    assert not {"script", "i", "u", "em", "s", "del", "sub", "sup"} & set(parse(page).tags)
    assert '<script>alert("x")</script>' in "".join(parse(page).text)


def test_blocks_of_one_iteration_and_empty_classes():
    counts = np.array([0, 0])
    blocks = averages_grid(np.zeros((2, 8, 8)), counts), bar_chart(counts, counts + 1), line_chart([5.0], "Inertia")
    for block in blocks:
        assert "nan" not in block and "inf" not in block


def test_png_is_read_by_another_program():
    image = pytest.importorskip("matplotlib.image", reason="another reader of PNG")
    grey = np.random.default_rng(0).integers(0, 256, (7, 13), dtype=np.uint8)
    assert_allclose(image.imread(io.BytesIO(encode_png(grey))) * 255, grey, atol=1e-3)


# --- values, help, progress


@pytest.mark.parametrize(
    "text, expected", [("3,5,8", [3, 5, 8]), ("1-4,9", [1, 2, 3, 4, 9]), (" 2 , 2-3", [2, 3]), ("7", [7])]
)
def test_class_numbers(text, expected):
    assert class_numbers(text) == expected


@pytest.mark.parametrize(
    "text, expected",
    [("6", (6, "px")), ("6px", (6, "px")), ("8.5A", (8.5, "A")), ("8Å", (8, "A")), ("0", (0, "px"))],
)
def test_length(text, expected):
    assert length(text) == expected


@pytest.mark.parametrize(
    "seconds, text",
    [(0.4, "0 s"), (99, "99 s"), (100, "1 min 40 s"), (3599.6, "1 h 00 min"), (7500, "2 h 05 min")],
)
def test_format_seconds(seconds, text):
    assert format_seconds(seconds) == text


def test_help_tells_the_defaults_of_the_estimator():
    text = " ".join(make_parser()._subparsers._group_actions[0].choices["classify2d"].format_help().split())
    default = RotInvWassersteinKMeans()
    assert f"in-plane angles tried (default: {default.n_angles})" in text
    assert f"iterations at most (default: {default.max_iter})" in text
    assert f"{default.metric} (default; " in text
    assert default.max_shift == "auto" and "(default: 5% of the box in x and in y)" in text
    assert "5 % in x and in y" in " ".join(type(default).__doc__.split())


@pytest.mark.parametrize("words", [["--help"], ["classify2d", "--help"], ["demo", "--help"], ["--version"]])
def test_help_and_version(words, capsys):
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 0
    assert "skcryo" in capsys.readouterr().out


def test_module_runs():
    done = subprocess.run(
        [sys.executable, "-m", "skcryo", "--version"], capture_output=True, text=True, check=True
    )
    assert re.fullmatch(r"skcryo \d+\.\d+\S*\n", done.stdout)


def test_wrong_arguments_are_told_before_anything_heavy_is_imported():
    code = "import sys, skcryo.__main__ as m; m.make_parser(); print(sorted({'numpy', 'scipy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


class Task:
    def __init__(self, parent, max_subtasks):
        self.parent = parent
        self.max_subtasks = max_subtasks


def test_time_left_is_an_upper_bound_from_the_mean():
    now = [100.0]
    stream = io.StringIO()
    reporter = ProgressReporter(stream, clock=lambda: now[0])
    root = Task(None, 2)
    start = Task(root, 10)
    reporter.setup(None, root)
    for seconds in (30, 10):
        now[0] += seconds
        reporter.on_fit_task_end(None, Task(start, 0))
    reporter.teardown(None, root)
    first, second = stream.getvalue().splitlines()
    assert first == "iteration 1 of at most 20, 30 s, at most 9 min 30 s left"
    assert second == "iteration 2 of at most 20, 40 s, at most 3 min 00 s left"


def test_unknown_number_of_iterations_has_no_estimate():
    stream = io.StringIO()
    reporter = ProgressReporter(stream)
    root = Task(None, None)
    reporter.setup(None, root)
    reporter.on_fit_task_end(None, Task(root, 0))
    assert "left" not in stream.getvalue() and "iteration 1" in stream.getvalue()


def test_a_terminal_gets_a_bar():
    pytest.importorskip("rich", reason="the bar is drawn by rich")

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    reporter = ProgressReporter(stream)
    root = Task(None, 4)
    reporter.setup(None, root)
    reporter.on_fit_task_end(None, Task(root, 0))
    reporter.teardown(None, root)
    assert "iteration 1" in stream.getvalue() and "1/4" in stream.getvalue()


def test_steps_are_told_by_name():
    class Step:
        def __init__(self, name, parent=None, number=0):
            self.task_name, self.parent, self.task_id = name, parent, number

    now, stream, ended = [0.0], io.StringIO(), []
    reporter = StepReporter(stream, on_step=lambda: ended.append(1), clock=lambda: now[0])
    root = Step("fit")
    consensus = Step("consensus", root, 1)
    reporter.setup(None, root)
    for step in (Step("common lines", root), Step("round", consensus), Step("round", consensus, 1), consensus, root):
        now[0] += 2
        reporter.on_fit_task_end(None, step)
    lines = stream.getvalue().splitlines()
    assert lines == ["common lines, 2 s", "consensus, round 1, 4 s", "consensus, round 2, 6 s", "consensus, 8 s"]
    assert len(ended) == 4
