#include "trainer/interop/form.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <iterator>

#include "kernels/runtime/check.h"

namespace switchyard {
namespace {

constexpr char kCompact[] = "switchyard";

std::vector<std::unique_ptr<const Form>> make_forms() {
  std::vector<std::unique_ptr<const Form>> forms = make_llama_forms();
  forms.push_back(make_gpt2_form());
  forms.push_back(make_nemotron_h_form());
  forms.push_back(make_compact_form());
  return forms;
}

std::string names_of_forms_that_can(const ModelConfig& model) {
  std::vector<std::string> names;
  for (const auto& form : all_forms()) {
    if (form->obstacles(model).empty()) names.push_back(name_for_people(*form));
  }
  return fmt::format("{}", fmt::join(names, ", "));
}

const Form* first_stock_form(const ModelConfig& model, bool may_fold) {
  for (const auto& form : all_forms()) {
    if (form->name() == kCompact || !form->obstacles(model).empty()) continue;
    if (model.structure == Structure::bigmac && form->keeps_latent() == may_fold) continue;
    return form.get();
  }
  return nullptr;
}

}  // namespace

const std::vector<std::unique_ptr<const Form>>& all_forms() {
  static const std::vector<std::unique_ptr<const Form>> forms = make_forms();
  return forms;
}

std::string name_for_people(const Form& form) {
  return form.name() == kCompact ? "compact" : std::string(form.name());
}

const Form& form_of(std::string_view name) {
  const auto& forms = all_forms();
  const auto found = std::ranges::find_if(forms, [&](const auto& form) {
    return form->name() == name || name_for_people(*form) == name;
  });
  if (found != forms.end()) return **found;
  std::vector<std::string> names;
  for (const auto& form : forms) names.push_back(name_for_people(*form));
  throw Error(fmt::format("there is no form {}; there are {}", name, fmt::join(names, ", ")));
}

const Form& choose_form(std::string_view wish, const ModelConfig& model) {
  if (wish == "auto") {
    const Form* form = first_stock_form(model, /*may_fold=*/false);
    return form ? *form : form_of(kCompact);
  }
  if (wish == "folded") {
    require(model.structure == Structure::bigmac,
            "--form folded is for bigmac models; this one is {}: take --form auto",
            to_string(model.structure));
    const Form* form = first_stock_form(model, /*may_fold=*/true);
    require(form != nullptr, "no stock form can say this model folded; forms that can say it: {}",
            names_of_forms_that_can(model));
    return *form;
  }
  const Form& form = form_of(wish);
  const std::vector<std::string> obstacles = form.obstacles(model);
  require(obstacles.empty(), "the form {} cannot say {}; forms that can: {}", wish,
          fmt::join(obstacles, ", "), names_of_forms_that_can(model));
  return form;
}

}  // namespace switchyard
