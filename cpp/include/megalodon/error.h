// The one exception of the core. Bindings translate it to ValueError or TypeError.
#pragma once

#include <stdexcept>
#include <string>

namespace megalodon {

class Error : public std::runtime_error {
 public:
  enum class Kind { value, type };

  // Reads "<op>: <argument>: expected <expected>, got <got>".
  Error(Kind kind, const std::string& op, const std::string& argument, const std::string& expected,
        const std::string& got)
      : std::runtime_error(op + ": " + argument + ": expected " + expected + ", got " + got), kind_(kind) {}

  Kind kind() const { return kind_; }

 private:
  Kind kind_;
};

}  // namespace megalodon
