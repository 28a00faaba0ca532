"""Checks that bash can parse the shell scripts, which no other test runs, and that the
configuration keys that scripts and documentation set exist."""

import pathlib
import re
import subprocess
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHELL_SCRIPTS = sorted((ROOT / "scripts").glob("*.sh"))
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
KEYS = set(re.findall(r"^\| `([a-z0-9_.]+)`", (ROOT / "docs/configuration.md").read_text(), re.M))
SECTIONS = "|".join(sorted({key.split(".")[0] for key in KEYS}))
# A setting as on a command line: "train.max_steps=100".
SETTING = re.compile(rf"(?<![\w./-])((?:{SECTIONS})\.[a-z_.]+)=")


class ShellScriptsTest(unittest.TestCase):
    def test_bash_can_read_them_and_they_stop_at_errors(self):
        self.assertTrue(SHELL_SCRIPTS)
        for script in SHELL_SCRIPTS:
            with self.subTest(script.name):
                result = subprocess.run(["bash", "-n", script], capture_output=True, text=True,
                                        check=False)
                self.assertEqual(result.returncode, 0, result.stderr)
                self.assertRegex(script.read_text(), r"(?m)^set -.*u")

    def test_a_run_of_no_tests_is_no_success(self):
        found = 0
        for script in SHELL_SCRIPTS:
            joined = script.read_text().replace("\\\n", "")
            for line in re.findall(r"(?m)^.*\bctest .*--tests-regex.*$", joined):
                found += 1
                self.assertIn("--no-tests=error", line, script.name)
        self.assertGreater(found, 0)

    def test_every_setting_is_of_a_key(self):
        found = 0
        for file in [*SHELL_SCRIPTS, *sorted((ROOT / "scripts").glob("*.py")), *DOCUMENTS]:
            for key in SETTING.findall(file.read_text()):
                found += 1
                self.assertIn(key, KEYS, file.name)
        self.assertGreater(found, 20)


if __name__ == "__main__":
    unittest.main()
