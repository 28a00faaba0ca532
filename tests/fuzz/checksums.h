#pragma once

#include <filesystem>
#include <string>

// Checksums that are right, so that readers go on to what the checksums protect.
namespace switchyard::fuzz {

// Writes the checksum of a manifest's text into the text, if it has a place for it.
void repair_manifest(std::string& text);

// Gives the files that a manifest names the sizes and checksums that they have in `folder`, and the
// manifest its own. Texts that are no JSON stay as they are.
void repair_files_of_manifest(std::string& text, const std::filesystem::path& folder);

}  // namespace switchyard::fuzz
