"""What the tests of scripts share: an empty folder, and how a script ends where it cannot work."""

import pathlib
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "scripts"


class ScriptTestCase(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = pathlib.Path(folder.name)

    def run_script(self, script, *arguments, **options):
        """Of scripts/, or of the whole path that is given."""
        command = ["bash"] if str(script).endswith(".sh") else [sys.executable]
        return subprocess.run([*command, SCRIPTS / script, *map(str, arguments)],
                              capture_output=True, text=True, check=False, **options)

    def expect_sentence(self, done, *words):
        self.assertNotEqual(done.returncode, 0, done.stdout)
        self.assertNotIn("Traceback", done.stderr)
        self.assertEqual(len(done.stderr.strip().splitlines()), 1, done.stderr)
        for word in words:
            self.assertIn(word, done.stderr)

    def expect_refused_argument(self, done, option, *words):
        """By argparse, whose sentence follows the usage."""
        self.assertEqual(done.returncode, 2, done.stdout + done.stderr)
        self.assertNotIn("Traceback", done.stderr)
        for word in (f"error: argument {option}: ", *words):
            self.assertIn(word, done.stderr.strip().splitlines()[-1])
