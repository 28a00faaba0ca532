"""gpu_check.sh on a machine without a GPU: programs that only write down how they were called, sleep
or fail stand in for the bundle's, so that its order, its clock and its report can be seen."""

import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import time
import unittest

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "scripts" / "gpu_check.sh"
# Writes its call to the journal. A line "NAME sleep SECONDS" or "NAME fail" of the file of tricks
# says what the programs of that name do, or those with that argument.
STUB = """#!/usr/bin/env bash
root="$(dirname "$(dirname "$(realpath "$0")")")"
name="$(basename "$0")"
echo "$name $* order=${NCCL_LAUNCH_ORDER_IMPLICIT-} filter=${GTEST_FILTER-}" >>"$root/journal"
while read -r whose what how; do
  [[ " $name $* " == *" $whose "* ]] || continue
  [[ $what == sleep ]] && sleep "$how"
  [[ $what == fail ]] && echo "Failure of $whose" && exit 3
done <"$root/tricks"
echo "table of $name"
"""
MPIRUN = """#!/usr/bin/env bash
echo "mpirun $*" >>"$(dirname "$(dirname "$(realpath "$0")")")/journal"
while (($#)); do
  case "$1" in
    -n | --bind-to) shift 2 ;;
    --mca) shift 3 ;;
    -x) export "${2?}" && shift 2 ;;
    *) break ;;
  esac
done
exec "$@"
"""
NVIDIA_SMI = """#!/usr/bin/env bash
root="$(dirname "$(dirname "$(realpath "$0")")")"
case "$1" in
  --list-gpus) cat "$root/gpus" ;;
  --query-compute-apps*) echo 4711 ;;
  *) echo "a GPU, 580.1, 80 GiB" ;;
esac
"""


