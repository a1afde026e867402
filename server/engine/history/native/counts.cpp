// Which tokens followed which contexts in texts of the past, in a table of bounded size, and drafts from it.
//
// A context is the last 1, 2, 3, 4, 6 or 8 tokens. The idea is SuffixDecoding's (arXiv 2411.04975); a hash table takes
// the place of its tree of suffixes, so memory is bounded by construction. A context keeps two followers with their
// counts, after Misra and Gries. The chance of a follower is interpolated from the shortest context to the longest
// (Jelinek and Mercer): each adds its own counts to `PRIOR` imagined ones that fell as the shorter ones say.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <utility>

// What is kept of one context; `counts.py` reads and writes these as bytes.
struct Entry {
  uint64_t key;  // a hash of the context
  int32_t token, rival;
  uint16_t hits, rival_hits, visits, unused;
};

// A table whose counts are worth `weight` times themselves; under another salt nothing of it is found.
struct Source {
  void* counts;
  uint64_t salt;
  int32_t weight;
};

namespace {

constexpr int LENGTHS[] = {1, 2, 3, 4, 6, 8}, LONGEST = 8;
constexpr float PRIOR = 4;
constexpr int BUCKET = 4;         // entries whose keys share a hash
constexpr uint64_t SELDOM = 15;   // of so many evictions from a bucket, about one ages what stays
constexpr uint16_t MOST = 65535;  // visits, which are halved before they pass it
constexpr int MOST_SOURCES = 3;

bool is_length(int n) { return std::find(std::begin(LENGTHS), std::end(LENGTHS), n) != std::end(LENGTHS); }

// The key of a context that begins one token earlier; that of no tokens is `empty`.
uint64_t extended(uint64_t key, int32_t token) {
  key = (key ^ uint32_t(token)) * 0x9e3779b97f4a7c15u;
  return key ^ key >> 32;
}

uint64_t empty(uint64_t salt) { return extended(salt, -1); }

void halve(Entry& entry) {
  for (uint16_t* count : {&entry.hits, &entry.rival_hits, &entry.visits}) *count /= 2;
}

void count(Entry& entry, int32_t token) {
  if (entry.visits == MOST) halve(entry);
  entry.visits++;
  if (token == entry.token) {
    entry.hits++;
  } else if (token != entry.rival && entry.rival_hits > 0) {
    entry.rival_hits--;
  } else {
    entry.rival = token;
    if (++entry.rival_hits > entry.hits) {
      std::swap(entry.token, entry.rival);
      std::swap(entry.hits, entry.rival_hits);
    }
  }
}

class Counts {
 public:
  // Raises std::bad_alloc. Untouched entries take no memory.
  explicit Counts(int log_buckets)
      : shift_(64 - log_buckets),
        size_(size_t(BUCKET) << log_buckets),
        entries_(static_cast<Entry*>(std::calloc(size_, sizeof(Entry))), std::free) {
    if (!entries_) throw std::bad_alloc();
  }

  const Entry* begin() const { return entries_.get(); }
  const Entry* end() const { return begin() + size_; }

  // Null where the context was never seen, or was forgotten.
  const Entry* find(uint64_t key) const {
    const Entry* bucket = bucket_of(key);
    for (const Entry* e = bucket; e < bucket + BUCKET; e++)
      if (e->key == key && e->visits) return e;
    return nullptr;
  }

  // The context's entry; a new one takes the place of the least visited of its bucket.
  Entry& claim(uint64_t key) {
    Entry* bucket = bucket_of(key);
    Entry* least = bucket;
    for (Entry* e = bucket; e < bucket + BUCKET; e++) {
      if (e->key == key && e->visits) return *e;
      if (e->visits < least->visits) least = e;
    }
    if (least->visits && key % SELDOM == 0) std::for_each(bucket, bucket + BUCKET, halve);
    *least = Entry{key, -1, -1, 0, 0, 0, 0};
    return *least;
  }

 private:
  // By the upper bits of a product, which depend on all of the key's.
  Entry* bucket_of(uint64_t key) const { return entries_.get() + BUCKET * ((key * 0xd6e8feb86659fd93u) >> shift_); }

  const int shift_;
  const size_t size_;
  const std::unique_ptr<Entry[], void (*)(void*)> entries_;
};

// What followed one context in all sources.
class Tally {
 public:
  void add(const Entry& entry, int weight) {
    vote(entry.token, weight * entry.hits);
    vote(entry.rival, weight * entry.rival_hits);
    visits_ += weight * entry.visits;
  }

