#include "trainer/files/outputs.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <hdf5.h>
#include <sys/stat.h>

#include <vector>

#include "tests/support/error_of.h"
#include "tests/support/temporary_folder.h"
#include "trainer/data/token_file.h"
#include "trainer/files/durable_file.h"
#include "trainer/hashing/hash_weights.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;
using test::error_of;
using testing::AllOf;
using testing::HasSubstr;

class OutputsTest : public testing::Test {
 protected:
  fs::path put(const std::string& name, const std::string& text = "text") const {
    test::write_file(folder_.path() / name, text);
    return folder_.path() / name;
  }
  fs::path at(const std::string& name) const { return folder_.path() / name; }

  std::string clash(const std::vector<fs::path>& outputs,
                    const std::vector<fs::path>& inputs) const {
    std::vector<NamedFile> out, in;
    for (const fs::path& path : outputs) out.push_back({fmt::format("output{}", out.size()), path});
    for (const fs::path& path : inputs) in.push_back({"input", path});
    return error_of([&] { require_distinct(out, in); });
  }

  test::TemporaryFolder folder_;
};

TEST_F(OutputsTest, OnlyFilesOfTheFormatAndEmptyOnesAreReplaced) {
  const auto error_for = [](const fs::path& path) {
    return error_of([&] {
      require_replaceable({"--out", path}, "a report",
                          [](const fs::path& old) { return begins_with(old, "report"); });
    });
  };
  fs::create_directory(at("folder"));
  ASSERT_EQ(::mkfifo(at("pipe").c_str(), 0600), 0);
  fs::create_symlink("notes.txt", at("link"));
  fs::create_symlink("nowhere", at("dangling"));
  put("notes.txt", "my notes");

  EXPECT_EQ(error_for(at("missing")), "");
  EXPECT_EQ(error_for(at("dangling")), "");
  EXPECT_EQ(error_for(put("empty", "")), "");
  EXPECT_EQ(error_for(put("old", "report 1")), "");
  EXPECT_THAT(
      error_for(at("notes.txt")),
      HasSubstr("notes.txt is not a report, so --out does not replace it; name another file, "
                "or move this one away"));
  EXPECT_THAT(error_for(put("part", "rep")), HasSubstr("is not a report"));
  EXPECT_TRUE(begins_with_part_of(at("part"), "report"));
  EXPECT_FALSE(begins_with_part_of(at("notes.txt"), "report"));
  EXPECT_THAT(error_for(put("short", "reb")), HasSubstr("is not a report"));
  EXPECT_THAT(error_for(at("link")), HasSubstr("is not a report"));
  EXPECT_THAT(error_for(at("folder")), HasSubstr("is a folder, but --out is a report"));
  EXPECT_THAT(error_for(at("pipe")), HasSubstr("is a device or a pipe"));
}

TEST_F(OutputsTest, AnHdf5FileIsRecognizedByWhatItSaysOrByDamage) {
  const auto is_own = [](const hdf5::File& file) { return file.has_attribute("mine"); };
  for (const char* name : {"mine", "other"}) {
    hdf5::File file = hdf5::File::create(at(name));
    file.set_string(name, "1");
    file.close();
  }

  EXPECT_TRUE(is_hdf5(at("mine"), is_own));
  EXPECT_FALSE(is_hdf5(at("other"), is_own));
  EXPECT_TRUE(is_hdf5(put("torn", test::read_file(at("mine")).substr(0, 40)), is_own));
  EXPECT_FALSE(is_hdf5(put("text"), is_own));
  EXPECT_FALSE(is_hdf5(put("empty", ""), is_own));
}

TEST_F(OutputsTest, AnIntactHdf5FileThatCannotBeOpenedIsNotDamaged) {
  const auto is_own = [](const hdf5::File&) { return true; };
  hdf5::File::create(at("file")).close();
  const std::string bytes = test::read_file(at("file"));
  const auto put_with = [&](size_t place, char byte) {
    std::string changed = bytes;
    changed[place] = byte;
    return put("changed", changed);
  };

  EXPECT_TRUE(is_hdf5(put_with(12, '\x55'), is_own));   // an address of the first bytes
  EXPECT_FALSE(is_hdf5(put_with(8, '\x09'), is_own));   // the version of a later HDF5
  EXPECT_FALSE(is_hdf5(put_with(11, '\x05'), is_own));  // a writer has it open
}

