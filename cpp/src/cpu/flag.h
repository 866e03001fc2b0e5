// A flag that one thread raises for another.
#pragma once

namespace megalodon::cpu {

// Raises a flag that was 0. What happened before it is visible to whoever waited for it.
void raise(int& flag);

// Returns once the flag is raised. Looks for some microseconds, then sleeps: a thread that waited awake would
// keep the one it waits for from its processor where there are more threads than processors.
void wait_for(int& flag);

}  // namespace megalodon::cpu
