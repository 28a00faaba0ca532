#include "kernels/runtime/enum_names.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace switchyard::elsewhere {

// The values have gaps, their table has another order and lacks one of them, and the namespace is
// another one.
enum class Colour { red = 3, green = 1, blue = 7, secret = 9 };
SWITCHYARD_ENUM_NAMES(Colour, blue, red, green)

}  // namespace switchyard::elsewhere

namespace switchyard {
namespace {

using elsewhere::Colour;

enum class Bare { one };

TEST(EnumNamesTest, EveryListedValueHasTheNameOfItsEnumerator) {
  EXPECT_EQ(to_string(Colour::red), "red");
  EXPECT_EQ(to_string(Colour::green), "green");
  EXPECT_EQ(to_string(Colour::blue), "blue");
}

TEST(EnumNamesTest, AValueThatIsNotListedIsAQuestionMark) {
  EXPECT_EQ(to_string(Colour::secret), "?");
  EXPECT_EQ(to_string(static_cast<Colour>(0)), "?");
}

TEST(EnumNamesTest, NamesReadBackAsTheirValues) {
  EXPECT_EQ(value_of<Colour>("red"), Colour::red);
  EXPECT_EQ(value_of<Colour>("green"), Colour::green);
  EXPECT_EQ(value_of<Colour>("blue"), Colour::blue);
}

TEST(EnumNamesTest, OtherTextsAreNoValue) {
  for (const std::string text : {"", "re", "redd", "RED", " red", "red,", "secret", "?"}) {
    EXPECT_FALSE(value_of<Colour>(text)) << text;
  }
}

TEST(EnumNamesTest, TheOrderIsThatOfTheTable) {
  std::vector<std::string> names;
  for (const auto& [value, name] : names_of(Colour{})) names.emplace_back(name);

  EXPECT_EQ(names, (std::vector<std::string>{"blue", "red", "green"}));
}

TEST(EnumNamesTest, AnEnumWithoutATableIsNotNamed) {
  EXPECT_TRUE(NamedEnum<Colour>);
  EXPECT_FALSE(NamedEnum<Bare>);
}

}  // namespace
}  // namespace switchyard