TEST_F(OutputsTest, WhatSomebodyElseCallsFormatIsNoDamage) {
  // As h5py writes strings.
  const hid_t file = H5Fcreate(at("h5py").c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
  const hid_t type = H5Tcopy(H5T_C_S1), space = H5Screate(H5S_SCALAR);
  H5Tset_size(type, H5T_VARIABLE);
  const hid_t attribute = H5Acreate2(file, "format", type, space, H5P_DEFAULT, H5P_DEFAULT);
  const char* text = "measurements";
  H5Awrite(attribute, type, &text);
  H5Aclose(attribute);
  H5Sclose(space);
  H5Tclose(type);
  H5Fclose(file);
  hdf5::File number = hdf5::File::create(at("number"));
  number.set_int("format", 2);
  number.close();

  for (const char* name : {"h5py", "number"}) {
    const std::string before = test::read_file(at(name));
    EXPECT_THAT(error_of([&] {
                  require_replaceable_weights({"hash.weights", at(name)});
                }),
                HasSubstr("is not a file of hash weights, so hash.weights does not replace it"));
    EXPECT_FALSE(is_hdf5(at(name), says_token_file));
    EXPECT_EQ(test::read_file(at(name)), before);
  }
}

TEST_F(OutputsTest, FilesAreTheSameThroughLinksFoldersAndNamesYetToCome) {
  put("a/file");
  fs::create_directory_symlink("a", at("b"));
  fs::create_hard_link(at("a/file"), at("hard"));
  fs::create_symlink("a/file", at("soft"));
  fs::create_symlink("a/new", at("dangling"));

  for (const char* other : {"b/file", "hard", "soft", "a/../b/./file"}) {
    EXPECT_TRUE(is_same_file(at("a/file"), at(other))) << other;
  }
  EXPECT_TRUE(is_same_file(at("a/new"), at("b/new")));
  EXPECT_TRUE(is_same_file(at("a/new"), at("dangling")));
  EXPECT_TRUE(is_same_file(at("none/new"), at("a/../none/new")));
  EXPECT_FALSE(is_same_file(at("a/new"), at("new")));
  EXPECT_FALSE(is_same_file(at("a/file"), at("a/new")));
  EXPECT_FALSE(is_same_file(at("a/file"), put("file")));
}

TEST_F(OutputsTest, AnOutputIsNoInputAndNoOtherOutput) {
  put("a/text.txt");
  fs::create_hard_link(at("a/text.txt"), at("hard"));
  fs::create_symlink("other", at("link"));

  EXPECT_EQ(clash({at("x"), at("y")}, {at("a/text.txt"), at("z")}), "");
  EXPECT_THAT(
      clash({at("x"), at("hard")}, {at("a/text.txt")}),
      AllOf(HasSubstr("output1 would overwrite"), HasSubstr("a/text.txt, which input reads")));
  EXPECT_THAT(clash({at("x"), at("a/../x")}, {}),
              HasSubstr("output0 and output1 are the same file"));
  EXPECT_THAT(clash({at("link"), at("other")}, {}), HasSubstr("are the same file"));
  // Names under which unfinished files are written.
  EXPECT_THAT(clash({at("x"), at("x.tmp")}, {}), HasSubstr("while it is written"));
  EXPECT_THAT(clash({at("x.spool.tmp"), at("x")}, {}), HasSubstr("while it is written"));
  EXPECT_THAT(clash({at("link")}, {put("other.tmp")}), HasSubstr("would overwrite"));
}

TEST_F(OutputsTest, AFileIsWithinAFolderThroughLinks) {
  put("a/b/file");
  fs::create_directory_symlink("a/b", at("c"));

  EXPECT_TRUE(is_within(at("a/b/file"), at("a")));
  EXPECT_TRUE(is_within(at("c/new"), at("a")));
  EXPECT_FALSE(is_within(at("ab/new"), at("a")));
  EXPECT_FALSE(is_within(at("a/new"), at("a/b")));
}

TEST_F(OutputsTest, AnOutputThatIsALinkIsWrittenToItsTarget) {
  put("disk/data", "old");
  fs::create_directories(at("run"));
  fs::create_symlink("../disk/data", at("run/data"));
  fs::create_symlink("../disk/new", at("run/new"));
  fs::create_symlink("circle", at("circle"));

  write_durably(at("run/data"), "new");
  write_durably(at("run/new"), "first");

  EXPECT_TRUE(fs::is_symlink(at("run/data")));
  EXPECT_EQ(test::read_file(at("disk/data")), "new");
  EXPECT_EQ(test::read_file(at("disk/new")), "first");
  EXPECT_THAT(error_of([&] { write_durably(at("circle"), "x"); }), HasSubstr("leads in a circle"));
}

TEST_F(OutputsTest, ALeftoverWithAnotherNameIsNotWrittenInto) {
  put("precious", "mine");
  fs::create_hard_link(at("precious"), at("hard.tmp"));
  fs::create_symlink("precious", at("soft.tmp"));

  write_durably(at("hard"), "new");
  write_durably(at("soft"), "new");

  EXPECT_EQ(test::read_file(at("precious")), "mine");
  EXPECT_EQ(test::read_file(at("soft")), "new");
}

}  // namespace
}  // namespace switchyard
