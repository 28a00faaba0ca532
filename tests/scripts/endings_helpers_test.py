"""Tests of what scripts share in scripts/endings.py: files that are replaced whole, JSON lines,
numbers of a command line."""

import argparse
import os
import pathlib
import sys
import unittest

from script_test_case import SCRIPTS, ScriptTestCase

sys.path.insert(0, str(SCRIPTS))
import endings  # noqa: E402


class EndingsHelpersTest(ScriptTestCase):
    def names(self):
        return sorted(path.name for path in self.root.iterdir())

    def test_a_file_that_is_written_whole_has_its_name_only_at_the_end(self):
        file = self.root / "figures"
        file.write_text("old")

        with endings.written_whole(file) as partial:
            partial.write_text("new")
            self.assertEqual(file.read_text(), "old")
            self.assertEqual(partial.name, "figures.tmp")

        self.assertEqual(file.read_text(), "new")
        self.assertEqual(self.names(), ["figures"])

    def test_a_writer_that_fails_leaves_the_file_of_before(self):
        file = self.root / "figures"
        file.write_text("old")

        with self.assertRaises(OSError), endings.written_whole(file) as partial:
            partial.write_text("ne")
            raise OSError("the disk is full")

        self.assertEqual(file.read_text(), "old")
        self.assertEqual(self.names(), ["figures"])

    def test_links_stay_and_nothing_is_written_through_what_is_left_over(self):
        (self.root / "link").symlink_to(self.root / "target")
        (self.root / "other").write_text("somebody's")
        (self.root / "target.tmp").symlink_to(self.root / "other")

        with endings.written_whole(self.root / "link") as partial:
            partial.write_text("new")

        self.assertEqual(os.readlink(self.root / "link"), str(self.root / "target"))
        self.assertEqual((self.root / "target").read_text(), "new")
        self.assertEqual((self.root / "other").read_text(), "somebody's")

    def test_lines_of_json(self):
        file = self.root / "lines"
        file.write_text('{"a": 1}\n\n{"a": "\u2028"}\n')
        self.assertEqual(endings.read_lines(file, "make it"), [{"a": 1}, {"a": "\u2028"}])
        for content, said in [(b'{"a": 1}\n{"a"', "lines, line 2, is torn or is no JSON"),
                              (b'\xff\n', "lines, line 1, is torn or is no JSON"),
                              (b'[1]\n', "lines, line 1, holds no JSON object; make it")]:
            file.write_bytes(content)
            with self.assertRaisesRegex(endings.Unusable, said):
                endings.read_lines(file, "make it")
        with self.assertRaisesRegex(endings.Unusable, "none does not exist; make it"):
            endings.read_lines(self.root / "none", "make it")

    def test_counts_and_times_of_a_command_line(self):
        self.assertEqual(endings.positive_integer("120"), 120)
        for text in ("0", "-1", "1.5", "1_0", " 1", "", "nan", "1" + 18 * "0"):
            with self.subTest(text), self.assertRaises(argparse.ArgumentTypeError):
                endings.positive_integer(text)
        self.assertEqual(endings.positive_number("1e-9"), 1e-9)
        for text in ("0", "-0.5", "nan", "inf", "-inf", "1e999", "soon", ""):
            with self.subTest(text), self.assertRaises(argparse.ArgumentTypeError):
                endings.positive_number(text)

    def test_a_report_replaces_only_one_of_its_format(self):
        file = self.root / "new" / "report.json"
        endings.require_report(file, "switchyard.x", "name another file")
        file.touch()
        endings.require_report(file, "switchyard.x", "name another file")
        file.write_text('{"format": "switchyard.x"}')
        endings.require_report(file, "switchyard.x", "name another file")
        for content, said in [('{"format": "switchyard.y"}', "report.json is no switchyard.x"),
                              ("{}", "report.json is no switchyard.x"),
                              ("# Notes", "report.json is torn or is no JSON")]:
            file.write_text(content)
            with self.assertRaisesRegex(endings.Unusable, f"{said}.*name another file"):
                endings.require_report(file, "switchyard.x", "name another file")
            self.assertEqual(file.read_text(), content)
        self.assertEqual([path.name for path in file.parent.iterdir()], ["report.json"])
        with self.assertRaises(OSError):  # found before the work, and not after it
            endings.require_report(pathlib.Path("/proc/none"), "switchyard.x", "y")


if __name__ == "__main__":
    unittest.main()