  int visits() const { return visits_; }

  int hits(int32_t token) const {
    for (const Vote* vote = votes_; vote < end_; vote++)
      if (vote->token == token) return vote->hits;
    return 0;
  }

  // The most frequent one, of equals the first.
  int32_t favourite() const {
    return std::max_element(votes_, const_cast<const Vote*>(end_), [](auto& a, auto& b) { return a.hits < b.hits; })
        ->token;
  }

 private:
  struct Vote {
    int32_t token;
    int hits;
  };

  void vote(int32_t token, int hits) {
    if (hits == 0) return;
    for (Vote* vote = votes_; vote < end_; vote++)
      if (vote->token == token) return void(vote->hits += hits);
    *end_++ = {token, hits};
  }

  Vote votes_[2 * MOST_SOURCES];
  Vote* end_ = votes_;
  int visits_ = 0;
};

struct Guess {
  int32_t token = -1;
  float chance = 0;
};

// The likeliest token after ids[.. end - 1], and how likely it is; none where no context is known.
Guess guess(const Source* sources, int num_sources, const int32_t* ids, int end) {
  uint64_t keys[MOST_SOURCES];
  for (int s = 0; s < num_sources; s++) keys[s] = empty(sources[s].salt);
  Guess best;
  for (int n = 1; n <= std::min(end, LONGEST); n++) {
    for (int s = 0; s < num_sources; s++) keys[s] = extended(keys[s], ids[end - n]);
    if (!is_length(n)) continue;
    Tally tally;
    for (int s = 0; s < num_sources; s++)
      if (const Entry* entry = static_cast<const Counts*>(sources[s].counts)->find(keys[s]))
        tally.add(*entry, sources[s].weight);
    if (tally.visits() == 0) break;  // a longer one is not known either
    const float total = tally.visits() + PRIOR;
    const int32_t token = tally.favourite();
    const Guess old{best.token, (tally.hits(best.token) + PRIOR * best.chance) / total};
    const Guess own{token, tally.hits(token) / total};
    best = token != old.token && own.chance >= old.chance ? own : old;
  }
  return best;
}

}  // namespace

extern "C" {

// A table of 4 << log_buckets entries; null where there is no memory for it.
void* counts_new(int log_buckets) {
  try {
    return new Counts(log_buckets);
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}

void counts_free(void* counts) { delete static_cast<Counts*>(counts); }

// Counts ids[first .. last - 1], each as what followed the tokens before it.
void counts_add(void* counts, uint64_t salt, const int32_t* ids, int first, int last) {
  for (int i = first; i < last; i++) {
    uint64_t key = empty(salt);
    for (int n = 1; n <= std::min(i, LONGEST); n++) {
      key = extended(key, ids[i - n]);
      if (is_length(n)) count(static_cast<Counts*>(counts)->claim(key), ids[i]);
    }
  }
}

// Counts ids[first .. size - 1] in the first source. Writes at most `limit` tokens that are likely to follow behind
// them, and how many of these are expected to be right. Ends before a token that is less likely than `floor` to be
// right together with all before it. Returns how many there are.
int counts_draft(const Source* sources, int num_sources, int32_t* ids, int first, int size, int limit, float floor,
                 float* expected) {
  counts_add(sources[0].counts, sources[0].salt, ids, first, size);
  float chance = 1;
  *expected = 0;
  for (int drafted = 0; drafted < limit; drafted++) {
    const Guess next = guess(sources, num_sources, ids, size + drafted);
    chance *= next.chance;
    if (next.token < 0 || chance < floor) return drafted;
    ids[size + drafted] = next.token;
    *expected += chance;
  }
  return limit;
}

// Writes at most `capacity` entries of at least `visits` visits; returns how many there are.
int64_t counts_save(const void* counts, int visits, Entry* out, int64_t capacity) {
  int64_t size = 0;
  for (const Entry& entry : *static_cast<const Counts*>(counts))
    if (entry.visits >= visits && size++ < capacity) out[size - 1] = entry;
  return size;
}

// Puts entries back that `counts_save` wrote; what stood in their places is forgotten.
void counts_load(void* counts, const Entry* entries, int64_t size) {
  for (const Entry* entry = entries; entry < entries + size; entry++)
    static_cast<Counts*>(counts)->claim(entry->key) = *entry;
}
}
