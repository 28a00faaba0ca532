"""What the fault campaign (tests/faults/campaign.py) refuses before it begins."""

import unittest

from script_test_case import ROOT, ScriptTestCase


class CampaignTest(ScriptTestCase):
    def campaign(self, *arguments):
        return self.run_script(ROOT / "tests/faults/campaign.py", self.root / "switchyard",
                               "mpiexec", *arguments)

    def test_a_report_replaces_only_a_report(self):
        report = self.root / "report.json"
        for content, said in [("# Notes", "report.json is torn or is no JSON"),
                              ('{"format": "switchyard.hash_evaluation"}',
                               "report.json is no switchyard.fault_campaign")]:
            report.write_text(content)
            self.expect_sentence(self.campaign("--report", report), said, "--report")
            self.assertEqual(report.read_text(), content)
        self.expect_sentence(self.campaign("--report", self.root), "Is a directory")
        self.expect_sentence(self.campaign("--report", "/proc/none"), "/proc")
        report.write_text('{"format": "switchyard.fault_campaign"}')
        self.expect_sentence(self.campaign("--report", report),
                             "switchyard_interpose.so does not exist; build the target")

    def test_campaigns_of_nothing(self):
        for option in ("--faults", "--jobs", "--layouts"):
            self.expect_refused_argument(self.campaign(option, "0"), option, "from 1 on")
        for minutes in ("nan", "0"):
            self.expect_refused_argument(self.campaign("--minutes", minutes), "--minutes")


if __name__ == "__main__":
    unittest.main()
