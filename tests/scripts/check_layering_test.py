"""Tests check_layering.py on small trees that break one rule each."""

import pathlib
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "scripts"))
import check_layering  # noqa: E402


class CheckLayeringTest(unittest.TestCase):
    def check(self, files):
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder)
            for name, text in files.items():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).write_text(text)
            return check_layering.check_tree(root)

    def assert_one_error(self, files, place):
        errors = self.check(files)
        self.assertEqual(len(errors), 1, errors)
        self.assertTrue(errors[0].startswith(place), errors)

    def test_accepts_includes_to_the_left(self):
        errors = self.check({
            "kernels/a.h": "#pragma once\n#include <cuda_runtime.h>\n",
            "trainer/b.cpp": '#include "kernels/a.h"\n#include <vector>\n',
        })
        self.assertEqual(errors, [])

    def test_rejects_an_include_to_the_right(self):
        self.assert_one_error({"kernels/a.cpp": '\n#include "layers/b.h"\n'}, "kernels/a.cpp:2:")

    def test_ignores_includes_in_comments(self):
        errors = self.check({"kernels/a.cpp": '/*\n#include "layers/b.h"\n*/\n// using namespace\n'})
        self.assertEqual(errors, [])

    def test_rejects_device_headers_above_parallel(self):
        for header in ["mpi.h", "nccl.h", "cuda_bf16.h", "cublas_v2.h"]:
            self.assert_one_error({"layers/a.cpp": f"#include <{header}>\n"}, "layers/a.cpp:1:")

    def test_rejects_private_rooms_of_kernels_outside_of_it(self):
        for header in ["kernels/cpu/simd.h", "kernels/cuda/launch.h", "kernels/inline/philox.h"]:
            self.assert_one_error({"trainer/a.cpp": f'#include "{header}"\n'}, "trainer/a.cpp:1:")
        self.assert_one_error({"parallel/a.cpp": '#include "kernels/cuda/support.h"\n'},
                              "parallel/a.cpp:1:")

    def test_accepts_private_rooms_in_kernels_and_one_of_them_for_nccl(self):
        errors = self.check({
            "kernels/norm/a.cpp": '#include "kernels/cpu/simd.h"\n',
            "parallel/nccl_communicator.cpp": '#include "kernels/cuda/support.h"\n',
        })
        self.assertEqual(errors, [])

    def test_rejects_a_header_without_pragma_once(self):
        self.assert_one_error({"optim/a.h": "int f();\n"}, "optim/a.h:1:")

    def test_rejects_using_namespace_in_a_header(self):
        self.assert_one_error({"optim/a.h": "#pragma once\nusing namespace std;\n"}, "optim/a.h:2:")

    def test_wants_the_own_header_first(self):
        self.assert_one_error({
            "optim/a.h": "#pragma once\n",
            "optim/a.cpp": '#include <vector>\n#include "optim/a.h"\n',
        }, "optim/a.cpp:1:")

    def test_accepts_rooms_of_trainer_in_their_order(self):
        errors = self.check({
            "trainer/main.cpp": '#include "trainer/commands/a.h"\n',
            "trainer/commands/a.h": '#pragma once\n#include "trainer/files/b.h"\n',
            "trainer/recall/a.cpp": '#include "trainer/recall/b.h"\n#include "trainer/data/c.h"\n',
            "trainer/hashing/a.cpp": '#include "trainer/inference/b.h"\n#include "layers/c.h"\n',
        })
        self.assertEqual(errors, [])

    def test_rejects_a_room_of_trainer_that_includes_a_later_one(self):
        for room, included in [("config", "data"), ("files", "config"), ("inference", "hashing"),
                               ("data", "recall"), ("checkpoint", "interop")]:
            self.assert_one_error(
                {f"trainer/{room}/a.cpp": f'\n#include "trainer/{included}/b.h"\n'},
                f"trainer/{room}/a.cpp:2:")

    def test_rejects_rooms_of_the_same_rung_that_include_each_other(self):
        for room, included in [("data", "checkpoint"), ("hashing", "recall")]:
            self.assert_one_error(
                {f"trainer/{room}/a.cpp": f'#include "trainer/{included}/b.h"\n'},
                f"trainer/{room}/a.cpp:1:")

    def test_rejects_a_room_of_trainer_that_the_order_does_not_know(self):
        self.assert_one_error({"trainer/attic/a.cpp": "#include <vector>\n"}, "trainer/attic/a.cpp:1:")
        self.assert_one_error({"trainer/commands/a.cpp": '#include "trainer/attic/a.h"\n'},
                              "trainer/commands/a.cpp:1:")

    def test_rejects_functions_longer_than_a_screen(self):
        function = "void {}(int a,\n        int b) {{\n" + "  a += b;\n" * 68 + "}}\n"
        text = "namespace n {\n\n" + function.format("f") + function.replace("  a += b;\n", "", 1).format("g") + "}\n"

        self.assert_one_error({"optim/a.cpp": text}, "optim/a.cpp:3: 71 lines")

    def test_rejects_files_of_more_than_500_lines(self):
        self.assertEqual(self.check({"optim/a.cpp": "int a;\n" * 500}), [])
        self.assert_one_error({"optim/a.cpp": "int a;\n" * 501}, "optim/a.cpp:501: 501 lines")


if __name__ == "__main__":
    unittest.main()
