#!/usr/bin/env python3
"""A rank that fails in a test under MPI ends the job, and does not leave the others waiting for it.

usage: failing_rank_test.py PATH_TO_FAILING_RANK PATH_TO_MPIEXEC
"""

import os
import subprocess
import sys
import unittest

FAILING_RANK, MPIEXEC = (os.path.abspath(path) for path in sys.argv[1:3])
AFTERWARDS = "FailingRank.WhatComesAfterwards"
# Waiting ranks would wait for ever; the job itself needs a second or two.
SECONDS_TO_END = 60 * float(os.environ.get("SWITCHYARD_TEST_PATIENCE", "1"))


class FailingRank(unittest.TestCase):
    def run_tests(self, name):
        """Exit code and output of a test and of the one after it, on three ranks."""
        environment = dict(os.environ, OMP_NUM_THREADS="1", OMPI_ALLOW_RUN_AS_ROOT="1",
                           OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
        job = subprocess.run(
            [MPIEXEC, "--oversubscribe", "--mca", "mpi_yield_when_idle", "1", "-n", "3",
             FAILING_RANK, "--gtest_color=no", f"--gtest_filter=FailingRank.{name}:{AFTERWARDS}"],
            env=environment, capture_output=True, text=True, timeout=SECONDS_TO_END, check=False)
        return job.returncode, job.stdout + job.stderr

    def test_a_rank_that_leaves_a_test_ends_the_job_and_says_why(self):
        for name in ("Throws", "FailsAnAssertion"):
            with self.subTest(name):
                code, output = self.run_tests(name)

                self.assertNotEqual(code, 0, output)
                self.assertIn("[rank 2]", output)
                self.assertIn("the last rank gives up", output)
                self.assertNotIn(f"OK ] {AFTERWARDS}", output)

    def test_a_rank_that_stays_in_step_fails_at_the_end(self):
        code, output = self.run_tests("FailsAnExpectation")

        self.assertNotEqual(code, 0, output)
        self.assertIn("[rank 2]", output)
        self.assertIn("the last rank is not content", output)
        self.assertIn(f"OK ] {AFTERWARDS}", output)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
