"""What bundle.sh removes, which is a bundle and nothing else. A program stands in for cmake: it
notes its calls, and runs the file `build` in place of a build."""

import os
import shutil
import subprocess
import unittest

from script_test_case import SCRIPTS, ScriptTestCase

CMAKE = """#!/usr/bin/env bash
echo "cmake $*" >>"$ROOT/journal"
[[ "$1" != --build ]] || exec bash "$ROOT/build"
"""
MARK = "# Source this: the bundle's programs and mpirun are then on PATH and find their libraries."


class BundleTest(ScriptTestCase):
    def setUp(self):
        super().setUp()
        (self.root / "checkout" / "scripts").mkdir(parents=True)
        shutil.copy(SCRIPTS / "bundle.sh", self.root / "checkout" / "scripts")
        (self.root / "bin").mkdir()
        (self.root / "bin" / "cmake").write_text(CMAKE)
        (self.root / "bin" / "cmake").chmod(0o755)
        self.write("build", "exit 3")

    def write(self, name, text):
        file = self.root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def make_bundle(self, folder):
        self.write(f"{folder}/env.sh", MARK + "\nexport PATH\n")
        self.write(f"{folder}/gpu_check.sh", "")
        self.write(f"{folder}/bin/switchyard", "")

    def pack(self, folder):
        subprocess.run(["tar", "-C", self.root, "-czf", self.root / f"{folder}.tar.gz", folder],
                       check=True)

    def bundle(self, folder):
        return self.run_script(
            self.root / "checkout/scripts/bundle.sh", self.root / folder, env=os.environ | {
                "PATH": f"{self.root / 'bin'}:{os.environ['PATH']}", "ROOT": str(self.root)})

    def has_built(self):
        journal = self.root / "journal"
        return journal.exists() and "--build" in journal.read_text()

    def content(self, folder):
        return {path.relative_to(self.root / folder).as_posix(): path.read_text()
                for path in (self.root / folder).rglob("*") if path.is_file()}

    def test_folders_that_are_no_bundle_stay(self):
        self.write("thesis/chapter", "text")
        self.write("cluster/env.sh", "module load mpi")
        self.make_bundle("without_program")
        (self.root / "without_program/bin/switchyard").unlink()
        self.make_bundle("own_env")
        self.write("own_env/env.sh", "module load mpi")
        self.write("file", "text")
        for folder in ("thesis", "cluster", "without_program", "own_env", "file"):
            with self.subTest(folder):
                before = self.content(folder)
                self.expect_sentence(self.bundle(folder),
                                     f"{folder} is no bundle and is not empty", "another folder")
                self.assertEqual(self.content(folder), before)
        self.assertFalse(self.has_built())

    def test_archives_that_are_no_bundle_stay(self):
        self.write("new.tar.gz", "text")
        self.write("cluster/env.sh", "module load mpi")
        self.write("cluster/gpu_check.sh", "")
        self.pack("cluster")
        shutil.rmtree(self.root / "cluster")
        for folder in ("new", "cluster"):
            archive = self.root / f"{folder}.tar.gz"
            before = archive.read_bytes()
            self.expect_sentence(self.bundle(folder), f"{folder}.tar.gz is no archive of a bundle")
            self.assertEqual(archive.read_bytes(), before)
        self.assertFalse(self.has_built())

    def test_a_bundle_and_an_empty_folder_are_built_anew(self):
        self.make_bundle("old")
        self.pack("old")
        (self.root / "empty").mkdir()
        for folder in ("old", "empty", "none"):
            with self.subTest(folder):
                (self.root / "journal").unlink(missing_ok=True)
                self.assertEqual(self.bundle(folder).returncode, 3)
                self.assertTrue(self.has_built())
        self.assertIn("env.sh", self.content("old"))  # a build that fails removes nothing

    def test_what_somebody_puts_there_during_the_build_stays(self):
        self.write("build", 'mkdir "$ROOT/later" && echo text >"$ROOT/later/chapter"')

        done = self.bundle("later")

        self.expect_sentence(done, "later is no bundle and is not empty")
        self.assertEqual(self.content("later"), {"chapter": "text\n"})

    def test_the_line_that_is_looked_for_is_that_of_a_bundle(self):
        script = (SCRIPTS / "bundle.sh").read_text()
        self.assertIn(f'mark="{MARK}"', script)
        self.assertIn('{ echo "$mark" && cat; } >"$folder/env.sh"', script)


if __name__ == "__main__":
    unittest.main()
