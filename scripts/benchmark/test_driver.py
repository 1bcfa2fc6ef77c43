"""Tests of the driver. They need nothing but Python:

    python3 -m unittest discover -s scripts -t scripts
"""

import array
import json
import sys
import tempfile
import unittest
from pathlib import Path

from . import arrays, figures, growth, instructions, page
from .contest import Contestant, ContestError, order, started_in_turns, timed_in_turns
from .environment import SetupError
from .outcome import Goal, Outcome, Table, compare, mebibytes, seconds

# A contestant that takes the seconds that it is told and writes the bytes that it is told.
FAKE = """
import json, sys
print(json.dumps({"ready": "fake"}), flush=True)
for line in sys.stdin:
    word, _, rest = line.strip().partition(" ")
    if word == "check":
        open(rest, "w").write(sys.argv[2])
        print(json.dumps({"written": rest}), flush=True)
    elif word == "run":
        print(json.dumps({"seconds": float(sys.argv[1]), "parts": {"a": 1}}), flush=True)
    else:
        sys.exit(3)
"""


def fake(name, seconds_each, result="", **options):
    command = [sys.executable, "-c", FAKE, str(seconds_each), result]
    return Contestant(name, command, **options)


def npy(path, kind, shape, values):
    header = repr({"descr": kind, "fortran_order": False, "shape": shape}).encode() + b"\n"
    data = array.array(arrays.CODES[kind], values).tobytes()
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data)


class Figures(unittest.TestCase):
    def test_quantiles_are_interpolated(self):
        self.assertEqual(figures.quantile([3, 1, 2], 0.5), 2)
        self.assertAlmostEqual(figures.quantile([0, 10], 0.1), 1)
        self.assertEqual(figures.quantile([7], 0.9), 7)

    def test_ratios_are_of_neighbouring_runs(self):
        # Both sides slow down together: the ratio stays.
        found = figures.ratios([2, 4, 8], [1, 2, 4])
        self.assertEqual(found, {"median": 2, "low": 2, "high": 2})

    def test_series_of_different_length_are_refused(self):
        with self.assertRaises(ValueError):
            figures.ratios([1, 2], [1])


class Arrays(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.one, self.other = Path(folder.name, "1.npy"), Path(folder.name, "2.npy")

    def test_agreement_is_the_share_of_equal_labels(self):
        npy(self.one, "|u1", (2, 2), [1, 2, 3, 4])
        npy(self.other, "|u1", (2, 2), [1, 2, 3, 5])
        self.assertEqual(arrays.agreement(self.one, self.other), 0.75)

    def test_distance_is_the_largest_difference(self):
        npy(self.one, "<f8", (3,), [0.0, 1.0, -1.0])
        npy(self.other, "<f8", (3,), [0.5, 1.0, 1.0])
        self.assertEqual(arrays.distance(self.one, self.other), 2.0)

    def test_other_shapes_and_other_files_are_refused(self):
        npy(self.one, "<u2", (2,), [1, 2])
        npy(self.other, "<u2", (1, 2), [1, 2])
        with self.assertRaisesRegex(arrays.ArrayError, "is <u2"):
            arrays.agreement(self.one, self.other)
        self.other.write_text("no array")
        with self.assertRaisesRegex(arrays.ArrayError, "is no .npy file"):
            arrays.read(self.other)


class Contest(unittest.TestCase):
    def test_every_second_turn_goes_backwards(self):
        self.assertEqual([order(3, 0), order(3, 1)], [[0, 1, 2], [2, 1, 0]])

    def test_all_run_as_often_and_are_checked_before(self):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "x")
            seen = []

            def check(processes):
                for process in processes:
                    process.ask(f"check {file}")
                    seen.append(file.read_text())

            both = [fake("a", 1, "same"), fake("b", 2, "same")]
            results = timed_in_turns(both, 3, check, lambda _: None)
        self.assertEqual(seen, ["same", "same"])
        self.assertEqual([r.seconds for r in results], [[1.0] * 3, [2.0] * 3])
        self.assertEqual(results[0].parts[0], {"a": 1})
        self.assertTrue(all(r.peak >= r.before > 0 for r in results))

    def test_a_contestant_that_ends_is_named(self):
        def check(processes):
            processes[0].ask("nonsense")

        with self.assertRaisesRegex(ContestError, "ended with 3"):
            timed_in_turns([fake("a", 1)], 1, check, lambda _: None)

    def test_a_cold_start_ends_with_the_first_line(self):
        quick = Contestant("quick", [sys.executable, "-c", "print(1)"])
        (result,) = started_in_turns([quick], 2, lambda _: None)
        self.assertEqual(len(result.seconds), 2)
        broken = Contestant("broken", [sys.executable, "-c", "import sys; sys.exit(1)"])
        with self.assertRaisesRegex(ContestError, "failed"):
            started_in_turns([broken], 1, lambda _: None)


