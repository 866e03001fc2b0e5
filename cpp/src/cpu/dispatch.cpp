// Chooses an instruction set at run time.
#include <atomic>
#include <cstdlib>

#include "cpu/kernels.h"
#include "cpu/targets/targets.h"

namespace megalodon::cpu {
namespace {

thread_local const char* last_used = "";

// Those that this CPU supports.
std::span<const KernelTable* const> available_tables() {
  const std::span<const KernelTable* const> all = compiled_tables();
  std::size_t count = 0;
  while (count < all.size() && all[count]->supported()) ++count;
  return all.first(count);
}

const KernelTable& find(const std::string& name, const char* argument) {
  std::string available;
  for (const KernelTable* table : available_tables()) {
    if (name == table->isa) return *table;
    available += (available.empty() ? "" : ", ") + std::string(table->isa);
  }
  throw Error(Error::Kind::value, "set_isa", argument, "an available instruction set (" + available + ")",
              "'" + name + "'");
}

const KernelTable* choose() {
  if (const char* forced = std::getenv("MEGALODON_CORE_ISA"); forced != nullptr && *forced != '\0') {
    return &find(forced, "MEGALODON_CORE_ISA");
  }
  return available_tables().back();
}

std::atomic<const KernelTable*>& current() {
  static std::atomic<const KernelTable*> table{choose()};
  return table;
}

}  // namespace

const KernelTable& kernels() { return *current().load(std::memory_order_acquire); }

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const KernelTable* table : available_tables()) names.emplace_back(table->isa);
  return names;
}

void set_isa(const std::string& name) { current().store(&find(name, "name"), std::memory_order_release); }

const char* last_isa() { return last_used; }

void record_isa(const char* name) { last_used = name; }

}  // namespace megalodon::cpu
