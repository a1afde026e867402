// What a pass asks of the team of threads, for ThreadSanitizer: each writes a part, and all read it after a barrier.

#include <cstdio>
#include <vector>

#include "../server/engine/model/native/team.hpp"

int main() {
  for (int size : {1, 2, 3, 8}) {
    Team team(size);
    std::vector<long> numbers(1000), sums(size);
    for (int step = 0; step < 300; step++) {
      team.run([&](int rank) {
        for (int round = 0; round < 5; round++) {
          Part own = part(static_cast<int>(numbers.size()), rank, team.size());
          for (int i = own.first; i < own.last; i++) numbers[i] = step + round + i;
          team.barrier();
          sums[rank] = 0;
          for (long number : numbers) sums[rank] += number;
          team.barrier();
        }
      });
      for (long sum : sums)
        if (sum != 1000L * (step + 4) + 999 * 500) return std::puts("a sum is wrong"), 1;
    }
  }
  std::puts("the team: no race");
}