class GpuCheckTest(unittest.TestCase):
    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.root = pathlib.Path(temporary.name)
        shutil.copy(SCRIPT, self.root)
        (self.root / "env.sh").write_text(f'export PATH="{self.root}/bin:$PATH"\n')
        (self.root / "bin").mkdir()
        programs = {name: STUB for name in
                    ("switchyard", "kernels_tests", "communicator_test", "layout_equivalence_test",
                     "device_bench", "python3")}
        # What runs under the sanitizer is its arguments.
        programs |= {"mpirun": MPIRUN, "nvidia-smi": NVIDIA_SMI, "compute-sanitizer": STUB}
        for name, text in programs.items():
            (self.root / "bin" / name).write_text(text)
            (self.root / "bin" / name).chmod(0o755)
        self.set_up_machine(gpus=1)

    def set_up_machine(self, gpus, tricks=()):
        (self.root / "gpus").write_text("GPU\n" * gpus)
        (self.root / "tricks").write_text("".join(f"{trick}\n" for trick in tricks))

    def start(self, *arguments, **options):
        return subprocess.Popen(["bash", self.root / "gpu_check.sh", self.root / "report.md",
                                 *map(str, arguments)], stdout=subprocess.DEVNULL,
                                env={**os.environ, "TMPDIR": str(self.root)}, **options)

    def run_check(self, *arguments):
        return self.start(*arguments).wait(timeout=60)

    def report(self):
        return (self.root / "report.md").read_text()

    def results(self):
        rows = [line.strip("| ").split(" | ") for line in self.report().splitlines()
                if line.startswith("| ")]
        return {row[0]: row[1].rstrip(" |") for row in rows[1:]}

    def journal(self):
        return (self.root / "journal").read_text().splitlines()

    def first_call(self, text):
        return next(i for i, line in enumerate(self.journal()) if text in line)

    def test_correctness_comes_before_speed_and_the_sanitizer_last(self):
        self.assertEqual(self.run_check(), 0)

        self.assertEqual(set(self.results().values()), {"passed"}, self.report())
        order = [self.first_call(text) for text in
                 ("kernels_tests --gtest_brief", "bench configs/gpt3_medium_fine_grained.yaml",
                  "bench configs/gpt3_medium_bigmac.yaml", "bench decode", "device_bench",
                  "bench inference", "memcheck", "filter=*LongCache", "pytorch_reference.py",
                  "model.router.capacity_factor=1.2", "train.micro_batch_size=2", "racecheck")]
        self.assertEqual(order, sorted(order), self.journal())
        for suite in "Methods/GroupedLinear", "Cutlass*/GroupedActivation", "Cudnn*/Attention":
            self.assertIn(suite, self.journal()[self.first_call("memcheck")])
        self.assertIn("SelectTopK", self.journal()[self.first_call("filter=*LongCache")])
        self.assertLess(self.first_call("methods_test.py bin/switchyard mpirun -k OnAnyDevice"),
                        self.first_call("bench configs"))
        self.assertIn("## ops\n\ntable of device_bench", self.report())
        self.assertNotIn("nccl", self.report())

    def test_several_gpus_check_nccl_first(self):
        self.set_up_machine(gpus=4)

        self.assertEqual(self.run_check("report|nccl_(comm|order|layouts)|kernels"), 0)

        self.assertEqual(list(self.results()), ["nccl_communicators", "nccl_order_1",
                                                "nccl_order_0", "nccl_layouts", "kernels"])
        steps = [line for line in self.journal() if "--steps 1000" in line and "order=" in line]
        self.assertEqual([line.split("order=")[1][0] for line in steps], ["1", "0"])
        self.assertTrue(all("parallel.ep=2" in line and "global_batch_size=4" in line
                            for line in steps))
        self.assertIn("mpirun -n 4", self.journal()[0])
        self.assertGreater(self.first_call("kernels_tests"), self.first_call("layout_equivalence"))

    def test_a_failure_stops_nothing_and_is_shown(self):
        self.set_up_machine(gpus=1, tricks=["device_bench fail"])

        self.assertEqual(self.run_check(), 1)

        self.assertEqual(self.results()["ops"], "failed (3)")
        self.assertIn("Failure of device_bench", self.report())
        self.assertEqual(self.results()["racecheck"], "passed")

    def test_stages_share_the_time_and_a_slow_one_has_only_what_is_left(self):
        self.set_up_machine(gpus=1, tricks=["decode sleep 1", "device_bench sleep 20"])
        begin = time.monotonic()

        self.assertEqual(self.run_check("^(step_fine_grained|decode|ops|inference)$", 6), 1)

        self.assertLess(time.monotonic() - begin, 12)
        self.assertEqual(self.results(), {"step_fine_grained": "passed", "decode": "passed",
                                          "ops": "out of time", "inference": "no time left"})

    def test_a_check_of_nothing_is_no_success(self):
        for arguments, said in [
                (["kernls"], "no stage matches 'kernls'; this machine has kernels methods program"),
                (["nccl"], "no stage matches 'nccl'; this machine has kernels"),
                (["("], "STAGES is '(', which is no regular expression"),
                *(([".", seconds], f"SECONDS is '{seconds}'; give a whole number of them")
                  for seconds in ("0", "-5", "soon", "1.5", "08", "1e3"))]:
            with self.subTest(arguments):
                process = self.start(*arguments, stderr=subprocess.PIPE, text=True)
                _, errors = process.communicate(timeout=60)
                self.assertEqual(process.returncode, 2)
                self.assertEqual(len(errors.splitlines()), 1, errors)
                self.assertTrue(errors.startswith(f"gpu_check: {said}"), errors)
                self.assertFalse((self.root / "report.md").exists())
                self.assertFalse((self.root / "journal").exists())

    def test_whoever_kills_it_finds_what_was_finished(self):
        self.set_up_machine(gpus=1, tricks=["device_bench sleep 20"])
        for how in (signal.SIGKILL, signal.SIGTERM):
            (self.root / "journal").write_text("")
            process = self.start("step_fine|ops|inference")
            for _ in range(200):
                if "device_bench" in (self.root / "journal").read_text():
                    break
                time.sleep(0.05)
            time.sleep(0.2)

            process.send_signal(how)
            process.wait(timeout=10)

            self.assertEqual(self.results(), {"step_fine_grained": "passed",
                                              "ops": "not finished", "inference": "not finished"})
            self.assertIn("table of switchyard", self.report())


if __name__ == "__main__":
    unittest.main()
