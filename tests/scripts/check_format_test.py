"""Tests check_format.py on small trees that break one rule each."""

import pathlib
import shutil
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
import check_format  # noqa: E402


class CheckFormatTest(unittest.TestCase):
    def check(self, name, text):
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder)
            shutil.copy(ROOT / ".clang-format", root)
            (root / name).parent.mkdir(parents=True)
            (root / name).write_text(text, encoding="utf-8")
            return check_format.check_tree(root)

    def test_accepts_what_the_formatter_writes(self):
        for name in ("kernels/cuda/a.cuh", "kernels/a.cu", "tests/simt/a.h", "trainer/a.cpp"):
            self.assertEqual(self.check(name, "int f(int a) { return a + 1; }\n"), [])

    def test_rejects_another_layout_and_names_the_place(self):
        errors = self.check("kernels/a.cpp", "int a;\nint f( int a )\n{ return a+1; }\n")
        self.assertIn("kernels/a.cpp:2:7: error: code should be clang-formatted", errors[0])

    def test_rejects_comments_that_are_too_long(self):
        self.assertEqual(self.check("layers/a.h", f"// {'a' * 97}\n"), [])
        errors = self.check("layers/a.h", f"\n// {'a' * 98}\n")
        self.assertEqual(errors, ["layers/a.h:2: 101 columns, more than 100: break the line"])

    def test_counts_characters_not_bytes(self):
        self.assertEqual(self.check("layers/a.h", f"// {'ä' * 97}\n"), [])

    def test_a_tree_without_sources_is_an_error(self):
        self.assertEqual(len(self.check("docs/a.md", "text\n")), 1)


if __name__ == "__main__":
    unittest.main()