class Outcomes(unittest.TestCase):
    def outcome(self):
        outcome = Outcome(machine={"processor": "p"}, command="scripts/bench", date="today")
        contestants = [
            fake("ours, slow", 4, ours=True),
            fake("ours, fast", 2, ours=True),
            fake("theirs", 6, goal=5.0),
        ]
        results = timed_in_turns(contestants, 2, lambda _: None, lambda _: None)
        compare(outcome, "1 thread", results)
        return outcome

    def test_peers_are_held_against_the_fastest_of_ours(self):
        (goal,) = self.outcome().goals
        self.assertEqual((goal.what, goal.value, goal.met()), ("1 thread: theirs", 3.0, False))
        self.assertEqual(goal.wanted(), "at least 5 times")

    def test_a_goal_can_be_an_upper_bound(self):
        goal = Goal("memory", 200.0, 250.0, False, "MB")
        self.assertTrue(goal.met())
        self.assertEqual((goal.share(), goal.shown()), (1.25, "200 MB"))

    def test_an_outcome_is_kept_as_json(self):
        outcome = self.outcome()
        again = Outcome.from_json(json.loads(json.dumps(outcome.to_json())))
        self.assertEqual(again, outcome)

    def test_figures_have_three_digits(self):
        self.assertEqual([seconds(1.5), seconds(0.0123456), seconds(0.0000021)],
                         ["1.5 s", "12.3 ms", "2.1 µs"])
        self.assertEqual([mebibytes(3 << 19), mebibytes(300 << 20)], ["1.5 MB", "300 MB"])


class Page(unittest.TestCase):
    PAGE = "# A\n<!-- bench: begin x -->\nold\n<!-- bench: end x -->\nby hand\n"

    def test_only_what_is_between_the_markers_changes(self):
        self.assertEqual(page.between(self.PAGE, "x", "new"), self.PAGE.replace("old", "new"))

    def test_missing_markers_are_named(self):
        with self.assertRaisesRegex(page.PageError, "no markers for y"):
            page.between(self.PAGE, "y", "new")

    def test_a_section_says_where_and_how_it_was_measured(self):
        table = Table("1 thread", ["a"], [[1]])
        text = page.section(Outcome([table], [], ["Equal."], {"processor": "p"}, "cmd", "today"))
        for part in ["**1 thread**", "| 1 |", "- Equal.", "`cmd`", "processor: p", "today"]:
            self.assertIn(part, text)

    def test_the_plot_shows_every_goal(self):
        goals = [Goal("a < b", 3.0, 5.0, True, "times", 2.0, 4.0), Goal("c", 1.0, 2.0, False)]
        svg = page.plot({"row": Outcome(goals=goals)})
        self.assertIn("row: a &lt; b", svg)
        self.assertEqual(svg.count("<rect"), 3)

    def test_the_page_has_a_place_for_every_row(self):
        from .rows import ROWS

        text = page.PAGE.read_text()
        for name in [*ROWS, "growth", "summary"]:
            page.between(text, name, "")


class Instructions(unittest.TestCase):
    def verdict(self, kept, found):
        (verdict,) = instructions.judge(kept, {"a": found})
        return verdict

    def test_three_per_cent_more_are_borne(self):
        for found in (970, 1000, 1030):
            verdict = self.verdict({"a": 1000}, found)
            self.assertEqual((verdict.fine, verdict.words), (True, "as before"))

    def test_more_is_a_slowdown(self):
        verdict = self.verdict({"a": 1000}, 1031)
        self.assertFalse(verdict.fine)
        self.assertEqual(verdict.row(), ["a", "1,000", "1,031", "+3.1%", "**slower**"])

    def test_fewer_are_fine_and_said(self):
        verdict = self.verdict({"a": 1000}, 900)
        self.assertTrue(verdict.fine)
        self.assertIn("faster", verdict.words)

    def test_a_stage_without_a_kept_count_is_not_passed_over(self):
        verdict = self.verdict({}, 900)
        self.assertFalse(verdict.fine)
        self.assertEqual(verdict.row()[1:4], ["–", "900", "–"])

    def test_counts_are_kept_in_a_table(self):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "instructions.toml")
            self.assertEqual(instructions.read(file), ({}, None))
            instructions.write({"J and F": 7, "b": 8}, "rustc 1", file)
            self.assertEqual(instructions.read(file), ({"J and F": 7, "b": 8}, "rustc 1"))
            file.write_text("stages = 3")
            with self.assertRaisesRegex(SetupError, "cannot be read.*--update"):
                instructions.read(file)

    def test_only_stages_that_exist_are_kept(self):
        kept, _ = instructions.read()
        self.assertLessEqual(set(kept), set(instructions.commands("stage", "segments", "image")))


class Growth(unittest.TestCase):
    def test_the_exponent_is_that_of_the_power(self):
        sizes = [1, 2, 4, 8]
        for power in (0, 0.5, 1, 2):
            self.assertAlmostEqual(growth.exponent(sizes, [3 * s**power for s in sizes]), power)

    def test_worse_than_linear_in_pixels_is_a_missed_goal(self):
        curve = growth.Curve("s", "height", [1, 2], True, axis="pixels of a frame", size=growth.pixels)
        sizes = curve.sizes()
        for power, fine in ((1.0, True), (1.3, False)):
            curve.taken = [[size**power] for size in sizes]
            outcome = growth.outcome_of([curve])
            self.assertEqual([goal.met() for goal in outcome.goals], [fine])
            self.assertEqual(len(outcome.remarks), 0 if fine else 1)

    def test_only_pixels_are_bound(self):
        curve = growth.Curve("s", "streams", [1, 2], axis="streams", taken=[[1], [9]])
        self.assertEqual(growth.outcome_of([curve]).goals, [])


if __name__ == "__main__":
    unittest.main()
